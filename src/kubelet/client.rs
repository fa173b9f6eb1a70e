//! The CRI client: one method per RPC the driver uses, errors that name the RPC.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::proto::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use crate::types::{ErrorKind, HasKind};

/// As kubelet: the limit for calls that only ask or do little.
const SHORT: Duration = Duration::from_secs(120);
/// As kubelet: the limit for making or unmaking a sandbox.
pub(super) const LONG: Duration = Duration::from_secs(240);
/// As kubelet: the largest answer taken, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CriError {
    /// The text is no endpoint.
    #[error("endpoint {0:?}: want unix:///path/to.sock")]
    Endpoint(String),
    /// The runtime did not answer, or answered with an error.
    #[error("{rpc}: {}", explain(.status, .socket))]
    Rpc {
        /// Name of the RPC.
        rpc: &'static str,
        /// Where the runtime listens.
        socket: Arc<str>,
        /// The answer.
        status: Box<Status>,
    },
}

impl CriError {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Endpoint(_) => Code::InvalidArgument,
            Self::Rpc { status, .. } => status.code(),
        }
    }

    /// True if nobody answered: the runtime is down or restarting, and what it did is not known.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Endpoint(_) => false,
            Self::Rpc { status, .. } => status.code() == Code::Unavailable || is_broken(status),
        }
    }

    /// Whether the runtime may be at work on it still.
    pub fn may_go_on(&self) -> bool {
        self.is_unavailable() || matches!(self.code(), Code::DeadlineExceeded | Code::Cancelled)
    }
}

impl HasKind for CriError {
    fn kind(&self) -> ErrorKind {
        match self.code() {
            Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidArgument,
            Code::NotFound => ErrorKind::NotFound,
            Code::AlreadyExists => ErrorKind::AlreadyExists,
            Code::FailedPrecondition => ErrorKind::FailedPrecondition,
            Code::ResourceExhausted => ErrorKind::ResourceExhausted,
            Code::Aborted | Code::Cancelled => ErrorKind::Aborted,
            Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Code::Unauthenticated => ErrorKind::Unauthenticated,
            Code::PermissionDenied => ErrorKind::PermissionDenied,
            Code::Unimplemented => ErrorKind::Unimplemented,
            _ if self.is_unavailable() => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        }
    }
}

/// Whether the connection broke in the middle of the call: that comes as Unknown with a source.
fn is_broken(status: &Status) -> bool {
    status.code() == Code::Unknown && std::error::Error::source(status).is_some()
}

/// What a failed call says to people: the message; where the transport failed, what the transport says. `socket` is where
/// the runtime listens.
pub fn explain(status: &Status, socket: &str) -> String {
    if is_broken(status) {
        return format!("the daemon at {socket:?} went away before it answered; what it did is not known");
    }
    let mut text = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    let mut next = std::error::Error::source(status);
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = source.source();
    }
    text
}

/// A client of one runtime, cheap to clone. It connects when it is first used and again whenever needed.
#[derive(Debug, Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    sockets: Sockets,
}

/// Where the services listen, for messages.
#[derive(Debug, Clone)]
struct Sockets {
    runtime: Arc<str>,
    images: Arc<str>,
}

impl Cri {
    fn failed(rpc: &'static str, socket: &Arc<str>) -> impl FnOnce(Status) -> CriError {
        let socket = socket.clone();
        move |status| CriError::Rpc { rpc, socket, status: Box::new(status) }
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $client:ident.$name:ident($rpc:literal, $request:ident, $limit:expr) -> $answer:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// What the runtime answers, or that it does not.
            pub async fn $name(&self, message: proto::$request) -> Result<proto::$answer, CriError> {
                let mut request = Request::new(message);
                let limit: Option<Duration> = $limit;
                if let Some(limit) = limit {
                    request.set_timeout(limit);
                }
                let answer = self.$client.clone().$name(request).await;
                answer.map(tonic::Response::into_inner).map_err(Self::failed($rpc, &self.sockets.$client))
            }
        )*
    };
}

impl Cri {
    /// A client for `unix:///path` (or a plain path) endpoints. Does not connect yet.
    ///
    /// # Errors
    /// The text is no endpoint.
    pub fn new(runtime: &str, images: &str) -> Result<Self, CriError> {
        let channel = endpoint(runtime)?.connect_lazy();
        let image_channel = if images == runtime { channel.clone() } else { endpoint(images)?.connect_lazy() };
        let sockets = Sockets { runtime: path_of(runtime).into(), images: path_of(images).into() };
        Ok(Self {
            sockets,
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(image_channel).max_decoding_message_size(MAX_ANSWER),
        })
    }

