//! The daemon's side of a monitor: starts one or finds it again, and talks to it.
//!
//! A [`Monitor`] is a cheap handle; calls from many tasks share one connection and are told apart
//! by number. Two tasks do the reading and the writing. They end with the connection, or once the
//! last handle is gone.

mod error;
mod line;
mod link;
mod program;
mod silence;
#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::sys;
use crate::types::{ContainerId, ErrorKind, PodId};
use crate::wire::{
    AttachSpec, CreateSpec, Event, ExecOutcome, ExecSpec, Exit, Failure, PROBE_ARGUMENT, PauseSpec, Process, Reply,
    Request, State, StreamedExec, VERSION,
};
pub use error::LaunchError;
pub use line::Line;
use link::Link;
use program::Program;

/// Name of the monitor's socket in the pod's folder.
const SOCKET: &str = "monitor.sock";

/// Where a monitor finds OCI runtimes and they their helpers, whatever the daemon was started with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Time for that; it takes milliseconds.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// What happened in a pod by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorEvent {
    /// A container's init process ended.
    Exited(Exit),
    /// Pause ended although nobody asked.
    PauseExited,
    /// The connection ended; always the last event. The monitor may or may not live.
    Gone,
}

/// Delivers what happens from the moment of the [`State`] it came with.
pub type EventReceiver = mpsc::UnboundedReceiver<MonitorEvent>;

/// Starts monitors and finds them again.
#[derive(Debug, Clone)]
pub struct Launcher {
    program: Arc<Program>,
}

/// A connection to one pod's monitor.
#[derive(Debug, Clone)]
pub struct Monitor {
    pod: PodId,
    link: Arc<Link>,
    /// Known since Hello.
    process: Option<Process>,
}

impl Launcher {
    /// `monitor_binary`: the program `podwright-monitor`.
    pub fn new(monitor_binary: PathBuf) -> Self {
        Self { program: Arc::new(Program::new(monitor_binary)) }
    }

    /// Whether pods of this node can have user namespaces, tried out in `folder`, which is made and removed and lies
    /// on the file system of layers and containers. The error is for people.
    pub async fn probe_user_namespaces(&self, folder: &Path) -> Result<(), String> {
        let prepared = fs::remove_dir_all(folder).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        prepared.and_then(|()| fs::create_dir(folder)).map_err(|error| format!("{folder:?}: {error}"))?;
        let program = self.program.read_only();
        let mut command = Command::new(&program.path);
        command.arg0(self.program.path());
        command.arg(PROBE_ARGUMENT).arg(folder).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        let outcome = match tokio::time::timeout(PROBE_LIMIT, command.output()).await {
            Err(_) => Err("the probe takes too long".to_owned()),
            Ok(Err(error)) => Err(format!("starting {:?}: {error}", self.program.path())),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect()),
        };
        if let Err(error) = fs::remove_dir_all(folder) {
            warn!(folder = %folder.display(), %error, "what a probe left could not be removed");
        }
        outcome
    }

    /// Starts the monitor of `pod`, whose folder `dir` exists; it goes on when this process ends.
    ///
    /// # Errors
    /// The program cannot be started, or ends before it has said anything (its reasons are in
    /// `monitor.log` in `dir`).
    pub async fn spawn(&self, pod: &PodId, dir: &Path) -> Result<(Monitor, State, EventReceiver), LaunchError> {
        let failed = |source| LaunchError::Spawn { binary: self.program.path().to_owned(), source };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join("monitor.log"))
            .map_err(failed)?;
        // Nothing here keeps std from its fast path, which does not copy the daemon's page tables.
        let program = self.program.read_only();
        let mut child = Command::new(&program.path)
            .arg0(self.program.path())
            .arg("--pod")
            .arg(pod.as_str())
            .arg("--dir")
            .arg(dir)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(failed)?;
        let name = pod.clone();
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) if status.success() => info!(pod = %name, "monitor ended"),
                Ok(status) => warn!(pod = %name, %status, "monitor ended"),
                Err(error) => warn!(pod = %name, %error, "waiting for a monitor"),
            }
        });
        self.greet(pod, UnixStream::from_std(ours).map_err(failed)?).await
    }

    /// Finds the monitor of `pod` again.
    ///
    /// # Errors
    /// [`LaunchError::Gone`] if there is none any more.
    pub async fn connect(&self, pod: &PodId, dir: &Path) -> Result<(Monitor, State, EventReceiver), LaunchError> {
        let stream = match open(dir).await {
            Ok(stream) => stream,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LaunchError::Gone(pod.clone()),
                    _ => LaunchError::Connect { pod: pod.clone(), source: error },
                });
            }
        };
        self.greet(pod, stream).await
    }

    async fn greet(&self, pod: &PodId, stream: UnixStream) -> Result<(Monitor, State, EventReceiver), LaunchError> {
        let (tell, events) = mpsc::unbounded_channel();
        let link = Arc::new(Link::new(pod.clone(), stream, tell));
        let mut monitor = Monitor { pod: pod.clone(), link, process: None };
        match monitor.call(Request::Hello { version: VERSION }).await? {
            Reply::Hello(state) if state.pod == *pod => {
                let started = sys::process::start_time(state.pid);
                monitor.process = started.map(|start_time| Process { pid: state.pid, start_time });
                Ok((monitor, state, events))
            }
            Reply::Hello(state) => Err(LaunchError::Stranger { pod: pod.clone(), found: state.pod }),
            other => Err(monitor.unexpected(&other)),
        }
    }
}

