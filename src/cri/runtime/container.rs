//! CreateContainer, StartContainer, StopContainer, RemoveContainer, ReopenContainerLog.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{
    CreateContainerRequest, CreateContainerResponse, RemoveContainerRequest, RemoveContainerResponse,
    ReopenContainerLogRequest, ReopenContainerLogResponse, StartContainerRequest, StartContainerResponse,
    StopContainerRequest, StopContainerResponse,
};

/// Makes a container. `sandbox_config` is what RunPodSandbox was given and is remembered from there.
pub async fn create_container(
    services: &Services,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    let pod = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?;
    trace::pod(pod);
    let config = from_proto::container(request.config, &services.handler_names()).map_err(status)?;
    trace::container(&config.name);
    trace::image(&config.image);
    let id = services.pods.create_container(pod, config).await.map_err(status)?;
    trace::container(id.as_str());
    Ok(CreateContainerResponse { container_id: id.to_string() })
}

/// Lets a container run.
pub async fn start_container(
    services: &Services,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let id = named(&request.container_id)?;
    services.pods.start_container(id).await.map_err(status)?;
    Ok(StartContainerResponse {})
}

/// Stops a container. One that is unknown or ended is stopped.
pub async fn stop_container(
    services: &Services,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Status> {
    let id = named(&request.container_id)?;
    let grace = from_proto::seconds("timeout", request.timeout).map_err(status)?;
    services.pods.stop_container(id, grace).await.map_err(status)?;
    Ok(StopContainerResponse {})
}

/// Forgets a container. One that is unknown is forgotten.
pub async fn remove_container(
    services: &Services,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    let id = named(&request.container_id)?;
    services.pods.remove_container(id).await.map_err(status)?;
    Ok(RemoveContainerResponse {})
}

/// After the client has moved the log file away.
pub async fn reopen_container_log(
    services: &Services,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    let id = named(&request.container_id)?;
    services.pods.reopen_log(id).await.map_err(status)?;
    Ok(ReopenContainerLogResponse {})
}

fn named(id: &str) -> Result<&str, Status> {
    let id = from_proto::id("container_id", id).map_err(status)?;
    trace::container(id);
    Ok(id)
}
