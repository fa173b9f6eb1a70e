//! What others may see of a sandbox: an immutable snapshot that its driver task publishes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::PodConfig;
use crate::container::view::ContainerView;
use crate::types::PodId;
use crate::types::container::Resources;
use crate::wire::Process;

/// CRI's two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Everything a container needs is there.
    Ready,
    /// Stopped, or lost.
    NotReady,
}

/// A sandbox at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Id.
    pub id: PodId,
    /// As asked for.
    pub config: Arc<PodConfig>,
    /// Runtime handler as asked for; empty: the default.
    pub handler: String,
    /// False while it is being made: not in lists.
    pub visible: bool,
    /// State.
    pub state: PodState,
    /// Nanoseconds since the epoch.
    pub created_ns: i64,
    /// Addresses, the primary one first; empty for host network.
    pub ips: Vec<IpAddr>,
    /// What the sandbox itself costs, as it is now (after updates).
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources, as it is now.
    pub resources: Option<Resources>,
    /// Bind-mounted network namespace; `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Pause, while it lives.
    pub pause: Option<Process>,
    /// Pause's cgroup folders; their parents are the pod's own if its configuration names a parent.
    pub cgroups: Vec<PathBuf>,
    /// The monitor's pid, while it lives.
    pub monitor: Option<i32>,
    /// Containers, oldest first.
    pub containers: Vec<Arc<ContainerView>>,
}
