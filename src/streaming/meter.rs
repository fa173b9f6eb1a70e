//! Bytes of a WebSocket that make no message. A client may send fragments, empty ones even, and pings without end; the
//! library puts the one together and answers the other for as long as they come.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counts; clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

impl Meter {
    /// A message with data is complete.
    pub(super) fn message(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether more than `most` bytes came since the last message.
    pub(super) fn over(&self, most: u64) -> bool {
        self.0.load(Ordering::Relaxed) > most
    }
}

/// A connection whose bytes are counted as they are read, and that cannot be read any more once there were too many.
#[derive(Debug)]
pub(super) struct Metered<S> {
    io: S,
    meter: Meter,
    most: u64,
}

impl<S> Metered<S> {
    /// Reads of `io` at most so many bytes between two messages, and what one read gives.
    pub(super) fn new(io: S, meter: Meter, most: u64) -> Self {
        Self { io, meter, most }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.meter.over(self.most) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.meter.0.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn messages_make_room_for_more() {
        let meter = Meter::default();
        let mut io = Metered::new(tokio::io::repeat(7), meter.clone(), 100);
        let mut buffer = [0; 40];
        for _ in 0..3 {
            assert_eq!(io.read(&mut buffer).await.unwrap(), 40);
        }
        assert_eq!(io.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        meter.message();
        assert_eq!(io.read(&mut buffer).await.unwrap(), 40);
    }
}
