//! Who makes containers: an interface of jobs that run in helpers. Nothing is built in yet.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::types::ErrorKind;
use crate::wire::{CreateSpec, ExecSpec, Failure, Process};

/// The child's ends of its standard streams.
#[derive(Debug)]
pub enum Streams {
    /// Three descriptors.
    Pipes {
        /// Input.
        stdin: OwnedFd,
        /// Output.
        stdout: OwnedFd,
        /// Errors.
        stderr: OwnedFd,
    },
    /// A terminal, whose master is to be sent to the Unix socket at this path.
    Terminal {
        /// Who is waiting there for it.
        console_socket: PathBuf,
    },
}

/// A running helper. Its result is a JSON `Result<Outcome, Failure>` on `result`, ended by EOF.
#[derive(Debug)]
pub struct Job {
    /// Child of the monitor to be reaped.
    pub helper: Option<i32>,
    /// Nonblocking read end.
    pub result: OwnedFd,
}

/// What a job came to.
#[derive(Debug)]
pub enum Outcome {
    /// Host pid of a process that is the monitor's child.
    Process(i32),
    /// Nothing to tell.
    Done,
}

/// Kept from create to start.
#[derive(Debug)]
pub struct ExecStatus(pub OwnedFd);

impl Job {
    /// After `result` ended with `bytes` and the helper, if any, was reaped with this wait status.
    pub fn conclude(self, bytes: &[u8], status: Option<i32>) -> Result<Outcome, Failure> {
        let _ = (bytes, status);
        missing()
    }
}

/// Makes a container, up to its first instruction.
pub fn create(spec: &CreateSpec, streams: Streams) -> Result<(Job, Option<ExecStatus>), Failure> {
    let _ = (spec, streams);
    missing()
}

/// Lets it run.
pub fn start(spec: &CreateSpec, status: Option<ExecStatus>) -> Result<Job, Failure> {
    let _ = (spec, status);
    missing()
}

/// Runs a process in it.
pub fn exec(create: &CreateSpec, init: Process, exec: &ExecSpec, streams: Streams) -> Result<Job, Failure> {
    let _ = (create, init, exec, streams);
    missing()
}

/// Removes it, also one half made.
pub fn delete(create: &CreateSpec) -> Result<Job, Failure> {
    let _ = create;
    missing()
}

fn missing<T>() -> Result<T, Failure> {
    Err(Failure { kind: ErrorKind::Unimplemented, message: "this monitor has no engine for containers".to_owned() })
}
