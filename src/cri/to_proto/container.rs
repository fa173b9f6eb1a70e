//! Containers.

use super::{id_mappings, resources};
use crate::container::view::{ContainerState, ContainerView};
use crate::image::Images;
use crate::proto;
use crate::types::container::{ContainerConfig, Mount, Propagation};
use crate::types::{Digest, Signal};

fn metadata(from: &ContainerConfig) -> proto::ContainerMetadata {
    proto::ContainerMetadata { name: from.name.clone(), attempt: from.attempt }
}

fn state(from: ContainerState) -> i32 {
    i32::from(match from {
        ContainerState::Created => proto::ContainerState::ContainerCreated,
        ContainerState::Running => proto::ContainerState::ContainerRunning,
        ContainerState::Exited => proto::ContainerState::ContainerExited,
        ContainerState::Unknown => proto::ContainerState::ContainerUnknown,
    })
}

fn image_spec(from: &ContainerConfig, image: String) -> proto::ImageSpec {
    proto::ImageSpec {
        image,
        annotations: from.image_annotations.clone().into_iter().collect(),
        user_specified_image: from.user_specified_image.clone(),
        ..Default::default()
    }
}

/// An entry of a list.
pub fn container(from: &ContainerView) -> proto::Container {
    proto::Container {
        id: from.id.to_string(),
        pod_sandbox_id: from.pod.to_string(),
        metadata: Some(metadata(&from.config)),
        image: Some(image_spec(&from.config, from.config.image.clone())),
        image_ref: from.image_ref.clone(),
        state: state(from.state),
        created_at: from.created_ns,
        labels: from.config.labels.clone().into_iter().collect(),
        annotations: from.config.annotations.clone().into_iter().collect(),
        image_id: from.image_id.to_string(),
    }
}

/// The status of one. The image is named for people where it still has a tag; clients that asked
/// for it by id (the kubelet does) show that name to users.
pub fn container_status(from: &ContainerView, images: &Images) -> proto::ContainerStatus {
    let config = &from.config;
    let tag = images.find(&from.image_id.to_string()).and_then(|image| image.tags.first().cloned());
    let name = match tag {
        Some(tag) => tag,
        None if !config.user_specified_image.is_empty() => config.user_specified_image.clone(),
        None => config.image.clone(),
    };
    let linux = from.resources.as_ref().map(resources);
    let user = &from.user;
    proto::ContainerStatus {
        id: from.id.to_string(),
        metadata: Some(metadata(config)),
        state: state(from.state),
        created_at: from.created_ns,
        started_at: from.started_ns,
        finished_at: from.finished_ns,
        exit_code: from.exit_code,
        image: Some(image_spec(config, name)),
        image_ref: from.image_ref.clone(),
        reason: from.reason.clone(),
        message: from.message.clone(),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        mounts: config.mounts.iter().map(|mounted| mount(mounted, &from.volumes)).collect(),
        log_path: from.log_path.clone(),
        resources: linux.map(|linux| proto::ContainerResources { linux: Some(linux), windows: None }),
        image_id: from.image_id.to_string(),
        user: Some(proto::ContainerUser {
            linux: Some(proto::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().copied().map(i64::from).collect(),
            }),
        }),
        stop_signal: stop_signal(from.stop_signal).into(),
    }
}

/// `image_ref` of an image volume is what PullImage answered for it, whatever became of the image since.
fn mount(from: &Mount, volumes: &[(String, Digest)]) -> proto::Mount {
    let image = from.image.as_ref().map(|name| {
        let id = volumes.iter().find(|(known, _)| known == name).map(|(_, id)| id.to_string());
        proto::ImageSpec { image: name.clone(), image_ref: id.unwrap_or_default(), ..Default::default() }
    });
    proto::Mount {
        container_path: from.container_path.clone(),
        host_path: from.host_path.clone(),
        readonly: from.readonly,
        selinux_relabel: from.selinux_relabel,
        propagation: i32::from(match from.propagation {
            Propagation::Private => proto::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => proto::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => proto::MountPropagation::PropagationBidirectional,
        }),
        uid_mappings: id_mappings(&from.uid_mappings),
        gid_mappings: id_mappings(&from.gid_mappings),
        recursive_read_only: from.recursive_read_only,
        image,
        image_sub_path: from.image_sub_path.clone(),
        mount_options: from.mount_options.clone(),
    }
}

/// CRI names signals as [`Signal`] prints them, but for the signs in the real-time ones. Numbers that
/// CRI has no name for (32 and 33 are the C library's) are the runtime's own business.
fn stop_signal(from: Signal) -> proto::Signal {
    let name = format!("SIGNAL_{from}").replace('+', "PLUS").replace('-', "MINUS");
    proto::Signal::from_str_name(&name).unwrap_or(proto::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::types::PodId;

    #[test]
    fn every_signal_has_its_cri_name() {
        for number in (1..=31).chain(34..=64) {
            let signal = Signal::from_number(number).unwrap();
            assert_ne!(stop_signal(signal), proto::Signal::RuntimeDefault, "{signal}");
        }
        assert_eq!(stop_signal(Signal::TERM), proto::Signal::Sigterm);
        assert_eq!(stop_signal(Signal::parse("SIGRTMIN+3").unwrap()), proto::Signal::Sigrtminplus3);
        assert_eq!(stop_signal(Signal::parse("SIGRTMAX-14").unwrap()), proto::Signal::Sigrtmaxminus14);
    }

    #[tokio::test]
    async fn image_identity_and_user() {
        let view = samples::container("c", &PodId::generate());
        let folder = tempfile::tempdir().unwrap();
        let images = Images::open(crate::image::Settings::new(folder.path())).unwrap();
        let status = container_status(&view, &images);
        assert_eq!(status.image_id, samples::image_id().to_string());
        assert_eq!(container(&view).image_id, status.image_id);
        assert_eq!(status.image.unwrap().image, "busybox:1");
        let user = status.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 100, vec![100, 200]));
        assert_eq!(status.resources, None);
    }
}
