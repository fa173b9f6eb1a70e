//! The per-pod process: pause, container creation, stdio and CRI logs, exits. No tokio, no tonic, no store, no config.
//!
//! One thread, one epoll set. Nothing here blocks: what takes its time is an engine job in a helper
//! process ([`engine`]), whose end the loop waits for like for anything else. All children are reaped
//! in one place (`reaper`), signals go through pidfds only.
//!
//! ```text
//! daemon ── connection ── requests ──┬─ pause
//!                                    ├─ life (create, start, kill, delete) ── jobs ── engine helper
//!                                    ├─ exec, streamed ─────────────────────── jobs ── engine helper
//!                                    └─ attach ── listeners
//! container ── output ─┬─ lines ── logfile         SIGCHLD ── reaper ── life / exec / jobs / pause
//!                      └─ listeners ── pipes of clients
//! ```
//!
//! Architecture Invariant: a bad peer, a full disk, a hanging helper or a container that does its
//! worst costs itself something, never the monitor.

mod attach;
mod cgroup;
mod connection;
mod console;
mod container;
pub mod engine;
mod exec;
#[cfg(test)]
mod fake;
mod jobs;
mod life;
mod line;
pub mod lines;
mod listeners;
mod logfile;
pub mod options;
mod output;
mod pause;
mod poll;
mod reaper;
mod requests;
mod sandbox;
mod server;
mod socket;
mod streamed;
#[cfg(test)]
mod tests;
pub mod trace;

#[cfg(not(test))]
use engine as backend;
#[cfg(test)]
use fake as backend;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, Signal};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};

use crate::sys::fork;
use crate::types::ErrorKind;
use crate::wire::Failure;

pub use options::Options;

/// Signals that are read from a descriptor instead of ending this process. Blocked rather than
/// ignored: an ignored signal would stay ignored in a container.
const SIGNALS: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Serves the pod until it is told to shut down. `first` is a connection that exists already.
///
/// # Errors
/// The socket cannot be made, another monitor serves this pod, or the kernel refuses the very loop.
pub fn run(options: &Options, first: Option<UnixStream>) -> io::Result<()> {
    // Fails only if this process leads a session already.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::chdir("/")?;
    raise_descriptors();
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block()?;
    let mut monitor = server::Monitor::new(options, &signals)?;
    if let Some(stream) = first {
        monitor.welcome_first(stream)?;
    }
    let outcome = monitor.run();
    socket::unlink(&options.dir);
    outcome
}

/// Every client of a container's streams takes a few descriptors. What runs in containers gets limits of its own.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Takes the connection the daemon gave as stdin, and leaves /dev/null in its place; all other
/// inherited descriptors are closed. To be called before anything is opened.
pub fn first_connection() -> io::Result<Option<UnixStream>> {
    fork::close_inherited()?;
    let stdin = io::stdin();
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&stdin)?.st_mode).is_socket() {
        return Ok(None);
    }
    let own: OwnedFd = rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?;
    rustix::stdio::dup2_stdin(socket::null()?)?;
    Ok(Some(own.into()))
}

/// What could not be done, and why; running out of descriptors is a limit, not a defect.
fn because(what: &str) -> impl Fn(io::Error) -> Failure {
    move |error| {
        let kind = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOSPC) => ErrorKind::ResourceExhausted,
            _ => ErrorKind::Internal,
        };
        failure(kind, format!("{what}: {error}"))
    }
}

/// A failure in words.
fn failure(kind: ErrorKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}
