//! Processes run in a container: for a client that waits for what they print, or, see
//! [`super::streamed`], with a client's own streams.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpgid, kill_process_group};
use tracing::warn;

use super::backend::{self, Job, Streams};
use super::cgroup;
use super::console::Console;
use super::jobs::Purpose;
use super::line::Line;
use super::lines::Stream;
use super::output::output_pipe;
use super::poll::{Poll, Source, Timer, Token};
use super::reaper::{Adopted, Owner};
use super::server::{Caller, Monitor};
use super::{because, failure, socket};
use crate::sys::process::Ended;
use crate::types::{ContainerId, ErrorKind};
use crate::wire::{ExecOutcome, ExecSpec, Failure, Process, Reply};

/// Time for the engine to make the process, where the exec itself has no limit.
pub const BEGIN_LIMIT: Duration = Duration::from_secs(120);

/// Bytes read at once.
const READ: usize = 4 * 1024;

/// What is collected.
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Reads in a row before others get their turn.
const MAX_READS: usize = 64;

/// Output after which free memory is given back, bytes.
const MUCH: usize = 64 * 1024;

/// Execs at once after which free memory is given back.
const MANY: usize = 8;

/// What a process that was killed because its time was up counts as.
const KILLED: i32 = 128 + libc::SIGKILL;

/// An exec under way.
#[derive(Debug)]
pub struct Exec {
    pub(super) caller: Option<Caller>,
    pub(super) container: ContainerId,
    token: u64,
    output_limit: usize,
    drain: Duration,
    streams: [Capture; 2],
    pub(super) job: Option<u64>,
    process: Option<(i32, OwnedFd)>,
    pub(super) code: Option<i32>,
    timed_out: bool,
    timer: Option<Timer>,
    /// Its streams are the client's own.
    pub(super) client: Option<Client>,
}

/// A client that has a process's streams itself.
#[derive(Debug)]
pub struct Client {
    /// `None` once it hung up.
    pub(super) line: Option<Line>,
    /// Where the terminal is awaited.
    pub(super) console: Option<Console>,
}

/// What one stream said.
#[derive(Debug, Default)]
struct Capture {
    source: Option<(OwnedFd, Token)>,
    bytes: Vec<u8>,
}

impl Exec {
    /// One that has just begun.
    pub(super) fn new(caller: Option<Caller>, container: ContainerId) -> Self {
        Self {
            caller,
            container,
            token: 0,
            output_limit: 0,
            drain: Duration::ZERO,
            streams: [Capture::default(), Capture::default()],
            job: None,
            process: None,
            code: None,
            timed_out: false,
            timer: None,
            client: None,
        }
    }

    /// Whether `container` cannot be removed because of this one.
    pub fn blocks(&self, container: &ContainerId) -> bool {
        self.container == *container && self.code.is_none()
    }

    /// Reads what is there of one stream, as far as the other has left room; false at the end.
    fn read(&mut self, stream: Stream, poll: &mut Poll) -> bool {
        let [own, other] = match (&mut self.streams, stream) {
            ([stdout, stderr], Stream::Stdout) => [stdout, stderr],
            ([stdout, stderr], Stream::Stderr) => [stderr, stdout],
        };
        own.read(self.output_limit.saturating_sub(other.bytes.len()), poll)
    }
}

impl Monitor {
    /// Request::Exec
    pub(super) fn exec(&mut self, caller: Option<Caller>, spec: ExecSpec) {
        if let Err(failure) = self.begin_exec(caller, &spec) {
            self.answer(caller, Err(failure));
        }
    }

    /// The init of a container that runs.
    pub(super) fn running(&self, id: &ContainerId) -> Result<Process, Failure> {
        let container = self.containers.get(id).ok_or_else(|| Self::unknown(id))?;
        match (container.process, &container.handle, container.started_ns) {
            (Some(init), Some(_), Some(_)) => Ok(init),
            _ => Err(failure(ErrorKind::FailedPrecondition, format!("container {id} is not running"))),
        }
    }

