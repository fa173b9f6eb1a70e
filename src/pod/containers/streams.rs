//! Processes whose streams a client gets itself: makes pipes and lines, and has the monitor take the
//! other ends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use tokio::sync::oneshot;

use super::create;
use crate::container::spec;
use crate::launch::monitor::{Line, Monitor};
use crate::pod::PodError;
use crate::pod::driver::{Driver, Reply};
use crate::pod::streams::{AttachSession, ExecSession, Streams, Wanted};
use crate::types::{ContainerId, ErrorKind};
use crate::wire::{AttachSpec, Confinement, Ends, ExecSpec, StreamedExec};

impl Driver {
    pub(crate) fn exec_streamed(
        &mut self,
        id: &ContainerId,
        command: Vec<String>,
        wanted: Wanted,
        reply: Reply<ExecSession>,
    ) {
        let (slot, monitor) = match self.running(id) {
            Ok(running) => running,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (known, bundle) = (slot.process.clone(), slot.record.bundle.clone());
        let (id, confinement) = (id.clone(), slot.record.confinement.clone());
        self.spawn(async move {
            let mut read = None;
            let session = async {
                let process = match known {
                    Some(process) => process,
                    None => read.insert(create::process_of(bundle).await?).clone(),
                };
                begin_exec(&monitor, &id, &process, confinement, &command, wanted).await
            }
            .await;
            move |driver: &mut Self| {
                if let (Some(process), Some(slot)) = (read, driver.containers.get_mut(&id)) {
                    slot.process = Some(process);
                }
                let _ = reply.send(session);
            }
        });
    }

    pub(crate) fn attach(&mut self, id: &ContainerId, wanted: Wanted, reply: Reply<AttachSession>) {
        let (slot, monitor) = match self.running(id) {
            Ok(running) => running,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Err(error) = fits(wanted, slot.record.config.tty, slot.record.config.stdin) {
            return drop(reply.send(Err(error)));
        }
        let id = id.clone();
        self.spawn(async move {
            let session = begin_attach(&monitor, &id, wanted).await;
            move |_: &mut Self| drop(reply.send(session))
        });
    }
}

/// Whether a container that was created like this can be attached to like that.
fn fits(wanted: Wanted, tty: bool, stdin: bool) -> Result<(), PodError> {
    if wanted.tty != tty {
        let created = if tty { "with" } else { "without" };
        return Err(PodError::Invalid {
            field: "tty",
            value: wanted.tty.to_string(),
            reason: format!("the container was created {created} a terminal"),
        });
    }
    if wanted.stdin && !stdin {
        return Err(PodError::failed(ErrorKind::FailedPrecondition, "stdin: the container was created without it"));
    }
    Ok(())
}

async fn begin_exec(
    monitor: &Monitor,
    id: &ContainerId,
    process: &Arc<Value>,
    confinement: Confinement,
    command: &[String],
    wanted: Wanted,
) -> Result<ExecSession, PodError> {
    // A terminal is one for all three.
    let ends = if wanted.tty { Ends::default() } else { ends(wanted) };
    let (mut line, mut streams, descriptors) = make(ends).map_err(|error| short("exec", &error))?;
    let exec = ExecSpec {
        container: id.clone(),
        process: spec::exec_process(process, command, wanted.tty),
        confinement,
        timeout_ms: 0,
        token: 0,
        output_limit: 0,
        drain_ms: 0,
    };
    let spec = StreamedExec { exec, terminal: wanted.tty, ends, descriptors };
    monitor.exec_streamed(spec).await.map_err(|error| PodError::of("exec", &error))?;
    let mut held = None;
    if wanted.tty {
        let master = terminal(&mut line).await.map_err(|error| short("exec: terminal", &error))?;
        let copy = |wanted: bool| if wanted { master.try_clone().map(Some) } else { Ok(None) };
        streams.stdin = copy(wanted.stdin).map_err(|error| short("exec: terminal", &error))?;
        streams.stdout = copy(wanted.stdout).map_err(|error| short("exec: terminal", &error))?;
        held = copy(true).map_err(|error| short("exec: terminal", &error))?;
        streams.terminal = Some(master);
    }
    Ok(ExecSession { streams, exit: watch(line, held, "the exec's end is not known") })
}

async fn begin_attach(monitor: &Monitor, id: &ContainerId, wanted: Wanted) -> Result<AttachSession, PodError> {
    let ends = ends(wanted);
    let (mut line, mut streams, descriptors) = make(ends).map_err(|error| short("attach", &error))?;
    let spec = AttachSpec { container: id.clone(), terminal: wanted.tty, ends, descriptors };
    monitor.attach(spec).await.map_err(|error| PodError::of("attach", &error))?;
    if wanted.tty {
        streams.terminal = Some(terminal(&mut line).await.map_err(|error| short("attach: terminal", &error))?);
    }
    Ok(AttachSession { streams, exit: watch(line, None, "the client was let go, or the monitor is gone") })
}

/// With a terminal, error output is output.
fn ends(wanted: Wanted) -> Ends {
    Ends { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr && !wanted.tty }
}

/// A line and pipes: our ends, and what goes to the monitor, in the order it expects.
fn make(ends: Ends) -> io::Result<(Line, Streams, Vec<OwnedFd>)> {
    let (line, theirs) = Line::new()?;
    let (mut streams, mut descriptors) = (Streams::default(), vec![theirs]);
    if ends.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        streams.stdin = Some(ours(write)?);
        descriptors.push(read);
    }
    for (wanted, place) in [(ends.stdout, &mut streams.stdout), (ends.stderr, &mut streams.stderr)] {
        if wanted {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            *place = Some(ours(read)?);
            descriptors.push(write);
        }
    }
    Ok((line, streams, descriptors))
}

/// Only this end does not block: the process expects that the other does.
fn ours(end: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&end, true)?;
    Ok(end)
}

