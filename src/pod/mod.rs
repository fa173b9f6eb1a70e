//! Sandboxes: what is asked ([`config`]), and the life of each in its own task.

pub mod config;
mod error;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

pub use error::PodError;

use crate::container::config::ContainerConfig;
use crate::container::view::ContainerView;
use crate::types::{ContainerId, PodId};
use crate::wire::ExecOutcome;
use config::PodConfig;
use view::PodView;

/// All sandboxes of this node. Cheap to clone.
///
/// Ids are taken whole or as an unambiguous prefix.
#[derive(Debug, Clone)]
pub struct Pods {}

const LATER: PodError = PodError::Unimplemented("pods");

impl Pods {
    /// Makes a sandbox, or joins the making of the same one, or finds it made.
    pub async fn run(&self, config: PodConfig, handler: &str) -> Result<PodId, PodError> {
        let _ = (config, handler);
        Err(LATER)
    }
    /// Stops all containers, pause and the network. Unknown: fine.
    pub async fn stop(&self, id: &str) -> Result<(), PodError> {
        let _ = id;
        Err(LATER)
    }
    /// Stops if needed and forgets. Unknown: fine.
    pub async fn remove(&self, id: &str) -> Result<(), PodError> {
        let _ = id;
        Err(LATER)
    }
    /// One sandbox.
    pub fn get(&self, id: &str) -> Result<Arc<PodView>, PodError> {
        let _ = id;
        Err(LATER)
    }
    /// All sandboxes, oldest first.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        Vec::new()
    }
    /// Makes a container, or joins the making of the same one, or finds it made.
    pub async fn create_container(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId, PodError> {
        let _ = (pod, config);
        Err(LATER)
    }
    /// Lets it run.
    pub async fn start_container(&self, id: &str) -> Result<(), PodError> {
        let _ = id;
        Err(LATER)
    }
    /// Stop signal, grace, SIGKILL. Unknown or ended: fine.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), PodError> {
        let _ = (id, grace);
        Err(LATER)
    }
    /// Kills if needed and forgets. Unknown: fine.
    pub async fn remove_container(&self, id: &str) -> Result<(), PodError> {
        let _ = id;
        Err(LATER)
    }
    /// One container.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, PodError> {
        let _ = id;
        Err(LATER)
    }
    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        Vec::new()
    }
    /// Runs a command in a running container.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutcome, PodError> {
        let _ = (id, command, timeout);
        Err(LATER)
    }
    /// Closes the log file and opens its path anew.
    pub async fn reopen_log(&self, id: &str) -> Result<(), PodError> {
        let _ = id;
        Err(LATER)
    }
}
