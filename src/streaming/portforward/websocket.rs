//! Port-forward over a WebSocket with channels: port number n of the request has channel 2n for data and 2n+1 for what
//! went wrong, and one connection. The first message on each is the port, two bytes, low one first.

use std::ops::ControlFlow;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Connect, MAX_PORTS, Surroundings};
use crate::streaming::channel::{Codec, Incoming};
use crate::streaming::copy::{CHUNK, download, upload};
use crate::streaming::websocket::{End, Socket, Writer, hand_over};
use crate::types::chain;

/// Serves one connection to its end: that of all its ports, or of the client.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    base64: bool,
    ports: &[u16],
    connect: Connect,
    around: &Surroundings,
) {
    let codec = Codec { base64, closes: false };
    let mut socket = Socket::new(io, codec).await;
    let writer = socket.writer.clone();
    let mut inputs = Vec::new();
    let mut forwards = Vec::new();
    for (channel, &port) in (0..).step_by(2).zip(ports.iter().take(MAX_PORTS)) {
        for channel in [channel, channel + 1] {
            if writer.send(channel, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        let (input, reader) = tokio::io::duplex(CHUNK);
        inputs.push(Some(input));
        forwards.push(forward(&writer, channel, port, reader, &connect, around));
    }
    let close = tokio::select! {
        _ = join_all(forwards) => Some((CloseCode::Normal, "")),
        cut = around.cut() => cut.words().map(|words| (CloseCode::Away, words)),
        end = hear(&mut socket, codec, &mut inputs, around) => match end {
            End::Gone => None,
            End::Wrong(code, reason) => Some((code, reason)),
        },
        never = writer.heartbeat() => never,
    };
    if let Some((code, reason)) = close {
        socket.close(code, reason).await;
    }
}

/// One port. A channel cannot be closed by itself, so the pod's end of the connection ends the port, while a client that
/// has nothing more to say just says nothing.
async fn forward<S: AsyncRead + AsyncWrite + Send + Unpin>(
    writer: &Writer<S>,
    channel: u8,
    port: u16,
    input: DuplexStream,
    connect: &Connect,
    around: &Surroundings,
) {
    let socket = match connect(port).await {
        Ok(socket) => socket,
        Err(error) => {
            let _ = writer.send(channel + 1, chain(&error).as_bytes()).await;
            return;
        }
    };
    let (read, write) = socket.into_split();
    let mut data = writer.channel(channel);
    let up = async {
        // A pod that takes nothing more may still have something to say.
        let _ = upload(input, write, &around.activity, &around.hangup).await;
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = download(read, &mut data, &around.activity) => ended,
        () = up => Ok(()),
    };
    if let Err(error) = ended {
        let _ = writer.send(channel + 1, format!("port {port}: {error}").as_bytes()).await;
    }
}

/// Takes what the client sends, up to its end.
async fn hear<S: AsyncRead + AsyncWrite + Send + Unpin>(
    socket: &mut Socket<S>,
    codec: Codec,
    inputs: &mut [Option<DuplexStream>],
    around: &Surroundings,
) -> End {
    loop {
        let payload = match socket.next().await {
            ControlFlow::Continue(payload) => payload,
            ControlFlow::Break(end) => return end,
        };
        match codec.decode(payload) {
            Ok(Incoming::Data(channel, data)) if channel % 2 == 0 => {
                let Some(input) = inputs.get_mut(usize::from(channel / 2)) else { continue };
                if !hand_over(input, &data, &around.hangup).await {
                    return End::Gone;
                }
            }
            Ok(_) => {}
            Err(reason) => return End::Wrong(CloseCode::Protocol, reason),
        }
    }
}
