//! One stream, as the application holds it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::frame::ResetStatus;
use super::super::headers::Headers;
use super::Owner;

/// One stream of a connection.
///
/// - Reading ends at the peer's end of the stream; it fails with `ConnectionReset` if the peer resets the
///   stream and with `ConnectionAborted` if the connection ends before. What was received until then is read
///   first. What is not read holds the peer back.
/// - Writing waits while [`Limits::send_buffer`](super::super::Limits::send_buffer) is full. `flush` waits
///   until the transport took all that was written.
/// - `shutdown` writes the end of this half, and waits for the transport likewise.
/// - Dropping it resets it if it is not over both ways. An end that was written (`shutdown` was begun) is
///   still sent with all that stands before it; otherwise what was not flushed may be lost.
///
/// All of these may be cancelled: no byte is lost or sent twice. `tokio::io::split` parts the halves.
#[derive(Debug)]
pub struct Stream {
    owner: Arc<Owner>,
    id: u32,
    headers: Headers,
}

impl Stream {
    pub(super) fn new(owner: Arc<Owner>, id: u32, headers: Headers) -> Stream {
        Stream { owner, id, headers }
    }

    /// Its number on this connection.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The headers it was opened with.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Waits for the peer's reply to a stream that this end opened: the reply's headers.
    ///
    /// # Errors
    /// The peer refused the stream (`ConnectionReset`), or the connection is over.
    pub async fn reply(&self) -> io::Result<Headers> {
        poll_fn(|cx| self.owner.lock().poll_reply(self.id, cx)).await
    }

    /// Ends the stream at once, both ways; what was not sent yet is dropped.
    pub fn reset(&self, status: ResetStatus) {
        self.owner.lock().abort(self.id, status);
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.owner.lock().poll_read(self.id, cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.owner.lock().poll_write(self.id, cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.owner.lock().poll_flush(self.id, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.owner.lock().poll_shutdown(self.id, cx)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.owner.lock().release(self.id);
    }
}
