//! Manifest to CRI messages. Pure: what must be asked of the machine or the runtime comes in as [`Node`]
//! and [`ContainerInput`].

mod container;
mod dns;
mod env;
mod security;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::proto;
use crate::types::{ErrorKind, HasKind};

use super::manifest::{Objects, Pod, Protocol};
use super::qos::{self, Amounts, CgroupDriver};

pub use container::{ContainerInput, ImageUser, container, mount};
pub use dns::{hosts_file, parse_resolv_conf};
pub use env::{environment, expand, field, resource_field};

/// Labels and annotations, as kubelet and this driver set them.
pub mod labels {
    /// Pod name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Pod namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Pod uid.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Container name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Annotation of a container: its attempt.
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// Label: which driver made the pod, so that two never touch each other's.
    pub const OWNER: &str = "podwright.io/owner";
    /// Annotation: the hash of the manifest the pod was made from.
    pub const MANIFEST_HASH: &str = "podwright.io/manifest-hash";
    /// Annotation: grace period in seconds, for when the manifest is gone.
    pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// A manifest that fits no CRI message, or names what is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("container {container}: {field}: {problem}")]
pub struct TranslateError {
    /// Container name.
    pub container: String,
    /// Field below the container.
    pub field: String,
    /// What is wrong.
    pub problem: String,
}

impl HasKind for TranslateError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// A pod to run, with its identity settled.
#[derive(Debug, Clone)]
pub struct PodJob {
    /// The manifest.
    pub pod: Pod,
    /// ConfigMaps and Secrets beside it.
    pub objects: Objects,
    /// Uid, never empty.
    pub uid: String,
    /// Hash of the manifest.
    pub hash: String,
    /// Value of the label [`labels::OWNER`].
    pub owner: String,
    /// Where it comes from and goes to.
    pub origin: Origin,
}

/// What people need to know who find the pod later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The manifest's file, of a watched folder; else empty.
    pub manifest: String,
    /// The runtime's endpoint; empty: not told.
    pub endpoint: String,
}

/// What the driver knows of the machine and the runtime.
#[derive(Debug, Clone)]
pub struct Node {
    /// Host name.
    pub name: String,
    /// Memory, bytes.
    pub memory: i64,
    /// CPUs, thousandths.
    pub cpu_milli: i64,
    /// Resolver settings for pods with a network of their own.
    pub pod_dns: proto::DnsConfig,
    /// Resolver settings of the host itself.
    pub host_dns: proto::DnsConfig,
    /// How cgroup parents are written.
    pub driver: CgroupDriver,
    /// The unified hierarchy is in use.
    pub cgroup_v2: bool,
    /// SELinux is on: the driver's own files want a label.
    pub selinux: bool,
    /// Runtime handlers that can mount recursively read-only.
    pub recursive_read_only: Vec<String>,
}

/// Where the driver keeps what it makes.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// Volumes and small files: a folder per pod uid.
    pub pods: PathBuf,
    /// Logs: a folder per pod.
    pub logs: PathBuf,
    /// Seccomp profiles that manifests may name.
    pub seccomp: PathBuf,
}

impl Dirs {
    /// The pod's own folder.
    pub fn pod(&self, job: &PodJob) -> PathBuf {
        self.pods.join(&job.uid)
    }

    /// The pod's log folder: `NAMESPACE_NAME_UID`.
    pub fn pod_logs(&self, job: &PodJob) -> PathBuf {
        let metadata = &job.pod.metadata;
        self.logs.join(format!("{}_{}_{}", metadata.namespace, metadata.name, job.uid))
    }

    /// The log file of a container.
    pub fn log_file(&self, job: &PodJob, container: &str, attempt: u32) -> PathBuf {
        self.pod_logs(job).join(log_path(container, attempt))
    }

    /// The file for the last words of a container.
    pub fn termination_file(&self, job: &PodJob, container: &str, attempt: u32) -> PathBuf {
        self.pod(job).join("containers").join(container).join(format!("{attempt}.message"))
    }

