//! Removes pods that `podwright run` left, by their names: all that was made for them, and nothing else.
//!
//! A pod is the driver's if its own folder says so: labels alone could be set by any client of the runtime. Its folder
//! is claimed first, so that a driver that still works on it is not pulled the ground from under its feet: that driver
//! could just be mounting a folder of the host below one that is being deleted.

use std::sync::Arc;

use crate::types::{ErrorKind, HasKind};

use super::client::{Cri, CriError, path_of};
use super::one_shot::OWNER;
use super::pod_worker::WorkerError;
use super::record::{Claim, Held, Record};
use super::teardown::{PodRef, remove_shared_cgroups, teardown};
use super::translate::{Dirs, labels};
use super::volumes::VolumeError;

/// Why a pod is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error("there is no pod {pod} that podwright run made")]
    Unknown {
        /// As asked.
        pod: String,
    },
    /// The runtime has one, but it is not ours.
    #[error("pod {pod} was not made by podwright run with this --root; crictl rmp -f {sandbox} removes its sandbox")]
    Foreign {
        /// As asked.
        pod: String,
        /// Its sandbox.
        sandbox: String,
    },
    /// `podwright kubelet` keeps it running.
    #[error("pod {pod} belongs to podwright kubelet, which would make it anew: remove its manifest {manifest}")]
    Kubelet {
        /// Namespace and name.
        pod: String,
        /// File.
        manifest: String,
    },
    /// A driver works on it.
    #[error("pod {pod} is being run by process {pid}: end that first (kill {pid} stops the pod)")]
    Busy {
        /// Namespace and name.
        pod: String,
        /// Process id.
        pid: u32,
    },
    /// Another runtime has it.
    #[error("pod {pod} is on another runtime: give --runtime-endpoint {endpoint}")]
    Elsewhere {
        /// Namespace and name.
        pod: String,
        /// Where it is.
        endpoint: String,
    },
    /// The runtime does not answer.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// Something of it cannot be removed.
    #[error("pod {pod}")]
    Remove {
        /// Namespace and name.
        pod: String,
        /// Why.
        #[source]
        source: Box<WorkerError>,
    },
    /// The driver's folders cannot be read.
    #[error(transparent)]
    Files(#[from] VolumeError),
    /// A thread of the driver broke down.
    #[error("the driver's own work broke down: {0}")]
    Join(#[from] tokio::task::JoinError),
}

impl HasKind for RemoveError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Foreign { .. } | Self::Kubelet { .. } | Self::Busy { .. } | Self::Elsewhere { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Cri(source) => source.kind(),
            Self::Remove { source, .. } => source.kind(),
            Self::Files(source) => source.kind(),
            Self::Join(_) => ErrorKind::Internal,
        }
    }
}

/// A pod to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Namespace.
    pub namespace: String,
    /// Name, or uid.
    pub name: String,
    /// Uid, if it must be this one.
    pub uid: Option<String>,
}

impl Wanted {
    /// `NAME`, of namespace `default`, or `NAMESPACE/NAME`; a uid may stand for the name.
    pub fn parse(text: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Self { namespace: namespace.to_owned(), name: name.to_owned(), uid: None }
    }

    fn is(&self, pod: &PodRef) -> bool {
        let named = self.namespace == pod.namespace && self.name == pod.name;
        (named || self.name == pod.uid) && self.uid.as_ref().is_none_or(|uid| *uid == pod.uid)
    }
}

/// Where and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Runtime endpoint, as given.
    pub endpoint: String,
    /// Where files are.
    pub dirs: Arc<Dirs>,
    /// Seconds that overrule the pod's own grace period.
    pub grace: Option<u32>,
}

/// Stops and removes all pods of this name, also those of which only the driver's folders are left. Answers with what
/// became of each: it may not be ours to remove, or something of it cannot be removed; calling again tries the rest.
///
/// # Errors
/// There is none.
pub async fn remove(
    cri: &Cri,
    options: &Options,
    wanted: &Wanted,
) -> Result<Vec<Result<PodRef, RemoveError>>, RemoveError> {
    let dirs = options.dirs.clone();
    let mut records = tokio::task::spawn_blocking(move || Record::all(&dirs)).await??;
    records.retain(|record| wanted.is(&record.pod));
    if records.is_empty() {
        return Err(unknown(cri, wanted).await?);
    }
    let mut removed = Vec::new();
    for record in records {
        removed.push(one(cri, options, &record).await.map(|()| record.pod));
    }
    remove_shared_cgroups();
    Ok(removed)
}

async fn one(cri: &Cri, options: &Options, record: &Record) -> Result<(), RemoveError> {
    let pod = format!("{}/{}", record.pod.namespace, record.pod.name);
    if record.pod.owner != OWNER {
        return Err(RemoveError::Kubelet { pod, manifest: record.manifest.clone() });
    }
    if !record.endpoint.is_empty() && path_of(&record.endpoint) != path_of(&options.endpoint) {
        return Err(RemoveError::Elsewhere { pod, endpoint: record.endpoint.clone() });
    }
    let folder = options.dirs.pods.join(&record.pod.uid);
    let claim = match tokio::task::spawn_blocking(move || Claim::hold(&folder)).await?? {
        Held::Mine(claim) => claim,
        Held::Others => return Err(RemoveError::Busy { pod, pid: record.pid }),
        // It goes last: another rm has just removed the pod.
        Held::Gone => return Ok(()),
    };
    let grace = options.grace.unwrap_or(record.grace);
    let gone = teardown(cri, &options.dirs, &record.pod, grace, &claim).await;
    gone.map_err(|source| RemoveError::Remove { pod, source: Box::new(source) })
}

/// What to say of a pod that has no folder of ours.
async fn unknown(cri: &Cri, wanted: &Wanted) -> Result<RemoveError, CriError> {
    let named = [(labels::POD_NAMESPACE, &wanted.namespace), (labels::POD_NAME, &wanted.name)];
    let named = named.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let pod = format!("{}/{}", wanted.namespace, wanted.name);
    let found = cri.sandboxes(named).await?.into_iter().next();
    Ok(match found {
        Some(sandbox) => RemoveError::Foreign { pod, sandbox: sandbox.id },
        None => RemoveError::Unknown { pod },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_namespace() {
        let text = |s: &str| s.to_owned();
        let pod = PodRef { namespace: text("ns"), name: text("web"), uid: text("u-1"), owner: text("run") };
        for (wanted, want) in [("ns/web", true), ("web", false), ("default/web", false), ("u-1", true), ("ns", false)] {
            assert_eq!(Wanted::parse(wanted).is(&pod), want, "{wanted}");
        }
        assert!(!Wanted { uid: Some(text("u-2")), ..Wanted::parse("ns/web") }.is(&pod));
        assert_eq!(path_of("unix:///a/b"), path_of("/a/b"));
    }
}
