//! RuntimeService: who answers which call.

mod attach;
mod container;
mod container_status;
mod exec;
mod exec_sync;
mod pod_sandbox;
mod pod_sandbox_status;
mod port_forward;
mod runtime_config;
mod stats;
mod status;
mod update;
mod version;

use std::sync::Arc;

use futures_util::stream;
use tonic::{Request, Response, Status};

use super::Services;
use super::status::unavailable_yet;
use crate::proto;
use crate::proto::runtime_service_server::RuntimeService;

/// RuntimeService on the domain.
pub struct Door {
    services: Arc<Services>,
}

impl Door {
    /// A door to these services.
    pub fn new(services: Arc<Services>) -> Self {
        Self { services }
    }
}

type Nothing<T> = stream::Empty<Result<T, Status>>;

/// Writes the trait's methods: each calls a function of the same name, or says what is missing.
macro_rules! runtime_service {
    (
        calls { $($room:ident::$method:ident($request:ident) -> $response:ident;)* }
        missing { $($late:ident($late_request:ident) -> $late_response:ident: $what:literal;)* }
        missing_streams { $($flow:ident($flow_request:ident) -> $alias:ident<$item:ident>: $flow_what:literal;)* }
    ) => {
        #[tonic::async_trait]
        impl RuntimeService for Door {
            $(
                async fn $method(
                    &self,
                    request: Request<proto::$request>,
                ) -> Result<Response<proto::$response>, Status> {
                    $room::$method(&self.services, request.into_inner()).await.map(Response::new)
                }
            )*
            $(
                async fn $late(
                    &self,
                    _: Request<proto::$late_request>,
                ) -> Result<Response<proto::$late_response>, Status> {
                    Err(unavailable_yet($what))
                }
            )*
            $(
                type $alias = Nothing<proto::$item>;

                async fn $flow(&self, _: Request<proto::$flow_request>) -> Result<Response<Self::$alias>, Status> {
                    Err(unavailable_yet($flow_what))
                }
            )*
        }
    };
}

runtime_service! {
    calls {
        version::version(VersionRequest) -> VersionResponse;
        status::status(StatusRequest) -> StatusResponse;
        runtime_config::runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        runtime_config::update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        pod_sandbox::run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        pod_sandbox::stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        pod_sandbox::remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        pod_sandbox_status::pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        pod_sandbox_status::list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        container::create_container(CreateContainerRequest) -> CreateContainerResponse;
        container::start_container(StartContainerRequest) -> StartContainerResponse;
        container::stop_container(StopContainerRequest) -> StopContainerResponse;
        container::remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        container::reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        container_status::container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        container_status::list_containers(ListContainersRequest) -> ListContainersResponse;
        exec_sync::exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        update::update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        update::update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
        exec::exec(ExecRequest) -> ExecResponse;
        attach::attach(AttachRequest) -> AttachResponse;
        port_forward::port_forward(PortForwardRequest) -> PortForwardResponse;
        stats::container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        stats::list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        stats::pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        stats::list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    }
    missing {
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse:
            "metrics (ListMetricDescriptors)";
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse:
            "metrics (ListPodSandboxMetrics)";
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse:
            "checkpointing a container (CheckpointContainer)";
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse: "checkpointing a sandbox (CheckpointPod)";
        restore_pod(RestorePodRequest) -> RestorePodResponse: "restoring a sandbox (RestorePod)";
    }
    missing_streams {
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream<StreamPodSandboxesResponse>:
            "the streamed list of sandboxes (StreamPodSandboxes)";
        stream_containers(StreamContainersRequest) -> StreamContainersStream<StreamContainersResponse>:
            "the streamed list of containers (StreamContainers)";
        stream_container_stats(StreamContainerStatsRequest)
            -> StreamContainerStatsStream<StreamContainerStatsResponse>: "container statistics (StreamContainerStats)";
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest)
            -> StreamPodSandboxStatsStream<StreamPodSandboxStatsResponse>: "sandbox statistics (StreamPodSandboxStats)";
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest)
            -> StreamPodSandboxMetricsStream<StreamPodSandboxMetricsResponse>: "metrics (StreamPodSandboxMetrics)";
        get_container_events(GetEventsRequest) -> GetContainerEventsStream<ContainerEventResponse>:
            "the stream of container events (GetContainerEvents)";
    }
}
