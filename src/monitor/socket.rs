//! Sockets in the pod's folder, whose path may be longer than a socket address can hold.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Name of the monitor's socket in the pod's folder.
pub const NAME: &str = "monitor.sock";

/// Listens at [`NAME`] in `dir`, for root only.
///
/// # Errors
/// AddrInUse if somebody answers there.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if UnixStream::connect(short(&folder, NAME)).is_ok() {
        return Err(io::Error::new(ErrorKind::AddrInUse, format!("another monitor serves {}", dir.display())));
    }
    bind(&folder, NAME)
}

/// Listens at `name` in `dir`, replacing what is left of a dead listener.
pub fn listen_at(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    bind(&folder, name)
}

fn bind(folder: &OwnedFd, name: &str) -> io::Result<UnixListener> {
    let path = short(folder, name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let usual = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(&path);
    rustix::process::umask(usual);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Removes the monitor's socket.
pub fn unlink(dir: &Path) {
    // Whoever comes finds nobody listening; that is as good.
    let _ = std::fs::remove_file(dir.join(NAME));
}

/// /dev/null, for reading and writing.
pub fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

fn short(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn long_paths_stale_sockets_and_live_ones() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("d".repeat(120));
        std::fs::create_dir(&dir).unwrap();
        let listener = listen(&dir).unwrap();
        assert_eq!(std::fs::metadata(dir.join(NAME)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&dir).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        listen(&dir).unwrap();
    }
}
