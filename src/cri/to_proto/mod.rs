//! The domain's views to answers.

mod container;
mod image;
mod pod;
mod stats;

pub use container::{container, container_status};
pub use image::image;
pub use pod::{pod, pod_status};
pub use stats::{container_stats, pod_stats};

use crate::proto;
use crate::types::container::Resources;
use crate::types::pod::{IdMapping, NamespaceMode, Namespaces};

fn namespaces(from: &Namespaces) -> proto::NamespaceOption {
    let mode = |mode: NamespaceMode| {
        i32::from(match mode {
            NamespaceMode::Pod => proto::NamespaceMode::Pod,
            NamespaceMode::Container => proto::NamespaceMode::Container,
            NamespaceMode::Node => proto::NamespaceMode::Node,
            NamespaceMode::Target => proto::NamespaceMode::Target,
        })
    };
    proto::NamespaceOption {
        network: mode(from.network),
        pid: mode(from.pid),
        ipc: mode(from.ipc),
        target_id: from.target_id.clone(),
        userns_options: from.user.as_ref().map(|user| proto::UserNamespace {
            mode: proto::NamespaceMode::Pod.into(),
            uids: id_mappings(&user.uids),
            gids: id_mappings(&user.gids),
        }),
    }
}

fn id_mappings(from: &[IdMapping]) -> Vec<proto::IdMapping> {
    let one =
        |&IdMapping { host_id, container_id, length }: &IdMapping| proto::IdMapping { host_id, container_id, length };
    from.iter().map(one).collect()
}

fn resources(from: &Resources) -> proto::LinuxContainerResources {
    let hugepage = |(size, limit): &(String, u64)| proto::HugepageLimit { page_size: size.clone(), limit: *limit };
    proto::LinuxContainerResources {
        cpu_period: from.cpu_period,
        cpu_quota: from.cpu_quota,
        cpu_shares: from.cpu_shares,
        memory_limit_in_bytes: from.memory_limit,
        oom_score_adj: from.oom_score_adj,
        cpuset_cpus: from.cpuset_cpus.clone(),
        cpuset_mems: from.cpuset_mems.clone(),
        hugepage_limits: from.hugepage_limits.iter().map(hugepage).collect(),
        unified: from.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: from.memory_swap_limit,
    }
}

/// Views that tests of this room look at.
#[cfg(test)]
pub mod samples {
    use std::sync::Arc;

    use crate::container::view::{ContainerState, ContainerView, User};
    use crate::cri::from_proto;
    use crate::pod::view::{PodState, PodView};
    use crate::proto;
    use crate::types::{ContainerId, Digest, PodId, Signal};

    /// The id of the image that [`container`] runs.
    pub fn image_id() -> Digest {
        Digest::from_bytes([0xab; 32])
    }

    /// A running container, whose id is 64 times `digit`.
    pub fn container(digit: &str, pod: &PodId) -> ContainerView {
        let image = Some(proto::ImageSpec { image: "busybox:1".into(), ..Default::default() });
        let metadata = Some(proto::ContainerMetadata { name: "main".into(), attempt: 1 });
        let labels = [("app".to_owned(), "web".to_owned())].into();
        let asked = proto::ContainerConfig { metadata, image, labels, ..Default::default() };
        ContainerView {
            volumes: Vec::new(),
            id: ContainerId::parse(&digit.repeat(64)).unwrap(),
            pod: pod.clone(),
            config: Arc::new(from_proto::container(Some(asked), &[]).unwrap()),
            resources: None,
            image_id: image_id(),
            image_ref: "docker.io/library/busybox@sha256:00".into(),
            state: ContainerState::Running,
            created_ns: 10,
            started_ns: 20,
            finished_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            log_path: String::new(),
            user: User { uid: 1000, gid: 100, groups: vec![100, 200] },
            stop_signal: Signal::TERM,
            pid: Some(42),
            cgroups: Vec::new(),
            bundle: "/nowhere".into(),
        }
    }

    /// A ready sandbox, whose id is 64 times `digit`, without containers.
    pub fn pod(digit: &str) -> PodView {
        let metadata = Some(proto::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 0,
        });
        let labels = [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())].into();
        let asked = proto::PodSandboxConfig { metadata, labels, ..Default::default() };
        PodView {
            visible: true,
            id: PodId::parse(&digit.repeat(64)).unwrap(),
            config: Arc::new(from_proto::pod(Some(asked)).unwrap()),
            handler: String::new(),
            state: PodState::Ready,
            created_ns: 5,
            ips: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            overhead: None,
            resources: None,
            netns: Some("/run/podwright/pods/x/netns".into()),
            pause: None,
            cgroups: Vec::new(),
            monitor: Some(7),
            containers: vec![],
        }
    }
}
