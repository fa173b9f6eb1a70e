//! The monitor's program, by a way on which it cannot be changed.
//!
//! A container's first process is a fork of the monitor, so until it executes something else `/proc/PID/exe` is the
//! monitor's program, on the host. An image that executes just that gets a process of its own whose `/proc/PID/exe`
//! it may use; were the program found there on a writable mount, the container's root could change its mode and owner,
//! and write to it once nothing runs it any more (CVE-2019-5736). So monitors are executed on a mount of their own:
//! a copy of the mount that the program's folder is on, attached nowhere, and read-only. Nobody without the right to
//! mount on the host can make it anything else.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;

use crate::sys::mounts::{self, Propagation};

/// A program to be executed, and the mount to do it on, which is made when first needed.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    folder: Mutex<Option<Arc<OwnedFd>>>,
}

/// The program by another path, which is good as long as this is there.
pub(super) struct ReadOnly {
    /// In this process and in a child that has not executed anything yet.
    pub(super) path: PathBuf,
    _folder: Option<Arc<OwnedFd>>,
}

impl Program {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, folder: Mutex::default() }
    }

    /// Where it is for everybody.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where to execute it. A kernel that cannot make such a mount is warned of once.
    pub(super) fn read_only(&self) -> ReadOnly {
        let mut folder = self.lock();
        if let Some(known) = folder.as_ref()
            && let Some(found) = self.within(known)
        {
            return found;
        }
        match self.copy().map(Arc::new) {
            Ok(made) => {
                let found = self.within(&made);
                *folder = Some(made);
                // If it is not there, executing it says so.
                found.unwrap_or_else(|| self.plain())
            }
            Err(error) => {
                if folder.take().is_some() || fs::metadata(&self.path).is_ok() {
                    warn!(program = %self.path.display(), %error, "no read-only mount for the monitor's program");
                }
                self.plain()
            }
        }
    }

    fn plain(&self) -> ReadOnly {
        ReadOnly { path: self.path.clone(), _folder: None }
    }

    /// The same file, unless the folder has been replaced by another.
    fn within(&self, folder: &Arc<OwnedFd>) -> Option<ReadOnly> {
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(self.path.file_name()?);
        let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        (place(&path)? == place(&self.path)?).then(|| ReadOnly { path, _folder: Some(folder.clone()) })
    }

    fn copy(&self) -> io::Result<OwnedFd> {
        let real = fs::canonicalize(&self.path)?;
        let folder = mounts::clone_tree(real.parent().unwrap_or(&real), false)?;
        mounts::set_tree_propagation(&folder, Propagation::Private)?;
        mounts::set_tree_read_only(&folder)?;
        Ok(folder)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        // It is replaced as a whole.
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_runs_and_cannot_be_changed_and_a_new_one_is_found() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("bin/program");
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::copy("/bin/true", &path).unwrap();
        let program = Program::new(path.clone());
        let found = program.read_only();
        assert_ne!(found.path, path);
        assert!(std::process::Command::new(&found.path).status().unwrap().success());
        let changed = fs::set_permissions(&found.path, fs::Permissions::from_mode(0o777));
        assert_eq!(changed.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(fs::write(&found.path, "x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        // An update: a new file in the folder, then a new folder.
        fs::copy("/bin/false", root.path().join("bin/new")).unwrap();
        fs::rename(root.path().join("bin/new"), &path).unwrap();
        assert!(!std::process::Command::new(&program.read_only().path).status().unwrap().success());
        fs::rename(root.path().join("bin"), root.path().join("old")).unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::copy("/bin/true", &path).unwrap();
        let again = program.read_only();
        assert!(again.path != path && std::process::Command::new(&again.path).status().unwrap().success());
        // None at all.
        fs::remove_file(&path).unwrap();
        assert_eq!(program.read_only().path, path);
    }
}
