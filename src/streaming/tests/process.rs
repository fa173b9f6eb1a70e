use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use crate::pod::streams::{AttachSession, ExecSession, Streams, Wanted};
use crate::streaming::session::Session;

/// A shell script with pipes or a terminal, killed when its exit is no longer waited for.
pub struct Process {
    streams: Streams,
    exit: oneshot::Receiver<Result<i32, crate::pod::PodError>>,
}

impl Process {
    pub fn start(script: &str, wanted: Wanted) -> Self {
        let mut command = tokio::process::Command::new("/bin/sh");
        command.args(["-c", script]);
        let mut streams = Streams::default();
        if wanted.tty {
            let (master, slave) = terminal();
            let slave = || Stdio::from(slave.try_clone().unwrap());
            command.stdin(slave()).stdout(slave()).stderr(slave());
            streams.stdin = Some(master.try_clone().unwrap());
            streams.stdout = Some(master.try_clone().unwrap());
            streams.terminal = Some(master);
        } else {
            let (near, far) = pipe(wanted.stdin, false);
            (streams.stdin, _) = (near, command.stdin(far));
            let (near, far) = pipe(wanted.stdout, true);
            (streams.stdout, _) = (near, command.stdout(far));
            let (near, far) = pipe(wanted.stderr, true);
            (streams.stderr, _) = (near, command.stderr(far));
        }
        let mut child = command.spawn().unwrap();
        let (mut tell, exit) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                status = child.wait() => {
                    let status = status.unwrap();
                    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
                    let _ = tell.send(Ok(code));
                }
                () = tell.closed() => child.kill().await.unwrap(),
            }
        });
        Self { streams, exit }
    }

    pub fn exec(self) -> Session {
        Session::exec(ExecSession { streams: self.streams, exit: self.exit })
    }

    /// It lives on when its client leaves.
    pub fn attach(self) -> AttachSession {
        let (tell, exit) = oneshot::channel();
        let ended = self.exit;
        tokio::spawn(async move {
            if let Ok(code) = ended.await {
                let _ = tell.send(code);
            }
        });
        AttachSession { streams: self.streams, exit }
    }
}

/// Our end, which does not block, and the process's.
fn pipe(wanted: bool, ours_reads: bool) -> (Option<OwnedFd>, Stdio) {
    if !wanted {
        return (None, Stdio::null());
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (near, far) = if ours_reads { (reader, writer) } else { (writer, reader) };
    fcntl_setfl(&near, fcntl_getfl(&near).unwrap() | OFlags::NONBLOCK).unwrap();
    (Some(near), far.into())
}

fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    fcntl_setfl(&master, fcntl_getfl(&master).unwrap() | OFlags::NONBLOCK).unwrap();
    (master, slave)
}
