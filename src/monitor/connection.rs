//! One daemon at the other end of a socket: frames in, frames out, never blocking.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Deserialize;

use super::failure;
use super::poll::{Poll, Token};
use crate::sys::rights;
use crate::types;
use crate::wire::codec::{self, MAX_CALL};
use crate::wire::{Call, Failure, Message, Request};

/// Bytes that may wait for a peer that does not read; then it is dropped.
const MAX_BACKLOG: usize = codec::MAX_FRAME + (1 << 20);

/// Bytes read at once.
const READ: usize = 4096;

/// Calls after which others get their turn; what is left is reported again.
const MANY: usize = 16;

/// Descriptors, by the calls they came with, that may be ahead of their frames.
const MAX_AHEAD: usize = 16;

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
    /// Of calls that are not read to their ends, each call's on its own.
    descriptors: VecDeque<Vec<OwnedFd>>,
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
    /// A call that cannot be carried out: this version does not know it, or its descriptors are lost. It has
    /// an id to answer to.
    Refused(u64, Failure),
}

#[derive(Deserialize)]
struct Envelope {
    id: u64,
    request: serde_json::Value,
    #[serde(default)]
    descriptors: usize,
}

impl Connection {
    /// A new peer, registered as `token`.
    pub fn new(stream: UnixStream, token: Token) -> Self {
        let (input, output, descriptors) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { stream, token, greeted: false, input, descriptors, output, sent: 0, waiting: false }
    }

    /// Reads what is there, up to some calls; of a peer that hung up, all. `Err`: the peer is gone or talks
    /// nonsense, and must be dropped; what it asked for before that is in `calls`.
    pub fn receive(&mut self, calls: &mut Vec<Incoming>) -> io::Result<()> {
        let mut bytes = [0; READ];
        let most = if self.hung_up()? { usize::MAX } else { MANY };
        while calls.len() < most {
            let got = match rights::receive(&self.stream, &mut bytes) {
                Ok(got) if got.bytes == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.input.extend_from_slice(&bytes[..got.bytes]);
            if got.truncated || !got.descriptors.is_empty() {
                self.descriptors.push_back(got.descriptors);
            }
            self.take(calls)?;
            if self.descriptors.len() > MAX_AHEAD {
                return Err(io::Error::new(ErrorKind::InvalidData, "descriptors without calls"));
            }
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(())
    }

    fn hung_up(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        rustix::event::poll(&mut polled, Some(&Timespec::default()))?;
        Ok(polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP))
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
            let along = if envelope.descriptors > 0 { self.descriptors.pop_front() } else { None };
            calls.push(envelope.open(along.unwrap_or_default()));
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
    fn open(self, along: Vec<OwnedFd>) -> Incoming {
        let mut request = match serde_json::from_value::<Request>(self.request) {
            Ok(request) => request,
            Err(error) => {
                let why = format!("this monitor does not understand the request: {error}");
                return Incoming::Refused(self.id, failure(types::ErrorKind::Unimplemented, why));
            }
        };
        if along.len() != self.descriptors {
            let why = format!("the monitor has no room for {} more descriptors", self.descriptors);
            return Incoming::Refused(self.id, failure(types::ErrorKind::ResourceExhausted, why));
        }
        if let Some(place) = request.descriptors() {
            *place = along;
        }
        Incoming::Call(Call { id: self.id, request, descriptors: self.descriptors })
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
            codec::encode(&Call { id: 1, request: Request::KillPause, descriptors: 0 }).unwrap(),
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
                [Incoming::Call(Call { id: 1, request: Request::KillPause, .. }), Incoming::Refused(2, _)]
            ));
        }
    }

    #[test]
    fn many_calls_come_in_turns_unless_their_peer_is_gone() {
        let call = codec::encode(&Call { id: 1, request: Request::KillPause, descriptors: 0 }).unwrap();
        let bytes = call.repeat(1000);
        let (mut connection, mut peer) = pair();
        peer.write_all(&bytes).unwrap();
        let (mut turns, mut count) = (0, 0);
        while count < 1000 {
            let mut calls = Vec::new();
            connection.receive(&mut calls).unwrap();
            assert!((1..=MANY + READ / call.len() + 1).contains(&calls.len()), "{}", calls.len());
            (turns, count) = (turns + 1, count + calls.len());
        }
        assert!(turns > 5 && count == 1000, "{turns} {count}");
        peer.write_all(&bytes).unwrap();
        drop(peer);
        let mut calls = Vec::new();
        connection.receive(&mut calls).unwrap_err();
        assert_eq!(calls.len(), 1000, "who looks at them must know that he is gone");
    }

    #[test]
    fn descriptors_find_their_calls() {
        use crate::wire::{AttachSpec, Ends};
        use std::os::fd::AsFd;
        let (mut connection, peer) = pair();
        let ends = Ends { stdin: true, ..Ends::default() };
        let container = types::ContainerId::generate();
        let attach = |id, descriptors| {
            let spec = AttachSpec { container: container.clone(), terminal: false, ends, descriptors: Vec::new() };
            codec::encode(&Call { id, request: Request::Attach(Box::new(spec)), descriptors }).unwrap()
        };
        let plain = codec::encode(&Call { id: 7, request: Request::KillPause, descriptors: 0 }).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        rights::send(&peer, &plain, &[]).unwrap();
        // In two pieces; and one whose descriptors did not all come.
        let two = attach(8, 2);
        rights::send(&peer, &two[..9], &[file.as_fd(), file.as_fd()]).unwrap();
        rights::send(&peer, &two[9..], &[]).unwrap();
        rights::send(&peer, &attach(9, 2), &[file.as_fd()]).unwrap();
        rights::send(&peer, &attach(10, 2), &[file.as_fd(), file.as_fd()]).unwrap();
        let mut calls = Vec::new();
        connection.receive(&mut calls).unwrap();
        let told: Vec<_> = calls
            .into_iter()
            .map(|call| match call {
                Incoming::Call(Call { id, mut request, .. }) => (id, request.descriptors().map(|some| some.len())),
                Incoming::Refused(id, failure) => {
                    assert_eq!(failure.kind, types::ErrorKind::ResourceExhausted);
                    (id, Some(0))
                }
            })
            .collect();
        assert_eq!(told, [(7, None), (8, Some(2)), (9, Some(0)), (10, Some(2))]);
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
