//! Making, emptying and removing cgroup folders. All calls block for a short while.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::CgroupError;

/// Deepest nesting below a container that is walked: a container that nests deeper only delays its own removal.
const MAX_DEPTH: usize = 64;

/// Makes the folders, with parents. Returns the topmost folders that did not exist, to hand to
/// [`remove_empty_parents`] one day.
pub fn make(folders: &[PathBuf]) -> Result<Vec<PathBuf>, CgroupError> {
    let mut made = Vec::new();
    for folder in folders {
        let new = folder.ancestors().take_while(|path| !path.exists()).last().map(Path::to_owned);
        fs::create_dir_all(folder).map_err(|source| CgroupError::Io {
            action: "make",
            path: folder.clone(),
            source,
        })?;
        let top = new.as_deref().unwrap_or(folder);
        fill_cpuset(top, folder).map_err(|source| CgroupError::Io { action: "fill", path: folder.clone(), source })?;
        made.extend(new.filter(|top| top != folder));
    }
    Ok(made)
}

/// A new cpuset of cgroup v1 has no CPU and no memory node, and takes no process before it is given
/// some; here its parent's.
fn fill_cpuset(top: &Path, folder: &Path) -> io::Result<()> {
    let is_v1 = folder.join("cgroup.clone_children").exists();
    if !is_v1 || !folder.join("cpuset.cpus").exists() {
        return Ok(());
    }
    let mut levels: Vec<&Path> = folder.ancestors().take_while(|path| path.starts_with(top)).collect();
    levels.reverse();
    for level in levels {
        let Some(parent) = level.parent() else { continue };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(level.join(file))?.trim().is_empty() {
                fs::write(level.join(file), fs::read_to_string(parent.join(file))?.trim())?;
            }
        }
    }
    Ok(())
}

/// True if a process lives in one of the folders or below.
pub fn populated(folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| match fs::read_to_string(folder.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "populated 1"),
        Err(_) => !processes(folder, 0).is_empty(),
    })
}

/// SIGKILLs every process in the folders and below, once. Processes that fork faster than they are
/// read survive a round on v1; call again while [`populated`].
pub fn kill_all(folders: &[PathBuf]) {
    for folder in folders {
        if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
            continue;
        }
        for pid in processes(folder, 0) {
            let Some(pid) = Pid::from_raw(pid) else { continue };
            // A pidfd, and a second look at the membership, so that a recycled pid is never hit.
            if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
                && processes(folder, 0).contains(&pid.as_raw_nonzero().get())
            {
                let _ = pidfd_send_signal(handle, Signal::KILL);
            }
        }
    }
}

/// Removes the folders and what is nested in them; missing ones are fine.
pub fn remove(folders: &[PathBuf]) -> Result<(), CgroupError> {
    for folder in folders {
        remove_nested(folder, 0).map_err(|source| CgroupError::Io {
            action: "remove",
            path: folder.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Removes what [`make`] reported, as far as it is empty.
pub fn remove_empty_parents(leaf_folders: &[PathBuf], made: &[PathBuf]) {
    for leaf in leaf_folders {
        let Some(top) = made.iter().find(|top| leaf.starts_with(top)) else { continue };
        for folder in leaf.ancestors().skip(1).take_while(|path| path.starts_with(top)) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

fn remove_nested(folder: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if depth >= MAX_DEPTH => return Err(error),
        Err(_) => {}
    }
    for child in children(folder) {
        remove_nested(&child, depth + 1)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn processes(folder: &Path, depth: usize) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    if depth < MAX_DEPTH {
        for child in children(folder) {
            found.extend(processes(&child, depth + 1));
        }
    }
    found
}
