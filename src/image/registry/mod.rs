//! Speaking with registries (OCI distribution spec): hosts, tokens, requests, blob streams.

mod blob;
mod clients;
mod hosts;
mod request;
mod session;
mod tls;
mod token;

pub use clients::Clients;
pub use hosts::Defaults;
pub use session::Session;
