//! The door on a real socket, knocked at by a real client. The rooms behind it are tested by themselves.

use std::path::Path;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::proto;
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::runtime_service_client::RuntimeServiceClient;

struct House {
    folder: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl House {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut config = Config::default();
        config.paths.root = folder.path().join("root");
        config.paths.state = folder.path().join("state");
        config.cgroup.driver = crate::config::CgroupDriver::Cgroupfs;
        for path in [&config.paths.root, &config.paths.state] {
            std::fs::create_dir(path).unwrap();
        }
        let app = crate::app::App::build(Arc::new(config)).await.unwrap();
        // It gives out URLs; nobody comes with one.
        let streaming = crate::streaming::Server::bind(app.streaming_settings()).unwrap();
        let services = app.services(streaming.streaming());
        let server = tokio::spawn(serve(listener, services, async {
            let _ = stopped.await;
        }));
        Self { folder, stop, server }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("s")
    }
}

async fn channel(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn version_status_and_config() {
    let house = House::open().await;
    let mut client = RuntimeServiceClient::new(channel(&house.socket()).await);
    let version = client.version(proto::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("podwright", "v1"));

    let status = client.status(proto::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let kinds: Vec<&str> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(kinds, ["RuntimeReady", "NetworkReady", "SecurityModulesReady"]);
    assert!(conditions[0].status);
    let names: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "youki"]);
    assert!(status.runtime_handlers[0].features.unwrap().recursive_read_only_mounts);
    assert!(status.features.is_some());
    let info: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(info["stateDir"], house.folder.path().join("state").to_str().unwrap());
    let quiet = client.status(proto::StatusRequest { verbose: false }).await.unwrap().into_inner();
    assert!(quiet.info.is_empty());

    let config = client.runtime_config(proto::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), proto::CgroupDriver::Cgroupfs);
    client.update_runtime_config(proto::UpdateRuntimeConfigRequest::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let house = House::open().await;
    let mut client = RuntimeServiceClient::new(channel(&house.socket()).await);
    let events = client.get_container_events(proto::GetEventsRequest {}).await.unwrap_err();
    assert_eq!(events.code(), Code::Unimplemented);
    assert!(events.message().contains("GetContainerEvents") && events.message().contains("not available"), "{events}");
    let mut images = ImageServiceClient::new(channel(&house.socket()).await);
    let stream = images.stream_images(proto::StreamImagesRequest::default()).await.unwrap_err();
    assert_eq!(stream.code(), Code::Unimplemented);
}

#[tokio::test]
async fn bad_requests_name_their_field() {
    let house = House::open().await;
    let mut client = RuntimeServiceClient::new(channel(&house.socket()).await);
    let run = client.run_pod_sandbox(proto::RunPodSandboxRequest::default()).await.unwrap_err();
    assert_eq!((run.code(), run.message()), (Code::InvalidArgument, "config: is missing (got \"\")"));
    let status = client.container_status(proto::ContainerStatusRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("container_id: is empty"), "{status}");
    let request = proto::StopContainerRequest { container_id: "a".into(), timeout: -1 };
    let stop = client.stop_container(request).await.unwrap_err();
    assert!(stop.message().starts_with("timeout: "), "{stop}");
    let mut images = ImageServiceClient::new(channel(&house.socket()).await);
    let pull = images.pull_image(proto::PullImageRequest::default()).await.unwrap_err();
    assert_eq!((pull.code(), pull.message()), (Code::InvalidArgument, "image: is missing (got \"\")"));
    let missing = proto::ImageStatusRequest {
        image: Some(proto::ImageSpec { image: "nothing-here".into(), ..Default::default() }),
        verbose: true,
    };
    assert_eq!(images.image_status(missing).await.unwrap().into_inner().image, None);
}

#[tokio::test]
async fn shutdown_ends_the_server_while_clients_are_connected() {
    let house = House::open().await;
    let mut client = RuntimeServiceClient::new(channel(&house.socket()).await);
    client.version(proto::VersionRequest::default()).await.unwrap();
    house.stop.send(()).unwrap();
    house.server.await.unwrap().unwrap();
    assert!(client.version(proto::VersionRequest::default()).await.is_err());
}
