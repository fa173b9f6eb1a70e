//! Removes a pod and all the driver made for it. Goes on past errors and answers with the first.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use tonic::Code;

use serde::{Deserialize, Serialize};

use crate::proto;
use crate::types::now_ns;

use super::client::{Cri, CriError};
use super::pod_worker::WorkerError;
use super::record::{Claim, Record};
use super::translate::{Dirs, PodJob, labels};
use super::volumes;

/// A pod by its labels: enough to remove it when its manifest is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Owner label.
    pub owner: String,
}

impl PodRef {
    /// Of a job.
    pub fn of(job: &PodJob) -> Self {
        let metadata = &job.pod.metadata;
        Self {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: job.uid.clone(),
            owner: job.owner.clone(),
        }
    }

    /// Of a sandbox; `None` for one that no driver of this kind made.
    pub fn from_labels(labels: &HashMap<String, String>) -> Option<Self> {
        let get = |key: &str| labels.get(key).cloned();
        let found = Self {
            namespace: get(labels::POD_NAMESPACE)?,
            name: get(labels::POD_NAME)?,
            uid: get(labels::POD_UID)?,
            owner: get(labels::OWNER)?,
        };
        found.is_plain().then_some(found)
    }

    /// Whether its parts can be file names: they become some.
    pub fn is_plain(&self) -> bool {
        let plain = |text: &&String| !text.is_empty() && !text.contains(['/', '\0']) && !text.starts_with('.');
        [&self.namespace, &self.name, &self.uid, &self.owner].iter().all(plain)
    }

    /// The labels by which the runtime finds it.
    pub fn selector(&self) -> HashMap<String, String> {
        [(labels::POD_UID, &self.uid), (labels::OWNER, &self.owner)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    }
}

/// Stops what still runs of a pod, with `grace` seconds, and removes its sandboxes, containers, volumes, logs and
/// cgroup folders. `claim` is to its folder.
///
/// # Errors
/// The first thing that could not be removed; calling again tries the rest.
pub async fn teardown(cri: &Cri, dirs: &Arc<Dirs>, pod: &PodRef, grace: u32, claim: &Claim) -> Result<(), WorkerError> {
    stop(cri, pod, grace).await?;
    let mut results = Vec::new();
    let mut newest = None;
    for sandbox in cri.sandboxes(pod.selector()).await? {
        newest = newest.max(Some(sandbox.created_at));
        let remove = proto::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
        results.push(lenient(cri.remove_pod_sandbox(remove).await));
    }
    results.into_iter().collect::<Result<(), _>>()?;
    let (dirs, pod) = (dirs.clone(), pod.clone());
    let folder = claim.folder().try_clone_to_owned().map_err(volumes::io_error(&dirs.pods.join(&pod.uid), "hold"))?;
    let cleaned = tokio::task::spawn_blocking(move || {
        let files = dirs.pods.join(&pod.uid);
        // Without its record nobody would find the sandbox that may yet come.
        if let Some(left) = Record::read(&files).and_then(|record| record.awaited(newest, now_ns())) {
            return Err(WorkerError::Awaited { left });
        }
        let content = volumes::remove_content(folder.as_fd());
        let logs = volumes::remove_tree(&dirs.logs.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid)));
        remove_cgroups(&pod.uid);
        // Its record stays to the end: by that the rest is found again.
        content.and(logs)?;
        Ok(volumes::remove_tree(&files)?)
    });
    cleaned.await?
}

/// Stops what still runs of a pod, with `grace` seconds, and its sandboxes.
///
/// # Errors
/// The first thing that could not be stopped.
pub async fn stop(cri: &Cri, pod: &PodRef, grace: u32) -> Result<(), WorkerError> {
    let (sandboxes, containers) = tokio::try_join!(cri.sandboxes(pod.selector()), cri.containers(pod.selector()))?;
    let live = containers.iter().filter(|container| container.state() == proto::ContainerState::ContainerRunning);
    let stopped = join_all(live.map(|container| cri.stop_container(&container.id, grace))).await;
    let mut results: Vec<Result<(), WorkerError>> = stopped.into_iter().map(lenient).collect();
    for sandbox in sandboxes {
        let stop = proto::StopPodSandboxRequest { pod_sandbox_id: sandbox.id };
        results.push(lenient(cri.stop_pod_sandbox(stop).await));
    }
    results.into_iter().collect()
}

fn lenient<T>(result: Result<T, CriError>) -> Result<(), WorkerError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Code::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// With the cgroupfs driver a runtime makes the pod's folder but need not remove it: on a node kubelet does. Only
/// empty folders can be removed like this.
pub(super) fn remove_cgroups(uid: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![root.to_owned()];
    let listed = std::fs::read_dir(root).into_iter().flatten().flatten();
    hierarchies
        .extend(listed.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    for hierarchy in &hierarchies {
        for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            remove_empty(&hierarchy.join(class).join(format!("pod{uid}")));
        }
    }
}

/// Removes the empty folders all pods share, which a machine without kubelet has no other use for.
pub fn remove_shared_cgroups() {
    let root = Path::new("/sys/fs/cgroup");
    let listed = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in listed.chain([root.to_owned()]) {
        for class in ["kubepods/burstable", "kubepods/besteffort", "kubepods"] {
            remove_empty(&hierarchy.join(class));
        }
    }
}

fn remove_empty(path: &PathBuf) {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), %error, "cgroup folder stays");
        }
        _ => {}
    }
}
