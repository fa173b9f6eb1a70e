//! PodSandboxStatus and ListPodSandbox.

use tonic::Status;

use crate::cri::filter::PodFilter;
use crate::cri::status::status;
use crate::cri::{Services, from_proto, info, to_proto, trace};
use crate::proto::{ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxStatusRequest, PodSandboxStatusResponse};
use crate::types::now_ns;

/// One sandbox, with all its containers as they were at the same moment.
pub async fn pod_sandbox_status(
    services: &Services,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let id = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?;
    trace::pod(id);
    let view = services.pods.get(id).map_err(status)?;
    Ok(PodSandboxStatusResponse {
        status: Some(to_proto::pod_status(&view)),
        info: if request.verbose { info::pod(&view) } else { Default::default() },
        containers_statuses: view
            .containers
            .iter()
            .map(|view| to_proto::container_status(view, &services.images))
            .collect(),
        timestamp: now_ns(),
    })
}

/// All that the filter wants.
pub async fn list_pod_sandbox(
    services: &Services,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    let filter = PodFilter::decode(request.filter).map_err(status)?;
    let pods = services.pods.list();
    Ok(ListPodSandboxResponse {
        items: pods.iter().filter(|pod| filter.wants(pod)).map(|pod| to_proto::pod(pod)).collect(),
    })
}
