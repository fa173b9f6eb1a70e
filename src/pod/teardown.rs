//! Undoing a sandbox: one way for a failed creation, a stop and what a dead daemon left behind.
//!
//! Every step is safe when its object is half there, was never made or is gone already, and every
//! step is tried even if one before it failed; all errors are told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::config::NamespaceMode;
use super::context::{Context, KILL_LIMIT, blocking};
use super::error::PodError;
use super::files::{self, PodPaths};
use super::record::PodRecord;
use crate::cgroup;
use crate::launch::monitor::Monitor;
use crate::sys;
use crate::types::{ContainerId, ErrorKind, HasKind, PodId};
use crate::wire::Process;

/// How long to wait between looks at a cgroup that is being emptied: v1 has no event for it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long a monitor that is to end may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Ends everything that runs in the pod and takes its network, mounts and cgroups away.
/// `monitor`: the open connection, if there is one; `container_cgroups`: those of the containers that
/// are known, for the case that the monitor is gone.
pub(super) async fn run(
    context: &Arc<Context>,
    record: &PodRecord,
    monitor: Option<Monitor>,
    container_cgroups: Vec<PathBuf>,
) -> Result<(), PodError> {
    let paths = context.paths(&record.id);
    let own_network = record.config.security.namespaces.network != NamespaceMode::Node;
    let network = async {
        if !own_network {
            return Ok(());
        }
        let detached = context.network.detach(&record.id, &paths.network_record()).await;
        detached.map_err(|error| PodError::of("network", &error))
    };
    let (ended, detached) = tokio::join!(processes(context, record, monitor, container_cgroups), network);
    let mut errors = vec![ended.err()];
    // A namespace that the plugins still have to clean stays: DEL is tried again with it.
    if own_network && detached.is_ok() {
        let removed = context.network.remove_netns(&paths.netns()).await;
        errors.push(removed.map_err(|error| PodError::of("network namespace", &error)).err());
    }
    errors.push(detached.err());
    errors.push(blocking("shm", move || files::unmount(&paths)).await.err());
    if errors.first().is_some_and(Option::is_none) {
        let (cgroups, record) = (context.cgroups.clone(), record.clone());
        let released = move || {
            cgroups.parents().release(record.id.as_str(), &record.made_parents);
            Ok(())
        };
        errors.push(blocking("cgroup", released).await.err());
    }
    join(errors)
}

pub(super) fn join(errors: Vec<Option<PodError>>) -> Result<(), PodError> {
    let errors: Vec<PodError> = errors.into_iter().flatten().collect();
    match errors.first() {
        None => Ok(()),
        Some(first) => {
            let kind = first.kind();
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Err(PodError::failed(kind, all.join("; ")))
        }
    }
}

/// Ends the monitor, and with it or after it all that runs in the pod's cgroups.
async fn processes(
    context: &Arc<Context>,
    record: &PodRecord,
    monitor: Option<Monitor>,
    container_cgroups: Vec<PathBuf>,
) -> Result<(), PodError> {
    end_monitor(context, &record.id, monitor, record.monitor).await?;
    let (paths, looker, mut folders) = (context.paths(&record.id), context.clone(), record.cgroups.clone());
    let parent = context.cgroup_parent(&record.config.cgroup_parent).ok();
    folders.extend(container_cgroups);
    let folders = blocking("containers", move || {
        // Also of containers whose records cannot be read.
        for id in containers(&paths) {
            folders
                .extend(parent.iter().flat_map(|parent| looker.cgroups.container_folders(&parent.leaf(id.as_str()))));
        }
        folders.sort();
        folders.dedup();
        Ok(folders)
    })
    .await?;
    empty(folders).await
}

/// Ids of the containers that have folders. Blocks.
pub(super) fn containers(paths: &PodPaths) -> Vec<ContainerId> {
    let mut ids: Vec<_> = [paths.data.join("containers"), paths.state.join("containers")]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| ContainerId::parse(entry.file_name().to_str()?).ok())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Shuts a pod's monitor down, or, where it does not answer, kills it. What it was to look after may
/// go on; a monitor that is gone is fine.
pub(super) async fn end_monitor(
    context: &Context,
    pod: &PodId,
    monitor: Option<Monitor>,
    process: Option<Process>,
) -> Result<(), PodError> {
    let state = context.paths(pod).state;
    let monitor = match monitor {
        Some(monitor) => Some(monitor),
        None => match tokio::time::timeout(HELLO_LIMIT, context.launcher.connect(pod, &state)).await {
            Ok(connected) => connected.ok().map(|(monitor, _, _)| monitor),
            Err(_) => None,
        },
    };
    if let Some(monitor) = monitor
        && matches!(tokio::time::timeout(KILL_LIMIT, monitor.shutdown()).await, Ok(Ok(())))
    {
        return Ok(());
    }
    if let Some(process) = process {
        sys::process::kill_if_same(process.pid, process.start_time);
    }
    // One that no record tells of yet, or that this daemon cannot reach.
    let id = pod.clone();
    let killed =
        blocking("monitor", move || Ok(sys::process::kill_by_arguments(&["--pod", id.as_str(), "--dir"]))).await?;
    if !killed.is_empty() {
        tracing::warn!(%pod, ?killed, "killed a monitor that could not be shut down");
    }
    Ok(())
}

/// Kills what lives in the folders until nothing does, and removes them; missing ones are fine.
pub(super) async fn empty(folders: Vec<PathBuf>) -> Result<(), PodError> {
    let mut last = None;
    let emptied = async {
        loop {
            let looked = folders.clone();
            let removed = blocking("cgroup", move || {
                // A process may be counted for a moment after its end: removal fails until it is not.
                Ok(cgroup::remove(&looked).inspect_err(|_| cgroup::kill_all(&looked)))
            })
            .await?;
            match removed {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(KILL_LIMIT, emptied).await {
        Ok(result) => result,
        Err(_) => Err(match last {
            Some(error) if !cgroup::populated(&folders) => PodError::of("cgroup", &error),
            _ => {
                let text = format!("processes in {folders:?} do not end on SIGKILL");
                PodError::failed(ErrorKind::DeadlineExceeded, text)
            }
        }),
    }
}
