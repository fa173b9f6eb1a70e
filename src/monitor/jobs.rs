//! Engine jobs under way: a helper process and the pipe with its result.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use tracing::info;

use super::backend::{self, Job, Outcome};
use super::poll::{Source, Timer, Token};
use super::reaper::Owner;
use super::server::Monitor;
use super::{because, failure};
use crate::sys::process::{self, Ended};
use crate::types::{ContainerId, ErrorKind};
use crate::wire::Failure;

/// Most bytes of a result.
const MAX_RESULT: usize = 1 << 20;

/// What a job is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Make a container.
    Create(ContainerId),
    /// Remove what a failed creation left.
    Undo(ContainerId, Failure),
    /// Let a container run.
    Start(ContainerId),
    /// Remove a container.
    Delete(ContainerId),
    /// Run a process in a container.
    Exec(u64),
    /// Kill the process of an exec, inside the container.
    Kill(ContainerId),
}

/// A job.
#[derive(Debug)]
pub struct Running {
    job: Job,
    purpose: Purpose,
    token: Token,
    timer: Option<Timer>,
    /// The helper while it lives.
    helper: Option<OwnedFd>,
    status: Option<i32>,
    bytes: Vec<u8>,
    /// Its time limit passed, or nobody wants it any more.
    cancelled: Option<Failure>,
}

impl Monitor {
    /// Waits for `job`, for `limit` at most (`None`: for ever).
    pub(super) fn watch(&mut self, job: Job, purpose: Purpose, limit: Option<Duration>) -> Result<u64, Failure> {
        let number = self.number();
        let helper = job.helper.map(process::pidfd);
        let watched = helper
            .transpose()
            .and_then(|helper| Ok((helper, self.poll.add(&job.result, Source::Job(number))?)))
            .map_err(because("watching a helper"));
        let (helper, token) = match watched {
            Ok(watched) => watched,
            Err(failure) => {
                self.sweep_later();
                return Err(failure);
            }
        };
        if let Some(pid) = job.helper {
            self.children.expect(pid, Owner::Helper(number));
        }
        let timer = limit.map(|limit| self.poll.timer(limit, Source::Job(number)));
        let (status, bytes, cancelled) = (None, Vec::new(), None);
        self.jobs.insert(number, Running { job, purpose, token, timer, helper, status, bytes, cancelled });
        Ok(number)
    }

    /// Something can be read from the result pipe.
    pub(super) fn on_job_result(&mut self, number: u64) {
        let Some(running) = self.jobs.get_mut(&number) else { return };
        if running.read_all() && running.helper.is_none() {
            self.conclude(number);
        }
    }

    /// The helper was reaped. All it had to say is in the pipe now, even if something that it forked
    /// holds the other end.
    pub(super) fn on_helper_ended(&mut self, number: u64, ended: Ended) {
        if libc::WIFSIGNALED(ended.status) {
            // By whomever: what it had forked may be left.
            self.sweep_later();
        }
        let Some(running) = self.jobs.get_mut(&number) else { return };
        running.helper = None;
        running.status = Some(ended.status);
        running.read_all();
        self.conclude(number);
    }

    /// The time limit passed.
    pub(super) fn job_is_late(&mut self, number: u64) {
        self.cancel_job(number, failure(ErrorKind::DeadlineExceeded, "the time limit passed"));
    }

    /// Gives a job up: it ends with `why`, once its helper is gone.
    pub(super) fn cancel_job(&mut self, number: u64, why: Failure) {
        let Some(running) = self.jobs.get_mut(&number) else { return };
        running.cancelled.get_or_insert(why);
        match &running.helper {
            Some(helper) => {
                // It is our child and not reaped: this cannot fail in a way that matters.
                let _ = process::signal(helper, libc::SIGKILL);
                self.sweep_later();
            }
            None => self.conclude(number),
        }
    }

    fn conclude(&mut self, number: u64) {
        let Some(running) = self.jobs.remove(&number) else { return };
        if let Some(timer) = running.timer {
            self.poll.cancel(timer);
        }
        self.poll.remove(&running.job.result, running.token);
        if running.cancelled.is_some() {
            self.kill_left(&running);
        }
        let result = match running.cancelled {
            Some(why) => Err(why),
            None => running.job.conclude(&running.bytes, running.status),
        };
        match running.purpose {
            Purpose::Create(container) => self.created(&container, expect_process(result)),
            Purpose::Undo(container, why) => self.undone(&container, why, result.map(drop)),
            Purpose::Start(container) => self.started(&container, result.map(drop)),
            Purpose::Delete(container) => self.deleted(&container, result.map(drop)),
            Purpose::Exec(exec) => self.exec_begun(exec, expect_process(result)),
            Purpose::Kill(container) => {
                if let Err(why) = result {
                    // It may have ended by itself.
                    info!(%container, why = why.message, "the process of an exec was not killed");
                }
            }
        }
        self.settle();
    }
}

impl Monitor {
    /// A job was given up: kills the process that its helper has made, also if it has not told of it.
    fn kill_left(&mut self, running: &Running) {
        let mut made = Job::process(&running.bytes);
        if let (Purpose::Exec(number), Some(helper)) = (&running.purpose, running.job.helper)
            && let Some(id) = self.execs.get(number).map(|exec| exec.container.clone())
            && let Some(container) = self.containers.get(&id)
        {
            let found = backend::exec_given_up(&container.spec, helper);
            made = made.or(found);
            for pid in made.into_iter().chain([helper]) {
                self.kill_inside(&id, pid);
                if let Some(container) = self.containers.get(&id) {
                    backend::exec_ended(&container.spec, pid);
                }
            }
        }
        if let Some(pid) = made
            && process::is_child(pid)
        {
            // The helper had made it before its own end. Our child, not reaped: the pid is its own.
            let _ = process::pidfd(pid).and_then(|handle| process::signal(handle, libc::SIGKILL));
        }
    }
}

impl Running {
    /// Whether it is about the creation or start of `container`.
    pub fn begins(&self, container: &ContainerId) -> bool {
        matches!(&self.purpose, Purpose::Create(id) | Purpose::Start(id) if id == container)
    }

    /// Reads what is there; true at the end.
    fn read_all(&mut self) -> bool {
        loop {
            self.bytes.reserve(256);
            match rustix::io::read(&self.job.result, spare_capacity(&mut self.bytes)) {
                Ok(0) => return true,
                Ok(_) if self.bytes.len() < MAX_RESULT => {}
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(error) => return error != Errno::AGAIN,
            }
        }
    }
}

fn expect_process(result: Result<Outcome, Failure>) -> Result<i32, Failure> {
    match result? {
        Outcome::Process(pid) => Ok(pid),
        Outcome::Done => Err(failure(ErrorKind::Internal, "the helper made no process")),
    }
}
