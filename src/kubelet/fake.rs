//! A CRI runtime in memory, behind a real socket, for tests of the driver: a container of the image `exit-N` exits
//! with N as soon as it is started, any other runs until it is stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::proto::image_service_server::{ImageService, ImageServiceServer};
use crate::proto::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use crate::proto::{self, *};
use crate::types::now_ns;

/// What the runtime holds, and what it was asked.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<String, proto::PodSandbox>,
    pub(super) containers: BTreeMap<String, (proto::Container, i32)>,
    /// Changing calls, in order, such as `start a`.
    pub(super) calls: Vec<String>,
    /// RPCs that answer with this status the next time.
    pub(super) failures: Vec<(&'static str, Status)>,
    images: Vec<String>,
    next: u32,
}

impl State {
    fn call(&mut self, rpc: &'static str, what: &str) -> Result<(), Status> {
        self.calls.push(format!("{rpc} {what}").trim_end().to_owned());
        match self.failures.iter().position(|(name, _)| *name == rpc) {
            Some(index) => Err(self.failures.remove(index).1),
            None => Ok(()),
        }
    }

    fn id(&mut self) -> String {
        self.next += 1;
        format!("id-{}", self.next)
    }

    /// A container's process ends.
    pub(super) fn exit(&mut self, name: &str, code: i32) {
        for (container, exit) in self.containers.values_mut() {
            let mine = container.metadata.as_ref().is_some_and(|metadata| metadata.name == name);
            if mine && container.state() == ContainerState::ContainerRunning {
                container.set_state(ContainerState::ContainerExited);
                *exit = code;
            }
        }
    }

    fn name(&self, id: &str) -> Result<String, Status> {
        let container = self.containers.get(id).ok_or_else(|| Status::not_found(id.to_owned()))?;
        Ok(container.0.metadata.clone().unwrap_or_default().name)
    }
}

/// The runtime; shared with the test.
#[derive(Debug, Clone, Default)]
pub(super) struct Fake(pub(super) Arc<Mutex<State>>);

