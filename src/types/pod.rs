//! What a client asks of a sandbox: the domain's own form of CRI's `PodSandboxConfig`.
//!
//! These types are persisted in the pod's record: fields may be added (with a serde default), never
//! renamed or given another meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::container::Resources;

/// Who the pod is: the key under which a retried RunPodSandbox finds its sandbox again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Counts the sandboxes of one pod, from 0.
    pub attempt: u32,
}

/// A sandbox, as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodConfig {
    /// Identity.
    pub key: PodKey,
    /// Hostname inside; empty: the host's (host network) or none set.
    pub hostname: String,
    /// Absolute host folder for container logs; empty: none.
    pub log_directory: String,
    /// Content of resolv.conf; `None`: the host's file.
    pub dns: Option<Dns>,
    /// Host ports to forward.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, for selection.
    pub labels: BTreeMap<String, String>,
    /// Opaque annotations, given back unchanged.
    pub annotations: BTreeMap<String, String>,
    /// cgroupfs: an absolute cgroup path; systemd: a slice name (`kubepods-pod1.slice`). Empty: the configured default.
    pub cgroup_parent: String,
    /// Kernel parameters, name (dots) to value.
    pub sysctls: BTreeMap<String, String>,
    /// Resources the sandbox itself costs.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources.
    pub resources: Option<Resources>,
    /// Security context of the sandbox.
    pub security: PodSecurity,
}

/// resolver(5) settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// One forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port inside the pod, 1 to 65535.
    pub container_port: u16,
    /// Port on the host; 0: not forwarded, for information only.
    pub host_port: u16,
    /// Host address to bind; empty: all.
    pub host_ip: String,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One for the container.
    Container,
    /// The host's.
    Node,
    /// That of the target container.
    Target,
}

/// Namespace choices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// PID: any mode.
    pub pid: NamespaceMode,
    /// IPC: `Pod` or `Node` (UTS follows the network).
    pub ipc: NamespaceMode,
    /// Container whose PID namespace is joined with mode `Target`.
    pub target_id: String,
    /// User namespace; `None`: the host's for a sandbox, the sandbox's for a container.
    pub user: Option<UserNamespace>,
    /// The host's user namespace was asked for by its name, rather than nothing said.
    #[serde(default)]
    pub host_user: bool,
}

/// A user namespace of the pod's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Uid mappings.
    pub uids: Vec<IdMapping>,
    /// Gid mappings.
    pub gids: Vec<IdMapping>,
}

/// A range of ids, mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id inside.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// The client said nothing; the runtime's configured default applies.
    #[default]
    Unset,
    /// The runtime's own profile.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A file (seccomp) or loaded profile name (AppArmor).
    Localhost(String),
}

/// SELinux label parts; empty parts take the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// user
    pub user: String,
    /// role
    pub role: String,
    /// type
    pub kind: String,
    /// level
    pub level: String,
}

/// How groups of the image and of the request combine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// The image's groups of the user and those asked for.
    #[default]
    Merge,
    /// Only those asked for.
    Strict,
}

/// Security context of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSecurity {
    /// Namespace choices.
    pub namespaces: Namespaces,
    /// SELinux options.
    pub selinux: Option<SelinuxOptions>,
    /// Uid of the pause process.
    pub run_as_user: Option<i64>,
    /// Gid of the pause process.
    pub run_as_group: Option<i64>,
    /// Read-only root for pause (it always is).
    pub readonly_rootfs: bool,
    /// Supplementary groups of pause.
    pub supplemental_groups: Vec<i64>,
    /// How they combine.
    pub groups_policy: GroupsPolicy,
    /// Containers of this sandbox may be privileged.
    pub privileged: bool,
    /// Seccomp profile of pause.
    pub seccomp: Profile,
    /// AppArmor profile of pause.
    pub apparmor: Profile,
}
