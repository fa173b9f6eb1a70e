//! What the monitor does with a container's cgroup folders: kill everyone in them, and ask whether
//! the OOM killer has been there. cgroup v1 (one folder per controller) and v2.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::cgroup::scope_of;
use crate::sys::process;

const SIGKILL: i32 = 9;

/// Rounds of looking for processes that were forked while their siblings were being killed. A
/// process with SIGKILL pending cannot fork, so each round meets the children of those it has not
/// met before; more rounds than this means somebody puts processes in from outside.
const MAX_ROUNDS: u32 = 64;

/// Folders below a container's cgroup that are looked at; a container may make some of its own.
const MAX_FOLDERS: usize = 4096;

/// Sends `signal` to every process in `folders` and below, unless it is `except`, which had it
/// already; folders that are gone are empty.
///
/// # Errors
/// The first that occurred; it goes on past errors.
pub fn signal_all(folders: &[PathBuf], signal: i32, except: Option<i32>) -> io::Result<()> {
    let mut left = Vec::new();
    for folder in folders {
        // No such file: cgroup v1, or a kernel older than 5.14.
        if signal != SIGKILL
            || fs::OpenOptions::new()
                .write(true)
                .open(folder.join("cgroup.kill"))
                .and_then(|mut file| file.write_all(b"1"))
                .is_err()
        {
            left.push(folder.clone());
        }
    }
    signal_members(&left, signal, except.into_iter().collect())
}

/// Kills `leader`, a child that is not reaped, and all it has started, as far as they are in `folders`
/// or below: processes of its session, and children of those that were met.
///
/// All are stopped before any is killed: what is stopped starts nothing more, and its children stay its own.
///
/// # Errors
/// The first that occurred; it goes on past errors.
pub fn kill_tree(folders: &[PathBuf], leader: i32, handle: &OwnedFd) -> io::Result<()> {
    let session = Pid::from_raw(leader);
    let mut outcome = process::signal(handle, libc::SIGSTOP).map(drop);
    let mut handles: BTreeMap<i32, OwnedFd> = BTreeMap::new();
    for _ in 0..MAX_ROUNDS {
        let kin = |pid: i32| {
            let child = || process::parent(pid).is_some_and(|up| up == leader || handles.contains_key(&up));
            rustix::process::getsid(Pid::from_raw(pid)).ok() == session || child()
        };
        let fresh = |pid: &i32| *pid != leader && !handles.contains_key(pid) && kin(*pid);
        let opened: Vec<(i32, OwnedFd)> = members(folders)
            .into_iter()
            .filter(fresh)
            .filter_map(|pid| Some((pid, process::pidfd(pid).ok()?)))
            .collect();
        if opened.is_empty() {
            break;
        }
        // As in `signal_members`: whoever is still of the kin is who was found.
        let still = members(folders);
        let opened: Vec<_> = opened.into_iter().filter(|(pid, _)| still.contains(pid) && kin(*pid)).collect();
        for (pid, handle) in opened {
            outcome = outcome.and(process::signal(&handle, libc::SIGSTOP).map(drop));
            handles.insert(pid, handle);
        }
    }
    for handle in handles.values().chain([handle]) {
        outcome = outcome.and(process::signal(handle, SIGKILL).map(drop));
    }
    outcome
}

fn signal_members(folders: &[PathBuf], signal: i32, mut met: BTreeSet<i32>) -> io::Result<()> {
    let mut outcome = Ok(());
    for _ in 0..MAX_ROUNDS {
        let fresh: Vec<i32> = members(folders).into_iter().filter(|pid| met.insert(*pid)).collect();
        if fresh.is_empty() {
            return outcome;
        }
        let handles: BTreeMap<i32, OwnedFd> =
            fresh.into_iter().filter_map(|pid| Some((pid, process::pidfd(pid).ok()?))).collect();
        // A pid may have been given to a stranger before its descriptor was opened; it is not in the
        // cgroup then. If it became a stranger's after that, the descriptor refers to a dead process.
        let still = members(folders);
        for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
            if let Err(error) = process::signal(handle, signal) {
                outcome = outcome.and(Err(error));
            }
        }
        if signal != SIGKILL {
            return outcome;
        }
    }
    outcome.and(Err(io::Error::new(io::ErrorKind::TimedOut, "processes keep appearing in the cgroup")))
}

/// Whether the kernel's OOM killer took a process of the cgroup.
pub fn oom_killed(folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| {
        ["memory.events", "memory.oom_control"]
            .iter()
            .any(|file| fs::read_to_string(folder.join(file)).is_ok_and(|text| oom_kills(&text) > 0))
    })
}

/// systemd removes a scope's cgroup, with its count, as soon as it is empty, which may be before
/// [`oom_killed`] is asked. The cgroup above counts for all below it. `None`: no scope.
pub fn oom_kills_above(folders: &[PathBuf]) -> Option<u64> {
    let folder = folders.iter().find(|folder| scope_of(folder).is_some())?;
    fs::read_to_string(folder.parent()?.join("memory.events")).ok().map(|text| oom_kills(&text))
}

/// None of the folders can be asked any more.
pub fn gone(folders: &[PathBuf]) -> bool {
    folders.iter().all(|folder| !folder.exists())
}

/// The `oom_kill` count in `memory.events` (v2) or `memory.oom_control` (v1, since Linux 4.13).
fn oom_kills(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| *key == "oom_kill")
        .find_map(|(_, count)| count.trim().parse().ok())
        .unwrap_or(0)
}

fn members(folders: &[PathBuf]) -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    let mut queue: Vec<PathBuf> = folders.to_vec();
    let mut seen = 0;
    while let Some(folder) = queue.pop() {
        let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) else { continue };
        // 0 stands for a process of another PID namespace, which is out of reach.
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        seen += 1;
        if seen < MAX_FOLDERS {
            queue.extend(children(&folder));
        }
    }
    pids
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_count_oom_kills() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(oom_kills("oom_kill_disable 1\nunder_oom 0\n"), 0);
        assert_eq!(oom_kills("oom_kill many"), 0);
    }

    #[test]
    fn a_folder_that_is_gone_is_empty() {
        assert!(signal_all(&[PathBuf::from("/sys/fs/cgroup/none such")], SIGKILL, None).is_ok());
        assert!(!oom_killed(&[PathBuf::from("/sys/fs/cgroup/none such")]));
    }
}
