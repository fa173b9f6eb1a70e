//! The one place where children are waited for.
//!
//! A container's init or an exec process may end before the helper that made it has told its pid.
//! So the ends of unknown children are kept while jobs run.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tracing::{info, warn};

use super::poll::{Source, Timer};
use super::server::Monitor;
use super::{because, failure};
use crate::sys::process::{self, Ended};
use crate::types::{ContainerId, ErrorKind};
use crate::wire::{Failure, Process};

/// Ends of unknown children that are remembered.
const MAX_EARLY: usize = 4096;

/// How long a shutdown waits for what killed helpers left, when nothing else is under way.
const SWEEP_LIMIT: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 10_000 });

/// Whose child a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The pod's.
    Pause,
    /// Helper of a job.
    Helper(u64),
    /// Init of a container.
    Init(ContainerId),
    /// Process of an exec.
    Exec(u64),
}

/// Children that were not reaped yet, and those reaped before anybody knew them.
#[derive(Debug, Default)]
pub struct Children {
    known: BTreeMap<i32, Owner>,
    early: BTreeMap<i32, Ended>,
    /// A helper was killed; what it had forked may be left.
    sweep: bool,
    /// At the end of a shutdown: how long is waited for what is left.
    patience: Option<Timer>,
    /// Nobody waits any more for what is left to end.
    resigned: bool,
}

impl Children {
    /// `pid` was forked by this process itself a moment ago.
    pub fn expect(&mut self, pid: i32, owner: Owner) {
        self.known.insert(pid, owner);
    }

    /// Whether nothing that killed helpers had forked is left, or is waited for.
    pub fn swept(&self) -> bool {
        !self.sweep || self.resigned
    }

    /// The end of that is not waited for any longer.
    pub fn resign(&mut self) {
        self.resigned = true;
    }
}

/// A process that a job has made.
#[derive(Debug)]
pub enum Adopted {
    /// It lives, or is not reaped yet.
    Alive(Process, OwnedFd),
    /// It has ended already.
    Ended(Process, Ended),
}

impl Monitor {
    /// Takes charge of the process with this pid, which a job has reported.
    pub(super) fn adopt(&mut self, pid: i32, owner: Owner) -> Result<Adopted, Failure> {
        if process::is_child(pid) {
            let handle = process::pidfd(pid).map_err(because("opening a process"))?;
            self.children.known.insert(pid, owner);
            let start_time = process::start_time(pid).unwrap_or(0);
            return Ok(Adopted::Alive(Process { pid, start_time }, handle));
        }
        // The check above guards against a pid that was used again.
        match self.children.early.remove(&pid) {
            Some(ended) => Ok(Adopted::Ended(Process { pid, start_time: 0 }, ended)),
            None => Err(failure(ErrorKind::Internal, format!("process {pid} is no child of this monitor"))),
        }
    }

    /// Reaps all that have ended.
    pub(super) fn reap(&mut self) {
        loop {
            let ended = match process::reap() {
                Ok(Some(ended)) => ended,
                Ok(None) => break,
                Err(error) => return warn!(%error, "waiting for children"),
            };
            match self.children.known.remove(&ended.pid) {
                Some(Owner::Pause) => self.on_pause_ended(ended),
                Some(Owner::Helper(job)) => self.on_helper_ended(job, ended),
                Some(Owner::Init(container)) => self.on_init_ended(&container, ended),
                Some(Owner::Exec(exec)) => self.on_exec_ended(exec, ended),
                None if self.jobs.is_empty() || self.children.early.len() >= MAX_EARLY => {}
                None => {
                    self.children.early.insert(ended.pid, ended);
                }
            }
        }
        self.settle();
    }

    /// A helper was killed in the middle of its work.
    pub(super) fn sweep_later(&mut self) {
        self.children.sweep = true;
    }

    /// Once no job runs, unknown children can be told apart: nobody will ask for early ends, and what
    /// sits in this process's own cgroups is a helper's offspring. (A container without a PID namespace
    /// of its own may leave us orphans, too. They sit in its cgroup, and are none of our business
    /// until it ends.)
    pub(super) fn settle(&mut self) {
        if !self.jobs.is_empty() {
            return;
        }
        self.children.early.clear();
        if !self.children.sweep {
            return;
        }
        self.children.sweep = self.sweep();
        match (self.children.sweep, self.children.patience) {
            (true, None) if self.closing.is_some() => {
                self.children.patience = Some(self.poll.timer(SWEEP_LIMIT, Source::Swept));
            }
            (false, Some(timer)) => {
                self.poll.cancel(timer);
                self.children.patience = None;
            }
            _ => {}
        }
    }

    /// Kills what killed helpers left; false if nothing was. Their ends lead here again, and with them come their own
    /// children. What a hook has left in these cgroups goes with it.
    fn sweep(&self) -> bool {
        let (Ok(own), Ok(children)) =
            (fs::read_to_string("/proc/self/cgroup"), fs::read_to_string("/proc/thread-self/children"))
        else {
            warn!("cannot look for what killed helpers left");
            return false;
        };
        let children = children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        let mut left = false;
        for pid in children.filter(|pid| !self.children.known.contains_key(pid)) {
            // One whose threads all are ending has left its cgroup, and may have children that come to us when it has
            // ended. The first thread alone may have ended for good.
            let Some(thread) = process::living_thread(pid) else {
                left = true;
                continue;
            };
            if fs::read_to_string(format!("/proc/{thread}/cgroup")).is_ok_and(|cgroup| cgroup == own) {
                info!(pid, "killing what a helper left");
                // It is our child and not reaped, so the pid is its own.
                let _ = process::pidfd(pid).and_then(|handle| process::signal(handle, libc::SIGKILL));
                left = true;
            } else {
                // Had the thread begun to end, its cgroup would tell nothing.
                left |= process::living_thread(pid) != Some(thread);
            }
        }
        left
    }
}
