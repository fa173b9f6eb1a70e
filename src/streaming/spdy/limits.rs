//! How much a peer may ask of a connection.

use std::time::Duration;

/// The window of a stream, and of a connection, before anyone said otherwise: bytes (draft 3.1, section 2.6.8).
pub const INITIAL_WINDOW: u32 = 64 * 1024;

/// The largest window there is: bytes.
pub const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Bounds on one connection. Whatever the peer does, the connection holds at most `buffer` + 64 KiB of
/// what was received, `send_buffer_total` + 4 KiB per stream of what is to be sent, `header_block` per stream,
/// one control frame, and the 128 KiB through which bytes pass on their way.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest control frame: bytes after the frame's eight byte head.
    pub control_frame: usize,
    /// The largest header block once it is decompressed: bytes.
    pub header_block: usize,
    /// Most headers in a block.
    pub headers: usize,
    /// Most streams of the peer at any one time, counting those the application has not dropped yet.
    /// A further one is refused.
    pub streams: usize,
    /// The window granted to a stream: bytes, at least [`INITIAL_WINDOW`].
    pub stream_window: u32,
    /// The window granted to the connection; of a peer that heeds no windows, what is held unread before the
    /// socket is not read any more: bytes, at least [`INITIAL_WINDOW`].
    pub buffer: u32,
    /// What a stream holds of what was written to it and is not on its way yet: bytes.
    pub send_buffer: usize,
    /// The same of all streams together; each may hold 4 KiB nevertheless.
    pub send_buffer_total: usize,
    /// The most data put into one frame, and so what one stream sends before another's turn comes: bytes.
    pub data_frame: usize,
    /// Most frames at once that move no stream, such as pings; 1000 of them are free again each second.
    pub idle_frames: u32,
    /// A connection on which no frame came or went for that long is cut; `None`: never.
    pub idle: Option<Duration>,
    /// A control frame must be complete that long after its first byte.
    pub frame_time: Duration,
    /// How often a connection that is otherwise silent is pinged; `None`: never. A peer that is gone answers
    /// with a TCP reset, which is how this end learns of it while it does not read.
    pub ping: Option<Duration>,
    /// How long a closed connection goes on sending to a peer that takes nothing.
    pub drain: Duration,
    /// How long a peer is waited for that has been told goodbye.
    pub linger: Duration,
    /// Whether a client heeds windows.
    pub windows: Windows,
    /// Whether header blocks are sent compressed. It costs 300 KiB of memory for as long as the connection
    /// lasts, so only one that sends many headers should.
    pub compress: bool,
}

/// Whether a client heeds the windows of flow control; see the [module](super) on why it may not. A server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// From the moment on when it sends a WINDOW_UPDATE, or a SETTINGS with the initial window.
    Detect,
    /// It does.
    Enforce,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            control_frame: 16 * 1024,
            header_block: 8 * 1024,
            headers: 100,
            streams: 2048,
            stream_window: 256 * 1024,
            buffer: 1024 * 1024,
            send_buffer: 128 * 1024,
            send_buffer_total: 4 * 1024 * 1024,
            data_frame: 32 * 1024,
            idle_frames: 20_000,
            idle: Some(Duration::from_secs(4 * 3600)),
            frame_time: Duration::from_secs(30),
            ping: Some(Duration::from_secs(30)),
            drain: Duration::from_secs(5 * 60),
            linger: Duration::from_secs(10),
            windows: Windows::Detect,
            compress: false,
        }
    }
}
