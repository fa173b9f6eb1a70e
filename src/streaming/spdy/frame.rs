//! The frames of SPDY/3.1, as values (draft 3.1, sections 2.2 and 2.6).

use super::headers::Headers;

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The stream's number.
        stream: u32,
        /// The stream it belongs to, or 0.
        associated: u32,
        /// 0, most urgent, to 7.
        priority: u8,
        /// The opener sends nothing on it.
        fin: bool,
        /// The other end sends nothing on it.
        unidirectional: bool,
        /// What it is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream's number.
        stream: u32,
        /// The accepter sends nothing on it.
        fin: bool,
        /// Its answer.
        headers: Headers,
    },
    /// Ends a stream at once, both ways.
    RstStream {
        /// The stream's number.
        stream: u32,
        /// Why.
        status: ResetStatus,
    },
    /// Numbers that hold for the whole connection.
    Settings {
        /// Forget what was set earlier.
        clear: bool,
        /// Ids and values; the flags on keeping them are of no use between these peers and are dropped.
        entries: Vec<(u32, u32)>,
    },
    /// To be sent back as it is; odd if it began at the client.
    Ping(u32),
    /// No further streams are taken.
    GoAway {
        /// The last stream of the peer that was.
        last: u32,
        /// 0: all is well; 1: protocol error; 2: internal error.
        status: u32,
    },
    /// Further headers of a stream.
    Headers {
        /// The stream's number.
        stream: u32,
        /// They are the last of what the sender sends on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// The peer may send that many bytes more.
    WindowUpdate {
        /// The stream's number, 0 for the connection.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
}

/// Why a stream is reset: the numbers of the draft's section 2.6.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    /// The peer broke the protocol on this stream.
    pub const PROTOCOL_ERROR: ResetStatus = ResetStatus(1);
    /// The stream was not taken, and nothing was done about it.
    pub const REFUSED_STREAM: ResetStatus = ResetStatus(3);
    /// The sender lost interest.
    pub const CANCEL: ResetStatus = ResetStatus(5);
    /// The sender failed.
    pub const INTERNAL_ERROR: ResetStatus = ResetStatus(6);
    /// The peer sent more than its window.
    pub const FLOW_CONTROL_ERROR: ResetStatus = ResetStatus(7);
    /// The peer sent data after its end.
    pub const STREAM_ALREADY_CLOSED: ResetStatus = ResetStatus(9);
}

impl std::fmt::Display for ResetStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            1 => "protocol error",
            2 => "invalid stream",
            3 => "refused",
            4 => "unsupported version",
            5 => "cancelled",
            6 => "internal error",
            7 => "flow control error",
            8 => "stream in use",
            9 => "already closed",
            10 => "invalid credentials",
            11 => "frame too large",
            other => return write!(f, "status {other}"),
        };
        f.write_str(name)
    }
}

/// The setting for how many streams the peer may have open.
pub const MAX_CONCURRENT_STREAMS: u32 = 4;
/// The setting for the window a stream begins with.
pub const INITIAL_WINDOW_SIZE: u32 = 7;

/// The types of control frames.
pub(super) mod kind {
    pub(in super::super) const SYN_STREAM: u16 = 1;
    pub(in super::super) const SYN_REPLY: u16 = 2;
    pub(in super::super) const RST_STREAM: u16 = 3;
    pub(in super::super) const SETTINGS: u16 = 4;
    pub(in super::super) const PING: u16 = 6;
    pub(in super::super) const GOAWAY: u16 = 7;
    pub(in super::super) const HEADERS: u16 = 8;
    pub(in super::super) const WINDOW_UPDATE: u16 = 9;
}

/// The flag that ends a sender's half of a stream.
pub(super) const FIN: u8 = 1;
/// The flag of a SYN_STREAM whose receiver may not send.
pub(super) const UNIDIRECTIONAL: u8 = 2;
/// The flag of a SETTINGS that forgets earlier ones.
pub(super) const CLEAR: u8 = 1;
