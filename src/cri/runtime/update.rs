//! UpdateContainerResources and UpdatePodSandboxResources.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{
    UpdateContainerResourcesRequest, UpdateContainerResourcesResponse, UpdatePodSandboxResourcesRequest,
    UpdatePodSandboxResourcesResponse,
};

/// Changes what a container may use: all that is asked for, or nothing.
pub async fn update_container_resources(
    services: &Services,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let id = from_proto::id("container_id", &request.container_id).map_err(status)?.to_owned();
    trace::container(&id);
    let asked = from_proto::container_update(request).map_err(status)?;
    services.pods.update_container(&id, asked).await.map_err(status)?;
    Ok(UpdateContainerResourcesResponse {})
}

/// Notes what a sandbox may use. Its cgroup is the client's, and so are that cgroup's limits.
pub async fn update_pod_sandbox_resources(
    services: &Services,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let id = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?.to_owned();
    trace::pod(&id);
    let (overhead, resources) = from_proto::pod_update(request).map_err(status)?;
    services.pods.update(&id, overhead, resources).await.map_err(status)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
