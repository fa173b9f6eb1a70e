//! RunPodSandbox, StopPodSandbox, RemovePodSandbox.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{
    RemovePodSandboxRequest, RemovePodSandboxResponse, RunPodSandboxRequest, RunPodSandboxResponse,
    StopPodSandboxRequest, StopPodSandboxResponse,
};

/// Makes a sandbox.
pub async fn run_pod_sandbox(
    services: &Services,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Status> {
    let config = from_proto::pod(request.config).map_err(status)?;
    let key = &config.key;
    trace::pod(&format!("{}/{}#{}", key.namespace, key.name, key.attempt));
    let handler = from_proto::handler(&request.runtime_handler).map_err(status)?;
    let id = services.pods.run(config, handler).await.map_err(status)?;
    trace::pod(id.as_str());
    Ok(RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

/// Stops everything in a sandbox. One that is unknown is stopped.
pub async fn stop_pod_sandbox(
    services: &Services,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Status> {
    let id = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?;
    trace::pod(id);
    services.pods.stop(id).await.map_err(status)?;
    Ok(StopPodSandboxResponse {})
}

/// Forgets a sandbox. One that is unknown is forgotten.
pub async fn remove_pod_sandbox(
    services: &Services,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    let id = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?;
    trace::pod(id);
    services.pods.remove(id).await.map_err(status)?;
    Ok(RemovePodSandboxResponse {})
}
