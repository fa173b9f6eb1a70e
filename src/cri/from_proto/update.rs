//! Changes of resources.

use super::check::annotations;
use super::resources::resources;
use super::{At, DecodeError};
use crate::proto::{UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest};
use crate::types::container::Resources;

/// UpdateContainerResources, but for the id. Its annotations are hints for runtimes that know more
/// resources than CRI does; there are none here, and CRI has no place where they would be shown.
pub fn container_update(from: UpdateContainerResourcesRequest) -> Result<Resources, DecodeError> {
    let UpdateContainerResourcesRequest { container_id: _, linux, windows, annotations: hints } = from;
    if windows.is_some() {
        return Err(At::root("windows").bad("", "this runtime runs on Linux only"));
    }
    annotations(&At::root("annotations"), hints)?;
    resources(&At::root("linux"), linux.unwrap_or_default())
}

/// UpdatePodSandboxResources, but for the id: overhead and resources.
pub fn pod_update(
    from: UpdatePodSandboxResourcesRequest,
) -> Result<(Option<Resources>, Option<Resources>), DecodeError> {
    let UpdatePodSandboxResourcesRequest { pod_sandbox_id: _, overhead, resources: limits } = from;
    let decode = |name, from: Option<_>| from.map(|from| resources(&At::root(name), from)).transpose();
    Ok((decode("overhead", overhead)?, decode("resources", limits)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{LinuxContainerResources, WindowsContainerResources};

    #[test]
    fn wrong_values_are_told_by_their_field() {
        let wrong = || Some(LinuxContainerResources { cpu_shares: 1, ..Default::default() });
        let refused = |request| container_update(request).unwrap_err().field;
        let request = UpdateContainerResourcesRequest { linux: wrong(), ..Default::default() };
        assert_eq!(refused(request), "linux.cpu_shares");
        let windows = Some(WindowsContainerResources::default());
        assert_eq!(refused(UpdateContainerResourcesRequest { windows, ..Default::default() }), "windows");
        assert_eq!(container_update(Default::default()), Ok(Resources::default()));
        let request = UpdatePodSandboxResourcesRequest { overhead: wrong(), ..Default::default() };
        assert_eq!(pod_update(request).unwrap_err().field, "overhead.cpu_shares");
        assert_eq!(pod_update(Default::default()), Ok((None, None)));
    }
}
