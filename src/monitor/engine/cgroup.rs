//! Ending whatever is left in a container's cgroups, and removing them, children first.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::failure;
use crate::cgroup::{scope_of, systemd};
use crate::types::ErrorKind;
use crate::wire::Failure;

/// How often new processes may turn up in a cgroup while it is being emptied.
const ROUNDS: usize = 1000;
/// How often removal of an empty cgroup is tried, and for how long each is waited (see [`remove_one`]).
const REMOVALS: usize = 500;
const REMOVAL_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Kills all that is in `cgroups` and below them, waits until it is gone, and removes them. Those
/// that do not exist are fine. Goes on past errors and tells the first.
pub(super) fn destroy(cgroups: &[PathBuf]) -> Result<(), Failure> {
    let mut first = Ok(());
    // All are emptied before any is removed: a process is in every hierarchy until it has died.
    for work in [kill as fn(&Path) -> io::Result<()>, stop_scope, remove] {
        for path in cgroups {
            if let Err(error) = work(path)
                && first.is_ok()
            {
                first = Err(failure(ErrorKind::Internal, format!("removing cgroup {path:?}: {error}")));
            }
        }
    }
    first
}

/// Has systemd forget a scope; it would not notice that its folder is gone.
fn stop_scope(cgroup: &Path) -> io::Result<()> {
    scope_of(cgroup).map_or(Ok(()), systemd::stop)
}

/// Kills until nothing is left. New processes may be forked meanwhile, so until it is seen empty.
fn kill(cgroup: &Path) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let folders = tree(cgroup)?;
        let mut dying = Vec::new();
        let at_once = fs::write(cgroup.join("cgroup.kill"), "1").is_ok();
        for folder in &folders {
            for pid in pids(folder)? {
                dying.extend(kill_one(pid, folder, at_once)?);
            }
        }
        if dying.is_empty() {
            return Ok(());
        }
        for process in dying {
            await_end(&process)?;
        }
    }
    Err(io::Error::other("processes keep turning up in it"))
}

/// SIGKILL, safe against reuse of the pid: the process that was opened is the one that is listed
/// afterwards, or it has ended and its descriptor reaches nobody.
fn kill_one(pid: Pid, folder: &Path, dying_already: bool) -> io::Result<Option<OwnedFd>> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !pids(folder)?.contains(&pid) {
        return Ok(None);
    }
    if !dying_already {
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        // A frozen process of a v1 hierarchy dies only once it is thawed.
        let _ = fs::write(folder.join("freezer.state"), "THAWED");
    }
    Ok(Some(process))
}

fn await_end(process: impl AsFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn remove(cgroup: &Path) -> io::Result<()> {
    // The deepest last in the list.
    tree(cgroup)?.iter().rev().try_for_each(|folder| remove_one(folder))
}

/// A killed process can be waited for a moment before its cgroup forgets it. In v2
/// `cgroup.events` tells when that is; v1 has no event for it, so that the wait has a limit.
fn remove_one(folder: &Path) -> io::Result<()> {
    let events = rustix::fs::open(folder.join("cgroup.events"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    let mut last = Errno::BUSY;
    for _ in 0..REMOVALS {
        match rustix::fs::rmdir(folder) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno @ (Errno::BUSY | Errno::INTR)) => last = errno,
            Err(errno) => return Err(errno.into()),
        }
        let mut waited_for: Vec<PollFd<'_>> =
            events.as_ref().map(|fd| PollFd::new(fd, PollFlags::PRI)).into_iter().collect();
        let _ = poll(&mut waited_for, Some(&REMOVAL_WAIT));
        if let Some(events) = &events {
            // Reading it arms the next notification.
            let _ = rustix::io::pread(events, &mut [0u8; 64], 0);
        }
    }
    Err(last.into())
}

/// A cgroup and all below it, parents first; empty if it does not exist.
fn tree(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = vec![cgroup.to_owned()];
    let mut next = 0;
    while let Some(folder) = folders.get(next) {
        match fs::read_dir(folder) {
            Ok(entries) => {
                let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                let children: Vec<PathBuf> = children.map(|entry| entry.path()).collect();
                folders.extend(children);
                next += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                folders.remove(next);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(folders)
}

fn pids(folder: &Path) -> io::Result<Vec<Pid>> {
    let mut text = String::new();
    match fs::File::open(folder.join("cgroup.procs")).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw).collect()),
        // Removed meanwhile, or a threaded cgroup, whose processes its parent lists.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}
