//! What is written down of a sandbox.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::PodConfig;
use super::state::Stage;
use crate::container::selinux::Labels;
use crate::store::Record;
use crate::types::PodId;
use crate::types::container::Resources;
use crate::wire::Process;

/// `ROOT/pods/ID/pod.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    /// Id.
    pub id: PodId,
    /// /proc/sys/kernel/random/boot_id when it was made: another one means that nothing of it lives.
    pub boot_id: String,
    /// As asked.
    pub config: PodConfig,
    /// Handler as asked; empty: the default.
    pub handler: String,
    /// Nanoseconds since the epoch.
    pub created_ns: i64,
    /// Where it is in its life.
    pub stage: Stage,
    /// Addresses, primary first.
    pub ips: Vec<IpAddr>,
    /// Pause.
    pub pause: Option<Process>,
    /// The monitor.
    pub monitor: Option<Process>,
    /// What the sandbox itself costs, as it is now (after updates).
    #[serde(default)]
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources, as it is now.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Pause's cgroup folders.
    pub cgroups: Vec<PathBuf>,
    /// Parents of these that did not exist before, to be taken away when empty.
    pub made_parents: Vec<PathBuf>,
    /// SELinux labels that its containers have, too; its level is taken while the record exists.
    #[serde(default)]
    pub labels: Option<Labels>,
}

impl Record for PodRecord {
    const VERSION: u32 = 1;
}
