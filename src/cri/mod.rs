//! The gRPC door: decode, one domain call, encode. Generated types stop here.
//!
//! Architecture Invariant: no decisions are made and no state is kept here. A handler only awaits
//! the domain's answer; when its client gives up, the handler is dropped and the work goes on.

mod filter;
mod from_proto;
mod image;
mod info;
mod runtime;
mod status;
mod to_proto;
mod trace;

use std::future::Future;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::Config;
use crate::image::Images;
use crate::launch::handlers::Handler;
use crate::network::Network;
use crate::pod::{Lsm, Pods};
use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::runtime_service_server::RuntimeServiceServer;

/// Largest request taken, bytes: what Go's CRI clients themselves are set to.
const MAX_REQUEST: usize = 16 << 20;

/// HTTP/2 flow-control window of a stream, bytes: small, as messages are, and there is one for each call under way.
const STREAM_WINDOW: u32 = 256 << 10;

/// What the door opens to.
#[derive(Clone)]
pub struct Services {
    /// Sandboxes and containers.
    pub pods: Pods,
    /// Images.
    pub images: Images,
    /// Pod network.
    pub network: Network,
    /// Runtime handlers, the default one first.
    pub handlers: Arc<[HandlerInfo]>,
    /// Devices by name.
    pub cdi: crate::cdi::Registry,
    /// cgroup set-up.
    pub cgroups: crate::cgroup::Cgroups,
    /// Security modules of the kernel.
    pub lsm: Arc<Lsm>,
    /// Reads usage.
    pub stats: Arc<crate::stats::Stats>,
    /// URLs of exec, attach and port-forward.
    pub streaming: crate::streaming::Streaming,
    /// The systemd cgroup driver is in use, else cgroupfs.
    pub systemd_cgroup: bool,
    /// What this runtime can do beyond the basics.
    pub features: Features,
    /// The configuration, for `crictl info`.
    pub config: Arc<Config>,
}

/// A runtime handler, as clients are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerInfo {
    /// Its definition.
    pub handler: Handler,
    /// Takes recursive read-only mounts.
    pub recursive_read_only_mounts: bool,
    /// Takes user namespaces with idmapped mounts.
    pub user_namespaces: bool,
}

/// Features that clients ask for before they use them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// `SupplementalGroupsPolicy` and `ContainerStatus.user`.
    pub supplemental_groups_policy: bool,
    /// User namespaces together with the host's network.
    pub user_namespaces_host_network: bool,
    /// `Mount.mount_options`.
    pub mount_options: bool,
}

impl Services {
    /// Names of all handlers.
    fn handler_names(&self) -> Vec<&str> {
        self.handlers.iter().map(|handler| handler.handler.name.as_str()).collect()
    }
}

/// Serves both CRI services on `listener` until `shutdown` is ready; then takes no new connections
/// and returns when the calls under way are answered. Whoever cannot wait for that drops the future.
pub async fn serve(
    listener: UnixListener,
    services: Services,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let services = Arc::new(services);
    let runtime = RuntimeServiceServer::new(runtime::Door::new(Arc::clone(&services)))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let image = ImageServiceServer::new(image::Door::new(services))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(usize::MAX);
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .layer(trace::TraceLayer)
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
}

#[cfg(test)]
mod tests;
