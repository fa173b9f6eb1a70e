//! The monitor's state and its loop.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::net::sockopt::socket_peercred;
use tracing::{error, info, warn};

use super::connection::{Connection, Incoming};
use super::container::Container;
use super::exec::Exec;
use super::jobs::Running;
use super::output::Reader;
use super::poll::{Poll, Source, Token};
use super::reaper::Children;
use super::sandbox::Sandbox;
use super::{Options, socket};
use crate::sys::process;
use crate::types::{ContainerId, PodId};
use crate::wire::{Event, Failure, Message, Reply};

/// Connections served at once; one daemon needs one.
const MAX_CONNECTIONS: usize = 16;

/// How long nobody is let in after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long the last answer may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its connection.
    pub connection: u64,
    /// Its number for the call.
    pub id: u64,
}

/// Everything.
pub struct Monitor {
    pub(super) pod: PodId,
    pub(super) dir: PathBuf,
    pub(super) poll: Poll,
    signals: SignalFd,
    listener: UnixListener,
    listening: Token,
    connections: BTreeMap<u64, Connection>,
    /// Whoever started it holds a connection from the start: it can be left alone with nothing to do.
    started: bool,
    /// Numbers for connections, jobs, execs and console sockets.
    counter: u64,
    pub(super) sandbox: Sandbox,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) execs: BTreeMap<u64, Exec>,
    pub(super) jobs: BTreeMap<u64, Running>,
    pub(super) children: Children,
    pub(super) reader: Reader,
    /// A burst of work has left free memory behind.
    pub(super) untidy: bool,
    /// Somebody asked for Shutdown; what went wrong since.
    pub(super) closing: Option<Closing>,
}

/// A shutdown under way.
#[derive(Debug, Default)]
pub struct Closing {
    /// Who asked.
    pub callers: Vec<Caller>,
    /// What could not be removed.
    pub failures: Vec<Failure>,
}

impl Monitor {
    /// A monitor without pause and containers, listening.
    pub fn new(options: &Options, signals: &SigSet) -> io::Result<Self> {
        let mut poll = Poll::new()?;
        let signals = SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let listener = socket::listen(&options.dir)?;
        poll.add(&signals, Source::Signals)?;
        let listening = poll.add(&listener, Source::Listener)?;
        Ok(Self {
            pod: options.pod.clone(),
            dir: options.dir.clone(),
            poll,
            signals,
            listener,
            listening,
            connections: BTreeMap::new(),
            started: false,
            counter: 0,
            sandbox: Sandbox::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            children: Children::default(),
            reader: Reader::default(),
            untidy: false,
            closing: None,
        })
    }