/// A fake that is being served.
#[derive(Debug)]
pub(super) struct Server(Option<tokio::runtime::Runtime>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fake {
    /// Serves on a socket until what it gives back is dropped.
    pub(super) fn serve(&self, socket: &Path) -> Server {
        // A runtime of its own: with it all connections end, as if a process were killed.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(self.clone()))
            .add_service(ImageServiceServer::new(self.clone()));
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(async move { server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap() });
        Server(Some(runtime))
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().calls.clone()
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Empty<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

fn selected(
    labels: &std::collections::HashMap<String, String>,
    wanted: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

macro_rules! runtime {
    ($($name:ident($request:ident) -> $answer:ident;)* @streams $($stream:ident($message:ident) -> $kind:ident of $item:ident;)*) => {
        #[tonic::async_trait]
        impl RuntimeService for Fake {
            $(
                async fn $name(&self, _: Request<$request>) -> Answer<$answer> {
                    Err(Status::unimplemented(stringify!($name)))
                }
            )*
            $(
                type $kind = Empty<$item>;
                async fn $stream(&self, _: Request<$message>) -> Answer<Self::$kind> {
                    Err(Status::unimplemented(stringify!($stream)))
                }
            )*
            async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
                Ok(Response::new(Default::default()))
            }
            async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
                Ok(Response::new(Default::default()))
            }
            async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
                Ok(Response::new(Default::default()))
            }
            async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
                let mut state = self.0.lock().unwrap();
                state.call("sandbox", "")?;
                let config = request.into_inner().config.unwrap();
                let id = state.id();
                let sandbox = proto::PodSandbox {
                    id: id.clone(),
                    metadata: config.metadata,
                    created_at: now_ns(),
                    labels: config.labels,
                    annotations: config.annotations,
                    ..Default::default()
                };
                state.sandboxes.insert(id.clone(), sandbox);
                Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
            }
            async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
                let mut state = self.0.lock().unwrap();
                state.call("stop-sandbox", "")?;
                if let Some(sandbox) = state.sandboxes.get_mut(&request.into_inner().pod_sandbox_id) {
                    sandbox.set_state(PodSandboxState::SandboxNotready);
                }
                Ok(Response::new(Default::default()))
            }
            async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
                let mut state = self.0.lock().unwrap();
                state.call("remove-sandbox", "")?;
                let id = request.into_inner().pod_sandbox_id;
                state.sandboxes.remove(&id);
                state.containers.retain(|_, (container, _)| container.pod_sandbox_id != id);
                Ok(Response::new(Default::default()))
            }
            async fn pod_sandbox_status(&self, _: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
                let network = PodSandboxNetworkStatus { ip: "10.0.0.7".to_owned(), additional_ips: Vec::new() };
                let status = proto::PodSandboxStatus { network: Some(network), ..Default::default() };
                Ok(Response::new(PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
            }
            async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
                let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
                let state = self.0.lock().unwrap();
                let items = state.sandboxes.values().filter(|item| selected(&item.labels, &wanted)).cloned().collect();
                Ok(Response::new(ListPodSandboxResponse { items }))
            }
            async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
                let CreateContainerRequest { pod_sandbox_id, config, .. } = request.into_inner();
                let config = config.unwrap();
                let metadata = config.metadata.clone().unwrap();
                let mut state = self.0.lock().unwrap();
                state.call("create", &format!("{} {}", metadata.name, metadata.attempt))?;
                let id = state.id();
                let container = proto::Container {
                    id: id.clone(),
                    pod_sandbox_id,
                    metadata: Some(metadata),
                    image: config.image,
                    labels: config.labels,
                    ..Default::default()
                };
                state.containers.insert(id.clone(), (container, 0));
                Ok(Response::new(CreateContainerResponse { container_id: id }))
            }
            async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
                let mut state = self.0.lock().unwrap();
                let id = request.into_inner().container_id;
                let name = state.name(&id)?;
                state.call("start", &name)?;
                if let Some((container, _)) = state.containers.get_mut(&id) {
                    container.set_state(ContainerState::ContainerRunning);
                    let image = container.image.clone().unwrap_or_default().image;
                    if let Some(code) = image.strip_prefix("exit-").and_then(|code| code.parse().ok()) {
                        state.exit(&name, code);
                    }
                }
                Ok(Response::new(Default::default()))
            }
            async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
                let StopContainerRequest { container_id, timeout } = request.into_inner();
                {
                    let mut state = self.0.lock().unwrap();
                    let name = state.name(&container_id)?;
                    state.call("stop", &format!("{name} {timeout}"))?;
                    if !name.starts_with("deaf") || timeout == 0 {
                        state.exit(&name, 143);
                        return Ok(Response::new(Default::default()));
                    }
                }
                std::future::pending().await
            }
            async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
                let mut state = self.0.lock().unwrap();
                let id = request.into_inner().container_id;
                let name = state.name(&id)?;
                state.call("remove", &name)?;
                state.containers.remove(&id);
                Ok(Response::new(Default::default()))
            }
            async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
                let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
                let state = self.0.lock().unwrap();
                let all = state.containers.values().map(|(container, _)| container);
                let containers = all.filter(|item| selected(&item.labels, &wanted)).cloned().collect();
                Ok(Response::new(ListContainersResponse { containers }))
            }
            async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
                let state = self.0.lock().unwrap();
                let id = request.into_inner().container_id;
                let (container, exit_code) = state.containers.get(&id).ok_or_else(|| Status::not_found(id.clone()))?;
                let status = proto::ContainerStatus {
                    id,
                    state: container.state,
                    exit_code: *exit_code,
                    finished_at: now_ns(),
                    ..Default::default()
                };
                Ok(Response::new(ContainerStatusResponse { status: Some(status), ..Default::default() }))
            }
        }
    };
}

runtime! {
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    exec(ExecRequest) -> ExecResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
    restore_pod(RestorePodRequest) -> RestorePodResponse;
    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    @streams
    stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream of StreamPodSandboxesResponse;
    stream_containers(StreamContainersRequest) -> StreamContainersStream of StreamContainersResponse;
    stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsStream of StreamContainerStatsResponse;
    stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsStream of StreamPodSandboxStatsResponse;
    get_container_events(GetEventsRequest) -> GetContainerEventsStream of ContainerEventResponse;
    stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsStream of StreamPodSandboxMetricsResponse;
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let id = request.into_inner().image.unwrap_or_default().image;
        let found = self.0.lock().unwrap().images.contains(&id);
        let image = found.then(|| proto::Image { id, ..Default::default() });
        Ok(Response::new(ImageStatusResponse { image, ..Default::default() }))
    }
    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let image = request.into_inner().image.unwrap_or_default().image;
        let mut state = self.0.lock().unwrap();
        state.call("pull", &image)?;
        state.images.push(image.clone());
        Ok(Response::new(PullImageResponse { image_ref: image }))
    }
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Err(Status::unimplemented("list_images"))
    }
    async fn remove_image(&self, _: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        Err(Status::unimplemented("remove_image"))
    }
    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Err(Status::unimplemented("image_fs_info"))
    }
    type StreamImagesStream = Empty<StreamImagesResponse>;
    async fn stream_images(&self, _: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        Err(Status::unimplemented("stream_images"))
    }
}
