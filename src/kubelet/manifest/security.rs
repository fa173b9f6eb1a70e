//! Security contexts of pods and containers.

use serde::Deserialize;

/// `spec.securityContext`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSecurityContext {
    /// Uid.
    #[serde(default)]
    pub run_as_user: Option<i64>,
    /// Gid.
    #[serde(default)]
    pub run_as_group: Option<i64>,
    /// Refuse uid 0.
    #[serde(default)]
    pub run_as_non_root: Option<bool>,
    /// Group that owns the pod's own volumes.
    #[serde(default)]
    pub fs_group: Option<i64>,
    /// When to hand volumes over; volumes are always fresh here, so both values do the same.
    #[serde(default)]
    pub fs_group_change_policy: Option<FsGroupChangePolicy>,
    /// Supplementary groups.
    #[serde(default)]
    pub supplemental_groups: Vec<i64>,
    /// How they combine with the image's.
    #[serde(default)]
    pub supplemental_groups_policy: GroupsPolicy,
    /// Kernel parameters.
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    /// Seccomp.
    #[serde(default)]
    pub seccomp_profile: Option<Profile>,
    /// AppArmor.
    #[serde(default)]
    pub app_armor_profile: Option<Profile>,
    /// SELinux.
    #[serde(default)]
    pub se_linux_options: Option<SeLinuxOptions>,
}

/// `securityContext` of a container; what is absent comes from the pod's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityContext {
    /// Capabilities.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// All devices, no masks, no filters.
    #[serde(default)]
    pub privileged: bool,
    /// Uid.
    #[serde(default)]
    pub run_as_user: Option<i64>,
    /// Gid.
    #[serde(default)]
    pub run_as_group: Option<i64>,
    /// Refuse uid 0.
    #[serde(default)]
    pub run_as_non_root: Option<bool>,
    /// Read-only root file system.
    #[serde(default)]
    pub read_only_root_filesystem: bool,
    /// `false` sets no_new_privs.
    #[serde(default)]
    pub allow_privilege_escalation: Option<bool>,
    /// Masks on /proc.
    #[serde(default)]
    pub proc_mount: ProcMount,
    /// Seccomp.
    #[serde(default)]
    pub seccomp_profile: Option<Profile>,
    /// AppArmor.
    #[serde(default)]
    pub app_armor_profile: Option<Profile>,
    /// SELinux.
    #[serde(default)]
    pub se_linux_options: Option<SeLinuxOptions>,
}

/// Capabilities, with or without the `CAP_` prefix.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// To add.
    #[serde(default)]
    pub add: Vec<String>,
    /// To drop.
    #[serde(default)]
    pub drop: Vec<String>,
}

/// Masks on /proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum ProcMount {
    /// The usual ones.
    #[default]
    Default,
    /// None.
    Unmasked,
}

/// How groups combine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum GroupsPolicy {
    /// The image's and those asked for.
    #[default]
    Merge,
    /// Only those asked for.
    Strict,
}

/// When volumes are handed to the fsGroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum FsGroupChangePolicy {
    /// At each mount.
    Always,
    /// If the root's owner differs.
    OnRootMismatch,
}

/// One kernel parameter.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sysctl {
    /// Name, with dots.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Kind of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ProfileType {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the host.
    Localhost,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Kind.
    #[serde(rename = "type")]
    pub kind: ProfileType,
    /// Seccomp: a file below the driver's seccomp folder; AppArmor: the name of a loaded profile.
    #[serde(default)]
    pub localhost_profile: Option<String>,
}

/// SELinux label parts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeLinuxOptions {
    /// User.
    #[serde(default)]
    pub user: String,
    /// Role.
    #[serde(default)]
    pub role: String,
    /// Type.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Level.
    #[serde(default)]
    pub level: String,
}