async fn terminal(line: &mut Line) -> io::Result<OwnedFd> {
    ours(line.terminal().await?)
}

/// Holds the line until the end is told, or nobody wants to know any more.
///
/// Then the line is closed before `terminal` is: a shell whose terminal hangs up dies of that, and once it is dead, nobody
/// would kill what it has left in the background.
fn watch(mut line: Line, terminal: Option<OwnedFd>, unknown: &'static str) -> oneshot::Receiver<Result<i32, PodError>> {
    let (mut tell, exit) = oneshot::channel();
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = line.ended() => ended,
            () = tell.closed() => {
                drop(line);
                drop(terminal);
                return;
            }
        };
        drop(terminal);
        let ended = ended.map_err(|error| PodError::failed(ErrorKind::Unavailable, format!("{unknown}: {error}")));
        // Whoever asked may have gone meanwhile.
        let _ = tell.send(ended);
    });
    exit
}

fn short(what: &str, error: &io::Error) -> PodError {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => PodError::failed(ErrorKind::ResourceExhausted, format!("{what}: {error}")),
        _ => PodError::io(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HasKind;

    #[test]
    fn a_client_wants_what_the_container_has() {
        let wanted = |stdin, tty: bool| Wanted { stdin, stdout: true, stderr: !tty, tty };
        let kind = |wanted, tty, stdin| fits(wanted, tty, stdin).map_err(|error| error.kind());
        assert_eq!(kind(wanted(true, true), true, true), Ok(()));
        assert_eq!(kind(wanted(false, false), false, false), Ok(()));
        assert_eq!(kind(wanted(false, true), false, true), Err(ErrorKind::InvalidArgument));
        assert_eq!(kind(wanted(false, false), true, true), Err(ErrorKind::InvalidArgument));
        assert_eq!(kind(wanted(true, false), false, false), Err(ErrorKind::FailedPrecondition));
    }

    #[tokio::test]
    async fn only_our_ends_do_not_block() {
        use rustix::fs::{OFlags, fcntl_getfl};
        let ends = ends(Wanted { stdin: true, stdout: true, stderr: true, tty: true });
        assert!(!ends.stderr, "a terminal has no error output of its own");
        let (_line, streams, theirs) = make(Ends { stderr: true, ..ends }).unwrap();
        for end in [&streams.stdin, &streams.stdout, &streams.stderr] {
            assert!(fcntl_getfl(end.as_ref().unwrap()).unwrap().contains(OFlags::NONBLOCK));
        }
        assert_eq!(theirs.len(), 4);
        for end in &theirs[1..] {
            assert!(!fcntl_getfl(end).unwrap().contains(OFlags::NONBLOCK));
        }
    }
}
