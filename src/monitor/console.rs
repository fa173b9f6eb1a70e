//! The socket at which an OCI runtime hands over the master side of a terminal it has made.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::poll::{Poll, Source, Token};
use super::socket;
use crate::sys::rights;

/// A socket that waits for one terminal.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    source: Source,
    listener: UnixListener,
    token: Token,
    /// The runtime, connected; and its registration.
    peer: Option<(UnixStream, Token)>,
    /// Why the terminal that came is lost: it does not come again.
    lost: Option<io::Error>,
}

impl Console {
    /// Listens in `dir` under a name of its own, and reports `source` when somebody comes.
    pub fn listen(dir: &Path, number: u64, source: Source, poll: &mut Poll) -> io::Result<Self> {
        let name = format!("console-{number}.sock");
        let listener = socket::listen_at(dir, &name)?;
        let token = poll.add(&listener, source.clone())?;
        Ok(Self { path: dir.join(name), source, listener, token, peer: None, lost: None })
    }

    /// Where to connect to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, if it has come. One that could not be taken is an error from then on.
    pub fn receive(&mut self, poll: &mut Poll) -> io::Result<Option<OwnedFd>> {
        if let Some(error) = &self.lost {
            return Err(again(error));
        }
        if self.peer.is_none() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    let token = poll.add(&stream, self.source.clone())?;
                    self.peer = Some((stream, token));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let Some((stream, _)) = &self.peer else { return Ok(None) };
        match receive(stream) {
            Ok(Some(master)) => Ok(Some(master)),
            Ok(None) => {
                // It hung up without a terminal; another one may come.
                self.hang_up(poll);
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => {
                self.lose(&error, poll);
                Err(error)
            }
        }
    }

    /// The terminal came, and could not be taken.
    pub fn lose(&mut self, error: &io::Error, poll: &mut Poll) {
        self.hang_up(poll);
        self.lost = Some(again(error));
    }

    fn hang_up(&mut self, poll: &mut Poll) {
        if let Some((stream, token)) = self.peer.take() {
            poll.remove(&stream, token);
        }
    }

    /// Takes the socket away.
    pub fn close(mut self, poll: &mut Poll) {
        self.hang_up(poll);
        poll.remove(&self.listener, self.token);
        // A socket nobody listens at does no harm, and goes with the pod's folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// One message with a descriptor. `None`: the end, or a message without one.
fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    // The runtime sends the path of the terminal as text; nobody needs it. Should more than one
    // descriptor come, the others are closed.
    let got = rights::receive(stream, &mut [0; 256])?;
    if got.truncated && got.descriptors.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    let Some(master) = got.descriptors.into_iter().next() else { return Ok(None) };
    let meta = rustix::fs::fstat(&master)?;
    let real =
        FileType::from_raw_mode(meta.st_mode) == FileType::CharacterDevice && meta.st_rdev == rustix::fs::makedev(5, 2);
    if real { Ok(Some(master)) } else { Err(io::Error::other("what came is no terminal's master side")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn what_was_wrong_with_the_terminal_that_came_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut poll = Poll::new().unwrap();
        let mut console = Console::listen(dir.path(), 1, Source::ExecConsole(1), &mut poll).unwrap();
        let runtime = UnixStream::connect(console.path()).unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        rights::send(&runtime, b"terminal", &[other.as_fd()]).unwrap();
        drop(runtime);
        for _ in 0..2 {
            let error = console.receive(&mut poll).unwrap_err();
            assert!(error.to_string().contains("no terminal's master"), "{error}");
        }
        console.close(&mut poll);
    }
}
