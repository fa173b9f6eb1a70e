//! What every driver task works with, and where things of a sandbox lie.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::config::PodConfig;
use super::error::PodError;
use super::files::PodPaths;
use super::lsm::Lsm;
use crate::cgroup::{Cgroups, Parent};
use crate::image::Images;
use crate::launch::handlers::{Handler, Handlers};
use crate::launch::monitor::Launcher;
use crate::launch::seccomp::SeccompCompiler;
use crate::network::Network;
use crate::snapshot::Snapshots;
use crate::store::{self, Durability, Record};
use crate::types::{ErrorKind, HasKind, PodId, chain};

/// How long a process that got SIGKILL may take to be gone.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Where runtime binaries make containers with user namespaces, an empty folder below STATE.
pub fn user_place(state: &Path) -> PathBuf {
    state.join("userns")
}

/// The tools of all driver tasks.
pub struct Context {
    /// ROOT.
    pub root: PathBuf,
    /// STATE.
    pub state: PathBuf,
    /// This boot.
    pub boot_id: String,
    /// cgroup set-up.
    pub cgroups: Cgroups,
    /// Images.
    pub images: Images,
    /// Layer folders.
    pub snapshots: Snapshots,
    /// Networks.
    pub network: Network,
    /// Runtime handlers.
    pub handlers: Handlers,
    /// CDI devices.
    pub cdi: crate::cdi::Registry,
    /// Seccomp.
    pub seccomp: SeccompCompiler,
    /// Monitors.
    pub launcher: Launcher,
    /// Security modules of the kernel.
    pub lsm: Arc<Lsm>,
    /// Capabilities this process can give away (its bounding set).
    pub held_capabilities: u64,
    /// Whether this node can do user namespaces; else why not.
    pub user_namespaces: Result<(), String>,
    /// What the configuration says about containers.
    pub limits: Limits,
}

/// Bounds and defaults from the configuration.
#[derive(Debug, Clone)]
pub struct Limits {
    /// cgroup parent of pods that name none; empty: the driver's default.
    pub cgroup_parent: String,
    /// Longest creation of a container.
    pub create_timeout: Duration,
    /// Most bytes kept of each output of an ExecSync.
    pub exec_output: usize,
    /// How long an ExecSync reads on after its process ended.
    pub exec_drain: Duration,
    /// Profile that RuntimeDefault stands for; `None`: the built-in one.
    pub seccomp_default: Option<PathBuf>,
    /// Containers whose client says nothing get RuntimeDefault instead of no filter.
    pub seccomp_when_unset: bool,
    /// RLIMIT_NOFILE of containers, soft and hard.
    pub nofile: (u64, u64),
    /// Most processes of a container; 0: no limit of its own.
    pub pids: u64,
    /// Ports below 1024 are open to all in a pod's own network namespace.
    pub unprivileged_ports: bool,
    /// So is ping.
    pub unprivileged_icmp: bool,
    /// Device nodes belong to the container's user.
    pub owned_devices: bool,
}

impl Context {
    /// The folders of a sandbox.
    pub fn paths(&self, id: &PodId) -> PodPaths {
        PodPaths { data: self.root.join("pods").join(id), state: self.state.join("pods").join(id) }
    }

    /// Checks the cgroup parent that a client asks for; the configured one if it asks for none.
    pub fn cgroup_parent(&self, asked: &str) -> Result<Parent, PodError> {
        let asked = if asked.is_empty() { &self.limits.cgroup_parent } else { asked };
        self.cgroups.parent(asked).map_err(|error| PodError::Invalid {
            field: "config.linux.cgroup_parent",
            value: asked.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Refuses a user namespace where there can be none.
    pub(crate) fn check_user_namespace(&self, config: &PodConfig, handler: &Handler) -> Result<(), PodError> {
        const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";
        match &self.user_namespaces {
            _ if config.security.namespaces.user.is_none() => Ok(()),
            Err(reason) => Err(PodError::failed(
                ErrorKind::FailedPrecondition,
                format!("{FIELD}: this node has no user namespaces for pods: {reason}"),
            )),
            Ok(()) => handler.takes_user_namespaces().map_err(|reason| {
                let name = &handler.name;
                let text = format!("{FIELD}: runtime handler {name:?} does not support user namespaces: {reason}");
                PodError::failed(ErrorKind::Unimplemented, text)
            }),
        }
    }

    /// Moves a folder out of the way at once and deletes it in the background; missing is fine.
    pub async fn discard(&self, folder: PathBuf) -> Result<(), PodError> {
        let trash = self.root.join("trash").join(crate::types::PodId::generate().as_str());
        let moved = blocking("discard", move || match std::fs::rename(&folder, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            // STATE and ROOT may be different file systems.
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                match crate::sys::tree::remove(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(error),
        })
        .await?;
        if let Some(trash) = moved {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = crate::sys::tree::remove(&trash) {
                    tracing::warn!(path = %trash.display(), %error, "cannot delete discarded folder; trying again at the next start");
                }
            });
        }
        Ok(())
    }
}

/// Runs blocking code on a thread for it; `what` names it in the error.
pub(crate) async fn blocking<T, F>(what: &'static str, work: F) -> Result<T, PodError>
where
    T: Send + 'static,
    F: FnOnce() -> std::io::Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| PodError::io(what, &error)),
        Err(error) => Err(PodError::failed(ErrorKind::Internal, format!("{what}: {error}"))),
    }
}

/// Writes a record on a thread for it.
pub(crate) async fn save<T: Record + Clone + Send + 'static>(path: PathBuf, record: &T) -> Result<(), PodError> {
    let record = record.clone();
    match tokio::task::spawn_blocking(move || store::save(&path, &record, Durability::Process)).await {
        Ok(result) => result.map_err(|error| PodError::of("record", &error)),
        Err(error) => Err(PodError::failed(ErrorKind::Internal, format!("record: {error}"))),
    }
}

impl PodError {
    /// With this class and text.
    pub(crate) fn failed(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Failed { kind, message: message.into() }
    }

    /// An error of another module, with the stage it happened in.
    pub(crate) fn of(stage: &str, error: &(impl HasKind + 'static)) -> Self {
        Self::failed(error.kind(), format!("{stage}: {}", chain(error)))
    }

    /// An I/O error with the stage it happened in.
    pub(crate) fn io(stage: &str, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::ResourceExhausted,
            _ => ErrorKind::Internal,
        };
        Self::failed(kind, format!("{stage}: {error}"))
    }
}
