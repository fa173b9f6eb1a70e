//! The OOM score adjustment of processes that run already.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Most processes that are adjusted: the rest of a larger crowd keeps what it has.
const MOST: usize = 65_536;

/// Gives every process in a container's cgroups this adjustment, but for those that have chosen
/// another than `before` for themselves. Says whether the kernel let us: to go below what a process
/// was started with takes CAP_SYS_RESOURCE. Blocks.
///
/// # Errors
/// A file of a living process cannot be read or written for another reason.
pub fn adjust(folders: &[PathBuf], before: i64, now: i64) -> io::Result<bool> {
    let Some(folder) = folders.first() else { return Ok(true) };
    let mut permitted = true;
    for pid in pids(folder)? {
        let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
        match one(&path, before, now, || Ok(pids(folder)?.contains(&pid))) {
            Ok(()) => {}
            Err(error) if gone(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => permitted = false,
            Err(error) => return Err(error),
        }
    }
    Ok(permitted)
}

/// The open file stays with the process that it was opened for: who is still in the cgroup after
/// that is no stranger with a used pid.
fn one(path: &Path, before: i64, now: i64, is_ours: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    if !is_ours()? {
        return Ok(());
    }
    let found: i64 = io::read_to_string(&file)?.trim().parse().map_err(io::Error::other)?;
    if found == before && found != now {
        file.write_all(now.to_string().as_bytes())?;
    }
    Ok(())
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

fn pids(folder: &Path) -> io::Result<BTreeSet<i32>> {
    match fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).take(MOST).collect()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_of_ones_own_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("adj");
        let after = |found: &str, ours: bool| {
            fs::write(&file, found).unwrap();
            one(&file, 5, 7, || Ok(ours)).unwrap();
            fs::read_to_string(&file).unwrap()
        };
        assert!(after("5", true).contains('7'));
        assert_eq!(after("900", true), "900");
        assert_eq!(after("5", false), "5", "not in the cgroup any more");
    }

    #[test]
    fn nobody_is_left_in_a_cgroup_that_is_gone() {
        assert!(adjust(&["/sys/fs/cgroup/none such".into()], 0, 1).unwrap());
    }
}
