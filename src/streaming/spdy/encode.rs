//! Frames to bytes.

use super::error::FrameError;
use super::frame::{CLEAR, FIN, Frame, UNIDIRECTIONAL, kind};
use super::headers::Headers;
use super::limits::Limits;
use super::zip::Deflater;

/// The longest body a frame can have: its length has three bytes.
pub const MAX_BODY: usize = 0xff_ffff;

/// The state of one direction's sender. It does no I/O.
#[derive(Debug)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// A sender at the start of its connection.
    ///
    /// # Errors
    /// zlib does not start.
    pub fn new(limits: &Limits) -> Result<Encoder, FrameError> {
        Ok(Encoder { deflater: Deflater::new(limits.compress)? })
    }

    /// Adds a control frame to `out`.
    ///
    /// # Errors
    /// The headers do not compress, or not into the 16 MiB of a frame. Then the connection is of no use any more.
    pub fn control(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let (kind, flags, body) = match frame {
            Frame::SynStream { stream, associated, priority, fin, unidirectional, headers } => {
                let mut body = Vec::new();
                body.extend_from_slice(&stream.to_be_bytes());
                body.extend_from_slice(&associated.to_be_bytes());
                body.extend_from_slice(&[priority << 5, 0]);
                self.headers(headers, &mut body)?;
                (kind::SYN_STREAM, flag(*fin, FIN) | flag(*unidirectional, UNIDIRECTIONAL), body)
            }
            Frame::SynReply { stream, fin, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                self.headers(headers, &mut body)?;
                (kind::SYN_REPLY, flag(*fin, FIN), body)
            }
            Frame::Headers { stream, fin, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                self.headers(headers, &mut body)?;
                (kind::HEADERS, flag(*fin, FIN), body)
            }
            Frame::RstStream { stream, status } => (kind::RST_STREAM, 0, numbers(&[*stream, status.0])),
            Frame::Settings { clear, entries } => {
                let mut body = numbers(&[entries.len() as u32]);
                entries.iter().for_each(|(id, value)| body.extend(numbers(&[id & 0xff_ffff, *value])));
                (kind::SETTINGS, flag(*clear, CLEAR), body)
            }
            Frame::Ping(id) => (kind::PING, 0, numbers(&[*id])),
            Frame::GoAway { last, status } => (kind::GOAWAY, 0, numbers(&[*last, *status])),
            Frame::WindowUpdate { stream, delta } => (kind::WINDOW_UPDATE, 0, numbers(&[*stream, *delta])),
        };
        if body.len() > MAX_BODY {
            return Err(FrameError::TooLong { kind, len: body.len(), most: MAX_BODY });
        }
        out.extend_from_slice(&0x8003u16.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&length(flags, body.len()));
        out.extend_from_slice(&body);
        Ok(())
    }

    /// Adds the head of a data frame of `len` bytes, at most [`MAX_BODY`], to `out`; the bytes follow it.
    pub fn data(stream: u32, len: usize, fin: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(&(stream & 0x7fff_ffff).to_be_bytes());
        out.extend_from_slice(&length(flag(fin, FIN), len.min(MAX_BODY)));
    }

    fn headers(&mut self, headers: &Headers, body: &mut Vec<u8>) -> Result<(), FrameError> {
        let mut block = Vec::new();
        headers.write(&mut block);
        self.deflater.deflate(&block, body)
    }
}

fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn length(flags: u8, len: usize) -> [u8; 4] {
    let [_, a, b, c] = (len as u32).to_be_bytes();
    [flags, a, b, c]
}
