//! The streaming server: exec, attach and port-forward for clients that come with a URL from the CRI socket.
//!
//! A CRI call leaves a grant behind and gives away its token ([`Streaming`]). A client that comes with the token within a
//! minute makes its connection SPDY or WebSocket (`negotiate`), and then `remotecommand` or `portforward` copies between
//! the connection and the descriptors that `pod` gives, until one side ends. This room knows how bytes travel, and
//! nothing of pods but [`crate::pod::streams`].

mod activity;
mod channel;
mod copy;
mod fd;
mod grant;
mod hangup;
mod lobby;
mod meter;
mod multiplex;
mod negotiate;
mod peer;
mod portforward;
mod remotecommand;
mod server;
mod session;
pub mod spdy;
mod tls;
mod token;
mod tunnel;
mod websocket;

pub use grant::{Streaming, StreamingError};
pub use portforward::MAX_PORTS;
pub use server::{BindError, Server, Settings};
pub use tls::TlsError;

#[cfg(test)]
mod tests;
