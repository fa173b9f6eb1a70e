//! What can be wrong with what a peer sends, and how connections end.

/// Bytes that are not SPDY/3, or more of it than the limits allow. There is no going on after one: the
/// peers' compression contexts may be out of step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control frame of another version of the protocol.
    #[error("control frame of SPDY version {0}, not 3")]
    Version(u16),
    /// A control frame larger than allowed.
    #[error("control frame of type {kind} of {len} bytes, at most {most} are allowed")]
    TooLong {
        /// The frame's type.
        kind: u16,
        /// Its length.
        len: usize,
        /// The limit.
        most: usize,
    },
    /// A control frame whose length does not fit its type.
    #[error("control frame of type {kind} of {len} bytes, which is no length for it")]
    Length {
        /// The frame's type.
        kind: u16,
        /// Its length.
        len: usize,
    },
    /// A frame that must name a stream names 0.
    #[error("{0} frame for stream 0")]
    StreamZero(&'static str),
    /// The header block cannot be decompressed.
    #[error("header block that does not decompress: {0}")]
    Zlib(String),
    /// The header block is too large once decompressed.
    #[error("header block of more than {0} bytes once decompressed")]
    HeadersTooLong(usize),
    /// Too many headers.
    #[error("{count} headers, at most {most} are allowed")]
    TooManyHeaders {
        /// How many.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// The block is no list of headers.
    #[error("malformed header block: {0}")]
    HeaderBlock(&'static str),
    /// A name that is empty or not lowercase.
    #[error("header name {name:?} is empty or not lowercase")]
    HeaderName {
        /// The name.
        name: String,
    },
    /// The same name twice.
    #[error("header {name:?} stands there twice")]
    HeaderTwice {
        /// The name.
        name: String,
    },
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// This end closed it, and all that was written was sent.
    #[error("closed")]
    Closed,
    /// The peer said goodbye and all streams were done.
    #[error("the peer closed the connection")]
    GoAway,
    /// The peer is gone without a goodbye.
    #[error("the peer is gone")]
    Hangup,
    /// Neither end sent anything for the time of [`Limits::idle`](super::Limits::idle).
    #[error("nothing came or went for too long")]
    Idle,
    /// A frame was begun and not completed in time.
    #[error("a frame was begun and not completed in time")]
    SlowFrame,
    /// The peer sent too many frames that move nothing, see [`Limits::idle_frames`](super::Limits::idle_frames).
    #[error("too many frames that move nothing")]
    Flood,
    /// This end closed the connection, and the peer did not take what there was to send.
    #[error("the peer did not take what was sent")]
    NotTaken,
    /// The peer sent what is no SPDY/3.1, or beyond a limit.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// Reading from the peer or writing to it failed.
    #[error("the connection failed: {0}")]
    Io(String),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> End {
        End::Protocol(error.to_string())
    }
}
