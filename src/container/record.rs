//! What is written down of a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::{ContainerConfig, Resources};
use super::view::{ContainerState, User};
use crate::store::Record;
use crate::types::{ContainerId, Digest, PodId, Signal};
use crate::wire::{Confinement, Exit, Process};

/// `ROOT/pods/POD/containers/ID/container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// As asked.
    pub config: ContainerConfig,
    /// Resources as they are now.
    pub resources: Option<Resources>,
    /// Image id.
    pub image_id: Digest,
    /// Repo digest, or the id.
    pub image_ref: String,
    /// Diff ids of the image's layers, bottom first: held while the container exists.
    pub layers: Vec<Digest>,
    /// Images that are mounted as volumes: held in the same way.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Nanoseconds since the epoch.
    pub created_ns: i64,
    /// Where it is in its life.
    pub stage: Stage,
    /// The same; 0: never started.
    pub started_ns: i64,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Why it could not be started, or how it was lost.
    pub failure: Option<Failure>,
    /// First process's user.
    pub user: User,
    /// Signal that StopContainer sends.
    pub stop_signal: Signal,
    /// Absolute log file; empty: none.
    pub log_path: String,
    /// Init.
    pub process: Option<Process>,
    /// OCI bundle.
    pub bundle: PathBuf,
    /// Cgroup folders.
    pub cgroups: Vec<PathBuf>,
    /// What is applied to exec processes, too.
    pub confinement: Confinement,
}

impl Record for ContainerRecord {
    const VERSION: u32 = 1;
}

/// An image that is mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// As the client named it in the mount.
    pub name: String,
    /// Its id.
    pub id: Digest,
    /// Its layers, bottom first.
    pub layers: Vec<Digest>,
}

/// Where a container is in its life. Whether it has run and ended follows from the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Being made; not visible yet.
    Creating,
    /// Made.
    Made,
    /// Being removed.
    Removing,
}

/// A reason other than an exit of the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// CRI reason: `StartError`, `Unknown`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl ContainerRecord {
    /// All layers that must stay as long as the container does.
    pub fn needed_layers(&self) -> Vec<Digest> {
        self.layers.iter().chain(self.volumes.iter().flat_map(|volume| &volume.layers)).copied().collect()
    }

    /// CRI's state.
    pub fn state(&self) -> ContainerState {
        match (&self.exit, self.started_ns) {
            (Some(_), _) => ContainerState::Exited,
            (None, 0) => ContainerState::Created,
            (None, _) => ContainerState::Running,
        }
    }

    /// CRI's reason: why it ended.
    pub fn reason(&self) -> String {
        match (&self.failure, &self.exit) {
            (Some(failure), _) => failure.reason.clone(),
            (None, Some(exit)) if exit.oom_killed => "OOMKilled".to_owned(),
            (None, Some(exit)) if exit.exit_code == 0 => "Completed".to_owned(),
            (None, Some(_)) => "Error".to_owned(),
            (None, None) => String::new(),
        }
    }
}
