//! Which sandboxes and containers a list request wants. Pure.

use std::collections::{BTreeMap, HashMap};

use super::from_proto::{At, DecodeError};
use crate::container::view::{ContainerState, ContainerView};
use crate::pod::view::{PodState, PodView};
use crate::proto;

/// Decoded filter of sandboxes; every part that is given must match.
#[derive(Debug, Default)]
pub struct PodFilter {
    id: String,
    state: Option<PodState>,
    labels: HashMap<String, String>,
}

impl PodFilter {
    /// From a request; none wants all.
    pub fn decode(from: Option<proto::PodSandboxFilter>) -> Result<Self, DecodeError> {
        let proto::PodSandboxFilter { id, state, label_selector: labels } = from.unwrap_or_default();
        let state = match state {
            None => None,
            Some(value) => Some(match proto::PodSandboxState::try_from(value.state) {
                Ok(proto::PodSandboxState::SandboxReady) => PodState::Ready,
                Ok(proto::PodSandboxState::SandboxNotready) => PodState::NotReady,
                Err(_) => return Err(At::root("filter.state").bad(value.state, "is no state of a sandbox")),
            }),
        };
        Ok(Self { id, state, labels })
    }

    /// Whether this one is wanted.
    pub fn wants(&self, pod: &PodView) -> bool {
        pod.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == pod.state)
            && selects(&self.labels, &pod.config.labels)
    }
}

/// Decoded filter of containers; every part that is given must match.
#[derive(Debug, Default)]
pub struct ContainerFilter {
    id: String,
    state: Option<ContainerState>,
    pod: String,
    labels: HashMap<String, String>,
}

impl ContainerFilter {
    /// From a request; none wants all.
    pub fn decode(from: Option<proto::ContainerFilter>) -> Result<Self, DecodeError> {
        let proto::ContainerFilter { id, state, pod_sandbox_id: pod, label_selector: labels } =
            from.unwrap_or_default();
        let state = match state {
            None => None,
            Some(value) => Some(match proto::ContainerState::try_from(value.state) {
                Ok(proto::ContainerState::ContainerCreated) => ContainerState::Created,
                Ok(proto::ContainerState::ContainerRunning) => ContainerState::Running,
                Ok(proto::ContainerState::ContainerExited) => ContainerState::Exited,
                Ok(proto::ContainerState::ContainerUnknown) => ContainerState::Unknown,
                Err(_) => return Err(At::root("filter.state").bad(value.state, "is no state of a container")),
            }),
        };
        Ok(Self { id, state, pod, labels })
    }

    /// Whether this one is wanted.
    pub fn wants(&self, container: &ContainerView) -> bool {
        container.id.as_str().starts_with(&self.id)
            && container.pod.as_str().starts_with(&self.pod)
            && self.state.is_none_or(|state| state == container.state)
            && selects(&self.labels, &container.config.labels)
    }
}

/// All of the selector's labels are there with the same values.
fn selects(selector: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::super::to_proto::samples;
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn sandboxes() {
        let pod = samples::pod("a");
        let wants = |id: &str, state: Option<i32>, pairs: &[(&str, &str)]| {
            PodFilter::decode(Some(proto::PodSandboxFilter {
                id: id.into(),
                state: state.map(|state| proto::PodSandboxStateValue { state }),
                label_selector: labels(pairs),
            }))
            .map(|filter| filter.wants(&pod))
            .map_err(|error| error.field)
        };
        assert!(PodFilter::decode(None).unwrap().wants(&pod));
        assert_eq!(wants("", None, &[]), Ok(true));
        assert_eq!(wants("aaaa", Some(0), &[("app", "web")]), Ok(true));
        assert_eq!(wants(pod.id.as_str(), None, &[("app", "web"), ("tier", "front")]), Ok(true));
        assert_eq!(wants("b", None, &[]), Ok(false));
        assert_eq!(wants("", Some(1), &[]), Ok(false));
        assert_eq!(wants("", None, &[("app", "web"), ("tier", "back")]), Ok(false));
        assert_eq!(wants("", None, &[("none", "")]), Ok(false));
        assert_eq!(wants("", Some(2), &[]), Err("filter.state".into()));
    }

    #[test]
    fn containers() {
        let pod = samples::pod("a");
        let container = samples::container("c", &pod.id);
        let wants = |id: &str, pod: &str, state: Option<i32>, pairs: &[(&str, &str)]| {
            ContainerFilter::decode(Some(proto::ContainerFilter {
                id: id.into(),
                pod_sandbox_id: pod.into(),
                state: state.map(|state| proto::ContainerStateValue { state }),
                label_selector: labels(pairs),
            }))
            .map(|filter| filter.wants(&container))
            .map_err(|error| error.field)
        };
        assert!(ContainerFilter::decode(None).unwrap().wants(&container));
        assert_eq!(wants("ccc", "aaa", Some(1), &[("app", "web")]), Ok(true));
        assert_eq!(wants("a", "", None, &[]), Ok(false));
        assert_eq!(wants("", "c", None, &[]), Ok(false));
        assert_eq!(wants("", "", Some(2), &[]), Ok(false));
        assert_eq!(wants("", "", None, &[("app", "db")]), Ok(false));
        assert_eq!(wants("", "", Some(-1), &[]), Err("filter.state".into()));
    }
}
