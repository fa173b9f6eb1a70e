//! Containers and their mounts.

use std::collections::HashMap;
use std::path::Path;

use crate::proto;

use super::super::manifest::{Container, MountPropagation, RecursiveReadOnly, VolumeMount};
use super::super::qos::{self, Amounts};
use super::env::Environment;
use super::{Dirs, Node, PodJob, TranslateError, environment, expand, identity, labels, log_path, security, text};

/// Who an image runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// Its uid, if the image gives a number.
    pub uid: Option<i64>,
    /// Its name, if the image gives one.
    pub name: String,
}

/// What is known only once a container is about to be made.
#[derive(Debug, Clone, Default)]
pub struct ContainerInput<'a> {
    /// Counts the containers of this name.
    pub attempt: u32,
    /// The runtime's name for the image.
    pub image_ref: &'a str,
    /// Who it runs as.
    pub image_user: ImageUser,
    /// The pod's addresses.
    pub pod_ips: &'a [String],
    /// Volumes and the driver's own files, ready on the host.
    pub mounts: Vec<proto::Mount>,
}

/// A container of a pod.
///
/// # Errors
/// A reference to what is not there, or an image whose user is not allowed.
pub fn container(
    job: &PodJob,
    container: &Container,
    node: &Node,
    dirs: &Dirs,
    input: ContainerInput<'_>,
) -> Result<proto::ContainerConfig, TranslateError> {
    let envs = environment(job, container, node, input.pod_ips)?;
    let mut labels: HashMap<String, String> = identity(job).into_iter().collect();
    labels.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    Ok(proto::ContainerConfig {
        metadata: Some(proto::ContainerMetadata { name: container.name.clone(), attempt: input.attempt }),
        image: Some(proto::ImageSpec {
            image: input.image_ref.to_owned(),
            user_specified_image: container.image.clone(),
            runtime_handler: job.pod.spec.runtime_class_name.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand_all(container, "command", &container.command, &envs)?,
        args: expand_all(container, "args", &container.args, &envs)?,
        working_dir: container.working_dir.clone(),
        mounts: input.mounts,
        labels,
        annotations: [(labels::RESTART_COUNT.to_owned(), input.attempt.to_string())].into(),
        log_path: text(&log_path(&container.name, input.attempt)),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(proto::LinuxContainerConfig {
            resources: Some(resources(job, container, node)),
            security_context: Some(security::container(job, container, &input.image_user, dirs)?),
        }),
        envs: envs.into_iter().map(|(key, value)| proto::KeyValue { key, value: value.into() }).collect(),
        ..Default::default()
    })
}

fn expand_all(
    container: &Container,
    field: &str,
    words: &[String],
    envs: &Environment,
) -> Result<Vec<String>, TranslateError> {
    let expanded = words.iter().map(|word| String::from_utf8(expand(word.as_bytes(), envs)));
    expanded.collect::<Result<_, _>>().map_err(|_| TranslateError {
        container: container.name.clone(),
        field: field.to_owned(),
        problem: "a variable it refers to is not UTF-8".to_owned(),
    })
}

fn resources(job: &PodJob, container: &Container, node: &Node) -> proto::LinuxContainerResources {
    let amounts = Amounts::of(container);
    let class = qos::class(&job.pod);
    let hugepages = container.resources.limits.iter().filter_map(|(name, limit)| {
        // cgroup files are named 2MB, Kubernetes writes 2Mi.
        let size = name.strip_prefix("hugepages-")?.strip_suffix('i')?;
        Some(proto::HugepageLimit { page_size: format!("{size}B"), limit: limit.value().unsigned_abs() })
    });
    // All processes of a container go together when memory runs out, as kubelet asks for on cgroup v2.
    let unified = node.cgroup_v2.then(|| ("memory.oom.group".to_owned(), "1".to_owned()));
    proto::LinuxContainerResources {
        cpu_period: qos::CPU_PERIOD,
        cpu_quota: amounts.cpu_quota(),
        cpu_shares: amounts.cpu_shares(),
        memory_limit_in_bytes: amounts.memory_limit,
        oom_score_adj: qos::oom_score_adj(class, amounts.memory_request, node.memory),
        hugepage_limits: hugepages.collect(),
        unified: unified.into_iter().collect(),
        ..Default::default()
    }
}

/// A volume inside a container. `source` is its place on the host; `own` says that the driver made it.
pub fn mount(job: &PodJob, wish: &VolumeMount, source: &Path, own: bool, node: &Node) -> proto::Mount {
    let volume = job.pod.spec.volumes.iter().find(|volume| volume.name == wish.name);
    let handler = job.pod.spec.runtime_class_name.as_deref().unwrap_or_default();
    let able = node.recursive_read_only.iter().any(|name| name == handler);
    let propagation = match wish.mount_propagation {
        MountPropagation::None => proto::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => proto::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => proto::MountPropagation::PropagationBidirectional,
    };
    proto::Mount {
        container_path: wish.mount_path.clone(),
        host_path: text(source),
        readonly: wish.read_only || volume.is_some_and(|volume| volume.is_read_only()),
        recursive_read_only: match wish.recursive_read_only {
            RecursiveReadOnly::Disabled => false,
            RecursiveReadOnly::IfPossible => able,
            // A runtime that cannot is to refuse it.
            RecursiveReadOnly::Enabled => true,
        },
        propagation: propagation.into(),
        selinux_relabel: own && node.selinux,
        ..Default::default()
    }
}
