//! The node driver: pod manifests in, CRI calls over a socket out. Knows nothing of the runtime behind the socket.

pub mod backoff;
pub mod client;
pub mod events;
pub mod logs;
pub mod manifest;
pub mod node;
pub mod pod_worker;
pub mod qos;
pub mod teardown;
pub mod translate;
pub mod volumes;
