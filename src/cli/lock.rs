//! One daemon per root and per state folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::sys::process;

/// How long to wait for the lock of a daemon that is dead.
const DEAD_HOLDER_LIMIT: Duration = Duration::from_secs(2);

/// The folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error("{folder:?} is in use by another podwright daemon (pid {pid})")]
    Held {
        /// The folder.
        folder: PathBuf,
        /// What the holder wrote into its lock file.
        pid: String,
    },
    /// The file system failed.
    #[error("lock {path:?}")]
    Io {
        /// The folder or its lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Holds the folder until dropped, or until the process dies in whatever way.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Makes `folder` with `mode` if it is missing, and locks it by the file `lock` in it.
pub fn lock(folder: &Path, mode: u32) -> Result<Lock, LockError> {
    let failed = |path: &Path, source| LockError::Io { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(|error| failed(folder, error))?;
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&path)
        .map_err(|error| failed(&path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // The message is for people; a holder that has not written its pid yet is "unknown".
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            let pid = pid.trim();
            if !(is_dead(pid) && wait(&file).map_err(|error| failed(&path, error))?) {
                let pid = if pid.is_empty() { "unknown" } else { pid }.to_owned();
                return Err(LockError::Held { folder: folder.to_owned(), pid });
            }
        }
        Err(error) => return Err(failed(&path, error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| failed(&path, error))?;
    Ok(Lock(file))
}

/// Whether the process that wrote this pid has ended.
fn is_dead(pid: &str) -> bool {
    pid.parse().is_ok_and(|pid| process::stat(pid).is_none_or(|(state, _)| matches!(state, b'Z' | b'X')))
}

/// Waits for the lock of a dead holder. It is a process that the holder had just forked and that has not
/// yet come to its execve, which closes the file: a matter of moments. False if it takes longer.
fn wait(file: &File) -> io::Result<bool> {
    let (tell, told) = mpsc::channel();
    let file = file.try_clone()?;
    // The thread may wait on after the limit; the process ends then.
    std::thread::spawn(move || {
        // Nobody listens any more once the limit has passed.
        let _ = tell.send(flock(&file, FlockOperation::LockExclusive));
    });
    match told.recv_timeout(DEAD_HOLDER_LIMIT) {
        Ok(locked) => locked.map(|()| true).map_err(io::Error::from),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_first_ones_pid() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("a/root");
        let held = lock(&folder, 0o700).unwrap();
        let error = lock(&folder, 0o700).unwrap_err();
        assert!(matches!(&error, LockError::Held { pid, .. } if *pid == std::process::id().to_string()), "{error}");
        drop(held);
        lock(&folder, 0o700).unwrap();
    }

    #[test]
    fn what_a_dead_holder_left_to_a_child_is_waited_for() {
        let base = tempfile::tempdir().unwrap();
        let held = lock(base.path(), 0o700).unwrap();
        // As if the holder had died: no process has this pid.
        fs::write(base.path().join("lock"), "4194304000\n").unwrap();
        assert!(!is_dead("4194304000"), "no pid at all");
        fs::write(base.path().join("lock"), "4194303\n").unwrap();
        let releasing = std::thread::spawn(move || drop(held));
        lock(base.path(), 0o700).unwrap();
        releasing.join().unwrap();
    }
}
