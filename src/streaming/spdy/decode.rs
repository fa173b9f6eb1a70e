//! Bytes to frames.

use super::error::FrameError;
use super::frame::{CLEAR, FIN, Frame, ResetStatus, UNIDIRECTIONAL, kind};
use super::headers::Headers;
use super::limits::Limits;
use super::zip::Inflater;

/// Bytes before every frame's own: type or stream, flags, length.
const HEAD: usize = 8;

/// What was decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A control frame.
    Control(Frame),
    /// A part of a data frame, which may be larger than any buffer.
    Data {
        /// The stream's number.
        stream: u32,
        /// The bytes; empty only for an empty frame.
        data: &'a [u8],
        /// The frame is complete, and the last of its stream.
        fin: bool,
    },
    /// A control frame of a type that is not known, to be passed over.
    Unknown,
}

/// The state of one direction's receiver. It does no I/O.
#[derive(Debug)]
pub struct Decoder {
    inflater: Inflater,
    /// The data frame under way: its stream, what is to come of it, whether it ends the stream.
    data: Option<(u32, usize, bool)>,
    control_frame: usize,
    header_block: usize,
    headers: usize,
}

impl Decoder {
    /// A receiver at the start of its connection.
    pub fn new(limits: &Limits) -> Decoder {
        Decoder {
            inflater: Inflater::new(),
            data: None,
            control_frame: limits.control_frame,
            header_block: limits.header_block,
            headers: limits.headers,
        }
    }

    /// The most bytes that must be at hand at once for a frame to be decoded.
    pub fn most(&self) -> usize {
        HEAD + self.control_frame
    }

    /// Whether `rest`, which was not enough for [`Decoder::decode`], is the beginning of a frame.
    pub fn partial(&self, rest: &[u8]) -> bool {
        self.data.is_none() && !rest.is_empty()
    }

    /// Whether a data frame is under way.
    pub fn in_data(&self) -> bool {
        self.data.is_some()
    }

    /// Takes what it can of the front of `bytes`: how many were used up, and what they are. `None`: more
    /// must come, and nothing was used up.
    ///
    /// # Errors
    /// The bytes are no SPDY/3, or beyond a limit; then there is nothing more to decode.
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(usize, Input<'a>)>, FrameError> {
        if let Some((stream, left, last)) = self.data {
            return Ok(self.part(bytes, stream, left, last));
        }
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [a, b, c, d, flags, x, y, z] = *head;
        let len = u32::from_be_bytes([0, x, y, z]) as usize;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            if stream == 0 {
                return Err(FrameError::StreamZero("data"));
            }
            let last = flags & FIN != 0;
            if len == 0 {
                return Ok(Some((HEAD, Input::Data { stream, data: &[], fin: last })));
            }
            // The head waits for the first byte, so that there is always something to tell.
            let Some((used, input)) = self.part(rest, stream, len, last) else { return Ok(None) };
            return Ok(Some((HEAD + used, input)));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        let kind = u16::from_be_bytes([c, d]);
        if version != 3 {
            return Err(FrameError::Version(version));
        }
        if len > self.control_frame {
            return Err(FrameError::TooLong { kind, len, most: self.control_frame });
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let input = self.control(kind, flags, body)?.map_or(Input::Unknown, Input::Control);
        Ok(Some((HEAD + len, input)))
    }

    fn part<'a>(&mut self, bytes: &'a [u8], stream: u32, left: usize, last: bool) -> Option<(usize, Input<'a>)> {
        if bytes.is_empty() {
            return None;
        }
        let data = &bytes[..bytes.len().min(left)];
        let left = left - data.len();
        self.data = (left > 0).then_some((stream, left, last));
        Some((data.len(), Input::Data { stream, data, fin: last && left == 0 }))
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, FrameError> {
        let length = || FrameError::Length { kind, len: body.len() };
        let fin = flags & FIN != 0;
        Ok(Some(match kind {
            kind::SYN_STREAM => {
                let (head, block) = body.split_first_chunk::<10>().ok_or_else(length)?;
                let [s0, s1, s2, s3, a0, a1, a2, a3, priority, _slot] = *head;
                Frame::SynStream {
                    stream: stream(&[s0, s1, s2, s3], "SYN_STREAM")?,
                    associated: u32::from_be_bytes([a0 & 0x7f, a1, a2, a3]),
                    priority: priority >> 5,
                    fin,
                    unidirectional: flags & UNIDIRECTIONAL != 0,
                    headers: self.headers(block)?,
                }
            }
            kind::SYN_REPLY => {
                let (id, block) = body.split_first_chunk::<4>().ok_or_else(length)?;
                Frame::SynReply { stream: stream(id, "SYN_REPLY")?, fin, headers: self.headers(block)? }
            }
            kind::HEADERS => {
                let (id, block) = body.split_first_chunk::<4>().ok_or_else(length)?;
                Frame::Headers { stream: stream(id, "HEADERS")?, fin, headers: self.headers(block)? }
            }
            kind::RST_STREAM => {
                let (id, status) = pair(body).ok_or_else(length)?;
                Frame::RstStream { stream: stream(&id, "RST_STREAM")?, status: ResetStatus(u32::from_be_bytes(status)) }
            }
            kind::SETTINGS => {
                let (count, rest) = body.split_first_chunk::<4>().ok_or_else(length)?;
                let (entries, over) = rest.as_chunks::<8>();
                if !over.is_empty() || entries.len() != u32::from_be_bytes(*count) as usize {
                    return Err(length());
                }
                let entry = |[_flags, i, j, k, v0, v1, v2, v3]: &[u8; 8]| {
                    (u32::from_be_bytes([0, *i, *j, *k]), u32::from_be_bytes([*v0, *v1, *v2, *v3]))
                };
                Frame::Settings { clear: flags & CLEAR != 0, entries: entries.iter().map(entry).collect() }
            }
            kind::PING => Frame::Ping(u32::from_be_bytes(body.try_into().map_err(|_| length())?)),
            kind::GOAWAY => {
                let (last, status) = pair(body).ok_or_else(length)?;
                Frame::GoAway { last: u32::from_be_bytes(last) & 0x7fff_ffff, status: u32::from_be_bytes(status) }
            }
            kind::WINDOW_UPDATE => {
                let (id, delta) = pair(body).ok_or_else(length)?;
                Frame::WindowUpdate {
                    stream: u32::from_be_bytes(id) & 0x7fff_ffff,
                    delta: u32::from_be_bytes(delta) & 0x7fff_ffff,
                }
            }
            _ => return Ok(None),
        }))
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        Headers::read(&self.inflater.inflate(block, self.header_block)?, self.headers)
    }
}

fn stream(id: &[u8; 4], frame: &'static str) -> Result<u32, FrameError> {
    match u32::from_be_bytes(*id) & 0x7fff_ffff {
        0 => Err(FrameError::StreamZero(frame)),
        id => Ok(id),
    }
}

/// The two numbers of a body that is just that.
fn pair(body: &[u8]) -> Option<([u8; 4], [u8; 4])> {
    match body.as_chunks::<4>() {
        ([a, b], []) => Some((*a, *b)),
        _ => None,
    }
}
