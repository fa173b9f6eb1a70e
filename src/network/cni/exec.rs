//! One plugin call: a process, its configuration on stdin, its answer on stdout.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::network::error::{PluginFailure, Verb};
use crate::sys::async_fd;

/// Most bytes taken from a plugin's stdout.
const MAX_STDOUT: usize = 1 << 20;
/// Bytes of stderr that are kept, the last ones.
const STDERR_TAIL: usize = 2 << 10;
/// Characters of a plugin's words that go into an error.
const MAX_WORDS: usize = 1 << 10;
/// Given to plugins when the daemon itself has no PATH: portmap and firewall look for iptables.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What goes into a plugin's environment.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_NETNS`; empty: gone.
    pub netns: PathBuf,
    /// `CNI_IFNAME`
    pub interface: String,
    /// `CNI_ARGS`
    pub args: String,
}

/// How plugins are found and run.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Folders searched for executables, in order.
    pub folders: Vec<PathBuf>,
    /// Time one call may take.
    pub timeout: Duration,
}

impl Runner {
    /// The first executable file called `kind` in the folders.
    pub fn find(&self, kind: &str) -> Result<PathBuf, PluginFailure> {
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        };
        // A name is checked when its configuration is read; a record on disk could hold another.
        let plain = Path::new(kind).file_name().is_some_and(|name| name == kind);
        plain
            .then(|| self.folders.iter().map(|folder| folder.join(kind)).find(executable))
            .flatten()
            .ok_or_else(|| PluginFailure::Missing { searched: self.folders.clone() })
    }

    /// Runs `kind` with `stdin` (at its start) as configuration, and gives what it printed if it succeeded.
    /// The plugin leads a process group of its own, which is killed whole on a failure, when the time is
    /// over or when the future is dropped.
    pub async fn call(
        &self,
        verb: Verb,
        kind: &str,
        parameters: &Parameters,
        stdin: File,
    ) -> Result<Vec<u8>, PluginFailure> {
        let path = self.find(kind)?;
        let spawn_failed = |source| PluginFailure::Spawn { path: path.clone(), source };
        let (stdout, stdout_end) = output().map_err(spawn_failed)?;
        let (stderr, stderr_end) = output().map_err(spawn_failed)?;
        let mut command = Command::new(&path);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH.into()))
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_PATH", self.joined())
            .stdin(stdin)
            .stdout(Stdio::from(stdout_end))
            .stderr(Stdio::from(stderr_end))
            .process_group(0)
            .kill_on_drop(true);
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            command
                .env("CNI_CONTAINERID", &parameters.container)
                .env("CNI_NETNS", &parameters.netns)
                .env("CNI_IFNAME", &parameters.interface)
                .env("CNI_ARGS", &parameters.args);
        }
        let mut child = command.spawn().map_err(spawn_failed)?;
        // The command holds our copies of the pipes' write ends, without which there is no end of file.
        drop(command);
        // Declared after the child, so dropped before it: the group is killed while its leader is unreaped,
        // when its number cannot have passed to someone else.
        let mut process = Process::of(&child).map_err(spawn_failed)?;
        let mut out = Capture::new(stdout, MAX_STDOUT, Keep::First);
        let mut err = Capture::new(stderr, STDERR_TAIL, Keep::Last);

        let running = async {
            loop {
                tokio::select! {
                    ended = process.ended() => return ended,
                    fill = out.fill() => fill?,
                    fill = err.fill() => fill?,
                }
                if out.overflowed {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(self.timeout, running).await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(spawn_failed(source)),
            Err(_) => {
                err.drain();
                return Err(PluginFailure::Hung { limit: self.timeout, stderr: err.words() });
            }
        }
        // All that the plugin itself wrote is in the pipes by now. What a process it left behind may yet
        // write is no answer, so the end of the file is not waited for.
        out.drain();
        err.drain();
        if out.overflowed {
            return Err(PluginFailure::TooMuch { limit: MAX_STDOUT });
        }
        let succeeded = process.finish();
        let status = child.wait().await.map_err(spawn_failed)?;
        if succeeded && refusal(&out.bytes).is_none() {
            tracing::debug!(plugin = kind, %verb, stderr = err.words(), "cni plugin succeeded");
            return Ok(out.bytes);
        }
        Err(failure(status, &out, &err))
    }

    fn joined(&self) -> OsString {
        let mut joined = OsString::new();
        for folder in &self.folders {
            if !joined.is_empty() {
                joined.push(":");
            }
            joined.push(folder);
        }
        joined
    }
}

