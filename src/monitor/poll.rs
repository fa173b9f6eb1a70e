//! What the loop waits for: descriptors by epoll, and points in time.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::lines::Stream;
use crate::types::ContainerId;

/// A registration; never used twice, so that a late event of something gone is recognised.
pub type Token = u64;

/// What a descriptor or a timer belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// New connections.
    Listener,
    /// Signals, SIGCHLD above all.
    Signals,
    /// A daemon.
    Connection(u64),
    /// The pipe on which pause's child tells what failed; or its time limit.
    Pause,
    /// The result pipe of an engine job; or its time limit.
    Job(u64),
    /// A container's output.
    Output(ContainerId, Stream),
    /// The socket at which a runtime hands over a container's terminal.
    Console(ContainerId),
    /// A container's processes were killed, and should be gone by this time.
    Killed(ContainerId),
    /// What killed helpers left should be gone by this time.
    Swept,
    /// Output of an exec.
    ExecOutput(u64, Stream),
    /// An exec's time limit.
    ExecLimit(u64),
    /// The end of reading after an exec's process ended.
    ExecDrain(u64),
    /// The socket at which a runtime hands over an exec's terminal.
    ExecConsole(u64),
    /// The line of a client of an exec, or of a container: it hung up.
    Line(u64),
    /// A container has room for input again.
    Input(ContainerId),
    /// What a client of a container writes to it.
    ListenerInput(u64),
    /// A client of a container has room for output again; or its time limit for that.
    ListenerRoom(u64, Stream),
}

/// Descriptors and timers.
pub struct Poll {
    epoll: OwnedFd,
    sources: BTreeMap<Token, Source>,
    timers: BTreeMap<(Instant, Token), Source>,
    next: Token,
    ready: Vec<epoll::Event>,
}

/// A timer that can be cancelled.
#[derive(Debug, Clone, Copy)]
pub struct Timer(Instant, Token);

/// Events taken per wake-up.
const BATCH: usize = 64;

impl Poll {
    /// Waits for nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: BTreeMap::new(),
            timers: BTreeMap::new(),
            next: 1,
            ready: Vec::with_capacity(BATCH),
        })
    }

    /// Reports `source` whenever `fd` can be read or its other end is gone.
    pub fn add(&mut self, fd: impl AsFd, source: Source) -> io::Result<Token> {
        let token = self.token();
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Reports `source` whenever `fd` can be written or its other end is gone.
    pub fn add_write(&mut self, fd: impl AsFd, source: Source) -> io::Result<Token> {
        let token = self.token();
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::OUT)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Reports also, or no longer, that `fd` can be written.
    pub fn want_write(&self, fd: impl AsFd, token: Token, wanted: bool) -> io::Result<()> {
        let flags = if wanted { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Ends a registration. To be called before `fd` is closed: a forked helper may hold a copy of
    /// it, and epoll goes on reporting a closed descriptor that somebody has a copy of.
    pub fn remove(&mut self, fd: impl AsFd, token: Token) {
        self.sources.remove(&token);
        // Not registered is what we want.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Reports `source` once, after `delay`.
    pub fn timer(&mut self, delay: Duration, source: Source) -> Timer {
        let now = Instant::now();
        let timer = Timer(now.checked_add(delay).unwrap_or(now + Duration::from_secs(1 << 32)), self.token());
        self.timers.insert((timer.0, timer.1), source);
        timer
    }

    /// Never mind.
    pub fn cancel(&mut self, timer: Timer) {
        self.timers.remove(&(timer.0, timer.1));
    }

    /// Waits until something is ready or due and puts it into `ready`; the flag says that time is up.
    pub fn wait(&mut self, ready: &mut Vec<(Source, bool)>) -> io::Result<()> {
        let timeout = self.timers.keys().next().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|wait| Timespec::try_from(wait).ok());
        self.ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.ready {
            let token = event.data;
            if let Some(source) = self.sources.get(&token.u64()) {
                ready.push((source.clone(), false));
            }
        }
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            ready.push((entry.remove(), true));
        }
        Ok(())
    }

    fn token(&mut self) -> Token {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_timers_are_reported_until_removed() {
        let mut poll = Poll::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let token = poll.add(&read, Source::Pause).unwrap();
        let cancelled = poll.timer(Duration::ZERO, Source::Job(1));
        poll.timer(Duration::from_millis(1), Source::Job(2));
        poll.cancel(cancelled);
        let mut ready = Vec::new();
        poll.wait(&mut ready).unwrap();
        assert_eq!(ready, [(Source::Job(2), true)]);
        rustix::io::write(&write, b"x").unwrap();
        ready.clear();
        poll.wait(&mut ready).unwrap();
        assert_eq!(ready, [(Source::Pause, false)]);
        // A copy stays open, as in a forked helper.
        let copy = read.try_clone().unwrap();
        poll.remove(&read, token);
        drop(read);
        poll.timer(Duration::ZERO, Source::Signals);
        ready.clear();
        poll.wait(&mut ready).unwrap();
        assert_eq!(ready, [(Source::Signals, true)]);
        drop(copy);
    }
}