impl Monitor {
    /// Which pod's it is.
    pub fn pod(&self) -> &PodId {
        &self.pod
    }

    /// Makes the pause process and the pod's namespaces.
    pub async fn pause(&self, spec: PauseSpec) -> Result<Process, LaunchError> {
        match self.call(Request::Pause(Box::new(spec))).await? {
            Reply::Pause(process) => Ok(process),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Creates a container up to, not including, its first instruction.
    pub async fn create(&self, spec: CreateSpec) -> Result<Process, LaunchError> {
        match self.call(Request::Create(Box::new(spec))).await? {
            Reply::Created(process) => Ok(process),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Lets a created container run; returns when that was, nanoseconds since the epoch.
    pub async fn start(&self, container: &ContainerId) -> Result<i64, LaunchError> {
        match self.call(Request::Start { container: container.clone() }).await? {
            Reply::Started { at_ns } => Ok(at_ns),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sends a signal to a container's init, or with `all` to all its processes. One that is gone is fine.
    pub async fn kill(&self, container: &ContainerId, signal: i32, all: bool) -> Result<(), LaunchError> {
        self.done(Request::Kill { container: container.clone(), signal, all }).await
    }

    /// Kills and forgets a container. One that is gone is fine.
    pub async fn delete(&self, container: &ContainerId) -> Result<(), LaunchError> {
        self.done(Request::Delete { container: container.clone() }).await
    }

    /// Runs a process in a container.
    pub async fn exec(&self, spec: ExecSpec) -> Result<ExecOutcome, LaunchError> {
        match self.call(Request::Exec(Box::new(spec))).await? {
            Reply::Exec(outcome) => Ok(outcome),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Kills the process of an exec that has this token. One that has ended is fine.
    pub async fn end_exec(&self, container: &ContainerId, token: u64) -> Result<(), LaunchError> {
        self.done(Request::EndExec { container: container.clone(), token }).await
    }

    /// Runs a process in a container with the streams that come with `spec`; returns once its program runs.
    pub async fn exec_streamed(&self, spec: StreamedExec) -> Result<(), LaunchError> {
        self.done(Request::ExecStreamed(Box::new(spec))).await
    }

    /// Connects the streams that come with `spec` with a running container's own.
    pub async fn attach(&self, spec: AttachSpec) -> Result<(), LaunchError> {
        self.done(Request::Attach(Box::new(spec))).await
    }

    /// Has a container's log file opened anew, after a rotation.
    pub async fn reopen_log(&self, container: &ContainerId) -> Result<(), LaunchError> {
        self.done(Request::ReopenLog { container: container.clone() }).await
    }

    /// Kills pause; returns once it is gone.
    pub async fn kill_pause(&self) -> Result<(), LaunchError> {
        self.done(Request::KillPause).await
    }

    /// Has the monitor remove whatever is left, and end. A monitor that is gone is fine.
    pub async fn shutdown(&self) -> Result<(), LaunchError> {
        match self.done(Request::Shutdown).await {
            Err(LaunchError::Gone(_)) => Ok(()),
            other => other,
        }
    }

    async fn call(&self, request: Request) -> Result<Reply, LaunchError> {
        silence::call(&self.link, self.process, request).await
    }

    async fn done(&self, request: Request) -> Result<(), LaunchError> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, reply: &Reply) -> LaunchError {
        let name = match reply {
            Reply::Done => "Done",
            Reply::Hello(_) => "Hello",
            Reply::Pause(_) => "Pause",
            Reply::Created(_) => "Created",
            Reply::Started { .. } => "Started",
            Reply::Exec(_) => "Exec",
        };
        let message = format!("the monitor of pod {} gave the answer {name} to another question", self.pod);
        LaunchError::Refused(Failure { kind: ErrorKind::Internal, message })
    }
}

impl From<Event> for MonitorEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Exited(exit) => Self::Exited(exit),
            Event::PauseExited => Self::PauseExited,
        }
    }
}

/// Connects by a short path: the real one may be longer than a socket address can hold.
async fn open(dir: &Path) -> io::Result<UnixStream> {
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())).await
}
