//! SPDY/3.1, as exec, attach and port-forward of Kubernetes speak it after an HTTP upgrade.
//!
//! [`Decoder`] and [`Encoder`] turn bytes into frames and back and do no I/O; [`Connection`] multiplexes
//! streams over one transport, at either end.
//!
//! # Peers that heed no windows
//!
//! SPDY/3.1 gives each stream and the connection a window, and a sender stops when it is used up. The one
//! implementation that Kubernetes clients have (spdystream, in kubectl, crictl, client-go and the API server)
//! does not: it never sends SETTINGS or WINDOW_UPDATE, passes over those it gets, and sends as much as the
//! socket takes. A window held against such a peer would stop every stream after 64 KiB, and a reset for
//! going beyond it would break every `kubectl exec -i` with a large input. So ([`Windows::Detect`]):
//!
//! - A peer that sends a WINDOW_UPDATE, or SETTINGS with an initial window, heeds windows. From then on they
//!   hold in both directions: what it sends beyond a stream's window resets the stream, beyond the
//!   connection's window ends the connection, and nothing is sent beyond the windows it grants.
//! - Any other peer may send what it likes and is sent what its socket takes. When more is unread than
//!   [`Limits::buffer`], the socket is not read any more until a stream has been: TCP holds the peer back.
//!   Until then, a stream that nobody reads does not get in the way of the others.
//!
//! Windows are granted by WINDOW_UPDATE to every peer, as one that heeds them need not say so first. Memory
//! is bounded either way: see [`Limits`].

mod connection;
mod decode;
mod dictionary;
mod encode;
mod error;
mod frame;
mod headers;
mod limits;
#[cfg(test)]
mod tests;
mod zip;

pub use connection::{Connection, Handle, Incoming, OpenError, Opening, Stream};
pub use decode::{Decoder, Input};
pub use encode::{Encoder, MAX_BODY};
pub use error::{End, FrameError};
pub use frame::{Frame, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, ResetStatus};
pub use headers::Headers;
pub use limits::{INITIAL_WINDOW, Limits, MAX_WINDOW, Windows};
