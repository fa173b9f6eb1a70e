//! What others may see of a container: an immutable snapshot that its pod's driver task publishes.

use std::path::PathBuf;
use std::sync::Arc;

use super::config::{ContainerConfig, Resources};
use crate::types::{ContainerId, Digest, PodId, Signal};

/// CRI's container states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its init process lives.
    Running,
    /// Its init process ended.
    Exited,
    /// The truth cannot be found out for now (its monitor does not answer).
    Unknown,
}

/// Uid, gid and groups of a container's first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// Uid inside.
    pub uid: u32,
    /// Gid inside.
    pub gid: u32,
    /// Supplementary groups, the gid among them.
    pub groups: Vec<u32>,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// As asked for.
    pub config: Arc<ContainerConfig>,
    /// Resources as they are now (after updates).
    pub resources: Option<Resources>,
    /// Image id.
    pub image_id: Digest,
    /// Repo digest of the image (`name@sha256:…`), or its id if it has none.
    pub image_ref: String,
    /// Images that are mounted as volumes: name in the mount, id.
    pub volumes: Vec<(String, Digest)>,
    /// State.
    pub state: ContainerState,
    /// Nanoseconds since the epoch.
    pub created_ns: i64,
    /// The same; 0: never started.
    pub started_ns: i64,
    /// The same; 0: not ended.
    pub finished_ns: i64,
    /// 128+n for a signal.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`; empty while it has not ended.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Absolute log file; empty: none.
    pub log_path: String,
    /// First process's user.
    pub user: User,
    /// Signal that StopContainer sends.
    pub stop_signal: Signal,
    /// Host pid of init while it lives.
    pub pid: Option<i32>,
    /// Its cgroup folders: one on v2, one per hierarchy on v1.
    pub cgroups: Vec<PathBuf>,
    /// OCI bundle.
    pub bundle: PathBuf,
}
