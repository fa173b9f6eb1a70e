//! Making, emptying and removing cgroup folders. All calls block for a short while.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{CgroupError, MOUNT, systemd};

/// Deepest nesting below a container that is walked: a container that nests deeper only delays its own removal.
const MAX_DEPTH: usize = 64;

/// How often making a folder is tried whose parent somebody removes meanwhile.
const TRIES: usize = 8;

/// Makes the folders, with parents, in which all controllers are given on: on v2 a limit holds only
/// where each cgroup above lets its children have the controller.
pub fn make(folders: &[PathBuf]) -> Result<(), CgroupError> {
    for folder in folders {
        let failed = |action| move |source| (action, source);
        let make = || {
            fs::create_dir_all(folder).map_err(failed("make"))?;
            fill_cpuset(folder).map_err(failed("fill"))
        };
        let mut made = make();
        for _ in 1..TRIES {
            if !made.as_ref().is_err_and(|(_, error)| error.kind() == ErrorKind::NotFound) {
                break;
            }
            made = make();
        }
        made.map_err(|(action, source)| CgroupError::Io { action, path: folder.clone(), source })?;
        hand_down_controllers(folder);
    }
    Ok(())
}

/// The name of the systemd scope whose cgroup this is.
pub fn scope_of(folder: &Path) -> Option<&str> {
    folder.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".scope"))
}

/// A new cpuset of cgroup v1 has no CPU and no memory node, and takes no process before it is given
/// some; here its parent's, which are looked at first: whoever made that may not have come to it yet.
fn fill_cpuset(folder: &Path) -> io::Result<()> {
    let is_v1 = folder.join("cgroup.clone_children").exists();
    if !is_v1 || !folder.join("cpuset.cpus").exists() {
        return Ok(());
    }
    // All but the hierarchy's root, which has everything.
    let pairs = folder.ancestors().zip(folder.ancestors().skip(1));
    let mut levels: Vec<_> = pairs.take_while(|(_, parent)| parent.join("cpuset.cpus").exists()).collect();
    levels.reverse();
    for (level, parent) in levels {
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

/// Removes the folders and what is nested in them; missing ones are fine. Nothing should live there
/// any more. systemd is told first: it does not notice if a scope's folder goes as soon as it is empty.
pub fn remove(folders: &[PathBuf]) -> Result<(), CgroupError> {
    for folder in folders {
        // As long as something lives there, it would wait for that.
        if let Some(unit) = scope_of(folder).filter(|_| !populated(std::slice::from_ref(folder))) {
            systemd::stop(unit).map_err(|source| CgroupError::Unit { unit: unit.to_owned(), source })?;
        }
        remove_nested(folder, 0).map_err(|source| CgroupError::Io {
            action: "remove",
            path: folder.clone(),
            source,
        })?;
    }
    Ok(())
}

/// All cgroups below `roots` whose name is `wanted`; what is nested in one is not looked at.
pub fn find(roots: &[PathBuf], wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next: Vec<(PathBuf, usize)> = roots.iter().map(|root| (root.clone(), 0)).collect();
    while let Some((folder, depth)) = next.pop() {
        for child in children(&folder) {
            if child.file_name().and_then(|name| name.to_str()).is_some_and(wanted) {
                found.push(child);
            } else if depth < MAX_DEPTH {
                next.push((child, depth + 1));
            }
        }
    }
    found
}

/// Enables what each cgroup above `leaf` has for its children, from the root downwards. On v1 there
/// is nothing to do. What cannot be enabled (systemd may keep one for itself, a cgroup may hold
/// processes of its own) is missed only by a limit that needs it, and that fails by itself.
pub(super) fn hand_down_controllers(leaf: &Path) {
    let mut above: Vec<&Path> = leaf.ancestors().skip(1).take_while(|path| path.starts_with(MOUNT)).collect();
    above.reverse();
    for folder in above {
        let list = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let (there, given) = (list("cgroup.controllers"), list("cgroup.subtree_control"));
        for name in there.split_whitespace().filter(|name| given.split_whitespace().all(|other| other != *name)) {
            if let Err(error) = fs::write(folder.join("cgroup.subtree_control"), format!("+{name}")) {
                tracing::debug!(cgroup = %folder.display(), controller = name, %error, "not enabled for children");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuset(folder: &Path, cpus: &str, mems: &str) {
        fs::create_dir_all(folder).unwrap();
        for (file, content) in [("cgroup.clone_children", "0\n"), ("cpuset.cpus", cpus), ("cpuset.mems", mems)] {
            fs::write(folder.join(file), content).unwrap();
        }
    }

    #[test]
    fn cpusets_are_filled_from_the_highest_empty_one_whoever_made_it() {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path().join("cpuset");
        let [parent, half, leaf] = ["a", "a/b", "a/b/c"].map(|path| root.join(path));
        cpuset(&root, "0-3\n", "0\n");
        // Somebody made them, and has not come further than this.
        cpuset(&parent, "\n", "\n");
        cpuset(&half, "1\n", "\n");
        cpuset(&leaf, "\n", "\n");
        make(std::slice::from_ref(&leaf)).unwrap();
        let read = |folder: &Path| {
            ["cpuset.cpus", "cpuset.mems"].map(|file| fs::read_to_string(folder.join(file)).unwrap().trim().to_owned())
        };
        assert_eq!(read(&parent), ["0-3", "0"]);
        assert_eq!(read(&half), ["1", "0"], "what is there stays");
        assert_eq!(read(&leaf), ["1", "0"]);
        assert_eq!(read(&root), ["0-3", "0"]);
    }
}
