//! Containers made and unmade: by libcontainer in a forked helper ([`youki`]), or by an OCI runtime
//! binary that the helper runs ([`oci`]).
//!
//! ```text
//! create ── fork ── helper: own mount namespace, overlay + staged mounts, hygiene
//!    │                 ├─ youki: libcontainer build() ── init (the monitor's child), waits
//!    │                 └─ oci:   BIN create            ── init (adopted by the monitor), waits
//! start ───────────── youki: a word on init's socket ── Executor ── execve, or why not by ExecStatus
//! exec ─── fork ── helper ── the process (the monitor's child): [`join`], or BIN exec
//! delete ─ fork ── helper: kill, cgroups, state; from any half-done state, any number of times
//! ```
//!
//! Every operation is a [`Job`]: the monitor waits for the end of its `result` pipe and, if it has a
//! helper, for that to be reaped, then calls [`Job::conclude`]. Processes that are reaped meanwhile
//! and are not known are libcontainer's intermediates. The monitor reaps children as they end, also
//! while jobs run: the init of a PID namespace does not end before its namespace's zombies are gone.
//!
//! Architecture Invariant: single-threaded; no function here blocks for longer than a fork takes,
//! except in helpers.

mod capture;
mod cgroup;
mod covers;
mod devices;
mod executor;
mod hierarchies;
mod hygiene;
mod job;
mod join;
mod labels;
mod late;
mod layers;
mod listener;
mod nodes;
mod oci;
mod passwd;
pub mod probe;
mod resources;
mod rootfs;
mod spec;
mod stdio;
mod targets;
#[cfg(test)]
mod tests;
mod users;
mod way;
mod youki;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::types::ErrorKind;
use crate::wire::{self, CreateSpec, Engine, ExecSpec, Failure};

pub use job::{Job, Outcome};

/// Where a process's input and output go. These are the process's ends, none of them 0, 1 or 2 of
/// the monitor.
#[derive(Debug)]
pub enum Streams {
    /// Three pipes (or /dev/null).
    Pipes {
        /// Read end.
        stdin: OwnedFd,
        /// Write end.
        stdout: OwnedFd,
        /// Write end.
        stderr: OwnedFd,
    },
    /// A terminal; its master side is sent (SCM_RIGHTS) to whoever listens on this socket.
    Terminal {
        /// Unix socket, listening.
        console_socket: PathBuf,
    },
}

/// Kept from create to start: tells whether init's execve took place. The read end, non-blocking.
#[derive(Debug)]
pub struct ExecStatus(pub OwnedFd);

/// Creates a container up to, not including, its first instruction. The job's outcome is
/// [`Outcome::Process`] with init's pid on the host.
pub fn create(spec: &CreateSpec, streams: Streams) -> Result<(Job, Option<ExecStatus>), Failure> {
    match &spec.engine {
        Engine::Youki { .. } => youki::create(spec, streams).map(|(job, status)| (job, Some(status))),
        Engine::Oci { .. } => oci::create(spec, streams).map(|job| (job, None)),
    }
}

/// Lets a created container run. [`Outcome::Done`] once its program runs; a failure says why it
/// cannot, and then init has ended, with 127 (no such program), 126 (cannot be executed), or as it
/// was killed.
pub fn start(spec: &CreateSpec, status: Option<ExecStatus>) -> Result<Job, Failure> {
    match (&spec.engine, status) {
        (Engine::Youki { root, .. }, Some(status)) => youki::start(spec, root, status),
        (Engine::Youki { .. }, None) => {
            Err(failure(ErrorKind::FailedPrecondition, "the container was started already, or never created"))
        }
        (Engine::Oci { .. }, _) => oci::start(spec),
    }
}

/// Runs a process in a container whose init is `init`. [`Outcome::Process`] with its pid on the
/// host, once its program runs.
pub fn exec(create: &CreateSpec, init: wire::Process, exec: &ExecSpec, streams: Streams) -> Result<Job, Failure> {
    match &create.engine {
        Engine::Youki { .. } => join::exec(create, init, exec, streams),
        Engine::Oci { .. } => oci::exec(create, exec, streams),
    }
}

/// Kills the process of an exec where killing `pid`, what stands for it on the host, does not: with gVisor. `None`:
/// nothing to do.
pub fn kill_inside(create: &CreateSpec, pid: i32) -> Option<Result<Job, Failure>> {
    match &create.engine {
        Engine::Youki { .. } => None,
        Engine::Oci { .. } => oci::kill_inside(create, pid),
    }
}

/// The process of an exec is gone: forgets what was kept to kill it.
pub fn exec_ended(create: &CreateSpec, pid: i32) {
    match &create.engine {
        Engine::Youki { .. } => {}
        Engine::Oci { .. } => oci::exec_ended(create, pid),
    }
}

/// An exec was given up and its helper, `helper`, killed: forgets what that has left, and tells which process the
/// program has made without the helper's having told of it.
pub fn exec_given_up(create: &CreateSpec, helper: i32) -> Option<i32> {
    match &create.engine {
        Engine::Youki { .. } => None,
        Engine::Oci { .. } => oci::exec_given_up(create, helper),
    }
}

/// Kills what is left of a container and removes its cgroups and the runtime's state.
/// [`Outcome::Done`] also if there is nothing; undoes a half-done create, too.
pub fn delete(create: &CreateSpec) -> Result<Job, Failure> {
    match &create.engine {
        Engine::Youki { .. } => youki::delete(create),
        Engine::Oci { .. } => oci::delete(create),
    }
}

/// A failure with a message for people.
fn failure(kind: ErrorKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

/// An error of the cgroups' room.
fn of_cgroup(error: &crate::cgroup::CgroupError) -> Failure {
    failure(crate::types::HasKind::kind(error), crate::types::chain(error))
}

/// Names what was attempted when `result` is an error.
fn attempt<T, E: std::error::Error + 'static>(
    result: Result<T, E>,
    what: impl FnOnce() -> String,
) -> Result<T, Failure> {
    result.map_err(|error| {
        let kind = if out_of_descriptors(&error) { ErrorKind::ResourceExhausted } else { ErrorKind::Internal };
        failure(kind, format!("{}: {}", what(), crate::types::chain(&error)))
    })
}

fn out_of_descriptors(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let code = io.or_else(|| error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error()));
    matches!(code, Some(libc::EMFILE | libc::ENFILE))
}
