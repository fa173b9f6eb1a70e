//! Port-forward: connections of a client to ports in a pod.

mod spdy;
mod websocket;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::negotiate::Offer;
use super::session::Surroundings;
use super::tunnel::Tunnel;
use crate::pod::PodError;

/// Most ports of a request: a channel's number is one byte, and each port has two.
pub const MAX_PORTS: usize = 127;

/// Connects to a port in the pod.
pub(super) type Connect = Arc<dyn Fn(u16) -> BoxFuture<'static, Result<TcpStream, PodError>> + Send + Sync>;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Two streams of an SPDY connection for each forwarded connection.
    Spdy,
    /// The same, inside a WebSocket.
    Tunnel,
    /// Two channels for each port, and one connection to it.
    WebSocket {
        /// Messages are text: a digit and base64.
        base64: bool,
    },
}

impl Protocol {
    /// Whether the ports must be known before it begins.
    pub(super) fn wants_ports(self) -> bool {
        matches!(self, Self::WebSocket { .. })
    }
}

/// Names of the protocols.
pub(super) const OFFER: Offer<Protocol> = Offer {
    spdy: &[("portforward.k8s.io", Protocol::Spdy)],
    spdy_unnamed: Protocol::Spdy,
    websocket: &[
        ("SPDY/3.1+portforward.k8s.io", Protocol::Tunnel),
        ("v4.channel.k8s.io", Protocol::WebSocket { base64: false }),
        ("v4.base64.channel.k8s.io", Protocol::WebSocket { base64: true }),
    ],
    websocket_unnamed: Some(Protocol::WebSocket { base64: false }),
};

/// Serves one connection to its end. `ports` are for the protocol that cannot name them later.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: Protocol,
    ports: &[u16],
    connect: Connect,
    around: &Surroundings,
) {
    match protocol {
        Protocol::Spdy => spdy::serve(io, connect, around).await,
        Protocol::Tunnel => spdy::serve(Tunnel::new(io).await, connect, around).await,
        Protocol::WebSocket { base64 } => websocket::serve(io, base64, ports, connect, around).await,
    }
}

/// Ports in the query of a URL: `port=80,443&port=8080`. An error says what is wrong.
pub(super) fn ports_of_query(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if name == "port" {
            for port in value.split(',') {
                ports.push(port_of(port)?);
            }
        }
    }
    Ok(ports)
}

/// A port in decimal, not 0.
fn port_of(text: &str) -> Result<u16, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| plain && *port > 0);
    port.ok_or_else(|| format!("port {text:?}: want 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(ports_of_query("port=80&x=1&port=443%2C8080,1"), Ok(vec![80, 443, 8080, 1]));
        assert_eq!(ports_of_query(""), Ok(vec![]));
        for bad in ["port=", "port=0", "port=65536", "port=+80", "port=-1", "port=80,", "port=a"] {
            assert!(ports_of_query(bad).is_err(), "{bad}");
        }
    }
}
