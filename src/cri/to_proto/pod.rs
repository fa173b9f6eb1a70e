//! Sandboxes.

use super::namespaces;
use crate::pod::view::{PodState, PodView};
use crate::proto;
use crate::types::pod::PodConfig;

fn metadata(from: &PodConfig) -> proto::PodSandboxMetadata {
    let key = &from.key;
    proto::PodSandboxMetadata {
        name: key.name.clone(),
        uid: key.uid.clone(),
        namespace: key.namespace.clone(),
        attempt: key.attempt,
    }
}

fn state(from: PodState) -> proto::PodSandboxState {
    match from {
        PodState::Ready => proto::PodSandboxState::SandboxReady,
        PodState::NotReady => proto::PodSandboxState::SandboxNotready,
    }
}

/// An entry of a list.
pub fn pod(from: &PodView) -> proto::PodSandbox {
    proto::PodSandbox {
        id: from.id.to_string(),
        metadata: Some(metadata(&from.config)),
        state: state(from.state).into(),
        created_at: from.created_ns,
        labels: from.config.labels.clone().into_iter().collect(),
        annotations: from.config.annotations.clone().into_iter().collect(),
        runtime_handler: from.handler.clone(),
    }
}

/// The status of one.
pub fn pod_status(from: &PodView) -> proto::PodSandboxStatus {
    let mut ips = from.ips.iter().map(ToString::to_string);
    let network = proto::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| proto::PodIp { ip }).collect(),
    };
    let options = Some(namespaces(&from.config.security.namespaces));
    proto::PodSandboxStatus {
        id: from.id.to_string(),
        metadata: Some(metadata(&from.config)),
        state: state(from.state).into(),
        created_at: from.created_ns,
        network: Some(network),
        linux: Some(proto::LinuxPodSandboxStatus { namespaces: Some(proto::Namespace { options }) }),
        labels: from.config.labels.clone().into_iter().collect(),
        annotations: from.config.annotations.clone().into_iter().collect(),
        runtime_handler: from.handler.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn the_first_address_is_the_primary_one() {
        let network = pod_status(&samples::pod("a")).network.unwrap();
        assert_eq!(network.ip, "10.1.2.3");
        assert_eq!(network.additional_ips, [proto::PodIp { ip: "fd00::3".into() }]);
        let mut host = samples::pod("b");
        host.ips.clear();
        assert_eq!(pod_status(&host).network.unwrap().ip, "");
    }

    #[test]
    fn list_and_status_agree() {
        let view = samples::pod("a");
        let (listed, status) = (pod(&view), pod_status(&view));
        assert_eq!((listed.id, listed.metadata, listed.state), (status.id, status.metadata, status.state));
        assert_eq!((listed.labels, listed.created_at), (status.labels, status.created_at));
    }
}
