//! SPDY through a WebSocket: its binary messages are the bytes of the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::copy::CHUNK;
use super::meter::{Meter, Metered};
use super::websocket;

/// A WebSocket as a stream of bytes.
pub(super) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    meter: Meter,
    /// What was not read yet of the last message.
    rest: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<Metered<S>> {
    /// Takes over a connection whose upgrade was answered.
    pub(super) async fn new(io: S) -> Self {
        let (socket, meter) = websocket::accept(io).await;
        Self { socket, meter, rest: Bytes::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<S> {
    /// The same at the client's end.
    #[cfg(test)]
    pub(super) fn over(socket: WebSocketStream<S>) -> Self {
        Self { socket, meter: Meter::default(), rest: Bytes::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            self.rest = match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => {
                    self.meter.message();
                    bytes
                }
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            };
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Ready means that the message before is written, so that never more than one waits in memory.
        ready!(self.as_mut().poll_flush(cx))?;
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let bytes = buf.get(..buf.len().min(CHUNK)).unwrap_or_default();
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_tungstenite::tungstenite::protocol::Role;

    #[tokio::test]
    async fn bytes_pass_both_ways_whatever_the_messages() {
        let (near, far) = tokio::io::duplex(1000);
        let tunnel = Tunnel::new(near).await;
        let client = Tunnel::over(WebSocketStream::from_raw_socket(far, Role::Client, None).await);
        let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let (mut reader, mut writer) = tokio::io::split(tunnel);
        let echo = tokio::spawn(async move {
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let (mut reader, mut writer) = tokio::io::split(client);
        let bytes = sent.clone();
        let send = tokio::spawn(async move {
            writer.write_all(&bytes).await.unwrap();
            writer.flush().await.unwrap();
            writer
        });
        let mut got = vec![0; sent.len()];
        reader.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        send.await.unwrap().shutdown().await.unwrap();
        echo.await.unwrap();
        assert_eq!(reader.read(&mut got).await.unwrap(), 0);
    }
}
