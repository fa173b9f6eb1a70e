//! One daemon at the other end of a socket: frames in, frames out, never blocking.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use serde::Deserialize;

use super::poll::{Poll, Token};
use crate::types;
use crate::wire::codec::{self, MAX_CALL};
use crate::wire::{Call, Failure, Message, Request};

/// Bytes that may wait for a peer that does not read; then it is dropped.
const MAX_BACKLOG: usize = codec::MAX_FRAME + (1 << 20);

/// Bytes read at once.
const READ: usize = 4096;

/// A peer.
#[derive(Debug)]
pub struct Connection {
    /// The socket, nonblocking.
    pub stream: UnixStream,
    /// Its registration.
    pub token: Token,
    /// Said Hello: gets events.
    pub greeted: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// epoll reports that it can be written.
    waiting: bool,
}

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    /// A call.
    Call(Call),
    /// A call that this version does not know; it has an id to answer to.
    Unknown(u64, Failure),
}

#[derive(Deserialize)]
struct Envelope {
    id: u64,
    request: serde_json::Value,
}

impl Connection {
    /// A new peer, registered as `token`.
    pub fn new(stream: UnixStream, token: Token) -> Self {
        Self { stream, token, greeted: false, input: Vec::new(), output: Vec::new(), sent: 0, waiting: false }
    }

    /// Reads what is there. `Err`: the peer is gone or talks nonsense, and must be dropped; what it
    /// asked for before that is in `calls`.
    pub fn receive(&mut self, calls: &mut Vec<Incoming>) -> io::Result<()> {
        loop {
            self.input.reserve(READ);
            match rustix::io::read(&self.stream, spare_capacity(&mut self.input)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            self.take(calls)?;
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(())
    }

    fn take(&mut self, calls: &mut Vec<Incoming>) -> io::Result<()> {
        let mut used = 0;
        loop {
            let rest = &self.input[used..];
            if let Some(prefix) = rest.first_chunk::<4>()
                && u32::from_le_bytes(*prefix) as usize > MAX_CALL
            {
                return Err(io::Error::new(ErrorKind::InvalidData, "a call that is too long"));
            }
            let Some((envelope, length)) = codec::decode::<Envelope>(rest).map_err(io::Error::other)? else { break };
            used += length;
            calls.push(envelope.open());
        }
        self.input.drain(..used);
        Ok(())
    }

    /// Queues a message and sends what can be sent. `Ok(true)`: something waits for the peer to read.
    pub fn send(&mut self, message: &Message) -> io::Result<bool> {
        let frame = codec::encode(message).map_err(io::Error::other)?;
        if self.output.len() - self.sent + frame.len() > MAX_BACKLOG {
            return Err(io::Error::new(ErrorKind::WouldBlock, "the peer does not read"));
        }
        if self.output.is_empty() {
            self.output = frame;
        } else {
            self.output.extend_from_slice(&frame);
        }
        self.flush()
    }

    /// Asks to be told when the peer has read, if something is `left` to send.
    pub fn want_write(&mut self, poll: &Poll, left: bool) -> io::Result<()> {
        if left != self.waiting {
            poll.want_write(&self.stream, self.token, left)?;
            self.waiting = left;
        }
        Ok(())
    }

    /// Sends what can be sent. `Ok(true)`: something is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        (self.output, self.sent) = (Vec::new(), 0);
        Ok(false)
    }
}

impl Envelope {
    fn open(self) -> Incoming {
        match serde_json::from_value::<Request>(self.request) {
            Ok(request) => Incoming::Call(Call { id: self.id, request }),
            Err(error) => Incoming::Unknown(
                self.id,
                Failure {
                    kind: types::ErrorKind::Unimplemented,
                    message: format!("this monitor does not understand the request: {error}"),
                },
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours, 1), theirs)
    }

    #[test]
    fn frames_may_come_in_any_pieces() {
        let bytes: Vec<u8> = [
            codec::encode(&Call { id: 1, request: Request::KillPause }).unwrap(),
            codec::encode(&serde_json::json!({"id": 2, "request": {"Levitate": {}}})).unwrap(),
        ]
        .concat();
        for size in [1, 3, 50, 1000] {
            let (mut connection, mut peer) = pair();
            let mut calls = Vec::new();
            for piece in bytes.chunks(size) {
                peer.write_all(piece).unwrap();
                connection.receive(&mut calls).unwrap();
            }
            assert!(matches!(
                calls[..],
                [Incoming::Call(Call { id: 1, request: Request::KillPause }), Incoming::Unknown(2, _)]
            ));
        }
    }

    #[test]
    fn nonsense_and_giants_end_the_connection() {
        let giant = u32::try_from(MAX_CALL + 1).unwrap().to_le_bytes();
        for bytes in [&giant[..], b"\x03\0\0\0abc", b"\x02\0\0\0{}"] {
            let (mut connection, mut peer) = pair();
            peer.write_all(bytes).unwrap();
            assert!(connection.receive(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn a_peer_that_does_not_read_is_waited_for_then_given_up() {
        let (mut connection, mut peer) = pair();
        let message = "x".repeat(1 << 20);
        let big = Message::Answer { id: 1, result: Err(Failure { kind: types::ErrorKind::Internal, message }) };
        assert!(connection.send(&big).unwrap(), "the rest waits");
        peer.read_exact(&mut vec![0; 4096]).unwrap();
        connection.output.resize(MAX_BACKLOG, 0);
        assert!(connection.send(&big).is_err());
    }
}
