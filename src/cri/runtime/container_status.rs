//! ContainerStatus and ListContainers.

use tonic::Status;

use crate::cri::filter::ContainerFilter;
use crate::cri::status::status;
use crate::cri::{Services, from_proto, info, to_proto, trace};
use crate::proto::{ContainerStatusRequest, ContainerStatusResponse, ListContainersRequest, ListContainersResponse};

/// One container.
pub async fn container_status(
    services: &Services,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Status> {
    let id = from_proto::id("container_id", &request.container_id).map_err(status)?;
    trace::container(id);
    let view = services.pods.container(id).map_err(status)?;
    Ok(ContainerStatusResponse {
        status: Some(to_proto::container_status(&view, &services.images)),
        info: if request.verbose { info::container(&view, &services.config).await } else { Default::default() },
    })
}

/// All that the filter wants.
pub async fn list_containers(
    services: &Services,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Status> {
    let filter = ContainerFilter::decode(request.filter).map_err(status)?;
    let all = services.pods.containers();
    let containers = all.iter().filter(|view| filter.wants(view)).map(|view| to_proto::container(view)).collect();
    Ok(ListContainersResponse { containers })
}
