//! SPDY as this server speaks it: its limits, and streams to be written by those who copy.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::copy::{HEADROOM, Outgoing};
use super::spdy::Limits;

/// Longest wait for a peer that takes nothing of what stands at a connection's end.
const DRAIN: Duration = Duration::from_secs(30);

/// Limits of a connection with at most `streams` streams at once.
pub(super) fn limits(streams: usize) -> Limits {
    Limits {
        streams,
        // Requests have few and short headers.
        control_frame: 16 << 10,
        header_block: 16 << 10,
        headers: 32,
        // Sessions look at their data themselves: pings are no activity.
        idle: None,
        drain: DRAIN,
        ..Limits::default()
    }
}

/// What is copied to a stream.
pub(super) struct Out<W>(pub(super) W);

impl<W: AsyncWrite + Send + Unpin> Outgoing for Out<W> {
    async fn send(&mut self, chunk: BytesMut) -> io::Result<()> {
        self.0.write_all(chunk.get(HEADROOM..).unwrap_or_default()).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}