    /// Serves until Shutdown is done.
    pub fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while !self.closed() && !self.abandoned() {
            self.poll.wait(&mut ready)?;
            for (source, due) in ready.drain(..) {
                self.handle(source, due);
            }
            if self.untidy && self.execs.is_empty() && self.jobs.is_empty() {
                self.untidy = false;
                process::trim_memory();
            }
        }
        self.farewell();
        Ok(())
    }

    /// Takes in the peer that started this process.
    pub fn welcome_first(&mut self, stream: UnixStream) -> io::Result<()> {
        self.started = true;
        self.welcome(stream)
    }

    /// Takes in a peer.
    pub fn welcome(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let number = self.number();
        let token = self.poll.add(&stream, Source::Connection(number))?;
        self.connections.insert(number, Connection::new(stream, token));
        Ok(())
    }

    /// A number that was not used before.
    pub(super) fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Answers, unless whoever asked is gone or nobody asked.
    pub(super) fn answer(&mut self, caller: Option<Caller>, result: Result<Reply, Failure>) {
        let Some(caller) = caller else { return };
        self.send(caller.connection, &Message::Answer { id: caller.id, result });
    }

    /// Tells everybody who said Hello.
    pub(super) fn announce(&mut self, event: &Event) {
        let greeted: Vec<u64> = self.connections.iter().filter(|(_, peer)| peer.greeted).map(|(id, _)| *id).collect();
        for connection in greeted {
            self.send(connection, &Message::Event(event.clone()));
        }
    }

    /// From now on `connection` gets events.
    pub(super) fn greet(&mut self, connection: u64) {
        if let Some(peer) = self.connections.get_mut(&connection) {
            peer.greeted = true;
        }
    }

    fn handle(&mut self, source: Source, due: bool) {
        match source {
            Source::Listener if due => self.listen_again(),
            Source::Listener => self.accept(),
            Source::Signals => self.on_signals(),
            Source::Connection(number) => self.on_connection(number),
            Source::Pause if due => self.pause_is_late(),
            Source::Pause => self.on_pause_told(),
            Source::Job(job) if due => self.job_is_late(job),
            Source::Job(job) => self.on_job_result(job),
            Source::Output(container, stream) => self.on_output(&container, stream),
            Source::Console(container) => self.on_console(&container),
            Source::Killed(container) => self.kill_is_late(&container),
            Source::Swept => self.children.resign(),
            Source::ExecOutput(exec, stream) => self.on_exec_output(exec, stream),
            Source::ExecLimit(exec) => self.exec_is_late(exec),
            Source::ExecDrain(exec) => self.exec_is_drained(exec),
            Source::ExecConsole(exec) => self.on_exec_console(exec),
            Source::Line(number) => self.on_line(number),
            Source::Input(container) => self.on_input_room(&container),
            Source::ListenerInput(listener) => self.on_listener_input(listener),
            Source::ListenerRoom(listener, stream) if due => self.listener_is_stuck(listener, stream),
            Source::ListenerRoom(listener, stream) => self.on_listener_room(listener, stream),
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != libc::SIGCHLD.unsigned_abs() {
                info!(signal = signal.ssi_signo, "signal ignored: only Shutdown ends a monitor");
            }
        }
        self.reap();
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, most likely: the peer would be reported for ever.
                    warn!(%error, "connections are not accepted for a while");
                    self.poll.remove(&self.listener, self.listening);
                    self.poll.timer(ACCEPT_PAUSE, Source::Listener);
                    return;
                }
            };
            // The folder and the socket are closed to others; this is the second lock on the door.
            let ours = socket_peercred(&stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
            if !ours || self.connections.len() >= MAX_CONNECTIONS {
                warn!(ours, "connection refused");
                continue;
            }
            if let Err(error) = self.welcome(stream) {
                warn!(%error, "connection lost");
            }
        }
    }

    fn listen_again(&mut self) {
        match self.poll.add(&self.listener, Source::Listener) {
            Ok(token) => self.listening = token,
            Err(error) => {
                warn!(%error, "connections are still not accepted");
                self.poll.timer(ACCEPT_PAUSE, Source::Listener);
            }
        }
    }

    fn on_connection(&mut self, number: u64) {
        let Some(peer) = self.connections.get_mut(&number) else { return };
        let mut calls = Vec::new();
        let received = peer.receive(&mut calls);
        // What somebody who is gone asked for is not begun: a daemon that comes later may have looked for it already.
        calls.retain(|call| received.is_ok() || !matches!(call, Incoming::Call(call) if call.request.begins()));
        let healthy = received.and_then(|()| peer.flush()).and_then(|left| peer.want_write(&self.poll, left));
        for call in calls {
            match call {
                Incoming::Call(call) => self.call(Caller { connection: number, id: call.id }, call.request),
                Incoming::Refused(id, failure) => {
                    self.answer(Some(Caller { connection: number, id }), Err(failure));
                }
            }
        }
        if let Err(error) = healthy {
            self.drop_connection(number, &error);
        }
    }

    fn send(&mut self, number: u64, message: &Message) {
        let Some(peer) = self.connections.get_mut(&number) else { return };
        let sent = peer.send(message).and_then(|left| peer.want_write(&self.poll, left));
        if let Err(error) = sent {
            self.drop_connection(number, &error);
        }
    }

    fn drop_connection(&mut self, number: u64, error: &io::Error) {
        if let Some(peer) = self.connections.remove(&number) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                warn!(%error, "connection dropped");
            }
            self.poll.remove(&peer.stream, peer.token);
            // As what was still in the connection, see there.
            let theirs = |caller: &Option<Caller>| caller.is_some_and(|by| by.connection == number);
            for container in self.containers.values_mut() {
                container.queue.retain(|(caller, request)| !theirs(caller) || !request.begins());
            }
        }
    }

    /// The daemon died before it told what to do, and nobody else came: there is nobody to wait for.
    fn abandoned(&self) -> bool {
        self.started
            && self.connections.is_empty()
            && self.closing.is_none()
            && self.containers.is_empty()
            && self.jobs.is_empty()
            && self.children.swept()
            && self.sandbox.is_gone()
    }

    fn closed(&self) -> bool {
        self.closing.is_some()
            && self.containers.is_empty()
            && self.jobs.is_empty()
            && self.children.swept()
            && self.sandbox.is_gone()
    }

    fn farewell(&mut self) {
        let Some(Closing { callers, failures }) = self.closing.take() else { return };
        let remains = failures
            .into_iter()
            .reduce(|all, next| Failure { message: format!("{}; {}", all.message, next.message), ..all });
        if let Some(failure) = &remains {
            error!(%failure, "shut down with remains");
        }
        for caller in callers {
            self.answer(Some(caller), remains.clone().map_or(Ok(Reply::Done), Err));
        }
        for peer in self.connections.values_mut() {
            let _ = peer.stream.set_nonblocking(false);
            let _ = peer.stream.set_write_timeout(Some(FAREWELL));
            let _ = peer.flush();
        }
    }
}
