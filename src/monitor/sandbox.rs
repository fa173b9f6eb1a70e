//! The pause process, from request to end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::poll::{Source, Timer, Token};
use super::reaper::Owner;
use super::server::{Caller, Monitor};
use super::{failure, pause};
use crate::sys::process::{self, Ended};
use crate::types::ErrorKind;
use crate::wire::{Event, Failure, PauseSpec, Process, Reply};

/// Time to come up; it takes a few milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Most bytes of a failure.
const MAX_TOLD: usize = 64 * 1024;

/// Pause and who waits for it.
#[derive(Debug, Default)]
pub struct Sandbox {
    phase: Phase,
    /// Who asked for its end.
    killers: Vec<Option<Caller>>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Gone,
    Starting(Box<Starting>),
    Running(Process, OwnedFd),
}

#[derive(Debug)]
struct Starting {
    pid: i32,
    pidfd: OwnedFd,
    told: OwnedFd,
    token: Token,
    text: Vec<u8>,
    timer: Timer,
    late: bool,
    caller: Caller,
}

impl Sandbox {
    /// There is no pause.
    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Pause, if it runs.
    pub fn process(&self) -> Option<Process> {
        match &self.phase {
            Phase::Running(process, _) => Some(*process),
            _ => None,
        }
    }
}

impl Monitor {
    /// Request::Pause
    pub(super) fn start_pause(&mut self, caller: Caller, spec: &PauseSpec) {
        let refusal = if self.closing.is_some() {
            Some(failure(ErrorKind::FailedPrecondition, "the monitor is shutting down"))
        } else if !self.sandbox.is_gone() {
            Some(failure(ErrorKind::AlreadyExists, "the pod has a pause process"))
        } else {
            None
        };
        let begun = refusal.map_or_else(|| self.begin_pause(caller, spec), Err);
        if let Err(failure) = begun {
            self.answer(Some(caller), Err(failure));
        }
    }

    fn begin_pause(&mut self, caller: Caller, spec: &PauseSpec) -> Result<(), Failure> {
        let (child, told) = pause::start(spec, &self.dir)?;
        let pid = child.pid.as_raw_nonzero().get();
        self.children.expect(pid, Owner::Pause);
        let token = self.poll.add(&told, Source::Pause).map_err(|error| {
            // It is reaped as a pause nobody knows.
            let _ = process::signal(&child.pidfd, libc::SIGKILL);
            failure(ErrorKind::Internal, format!("watching pause: {error}"))
        })?;
        let timer = self.poll.timer(LIMIT, Source::Pause);
        self.sandbox.phase = Phase::Starting(Box::new(Starting {
            pid,
            pidfd: child.pidfd,
            told,
            token,
            text: Vec::new(),
            timer,
            late: false,
            caller,
        }));
        Ok(())
    }

    /// Request::KillPause, or Shutdown with nobody to answer to.
    pub(super) fn kill_pause(&mut self, caller: Option<Caller>) {
        let handle = match &self.sandbox.phase {
            Phase::Gone => return self.answer(caller, Ok(Reply::Done)),
            Phase::Starting(starting) => &starting.pidfd,
            Phase::Running(_, pidfd) => pidfd,
        };
        match process::signal(handle, libc::SIGKILL) {
            // Not there any more: its end is about to be noticed.
            Ok(_) => self.sandbox.killers.push(caller),
            Err(error) => {
                let failure = failure(ErrorKind::Internal, format!("killing pause: {error}"));
                self.answer(caller, Err(failure));
            }
        }
    }

    /// The child said why it failed, or closed the pipe by executing the program.
    pub(super) fn on_pause_told(&mut self) {
        let Phase::Starting(starting) = &mut self.sandbox.phase else { return };
        // A message, or the end; both mean that a zombie or a program is all there will be.
        if !starting.read_all() || !starting.text.is_empty() {
            return;
        }
        let alive = process::stat(starting.pid).filter(|(state, _)| !b"ZX".contains(state));
        let Some((_, start_time)) = alive else { return };
        if let Phase::Starting(starting) = std::mem::take(&mut self.sandbox.phase) {
            let process = Process { pid: starting.pid, start_time };
            self.poll.cancel(starting.timer);
            self.poll.remove(&starting.told, starting.token);
            self.sandbox.phase = Phase::Running(process, starting.pidfd);
            self.answer(Some(starting.caller), Ok(Reply::Pause(process)));
        }
    }

    /// Pause, or the child that was to become pause, was reaped.
    pub(super) fn on_pause_ended(&mut self, ended: Ended) {
        let killers = std::mem::take(&mut self.sandbox.killers);
        match std::mem::take(&mut self.sandbox.phase) {
            Phase::Gone => {}
            Phase::Starting(mut starting) => {
                starting.read_all();
                self.poll.cancel(starting.timer);
                self.poll.remove(&starting.told, starting.token);
                self.answer(Some(starting.caller), Err(starting.why(ended)));
            }
            Phase::Running(..) if killers.is_empty() => self.announce(&Event::PauseExited),
            Phase::Running(..) => {}
        }
        for killer in killers {
            self.answer(killer, Ok(Reply::Done));
        }
    }

    /// The child takes too long.
    pub(super) fn pause_is_late(&mut self) {
        if let Phase::Starting(starting) = &mut self.sandbox.phase {
            starting.late = true;
            // The answer is given when it is reaped.
            let _ = process::signal(&starting.pidfd, libc::SIGKILL);
        }
    }
}

impl Starting {
    /// Reads what was told; true at the end.
    fn read_all(&mut self) -> bool {
        loop {
            self.text.reserve(512);
            match rustix::io::read(&self.told, spare_capacity(&mut self.text)) {
                Ok(0) => return true,
                Ok(_) if self.text.len() < MAX_TOLD => {}
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(error) => return error != Errno::AGAIN,
            }
        }
    }

    fn why(&self, ended: Ended) -> Failure {
        if self.late {
            let message = format!("pause: not ready after {} seconds", LIMIT.as_secs());
            return failure(ErrorKind::DeadlineExceeded, message);
        }
        serde_json::from_slice(&self.text).unwrap_or_else(|_| {
            failure(ErrorKind::Internal, format!("pause: ended with {} while it was being started", ended.code()))
        })
    }
}