    fn begin_exec(&mut self, caller: Option<Caller>, spec: &ExecSpec) -> Result<(), Failure> {
        let id = &spec.container;
        let init = self.running(id)?;
        let pipes = || Ok((socket::null()?, output_pipe()?, output_pipe()?));
        let (stdin, out, err) = pipes().map_err(because("making the streams of an exec"))?;
        let number = self.number();
        let mut captures = [Capture::default(), Capture::default()];
        let watched = captures[0]
            .watch(out.0, Source::ExecOutput(number, Stream::Stdout), &mut self.poll)
            .and_then(|()| captures[1].watch(err.0, Source::ExecOutput(number, Stream::Stderr), &mut self.poll))
            .map_err(because("watching an exec"));
        let streams = Streams::Pipes { stdin, stdout: out.1, stderr: err.1 };
        let begun = watched.and_then(|()| {
            let container = self.containers.get(id).ok_or_else(|| Self::unknown(id))?;
            backend::exec(&container.spec, init, spec, streams)
        });
        let job = match begun {
            Ok(job) => job,
            Err(failure) => {
                captures.iter_mut().for_each(|capture| capture.close(&mut self.poll));
                return Err(failure);
            }
        };
        let limit = (spec.timeout_ms > 0).then(|| Duration::from_millis(spec.timeout_ms));
        let exec = Exec {
            token: spec.token,
            output_limit: spec.output_limit,
            drain: Duration::from_millis(spec.drain_ms),
            streams: captures,
            timer: limit.map(|limit| self.poll.timer(limit, Source::ExecLimit(number))),
            ..Exec::new(caller, id.clone())
        };
        // A limit of its own only where the exec has none: one that is late kills the helper, too.
        self.watch_exec(number, exec, job, limit.is_none().then_some(BEGIN_LIMIT));
        Ok(())
    }

    /// Waits for the engine to make the process, for `limit` at most.
    pub(super) fn watch_exec(&mut self, number: u64, exec: Exec, job: Job, limit: Option<Duration>) {
        self.execs.insert(number, exec);
        match self.watch(job, Purpose::Exec(number), limit) {
            Ok(job) => {
                if let Some(exec) = self.execs.get_mut(&number) {
                    exec.job = Some(job);
                }
            }
            Err(failure) => self.exec_begun(number, Err(failure)),
        }
    }

    /// The engine has made the process, or failed to.
    pub(super) fn exec_begun(&mut self, number: u64, result: Result<i32, Failure>) {
        let adopted = result.and_then(|pid| self.adopt(pid, Owner::Exec(number)));
        let Some(exec) = self.execs.get_mut(&number) else { return };
        exec.job = None;
        match adopted {
            Ok(Adopted::Alive(process, handle)) => {
                exec.process = Some((process.pid, handle));
                if exec.timed_out {
                    self.kill_exec(number);
                }
                self.streams_begun(number);
            }
            Ok(Adopted::Ended(_, ended)) => self.on_exec_ended(number, ended),
            Err(_) if exec.timed_out => {
                exec.code = Some(KILLED);
                self.finish_exec(number, None);
            }
            Err(mut why) => {
                why.message = format!("exec in container {}: {}", exec.container.short(), why.message);
                self.finish_exec(number, Some(why));
            }
        }
    }

