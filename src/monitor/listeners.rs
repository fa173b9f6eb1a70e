//! Clients that see what a container prints, each by pipes of its own.
//!
//! What a client's pipe does not take is kept, and until it is taken the container's stream is not
//! read any further: the container waits for its reader as it would in a shell. A client that takes
//! nothing of it for [`PATIENCE`] is dropped, so that a container is never held up for long, and at
//! most one read per stream is kept, whatever the number of clients. Only what is left in a
//! container's pipes when it ends is read at once, so that its log is complete.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::line::Line;
use super::lines::Stream;
use super::poll::{Poll, Source, Timer, Token};
use crate::types::ContainerId;
use crate::wire::Told;

/// How long a client may leave a whole read's worth of output untaken.
pub const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Clients of one container at once.
pub const MAX: usize = 64;

/// All clients of the pod's containers.
#[derive(Debug, Default)]
pub struct Listeners(BTreeMap<u64, Listener>);

/// One client.
#[derive(Debug)]
pub struct Listener {
    /// What it listens to.
    pub container: ContainerId,
    line: Line,
    sinks: [Option<Sink>; 2],
    /// What it writes to the container.
    pub feed: Option<Feed>,
    /// The container has ended.
    ending: bool,
}

/// Where one stream goes.
#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    /// Read already, and not taken; from where on.
    pending: VecDeque<(Rc<[u8]>, usize)>,
    /// While something is pending.
    waiting: Option<(Token, Timer)>,
    /// Nothing more comes.
    ended: bool,
}

/// Input on its way.
#[derive(Debug)]
pub struct Feed {
    /// The client's pipe, nonblocking.
    pub fd: OwnedFd,
    /// While it is being watched.
    pub token: Option<Token>,
    /// Read, and not taken by the container.
    pub pending: Vec<u8>,
}

/// The client does not read any more.
struct Gone;

impl Listeners {
    /// A client.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Listener> {
        self.0.get_mut(&number)
    }

    /// The clients of a container.
    pub fn of(&self, container: &ContainerId) -> Vec<u64> {
        self.0.iter().filter(|(_, listener)| listener.container == *container).map(|(number, _)| *number).collect()
    }

    /// Adds a client; its pipes are nonblocking.
    pub fn add(&mut self, number: u64, container: ContainerId, line: Line, outputs: [Option<OwnedFd>; 2]) {
        let sinks =
            outputs.map(|output| output.map(|fd| Sink { fd, pending: VecDeque::new(), waiting: None, ended: false }));
        self.0.insert(number, Listener { container, line, sinks, feed: None, ending: false });
    }

    /// Gives every client of `container` what it has just printed.
    pub fn copy(&mut self, container: &ContainerId, stream: Stream, bytes: &[u8], poll: &mut Poll) {
        let mut shared = None;
        for (number, listener) in self.0.iter_mut().filter(|(_, listener)| listener.container == *container) {
            let Some(sink) = listener.sinks[stream as usize].as_mut().filter(|sink| !sink.ended) else { continue };
            let watched = Source::ListenerRoom(*number, stream);
            if sink.take(bytes, &mut shared).is_err() || sink.settle(watched, poll).is_err() {
                listener.close_sink(stream, poll);
            }
        }
    }

    /// Whether reading on must wait for a client.
    pub fn hold(&self, container: &ContainerId, stream: Stream) -> bool {
        let sinks = self.0.values().filter(|listener| listener.container == *container);
        sinks.filter_map(|listener| listener.sinks[stream as usize].as_ref()).any(|sink| sink.holds())
    }

    /// A stream has ended: so does each client's, once it has taken all.
    pub fn end(&mut self, container: &ContainerId, stream: Stream, poll: &mut Poll) {
        for listener in self.0.values_mut().filter(|listener| listener.container == *container) {
            listener.end(stream, poll);
        }
    }

    /// The container has ended: tells its clients, who keep nothing but what they have not taken yet.
    pub fn finish(&mut self, container: &ContainerId, exit_code: i32, poll: &mut Poll) {
        for number in self.of(container) {
            let Some(listener) = self.0.get_mut(&number) else { continue };
            // One that is gone need not know.
            let _ = listener.line.tell(Told::Ended { exit_code }, &[]);
            listener.ending = true;
            listener.close_feed(poll);
            listener.end(Stream::Stdout, poll);
            listener.end(Stream::Stderr, poll);
            self.reap(number, poll);
        }
    }

    /// A client has room again; true: it holds nobody up any longer.
    pub fn flush(&mut self, number: u64, stream: Stream, poll: &mut Poll) -> bool {
        let Some(listener) = self.0.get_mut(&number) else { return true };
        let Some(sink) = &mut listener.sinks[stream as usize] else { return true };
        let flushed = sink.flush().and_then(|()| sink.settle(Source::ListenerRoom(number, stream), poll));
        let free = !sink.holds();
        if flushed.is_err() || (sink.ended && sink.pending.is_empty()) {
            listener.close_sink(stream, poll);
            self.reap(number, poll);
            return true;
        }
        free
    }

    /// Whether a client hung up.
    pub fn hung_up(&self, number: u64) -> bool {
        self.0.get(&number).is_some_and(|listener| listener.line.hung_up())
    }

    /// Lets go of a client.
    pub fn drop(&mut self, number: u64, poll: &mut Poll) {
        let Some(mut listener) = self.0.remove(&number) else { return };
        listener.close_sink(Stream::Stdout, poll);
        listener.close_sink(Stream::Stderr, poll);
        listener.close_feed(poll);
        listener.line.close(poll);
    }

    /// Lets go of a client that has all there was of a container that has ended.
    fn reap(&mut self, number: u64, poll: &mut Poll) {
        if self.0.get(&number).is_some_and(|one| one.ending && one.sinks.iter().all(Option::is_none)) {
            self.drop(number, poll);
        }
    }
}