/// A pipe: our end, and the one for the plugin.
fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (sender, receiver) = pipe::pipe()?;
    Ok((receiver, sender.into_blocking_fd()?))
}

/// The plugin's process group. Dropped before [`Process::finish`], it is killed.
struct Process {
    group: Option<Pid>,
    exit: AsyncFd<OwnedFd>,
}

impl Process {
    fn of(child: &Child) -> io::Result<Self> {
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or(ErrorKind::NotFound)?;
        let exit = async_fd::readable(pidfd_open(group, PidfdFlags::NONBLOCK)?)?;
        Ok(Self { group: Some(group), exit })
    }

    /// Ends when the leader has; it is not reaped.
    async fn ended(&self) -> io::Result<()> {
        self.exit.readable().await.map(|_| ())
    }

    /// After [`Process::ended`]: whether it succeeded. Whatever a plugin that failed left running is killed.
    fn finish(&mut self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.exit.get_ref().as_fd()), options);
        let succeeded = status.ok().flatten().and_then(|status| status.exit_status()) == Some(0);
        if succeeded {
            self.group = None;
        }
        self.kill();
        succeeded
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // Nobody left in the group: fine.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Which part of a long output is kept.
#[derive(PartialEq, Eq)]
enum Keep {
    First,
    Last,
}

/// What is read from one pipe, bounded.
struct Capture {
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
    limit: usize,
    keep: Keep,
    closed: bool,
    overflowed: bool,
}

impl Capture {
    fn new(pipe: pipe::Receiver, limit: usize, keep: Keep) -> Self {
        Self { pipe, bytes: Vec::new(), limit, keep, closed: false, overflowed: false }
    }

    /// Waits for output and takes some; never ends after the end of the file.
    async fn fill(&mut self) -> io::Result<()> {
        if self.closed {
            return std::future::pending().await;
        }
        self.pipe.readable().await?;
        let mut buffer = [0; 16 << 10];
        match self.pipe.try_read(&mut buffer) {
            Ok(count) => self.push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes what is in the pipe now, at most what a pipe can hold. Asks the kernel, not the reactor, which
    /// may not have heard of the last bytes yet.
    fn drain(&mut self) {
        let mut buffer = [0; 16 << 10];
        let mut taken = 0;
        while !self.closed && taken < MAX_STDOUT {
            match rustix::io::read(self.pipe.as_fd(), &mut buffer) {
                Ok(count) => self.push(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            taken += buffer.len();
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.closed = bytes.is_empty();
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(self.limit);
        if excess > 0 {
            self.overflowed = true;
            match self.keep {
                Keep::First => self.bytes.truncate(self.limit),
                Keep::Last => drop(self.bytes.drain(..excess)),
            }
        }
    }

    /// As one line for people, shortened.
    fn words(&self) -> String {
        words(&String::from_utf8_lossy(&self.bytes))
    }
}

/// On one line, without control characters, shortened.
fn words(text: &str) -> String {
    let clean: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}...", &clean[..end]),
        None => clean,
    }
}

/// CNI's error result.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn refusal(stdout: &[u8]) -> Option<PluginFailure> {
    let Refusal { code, msg, details } = serde_json::from_slice(stdout).ok()?;
    (code != 0).then(|| PluginFailure::Refused { code, message: words(&msg), details: words(&details) })
}

fn failure(status: ExitStatus, out: &Capture, err: &Capture) -> PluginFailure {
    if let Some(refusal) = refusal(&out.bytes) {
        return refusal;
    }
    // Some plugins leave the code out.
    if let Ok(Refusal { msg, details, .. }) = serde_json::from_slice(&out.bytes)
        && !msg.is_empty()
    {
        return PluginFailure::Refused { code: 0, message: words(&msg), details: words(&details) };
    }
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        _ => status.to_string(),
    };
    PluginFailure::Died { status, stdout: out.words(), stderr: err.words() }
}

/// A result that cannot be used, with the output it came from.
pub(super) fn rubbish(reason: String, stdout: &[u8]) -> PluginFailure {
    PluginFailure::Rubbish { reason: words(&reason), stdout: words(&String::from_utf8_lossy(stdout)) }
}

#[cfg(test)]
mod tests;
