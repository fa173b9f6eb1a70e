//! The fields of a v1 Pod this driver takes. A field that is not here is refused by its path.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::container::Container;
use super::quantity::Quantity;
use super::security::PodSecurityContext;
use super::volume::Volume;

/// A v1 Pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Always `v1`.
    pub api_version: String,
    /// Always `Pod`.
    pub kind: String,
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What is to run.
    pub spec: PodSpec,
    /// What `kubectl get -o yaml` adds; of no meaning here.
    #[serde(default)]
    pub status: Option<IgnoredAny>,
}

/// Object metadata.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// DNS-1123 subdomain.
    pub name: String,
    /// DNS-1123 label; empty: `default`.
    #[serde(default)]
    pub namespace: String,
    /// Empty: one is made.
    #[serde(default)]
    pub uid: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What an API server adds; of no meaning here.
    #[serde(default)]
    pub creation_timestamp: Option<IgnoredAny>,
}

/// When an exited container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    /// Whatever it exited with.
    #[default]
    Always,
    /// If its exit code is not 0.
    OnFailure,
    /// Never.
    Never,
}

/// Where a pod's resolver settings come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum DnsPolicy {
    /// The cluster's; there is none here, so the host's, as kubelet without cluster DNS does.
    #[default]
    ClusterFirst,
    /// The same for a pod in the host's network.
    ClusterFirstWithHostNet,
    /// The host's.
    Default,
    /// `dnsConfig` alone.
    None,
}

/// `spec`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    /// Run in order, each to completion, before `containers`.
    #[serde(default)]
    pub init_containers: Vec<Container>,
    /// Run side by side.
    pub containers: Vec<Container>,
    /// Restart policy.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Seconds between the stop signal and SIGKILL; 30 if absent.
    #[serde(default)]
    pub termination_grace_period_seconds: Option<u32>,
    /// Seconds after which the pod is stopped and counts as failed.
    #[serde(default)]
    pub active_deadline_seconds: Option<u32>,
    /// The host's network.
    #[serde(default)]
    pub host_network: bool,
    /// The host's processes.
    #[serde(default, rename = "hostPID")]
    pub host_pid: bool,
    /// The host's System V IPC.
    #[serde(default, rename = "hostIPC")]
    pub host_ipc: bool,
    /// `true` only: pods here have no user namespace of their own.
    #[serde(default)]
    pub host_users: Option<bool>,
    /// One PID namespace for all containers.
    #[serde(default)]
    pub share_process_namespace: bool,
    /// Hostname; empty: the pod's name.
    #[serde(default)]
    pub hostname: String,
    /// DNS policy.
    #[serde(default)]
    pub dns_policy: DnsPolicy,
    /// Additions to the resolver settings.
    #[serde(default)]
    pub dns_config: Option<DnsConfig>,
    /// Lines for /etc/hosts.
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
    /// Name of the runtime handler.
    #[serde(default)]
    pub runtime_class_name: Option<String>,
    /// What the sandbox itself costs.
    #[serde(default)]
    pub overhead: BTreeMap<String, Quantity>,
    /// Security context of all containers.
    #[serde(default)]
    pub security_context: PodSecurityContext,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// `linux` only.
    #[serde(default)]
    pub os: Option<Os>,
    /// Only `default` or absent: there are no service accounts here.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// No token is mounted either way.
    #[serde(default)]
    pub automount_service_account_token: Option<bool>,
    /// There are no services here either way.
    #[serde(default)]
    pub enable_service_links: Option<bool>,
    /// The node's name as the pod is told.
    #[serde(default)]
    pub node_name: Option<String>,
    // The rest only tells a scheduler where a pod may run: `notes` says that it has no effect.
    /// Scheduling.
    #[serde(default)]
    pub node_selector: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub affinity: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub tolerations: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub topology_spread_constraints: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub scheduler_name: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub priority: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub priority_class_name: Option<IgnoredAny>,
    /// Scheduling.
    #[serde(default)]
    pub preemption_policy: Option<IgnoredAny>,
}

/// `spec.os`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Os {
    /// `linux`
    pub name: String,
}

/// `spec.dnsConfig`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// Name servers.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// Search domains.
    #[serde(default)]
    pub searches: Vec<String>,
    /// Resolver options.
    #[serde(default)]
    pub options: Vec<DnsOption>,
}

/// One resolver option.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsOption {
    /// For instance `ndots`.
    pub name: String,
    /// For instance `5`.
    #[serde(default)]
    pub value: Option<String>,
}

/// A line for /etc/hosts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAlias {
    /// Address.
    pub ip: String,
    /// Its names.
    #[serde(default)]
    pub hostnames: Vec<String>,
}

impl Pod {
    /// Seconds between the stop signal and SIGKILL.
    pub fn grace_seconds(&self) -> u32 {
        self.spec.termination_grace_period_seconds.unwrap_or(30)
    }

    /// Init containers first, then the others, in the order of the manifest.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }
}
