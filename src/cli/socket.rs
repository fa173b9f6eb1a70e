//! The CRI socket.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Folder of the socket: others may go through it, not look into it.
pub const FOLDER_MODE: u32 = 0o711;
const SOCKET_MODE: u32 = 0o660;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something answers there.
    #[error("{0:?} is in use: another daemon listens there")]
    Live(PathBuf),
    /// A file of another kind is in its place.
    #[error("{0:?} exists and is not a socket")]
    NotSocket(PathBuf),
    /// The file system failed.
    #[error("socket {path:?}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that is unlinked when dropped, unless somebody else's has taken its place.
#[derive(Debug)]
pub struct Address {
    path: PathBuf,
    inode: (u64, u64),
}

/// Listens at `path`. Its folder is made if it is missing. The socket of a daemon that died is
/// replaced, that of a living one is not. Nobody can connect before the mode is set.
pub fn listen(path: &Path) -> Result<(UnixListener, Address), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed)?;
    }
    check_free(path)?;
    // A rename replaces a stale socket in one step.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    let finish = || {
        fs::set_permissions(&temporary, fs::Permissions::from_mode(SOCKET_MODE))?;
        fs::rename(&temporary, path)?;
        inode(path)
    };
    let inode = finish().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })?;
    Ok((listener, Address { path: path.to_owned(), inode }))
}

/// Whether [`listen`] would find the place free: a daemon that cannot serve should not begin to work.
pub fn check_free(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotSocket(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Live(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        // A full backlog: somebody is there, and busy.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::Live(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for Address {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn modes_and_removal() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run/cri.sock");
        let (_listener, address) = listen(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (SOCKET_MODE, FOLDER_MODE));
        drop(address);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("cri.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (listener, _address) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Live(_))));
        drop(listener);
    }

    #[test]
    fn another_file_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("cri.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