    calls! {
        /// Name and version of the runtime.
        runtime.version("Version", VersionRequest, Some(SHORT)) -> VersionResponse;
        /// What works and what the handlers can.
        runtime.status("Status", StatusRequest, Some(SHORT)) -> StatusResponse;
        /// The cgroup driver.
        runtime.runtime_config("RuntimeConfig", RuntimeConfigRequest, Some(SHORT)) -> RuntimeConfigResponse;
        /// Makes and starts a sandbox.
        runtime.run_pod_sandbox("RunPodSandbox", RunPodSandboxRequest, Some(LONG)) -> RunPodSandboxResponse;
        /// Stops a sandbox and all in it.
        runtime.stop_pod_sandbox("StopPodSandbox", StopPodSandboxRequest, Some(LONG)) -> StopPodSandboxResponse;
        /// Removes a sandbox and all in it.
        runtime.remove_pod_sandbox("RemovePodSandbox", RemovePodSandboxRequest, Some(LONG)) -> RemovePodSandboxResponse;
        /// A sandbox in full.
        runtime.pod_sandbox_status("PodSandboxStatus", PodSandboxStatusRequest, Some(SHORT)) -> PodSandboxStatusResponse;
        /// Sandboxes.
        runtime.list_pod_sandbox("ListPodSandbox", ListPodSandboxRequest, Some(SHORT)) -> ListPodSandboxResponse;
        /// Makes a container.
        runtime.create_container("CreateContainer", CreateContainerRequest, Some(LONG)) -> CreateContainerResponse;
        /// Starts a container.
        runtime.start_container("StartContainer", StartContainerRequest, Some(LONG)) -> StartContainerResponse;
        /// Removes a container.
        runtime.remove_container("RemoveContainer", RemoveContainerRequest, Some(LONG)) -> RemoveContainerResponse;
        /// A container in full.
        runtime.container_status("ContainerStatus", ContainerStatusRequest, Some(SHORT)) -> ContainerStatusResponse;
        /// Containers.
        runtime.list_containers("ListContainers", ListContainersRequest, Some(SHORT)) -> ListContainersResponse;
        /// An image, if it is there.
        images.image_status("ImageStatus", ImageStatusRequest, Some(SHORT)) -> ImageStatusResponse;
        /// Pulls an image; takes as long as it takes.
        images.pull_image("PullImage", PullImageRequest, None) -> PullImageResponse;
    }

    /// Stops a container: its stop signal, then SIGKILL after `grace` seconds.
    ///
    /// # Errors
    /// What the runtime answers, or that it does not.
    pub async fn stop_container(&self, id: &str, grace: u32) -> Result<(), CriError> {
        let message = proto::StopContainerRequest { container_id: id.to_owned(), timeout: grace.into() };
        let mut request = Request::new(message);
        request.set_timeout(SHORT + Duration::from_secs(grace.into()));
        let answer = self.runtime.clone().stop_container(request).await;
        answer.map(drop).map_err(Self::failed("StopContainer", &self.sockets.runtime))
    }

    /// The runtime's events, from now on.
    ///
    /// # Errors
    /// What the runtime answers, Unimplemented above all.
    pub async fn events(&self) -> Result<tonic::Streaming<proto::ContainerEventResponse>, CriError> {
        let answer = self.runtime.clone().get_container_events(proto::GetEventsRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(Self::failed("GetContainerEvents", &self.sockets.runtime))
    }

    /// The sandboxes with all of these labels.
    ///
    /// # Errors
    /// What the runtime answers, or that it does not.
    pub async fn sandboxes(&self, labels: HashMap<String, String>) -> Result<Vec<proto::PodSandbox>, CriError> {
        let filter = proto::PodSandboxFilter { label_selector: labels, ..Default::default() };
        Ok(self.list_pod_sandbox(proto::ListPodSandboxRequest { filter: Some(filter) }).await?.items)
    }

    /// The containers with all of these labels.
    ///
    /// # Errors
    /// What the runtime answers, or that it does not.
    pub async fn containers(&self, labels: HashMap<String, String>) -> Result<Vec<proto::Container>, CriError> {
        let filter = proto::ContainerFilter { label_selector: labels, ..Default::default() };
        Ok(self.list_containers(proto::ListContainersRequest { filter: Some(filter) }).await?.containers)
    }
}

/// The path of an endpoint's socket.
pub(super) fn path_of(endpoint: &str) -> &str {
    endpoint.strip_prefix("unix://").unwrap_or(endpoint)
}

fn endpoint(text: &str) -> Result<Endpoint, CriError> {
    let bad = || CriError::Endpoint(text.to_owned());
    let path = path_of(text);
    if !path.starts_with('/') {
        return Err(bad());
    }
    Endpoint::from_shared(format!("unix://{path}")).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_sockets_are_endpoints() {
        assert!(Cri::new("unix:///run/a.sock", "/run/a.sock").is_ok());
        for bad in ["", "run/a.sock", "tcp://1.2.3.4:5", "unix://"] {
            assert!(Cri::new(bad, bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_absent_runtime_is_unavailable() {
        let cri = Cri::new("/nonexistent/a.sock", "/nonexistent/a.sock").unwrap();
        let error = cri.version(proto::VersionRequest::default()).await.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert!(error.to_string().starts_with("Version: "), "{error}");
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_runtime_that_goes_away_in_the_middle_of_a_call_is_named() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let socket = format!("unix://{}", path.display());
        let cri = Cri::new(&socket, &socket).unwrap();
        let death = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            // An empty SETTINGS frame: so far it is a server.
            connection.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            connection.read_exact(&mut [0; 24]).await.unwrap();
            loop {
                let mut head = [0; 9];
                connection.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                connection.read_exact(&mut vec![0; length as usize]).await.unwrap();
                // HEADERS: the call has begun.
                if head[3] == 1 {
                    break;
                }
            }
        };
        let (answer, ()) = tokio::join!(cri.version(proto::VersionRequest::default()), death);
        let error = answer.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert!(error.to_string().contains(&format!("the daemon at {path:?} went away")), "{error:?}");
    }
}
