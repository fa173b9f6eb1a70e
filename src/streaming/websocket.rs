//! A WebSocket that several channels share: one reader, any number of writers, and an orderly end.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::channel::{Codec, chunk};
use super::copy::{CHUNK, Outgoing};
use super::hangup::Hangup;
use super::meter::{Meter, Metered};

/// Largest message taken, bytes. Clients send their input in pieces of some 32 KiB.
const MAX_MESSAGE: usize = 4 << 20;
/// Most bytes read that make no message with data, be they fragments or pings: messages in fragments have heads, too.
const MAX_BETWEEN: u64 = 2 * MAX_MESSAGE as u64;
/// Most bytes that wait to be written, more than any message of ours: answers to the pings of a client that does not
/// read them pile up.
const MAX_UNSENT: usize = 1 << 20;
/// How often a client hears that the server is there. While a process does not read its input, a client's pings are not
/// read either, and clients that hear nothing for a minute give up.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Longest wait for a client to take the last words and answer them.
const FAREWELL: Duration = Duration::from_secs(10);

/// A WebSocket over a connection, and what counts the bytes that make no message: whoever reads tells it of each.
pub(super) type Counted<S> = (WebSocketStream<Metered<S>>, Meter);

/// Takes over a connection whose upgrade was answered.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> Counted<S> {
    let config = WebSocketConfig::default()
        .read_buffer_size(CHUNK)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_UNSENT)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let meter = Meter::default();
    let io = Metered::new(io, meter.clone(), MAX_BETWEEN);
    (WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await, meter)
}

/// Both halves.
pub(super) struct Socket<S> {
    /// Read by one task.
    pub(super) reader: SplitStream<WebSocketStream<Metered<S>>>,
    /// Written by many.
    pub(super) writer: Writer<S>,
    meter: Meter,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket<S> {
    /// Takes over a connection whose upgrade was answered.
    pub(super) async fn new(io: S, codec: Codec) -> Self {
        let (socket, meter) = accept(io).await;
        let (sink, reader) = socket.split();
        Self { reader, writer: Writer { sink: Arc::new(Mutex::new(sink)), codec }, meter }
    }

    /// The next message's payload. An end is why there is none: the client is gone or has closed, or is to be told.
    pub(super) async fn next(&mut self) -> ControlFlow<End, Bytes> {
        loop {
            let next = self.reader.next().await;
            if matches!(next, Some(Ok(Message::Binary(_) | Message::Text(_)))) {
                self.meter.message();
            }
            return match next {
                Some(Ok(Message::Binary(payload))) => ControlFlow::Continue(payload),
                Some(Ok(Message::Text(text))) => ControlFlow::Continue(text.into()),
                Some(Ok(Message::Close(_))) | None => ControlFlow::Break(End::Gone),
                // Pings are answered by the library.
                Some(Ok(_)) => continue,
                Some(Err(Error::Capacity(_))) => ControlFlow::Break(End::Wrong(CloseCode::Size, "message too large")),
                Some(Err(Error::Protocol(_) | Error::Utf8(_))) => {
                    ControlFlow::Break(End::Wrong(CloseCode::Protocol, "malformed frame"))
                }
                Some(Err(_)) if self.meter.over(MAX_BETWEEN) => {
                    ControlFlow::Break(End::Wrong(CloseCode::Policy, "too much that is no message"))
                }
                Some(Err(_)) => ControlFlow::Break(End::Gone),
            };
        }
    }

    /// Closes in order: everything written arrives before the connection ends.
    pub(super) async fn close(mut self, code: CloseCode, reason: &'static str) {
        let farewell = async {
            let close = CloseFrame { code, reason: reason.into() };
            if self.writer.sink.lock().await.send(Message::Close(Some(close))).await.is_err() {
                return;
            }
            // Until the client has answered: a connection that is closed with bytes unread is reset, and the client
            // may lose what it had not read yet.
            while let Some(Ok(_)) = self.reader.next().await {}
        };
        // Whoever does not answer in time has had their time.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

/// Why there are no more messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed, or is gone.
    Gone,
    /// The client did something wrong, and is told so.
    Wrong(CloseCode, &'static str),
}

/// Writes messages.
pub(super) struct Writer<S> {
    sink: Arc<Mutex<SplitSink<WebSocketStream<Metered<S>>, Message>>>,
    codec: Codec,
}

impl<S> Clone for Writer<S> {
    fn clone(&self) -> Self {
        Self { sink: Arc::clone(&self.sink), codec: self.codec }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Writer<S> {
    /// Sends one message on a channel.
    pub(super) async fn send(&self, channel: u8, data: &[u8]) -> io::Result<()> {
        self.message(self.codec.encode(channel, chunk(data))).await
    }

    /// The same, for a client that may have stopped to read: gives up after a while.
    pub(super) async fn last_words(&self, channel: u8, data: &[u8]) {
        let _ = tokio::time::timeout(FAREWELL, self.send(channel, data)).await;
    }

    /// Lets the client hear from time to time that somebody is there. Never ready.
    pub(super) async fn heartbeat<T>(&self) -> T {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // A pong that nobody asked for is fine (RFC 6455, 5.5.3) and asks for no answer.
            let _ = self.message(Message::Pong(Bytes::new())).await;
        }
    }

    /// A channel to be written.
    pub(super) fn channel(&self, number: u8) -> Channel<S> {
        Channel { writer: self.clone(), number }
    }

    async fn message(&self, message: Message) -> io::Result<()> {
        self.sink.lock().await.send(message).await.map_err(io::Error::other)
    }
}

/// One channel to the client.
pub(super) struct Channel<S> {
    writer: Writer<S>,
    number: u8,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Outgoing for Channel<S> {
    async fn send(&mut self, chunk: BytesMut) -> io::Result<()> {
        self.writer.message(self.writer.codec.encode(self.number, chunk)).await
    }

    /// There is no way to say it before the connection is closed.
    async fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands a message's data to whoever reads a channel; `false` if the client went away while nobody read.
pub(super) async fn hand_over(to: &mut Option<DuplexStream>, data: &[u8], hangup: &Hangup) -> bool {
    let Some(stream) = to else { return true };
    tokio::select! {
        biased;
        written = stream.write_all(data) => {
            if written.is_err() {
                // The reader is gone: what comes for it is dropped from now on.
                *to = None;
            }
            true
        }
        () = hangup.gone() => false,
    }
}
