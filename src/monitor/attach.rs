//! Clients that attach to a running container: who may, and what they write to it.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tracing::{info, warn};

use super::line::Line;
use super::lines::Stream;
use super::listeners::{self, Feed};
use super::poll::Source;
use super::server::{Caller, Monitor};
use super::{because, failure};
use crate::types::{ContainerId, ErrorKind};
use crate::wire::streams::Sorted;
use crate::wire::{AttachSpec, Failure, Reply, Told};

/// Bytes of input taken from a client at once.
const READ: usize = 4096;

/// Reads in a row before others get their turn: as much as a pipe holds.
const MAX_READS: usize = 16;

/// What became of a client's input.
enum Fed {
    /// Nothing more for now.
    Waits,
    /// It ended.
    End,
    /// The container takes no more.
    Refused,
}

impl Monitor {
    /// Request::Attach
    pub(super) fn attach(&mut self, caller: Option<Caller>, spec: AttachSpec) {
        let result = self.begin_attach(spec).map(|()| Reply::Done);
        self.answer(caller, result);
    }

    fn begin_attach(&mut self, spec: AttachSpec) -> Result<(), Failure> {
        let id = &spec.container;
        self.running(id)?;
        let ends = spec.ends.sort(spec.descriptors)?;
        let Sorted { line, stdin, stdout, stderr } = ends;
        let stdio = &self.containers.get(id).ok_or_else(|| Self::unknown(id))?.stdio;
        let created = if stdio.is_terminal() { "with" } else { "without" };
        if spec.terminal != stdio.is_terminal() {
            let why = format!("container {id} was created {created} a terminal; attach {created} one, too");
            return Err(failure(ErrorKind::InvalidArgument, why));
        }
        if stdin.is_some() {
            stdio
                .takes_input()
                .map_err(|why| failure(ErrorKind::FailedPrecondition, format!("container {id} {why}")))?;
        }
        let master = match (spec.terminal, stdio.terminal()) {
            (true, None) => {
                let why = format!("container {id} has closed its terminal");
                return Err(failure(ErrorKind::FailedPrecondition, why));
            }
            (_, master) => master.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3)).transpose(),
        };
        let master = master.map_err(|error| because("sharing the terminal")(error.into()))?;
        if self.reader.listeners.of(id).len() >= listeners::MAX {
            let why = format!("container {id} has {} clients attached already", listeners::MAX);
            return Err(failure(ErrorKind::ResourceExhausted, why));
        }
        for pipe in [&stdin, &stdout, &stderr].into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|error| because("the client's pipes")(error.into()))?;
        }
        // A stream that has ended has ended for a late client, too.
        let open = |stream, fd: Option<OwnedFd>| fd.filter(|_| stdio.reads(stream));
        let outputs = [open(Stream::Stdout, stdout), open(Stream::Stderr, stderr)];
        let number = self.number();
        let line = Line::new(line, number, &mut self.poll).map_err(because("watching a client"))?;
        if let Some(master) = master
            && let Err(error) = line.tell(Told::Terminal, &[master.as_fd()])
        {
            line.close(&mut self.poll);
            return Err(because("passing on the terminal")(error));
        }
        self.reader.listeners.add(number, id.clone(), line, outputs);
        if let Some(fd) = stdin
            && let Err(error) = self.add_feed(number, fd)
        {
            self.reader.listeners.drop(number, &mut self.poll);
            return Err(because("watching a client's input")(error));
        }
        info!(container = %id, "a client has attached");
        Ok(())
    }

    fn add_feed(&mut self, number: u64, fd: OwnedFd) -> std::io::Result<()> {
        let Some(listener) = self.reader.listeners.get_mut(number) else { return Ok(()) };
        let token = Some(self.poll.add(&fd, Source::ListenerInput(number))?);
        listener.feed = Some(Feed { fd, token, pending: Vec::new() });
        Ok(())
    }

    /// A client has written something, or closed its side.
    pub(super) fn on_listener_input(&mut self, number: u64) {
        let Some(listener) = self.reader.listeners.get_mut(number) else { return };
        let id = listener.container.clone();
        let (Some(feed), Some(container)) = (&mut listener.feed, self.containers.get_mut(&id)) else { return };
        let stdio = &mut container.stdio;
        let fed = feed.pass(|bytes| stdio.write(bytes));
        if feed.pending.is_empty() && feed.token.is_none() {
            feed.token = self.poll.add(&feed.fd, Source::ListenerInput(number)).ok();
        } else if !feed.pending.is_empty() {
            // Read on once the container has room.
            if let Some(token) = feed.token.take() {
                self.poll.remove(&feed.fd, token);
            }
            stdio.want_room(&mut self.poll);
        }
        match fed {
            Fed::Waits => {}
            Fed::End => {
                listener.close_feed(&mut self.poll);
                stdio.client_left(&mut self.poll);
            }
            Fed::Refused => {
                listener.close_feed(&mut self.poll);
                stdio.close_input(&mut self.poll);
            }
        }
    }

    /// A container has room for input again.
    pub(super) fn on_input_room(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.stdio.had_room(&mut self.poll);
        }
        for number in self.reader.listeners.of(id) {
            self.on_listener_input(number);
        }
    }

    /// A client has room for output again.
    pub(super) fn on_listener_room(&mut self, number: u64, stream: Stream) {
        let Some(id) = self.reader.listeners.get_mut(number).map(|listener| listener.container.clone()) else { return };
        if self.reader.listeners.flush(number, stream, &mut self.poll) {
            self.read_on(&id);
        }
    }

    /// A client does not take what the container has printed.
    pub(super) fn listener_is_stuck(&mut self, number: u64, stream: Stream) {
        let Some(listener) = self.reader.listeners.get_mut(number) else { return };
        warn!(container = %listener.container, ?stream, "a client that is attached does not read; letting go of it");
        self.detach(number);
    }

    /// A client may have hung up.
    pub(super) fn on_listener_line(&mut self, number: u64) {
        if self.reader.listeners.hung_up(number) {
            // What it had written before still counts.
            self.on_listener_input(number);
            self.detach(number);
        }
    }

    /// Lets go of a client.
    fn detach(&mut self, number: u64) {
        let Some(listener) = self.reader.listeners.get_mut(number) else { return };
        let (id, fed) = (listener.container.clone(), listener.feed.is_some());
        self.reader.listeners.drop(number, &mut self.poll);
        if let Some(container) = self.containers.get_mut(&id).filter(|_| fed) {
            container.stdio.client_left(&mut self.poll);
        }
        self.read_on(&id);
    }

    /// Reads on what no client holds up any longer.
    pub(super) fn read_on(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.stdio.read_on(&self.reader.listeners, &mut self.poll);
        }
    }
}

impl Feed {
    /// Passes on what there is room for.
    fn pass(&mut self, mut write: impl FnMut(&[u8]) -> rustix::io::Result<usize>) -> Fed {
        for _ in 0..MAX_READS {
            if self.pending.is_empty() {
                self.pending.reserve_exact(READ);
                match rustix::io::read(&self.fd, spare_capacity(&mut self.pending)) {
                    Ok(0) => return Fed::End,
                    Ok(_) => {}
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(_) => return Fed::End,
                }
            }
            while !self.pending.is_empty() {
                match write(&self.pending) {
                    Ok(count) => drop(self.pending.drain(..count)),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => return Fed::Waits,
                    Err(_) => return Fed::Refused,
                }
            }
        }
        Fed::Waits
    }
}
