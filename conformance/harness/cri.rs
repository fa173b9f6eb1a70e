//! The CRI client.

use std::path::Path;
use std::time::Duration;

use podwright::proto::image_service_client::ImageServiceClient;
use podwright::proto::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use super::wait::secs;

/// Both services on one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cri {
    channel: Channel,
}

/// Largest answer taken: lists and ExecSync outputs may exceed gRPC's usual 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

impl Cri {
    /// A client of the socket; it connects at the first call, and again whenever the daemon went.
    pub fn new(socket: &Path) -> Self {
        Self::with_timeout(socket, secs(60))
    }

    /// The same with another time limit per call.
    pub fn with_timeout(socket: &Path, timeout: Duration) -> Self {
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).expect("endpoint");
        Self { channel: endpoint.timeout(timeout).connect_lazy() }
    }

    /// RuntimeService.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// ImageService.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }
}