    /// The process was reaped.
    pub(super) fn on_exec_ended(&mut self, number: u64, ended: Ended) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if let (Some((pid, _)), Some(container)) = (exec.process.take(), self.containers.get(&exec.container)) {
            backend::exec_ended(&container.spec, pid);
        }
        exec.code = Some(ended.code());
        if let Some(timer) = exec.timer.take() {
            self.poll.cancel(timer);
        }
        if exec.client.is_some() {
            let container = exec.container.clone();
            self.streams_begun(number);
            self.finish_exec(number, None);
            return self.advance_delete(&container);
        }
        let mut open = false;
        for stream in STREAMS {
            open |= exec.read(stream, &mut self.poll);
        }
        let container = exec.container.clone();
        if open && !exec.drain.is_zero() && !exec.timed_out {
            exec.timer = Some(self.poll.timer(exec.drain, Source::ExecDrain(number)));
        } else {
            self.finish_exec(number, None);
        }
        self.advance_delete(&container);
    }

    /// The process has written something, or closed a stream.
    pub(super) fn on_exec_output(&mut self, number: u64, stream: Stream) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        exec.read(stream, &mut self.poll);
        if exec.code.is_some() && exec.streams.iter().all(|capture| capture.source.is_none()) {
            self.finish_exec(number, None);
        }
    }

    /// The time limit passed.
    pub(super) fn exec_is_late(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        exec.timer = None;
        exec.timed_out = true;
        match exec.job {
            Some(job) => self.cancel_job(job, failure(ErrorKind::DeadlineExceeded, "the time limit passed")),
            None => self.kill_exec(number),
        }
    }

    /// Request::EndExec
    pub(super) fn end_exec(&mut self, container: &ContainerId, caller: Option<Caller>, token: u64) {
        let is_it = |exec: &Exec| exec.token == token && token != 0 && exec.container == *container;
        if let Some((number, exec)) = self.execs.iter_mut().find(|(_, exec)| is_it(exec)) {
            let (number, over) = (*number, exec.code.is_some());
            if let Some(timer) = exec.timer.take() {
                self.poll.cancel(timer);
            }
            if over { self.exec_is_drained(number) } else { self.exec_is_late(number) }
        }
        self.answer(caller, Ok(Reply::Done));
    }

    /// Enough of waiting for grandchildren that hold the pipes.
    pub(super) fn exec_is_drained(&mut self, number: u64) {
        if let Some(exec) = self.execs.get_mut(&number) {
            exec.timer = None;
            self.finish_exec(number, None);
        }
    }

    /// Kills all execs in a container that is to be removed.
    pub(super) fn kill_execs(&mut self, container: &ContainerId) {
        let numbers: Vec<u64> =
            self.execs.iter().filter(|(_, exec)| exec.blocks(container)).map(|(number, _)| *number).collect();
        for number in numbers {
            match self.execs.get(&number).and_then(|exec| exec.job) {
                Some(job) => self.cancel_job(job, failure(ErrorKind::Aborted, "the container is being removed")),
                None => self.kill_exec(number),
            }
        }
    }

    /// Kills the process and whatever it has started that is still of its session.
    pub(super) fn kill_exec(&mut self, number: u64) {
        let Some(exec) = self.execs.get(&number) else { return };
        let Some((pid, handle)) = &exec.process else { return };
        let folders = self.containers.get(&exec.container).map(|container| container.spec.cgroups.as_slice());
        if let Err(error) = cgroup::kill_tree(folders.unwrap_or_default(), *pid, handle) {
            warn!(container = %exec.container, %error, "killing what an exec has started");
        }
        // A container without a cgroup; as long as it is not reaped, its number is that of its group only.
        if let Some(group) = Pid::from_raw(*pid)
            && getpgid(Some(group)) == Ok(group)
        {
            // Gone is fine.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let (container, pid) = (exec.container.clone(), *pid);
        self.kill_inside(&container, pid);
    }

    /// Kills the process of an exec where killing `pid`, by which it is known on the host, does not.
    pub(super) fn kill_inside(&mut self, container: &ContainerId, pid: i32) {
        let inside = self.containers.get(container).and_then(|container| backend::kill_inside(&container.spec, pid));
        let killing = inside.map(|job| self.watch(job?, Purpose::Kill(container.clone()), Some(BEGIN_LIMIT)));
        if let Some(Err(why)) = killing {
            warn!(%container, why = why.message, "killing the process of an exec");
        }
    }

    fn finish_exec(&mut self, number: u64, failed: Option<Failure>) {
        let Some(mut exec) = self.execs.remove(&number) else { return };
        if let Some(client) = exec.client.take() {
            return self.finish_streams(exec, client, failed);
        }
        if let Some(timer) = exec.timer.take() {
            self.poll.cancel(timer);
        }
        for stream in STREAMS {
            exec.read(stream, &mut self.poll);
            exec.streams[stream as usize].close(&mut self.poll);
        }
        let bytes: usize = exec.streams.iter().map(|capture| capture.bytes.capacity()).sum();
        self.untidy |= bytes > MUCH || self.execs.len() >= MANY;
        let [stdout, stderr] = exec.streams.map(|capture| capture.bytes);
        let exit_code = if exec.timed_out { KILLED } else { exec.code.unwrap_or(KILLED) };
        let outcome = ExecOutcome { exit_code, timed_out: exec.timed_out, stdout, stderr };
        self.answer(exec.caller, failed.map_or(Ok(Reply::Exec(outcome)), Err));
        self.advance_delete(&exec.container);
    }
}

impl Capture {
    fn watch(&mut self, fd: OwnedFd, source: Source, poll: &mut Poll) -> std::io::Result<()> {
        let token = poll.add(&fd, source)?;
        self.source = Some((fd, token));
        Ok(())
    }

    /// Reads what is there, keeps up to `limit` bytes; false at the end.
    fn read(&mut self, limit: usize, poll: &mut Poll) -> bool {
        let Some((fd, _)) = &self.source else { return false };
        for _ in 0..MAX_READS {
            self.bytes.reserve(READ);
            match rustix::io::read(fd, spare_capacity(&mut self.bytes)) {
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => {
                    self.close(poll);
                    return false;
                }
                Ok(_) => self.bytes.truncate(limit),
            }
        }
        true
    }

    fn close(&mut self, poll: &mut Poll) {
        if let Some((fd, token)) = self.source.take() {
            poll.remove(&fd, token);
        }
    }
}
