//! Undoing a sandbox: one way for a failed creation, a stop and what a dead daemon left behind.
//!
//! Every step is safe when its object is half there, was never made or is gone already, and every
//! step is tried even if one before it failed; all errors are told.

use std::sync::Arc;
use std::time::Duration;

use super::config::NamespaceMode;
use super::context::{Context, KILL_LIMIT, blocking};
use super::error::PodError;
use super::files;
use super::record::PodRecord;
use crate::cgroup;
use crate::launch::monitor::Monitor;
use crate::sys;
use crate::types::{ErrorKind, HasKind};

/// How long to wait between looks at a cgroup that is being emptied: v1 has no event for it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Ends everything that runs in the pod and takes its network, mounts and cgroups away.
/// `monitor`: the open connection, if there is one; `container_cgroups`: for the case that the
/// monitor is gone.
pub(super) async fn run(
    context: &Arc<Context>,
    record: &PodRecord,
    monitor: Option<Monitor>,
    container_cgroups: &[std::path::PathBuf],
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
    let mut errors = vec![ended.err(), detached.err()];
    // A namespace that the plugins still have to clean stays: DEL is tried again with it.
    if own_network && errors.get(1).is_some_and(Option::is_none) {
        let removed = context.network.remove_netns(&paths.netns()).await;
        errors.push(removed.map_err(|error| PodError::of("network namespace", &error)).err());
    }
    let (unmounted, cgroups, made) = (paths.clone(), record.cgroups.clone(), record.made_parents.clone());
    errors.push(blocking("shm", move || files::unmount(&unmounted)).await.err());
    let removed = tokio::task::spawn_blocking(move || {
        let removed = cgroup::remove(&cgroups);
        cgroup::remove_empty_parents(&cgroups, &made);
        removed
    });
    errors.push(match removed.await {
        Ok(removed) => removed.map_err(|error| PodError::of("cgroup", &error)).err(),
        Err(error) => Some(PodError::failed(ErrorKind::Internal, format!("cgroup: {error}"))),
    });
    join(errors)
}

fn join(errors: Vec<Option<PodError>>) -> Result<(), PodError> {
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

/// Shuts the monitor down, or, where it does not answer, kills the pod's cgroups and it.
async fn processes(
    context: &Context,
    record: &PodRecord,
    monitor: Option<Monitor>,
    container_cgroups: &[std::path::PathBuf],
) -> Result<(), PodError> {
    let paths = context.paths(&record.id);
    let monitor = match monitor {
        Some(monitor) => Some(monitor),
        None => context.launcher.connect(&record.id, &paths.state).await.ok().map(|(monitor, _, _)| monitor),
    };
    if let Some(monitor) = monitor
        && matches!(tokio::time::timeout(KILL_LIMIT, monitor.shutdown()).await, Ok(Ok(())))
    {
        return Ok(());
    }
    if let Some(process) = record.monitor {
        sys::process::kill_if_same(process.pid, process.start_time);
    }
    let folders: Vec<_> = record.cgroups.iter().chain(container_cgroups).cloned().collect();
    empty(folders).await
}

/// Kills what lives in the folders until nothing does, and removes them.
pub(super) async fn empty(folders: Vec<std::path::PathBuf>) -> Result<(), PodError> {
    let emptied = async {
        loop {
            let looked = folders.clone();
            let populated = blocking("cgroup", move || {
                cgroup::kill_all(&looked);
                Ok(cgroup::populated(&looked))
            })
            .await?;
            if !populated {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(KILL_LIMIT, emptied).await {
        Ok(result) => result?,
        Err(_) => {
            let text = format!("processes in {folders:?} do not end on SIGKILL");
            return Err(PodError::failed(ErrorKind::DeadlineExceeded, text));
        }
    }
    match tokio::task::spawn_blocking(move || cgroup::remove(&folders)).await {
        Ok(removed) => removed.map_err(|error| PodError::of("cgroup", &error)),
        Err(error) => Err(PodError::failed(ErrorKind::Internal, format!("cgroup: {error}"))),
    }
}
