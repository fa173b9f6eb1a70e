//! What a client that talks to processes of a pod gets hold of: descriptors, never bytes.

use std::os::fd::OwnedFd;

use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{PodError, Pods};

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// To write to the process.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its error output; never together with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Ends of a process's streams. All are nonblocking, close-on-exec, and only their owner's.
#[derive(Debug, Default)]
pub struct Streams {
    /// To be written; closing it ends the process's input (unless it is a terminal, or others write, too).
    pub stdin: Option<OwnedFd>,
    /// To be read up to its end. With a terminal: what the terminal shows.
    pub stdout: Option<OwnedFd>,
    /// To be read up to its end.
    pub stderr: Option<OwnedFd>,
    /// The master side of the terminal, to set its size with ([`crate::sys`]); `None` without a terminal.
    pub terminal: Option<OwnedFd>,
}

/// A process that was started for a client. The process is killed when this is dropped, or the daemon ends.
#[derive(Debug)]
pub struct ExecSession {
    /// Its streams.
    pub streams: Streams,
    /// Its exit code (128+n for a signal), once it has ended; output may still wait in the streams.
    pub exit: oneshot::Receiver<Result<i32, PodError>>,
}

/// A view of a running container's own streams, from now on. Dropping it detaches and harms nothing.
#[derive(Debug)]
pub struct AttachSession {
    /// Its streams; output ends when the container does.
    pub streams: Streams,
    /// The container's exit code, once it has ended.
    pub exit: oneshot::Receiver<Result<i32, PodError>>,
}

impl Pods {
    /// Starts `command` in a running container.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it does not run; what hinders the program to be executed.
    pub async fn exec(&self, id: &str, command: Vec<String>, wanted: Wanted) -> Result<ExecSession, PodError> {
        let _ = (self.container(id)?, command, wanted);
        Err(PodError::Unimplemented("streaming exec"))
    }

    /// Attaches to a running container. `wanted.tty` is as the container was created.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it does not run, or was created without what is wanted.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<AttachSession, PodError> {
        let _ = (self.container(id)?, wanted);
        Err(PodError::Unimplemented("attach"))
    }

    /// Connects to a port of the pod's own loopback, IPv4 first, then IPv6.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if the sandbox is not ready; `Unavailable` if nobody listens.
    pub async fn connect(&self, sandbox: &str, port: u16) -> Result<TcpStream, PodError> {
        let _ = (self.get(sandbox)?, port);
        Err(PodError::Unimplemented("port forwarding"))
    }
}
