//! The node driver: pod manifests in, CRI calls over a socket out. Knows nothing of the runtime behind the socket.

pub mod backoff;
pub mod client;
pub mod events;
pub mod manifest;
pub mod node;
pub mod qos;
pub mod translate;
pub mod volumes;
