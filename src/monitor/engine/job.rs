//! Helpers: one forked process per operation, its result by a pipe.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use super::{attempt, failure};
use crate::sys::fork;
use crate::types::ErrorKind;
use crate::wire::Failure;

/// Longest message that a helper sends, bytes: a result fits into a pipe at once.
const MAX_MESSAGE: usize = 4096;

/// An operation under way. Its result is on `result`, ended by EOF.
#[derive(Debug)]
pub struct Job {
    /// Pid of the helper, a child of the monitor that is to be reaped.
    pub helper: Option<i32>,
    /// Non-blocking read end; at most a few KiB come.
    pub result: OwnedFd,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A helper's JSON.
    Helper,
    /// What the Executor wrote, see [`ALIVE`].
    ExecStatus,
}

/// What came of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The container's init, or the process that was executed: a child of the monitor, or adopted by it.
    Process(i32),
    /// Done.
    Done,
}

/// The Executor's first byte: init got as far as its own code. A failure may follow it; EOF right
/// after it means that execve closed the pipe.
pub(super) const ALIVE: u8 = b'\n';

impl Job {
    /// The result, after EOF on [`Job::result`] and, if there is a helper, after that was reaped
    /// with this wait status. `bytes` is all that was read.
    pub fn conclude(self, bytes: &[u8], status: Option<i32>) -> Result<Outcome, Failure> {
        match self.kind {
            Kind::Helper => last(bytes).unwrap_or_else(|| {
                if status.is_some_and(|status| libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL) {
                    let why =
                        "the helper process was killed: there may be too little memory for it (the memory limit?)";
                    return Err(failure(ErrorKind::ResourceExhausted, why));
                }
                let how = match status {
                    Some(status) if libc::WIFSIGNALED(status) => {
                        format!("was killed by signal {}", libc::WTERMSIG(status))
                    }
                    Some(status) => format!("ended with code {}", libc::WEXITSTATUS(status)),
                    None => "ended".to_owned(),
                };
                Err(failure(ErrorKind::Internal, format!("the helper process {how} before it had a result")))
            }),
            Kind::ExecStatus => exec_status(bytes).map(|()| Outcome::Done),
        }
    }

    /// The process that a helper has told of by now, also if it was given up.
    pub fn process(bytes: &[u8]) -> Option<i32> {
        match last(bytes)? {
            Ok(Outcome::Process(pid)) => Some(pid),
            _ => None,
        }
    }

    /// A job that is decided by what the Executor writes.
    pub(super) fn exec_status(result: OwnedFd) -> Self {
        Self { helper: None, result, kind: Kind::ExecStatus }
    }
}

/// The last whole result in a helper's bytes: it may have told a first one early.
fn last(bytes: &[u8]) -> Option<Result<Outcome, Failure>> {
    serde_json::Deserializer::from_slice(bytes).into_iter().map_while(Result::ok).last()
}

/// What the Executor's bytes say, see [`ALIVE`].
pub(super) fn exec_status(bytes: &[u8]) -> Result<(), Failure> {
    match bytes {
        [] => Err(failure(ErrorKind::Aborted, "init ended before it could execute its program")),
        [ALIVE] => Ok(()),
        [_, message @ ..] => Err(serde_json::from_slice(message)
            .unwrap_or_else(|_| failure(ErrorKind::Internal, "init could not execute its program"))),
    }
}

/// Forks a helper that does `work` and sends its result. `work` gets the number of the result pipe:
/// a process that it leaves behind without execve must close it, or the result would have no end.
/// All descriptors but 0 to 2 and `keep` are
/// closed in it: those of other containers in this monitor must not reach this one, not even until
/// its execve. Nothing that the caller holds is dropped in the helper.
pub(super) fn spawn(keep: &[RawFd], work: impl FnOnce(RawFd) -> Result<Outcome, Failure>) -> Result<Job, Failure> {
    let (read, write) = attempt(result_pipe(), || "a pipe for the helper".to_owned())?;
    let keep: Vec<RawFd> = keep.iter().copied().chain([0, 1, 2, write.as_raw_fd()]).collect();
    let body = || {
        let result = match fork::close_all_except(&keep) {
            Ok(()) => work(write.as_raw_fd()),
            Err(error) => Err(failure(ErrorKind::Internal, format!("closing descriptors: {error}"))),
        };
        i32::from(send(write.as_fd(), result).is_err())
    };
    #[cfg(not(test))]
    let forked = fork::fork_child(body);
    #[cfg(test)]
    let forked = fork::fork_unchecked(body);
    let pid = attempt(forked, || "forking a helper".to_owned())?;
    Ok(Job { helper: Some(pid), result: read, kind: Kind::Helper })
}

/// In a helper: tells a result before its end. `pipe` is the number that [`spawn`] gave to its work.
pub(super) fn report(pipe: RawFd, result: Result<Outcome, Failure>) -> io::Result<()> {
    send(fork::borrow(pipe)?.as_fd(), result)
}

/// A pipe whose read end does not block.
pub(super) fn result_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((read, write))
}

fn send(pipe: BorrowedFd<'_>, mut result: Result<Outcome, Failure>) -> io::Result<()> {
    if let Err(failure) = &mut result {
        shorten(&mut failure.message);
    }
    rustix::io::write(pipe, &serde_json::to_vec(&result)?)?;
    Ok(())
}

/// Cuts a text at `limit` bytes, between characters.
pub(super) fn cut(text: &mut String, limit: usize) {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

/// Cuts a message at a sensible length.
fn shorten(message: &mut String) {
    if message.len() > MAX_MESSAGE {
        cut(message, MAX_MESSAGE);
        message.push('…');
    }
}
