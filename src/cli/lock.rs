//! One daemon per root and per state folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

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
            let pid = if pid.is_empty() { "unknown" } else { pid }.to_owned();
            return Err(LockError::Held { folder: folder.to_owned(), pid });
        }
        Err(error) => return Err(failed(&path, error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| failed(&path, error))?;
    Ok(Lock(file))
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
}