    /// The pod's /etc/hosts.
    pub fn hosts_file(&self, job: &PodJob) -> PathBuf {
        self.pod(job).join("hosts")
    }
}

fn log_path(container: &str, attempt: u32) -> PathBuf {
    Path::new(container).join(format!("{attempt}.log"))
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The hostname inside the pod.
pub fn hostname(pod: &Pod, node: &Node) -> String {
    let name = match (pod.spec.host_network, pod.spec.hostname.as_str()) {
        (true, _) => &node.name,
        (false, "") => &pod.metadata.name,
        (false, name) => name,
    };
    // A pod's name may be longer than the 63 characters the kernel and DNS take.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The sandbox of a pod.
pub fn sandbox(job: &PodJob, node: &Node, dirs: &Dirs, attempt: u32) -> proto::PodSandboxConfig {
    let (metadata, spec) = (&job.pod.metadata, &job.pod.spec);
    let mut labels: HashMap<String, String> = metadata.labels.clone().into_iter().collect();
    labels.extend(identity(job));
    let mut annotations: HashMap<String, String> = metadata.annotations.clone().into_iter().collect();
    annotations.insert(labels::MANIFEST_HASH.to_owned(), job.hash.clone());
    annotations.insert(labels::GRACE.to_owned(), job.pod.grace_seconds().to_string());
    let class = qos::class(&job.pod);
    proto::PodSandboxConfig {
        metadata: Some(proto::PodSandboxMetadata {
            name: metadata.name.clone(),
            uid: job.uid.clone(),
            namespace: metadata.namespace.clone(),
            attempt,
        }),
        // Without a UTS namespace of its own a pod has the host's name, and runtimes refuse to set it.
        hostname: if spec.host_network { String::new() } else { hostname(&job.pod, node) },
        log_directory: text(&dirs.pod_logs(job)),
        dns_config: Some(dns::config(spec, node)),
        port_mappings: port_mappings(&job.pod),
        labels,
        annotations,
        linux: Some(proto::LinuxPodSandboxConfig {
            cgroup_parent: qos::cgroup_parent(class, &job.uid, node.driver),
            security_context: Some(security::sandbox(job, dirs)),
            sysctls: spec.security_context.sysctls.iter().map(|s| (s.name.clone(), s.value.clone())).collect(),
            overhead: qos::overhead(&job.pod).map(limits),
            resources: Some(limits(qos::pod_amounts(&job.pod))),
        }),
        windows: None,
    }
}

/// The labels by which a pod's sandboxes and containers are found again.
pub fn identity(job: &PodJob) -> BTreeMap<String, String> {
    let metadata = &job.pod.metadata;
    [
        (labels::POD_NAME, &metadata.name),
        (labels::POD_NAMESPACE, &metadata.namespace),
        (labels::POD_UID, &job.uid),
        (labels::OWNER, &job.owner),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.clone()))
    .collect()
}

fn limits(amounts: Amounts) -> proto::LinuxContainerResources {
    proto::LinuxContainerResources {
        cpu_period: qos::CPU_PERIOD,
        cpu_quota: amounts.cpu_quota(),
        cpu_shares: amounts.cpu_shares(),
        memory_limit_in_bytes: amounts.memory_limit,
        ..Default::default()
    }
}

fn port_mappings(pod: &Pod) -> Vec<proto::PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    let ports = pod.all_containers().flat_map(|container| &container.ports).filter(|port| port.host_port > 0);
    ports
        .map(|port| proto::PortMapping {
            protocol: match port.protocol {
                Protocol::Tcp => proto::Protocol::Tcp,
                Protocol::Udp => proto::Protocol::Udp,
                Protocol::Sctp => proto::Protocol::Sctp,
            }
            .into(),
            container_port: port.container_port.into(),
            host_port: port.host_port.into(),
            host_ip: port.host_ip.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