impl Listener {
    fn end(&mut self, stream: Stream, poll: &mut Poll) {
        let Some(sink) = &mut self.sinks[stream as usize] else { return };
        sink.ended = true;
        if sink.pending.is_empty() {
            self.close_sink(stream, poll);
        }
    }

    fn close_sink(&mut self, stream: Stream, poll: &mut Poll) {
        if let Some(mut sink) = self.sinks[stream as usize].take() {
            sink.unwatch(poll);
        }
    }

    /// Takes no more input from it.
    pub fn close_feed(&mut self, poll: &mut Poll) {
        if let Some(feed) = self.feed.take()
            && let Some(token) = feed.token
        {
            poll.remove(&feed.fd, token);
        }
    }
}

impl Sink {
    fn holds(&self) -> bool {
        !self.ended && !self.pending.is_empty()
    }

    /// Writes what the client takes, keeps the rest, which all clients share.
    fn take(&mut self, bytes: &[u8], shared: &mut Option<Rc<[u8]>>) -> Result<(), Gone> {
        let written = if self.pending.is_empty() { write(&self.fd, bytes)? } else { 0 };
        if written < bytes.len() {
            self.pending.push_back((shared.get_or_insert_with(|| Rc::from(bytes)).clone(), written));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Gone> {
        while let Some((bytes, from)) = self.pending.front_mut() {
            *from += write(&self.fd, &bytes[*from..])?;
            if *from < bytes.len() {
                return Ok(());
            }
            self.pending.pop_front();
        }
        Ok(())
    }

    /// Watches for room exactly while something is pending.
    fn settle(&mut self, source: Source, poll: &mut Poll) -> Result<(), Gone> {
        if self.pending.is_empty() {
            self.unwatch(poll);
        } else if self.waiting.is_none() {
            let token = poll.add_write(&self.fd, source.clone()).map_err(|_| Gone)?;
            self.waiting = Some((token, poll.timer(PATIENCE, source)));
        }
        Ok(())
    }

    fn unwatch(&mut self, poll: &mut Poll) {
        if let Some((token, timer)) = self.waiting.take() {
            poll.remove(&self.fd, token);
            poll.cancel(timer);
        }
    }
}

/// Writes what there is room for.
fn write(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, Gone> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(fd, &bytes[written..]) {
            Ok(count) => written += count,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(_) => return Err(Gone),
        }
    }
    Ok(written)
}
