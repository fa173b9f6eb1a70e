//! The fields of a v1 Container this driver takes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::quantity::Quantity;
use super::security::SecurityContext;

/// A v1 Container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    /// DNS-1123 label.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Absent: `Always` for the tag `latest` or none, else `IfNotPresent`.
    #[serde(default)]
    pub image_pull_policy: Option<PullPolicy>,
    /// Replaces the image's entrypoint.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's command.
    #[serde(default)]
    pub args: Vec<String>,
    /// Working directory.
    #[serde(default)]
    pub working_dir: String,
    /// Environment.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Whole ConfigMaps and Secrets as environment.
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Requests and limits.
    #[serde(default)]
    pub resources: Resources,
    /// Mounts.
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    /// Security context.
    #[serde(default)]
    pub security_context: SecurityContext,
    /// Keep stdin open.
    #[serde(default)]
    pub stdin: bool,
    /// Close it after the first attach session.
    #[serde(default)]
    pub stdin_once: bool,
    /// Allocate a terminal.
    #[serde(default)]
    pub tty: bool,
    /// File in which the container leaves its last words; empty: /dev/termination-log.
    #[serde(default)]
    pub termination_message_path: String,
    /// What to do without such a file.
    #[serde(default)]
    pub termination_message_policy: TerminationMessagePolicy,
    /// `Always` makes an init container a sidecar.
    #[serde(default)]
    pub restart_policy: Option<SidecarPolicy>,
}

impl Container {
    /// True for an init container that goes on beside the others.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy.is_some()
    }

    /// The file for last words, never empty.
    pub fn termination_path(&self) -> &str {
        match self.termination_message_path.as_str() {
            "" => "/dev/termination-log",
            path => path,
        }
    }
}

/// The only restart policy an init container may have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum SidecarPolicy {
    /// A sidecar.
    Always,
}

/// When to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// Every time.
    Always,
    /// If it is not there.
    IfNotPresent,
    /// Never.
    Never,
}

/// Where the last words come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum TerminationMessagePolicy {
    /// The file.
    #[default]
    File,
    /// The file, else the end of the log of a container that failed.
    FallbackToLogsOnError,
}

/// One environment variable.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value, in which `$(NAME)` is expanded.
    #[serde(default)]
    pub value: Option<String>,
    /// Where else the value comes from.
    #[serde(default)]
    pub value_from: Option<EnvSource>,
}

/// Where a value comes from: exactly one of these.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvSource {
    /// A key of a ConfigMap.
    #[serde(default)]
    pub config_map_key_ref: Option<KeyRef>,
    /// A key of a Secret.
    #[serde(default)]
    pub secret_key_ref: Option<KeyRef>,
    /// A field of the pod.
    #[serde(default)]
    pub field_ref: Option<FieldRef>,
    /// A request or limit.
    #[serde(default)]
    pub resource_field_ref: Option<ResourceFieldRef>,
}

/// A key of a ConfigMap or Secret.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRef {
    /// Object.
    pub name: String,
    /// Key.
    pub key: String,
    /// It may be missing.
    #[serde(default)]
    pub optional: bool,
}

/// A field of the pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FieldRef {
    /// `v1`
    #[serde(default)]
    pub api_version: Option<String>,
    /// For instance `metadata.name`.
    pub field_path: String,
}

/// A request or limit of a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceFieldRef {
    /// Container; the one at hand in `env`.
    #[serde(default)]
    pub container_name: String,
    /// For instance `limits.cpu`.
    pub resource: String,
    /// Unit of the answer.
    #[serde(default)]
    pub divisor: Quantity,
}

/// A ConfigMap or Secret as environment: exactly one of these.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvFrom {
    /// Put before each key.
    #[serde(default)]
    pub prefix: String,
    /// ConfigMap.
    #[serde(default)]
    pub config_map_ref: Option<ObjectRef>,
    /// Secret.
    #[serde(default)]
    pub secret_ref: Option<ObjectRef>,
}

/// A ConfigMap or Secret by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    /// Object.
    pub name: String,
    /// It may be missing.
    #[serde(default)]
    pub optional: bool,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// A port of a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// For reference.
    #[serde(default)]
    pub name: String,
    /// Port inside.
    pub container_port: u16,
    /// Port on the host; 0: none.
    #[serde(default)]
    pub host_port: u16,
    /// Host address; empty: all.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Requests and limits, by resource name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Upper bounds.
    #[serde(default)]
    pub limits: BTreeMap<String, Quantity>,
    /// What is set aside; absent: the limit.
    #[serde(default)]
    pub requests: BTreeMap<String, Quantity>,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum MountPropagation {
    /// Neither way.
    #[default]
    None,
    /// Host mounts appear inside.
    HostToContainer,
    /// Both ways; privileged containers only.
    Bidirectional,
}

/// Read-only below a read-only mount, too?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum RecursiveReadOnly {
    /// No.
    #[default]
    Disabled,
    /// If the runtime can.
    IfPossible,
    /// Yes, or fail.
    Enabled,
}

/// A volume inside a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeMount {
    /// Volume of the pod.
    pub name: String,
    /// Absolute path inside.
    pub mount_path: String,
    /// Path below the volume's root.
    #[serde(default)]
    pub sub_path: String,
    /// The same with `$(NAME)` expanded.
    #[serde(default)]
    pub sub_path_expr: String,
    /// Read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Read-only below, too.
    #[serde(default)]
    pub recursive_read_only: RecursiveReadOnly,
    /// Propagation.
    #[serde(default)]
    pub mount_propagation: MountPropagation,
}
