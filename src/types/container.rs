//! What a client asks of a container: the domain's own form of CRI's `ContainerConfig`.
//!
//! These types are persisted in the container's record: fields may be added (with a serde default),
//! never renamed or given another meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Signal;
use super::pod::{GroupsPolicy, IdMapping, Namespaces, Profile, SelinuxOptions};

/// A container, as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Container name inside the pod.
    pub name: String,
    /// Counts the containers of this name in the pod, from 0.
    pub attempt: u32,
    /// Image reference or id to run.
    pub image: String,
    /// The image as the user wrote it; given back in status.
    pub user_specified_image: String,
    /// Annotations of the image spec; given back in status.
    #[serde(default)]
    pub image_annotations: BTreeMap<String, String>,
    /// Replaces the image's entrypoint; empty: the image's.
    pub command: Vec<String>,
    /// Replaces the image's command; empty: the image's, unless `command` is given.
    pub args: Vec<String>,
    /// Working directory; empty: the image's, else `/`.
    pub working_dir: String,
    /// Environment, in order; values are bytes.
    pub envs: Vec<(String, Vec<u8>)>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Fully qualified CDI device names.
    pub cdi_devices: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the pod's log directory; empty: output is discarded.
    pub log_path: String,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach session.
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Overrides the image's stop signal.
    pub stop_signal: Option<Signal>,
    /// Limits.
    pub resources: Option<Resources>,
    /// Security context.
    pub security: ContainerSecurity,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// Host mounts appear inside (slave).
    HostToContainer,
    /// Both ways (shared).
    Bidirectional,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside.
    pub container_path: String,
    /// Path on the host; empty for image volumes.
    pub host_path: String,
    /// Read-only.
    pub readonly: bool,
    /// Read-only below, too.
    pub recursive_read_only: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// Uid mappings (idmapped mount).
    pub uid_mappings: Vec<IdMapping>,
    /// Gid mappings.
    pub gid_mappings: Vec<IdMapping>,
    /// Image to mount in place of a host path.
    pub image: Option<String>,
    /// Folder inside that image.
    pub image_sub_path: String,
    /// Further options: noexec, nodev, nosuid.
    pub mount_options: Vec<String>,
}

/// A device node to hand in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path inside.
    pub container_path: String,
    /// Path on the host: a node, or a folder of nodes.
    pub host_path: String,
    /// Subset of `rwm`.
    pub permissions: String,
}

/// Linux resources; 0 and empty mean "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period, microseconds.
    pub cpu_period: i64,
    /// CFS quota, microseconds per period.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Memory plus swap, bytes; -1: no limit.
    pub memory_swap_limit: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// cpuset list.
    pub cpuset_cpus: String,
    /// cpuset list.
    pub cpuset_mems: String,
    /// Page size (`2MB`) and limit in bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 file to value.
    pub unified: BTreeMap<String, String>,
}

/// Security context of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    /// Capabilities to add (`ALL`, `NET_ADMIN`, `CAP_NET_ADMIN`).
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// Ambient capabilities to add.
    pub add_ambient_capabilities: Vec<String>,
    /// All devices, no masks, no filters.
    pub privileged: bool,
    /// Namespace choices.
    pub namespaces: Namespaces,
    /// SELinux options.
    pub selinux: Option<SelinuxOptions>,
    /// Uid; wins over `run_as_username`.
    pub run_as_user: Option<i64>,
    /// Gid.
    pub run_as_group: Option<i64>,
    /// User name looked up in the image, or a number in text.
    pub run_as_username: String,
    /// Read-only root file system.
    pub readonly_rootfs: bool,
    /// Supplementary groups.
    pub supplemental_groups: Vec<i64>,
    /// How they combine with the image's.
    pub groups_policy: GroupsPolicy,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Paths hidden inside.
    pub masked_paths: Vec<String>,
    /// Paths read-only inside.
    pub readonly_paths: Vec<String>,
    /// Seccomp.
    pub seccomp: Profile,
    /// AppArmor.
    pub apparmor: Profile,
}
