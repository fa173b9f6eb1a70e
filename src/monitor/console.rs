//! The socket at which an OCI runtime hands over the master side of a terminal it has made.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::poll::{Poll, Source, Token};
use super::socket;
use crate::types::ContainerId;

/// A socket that waits for one terminal.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    listener: UnixListener,
    token: Token,
    /// The runtime, connected; and its registration.
    peer: Option<(UnixStream, Token)>,
}

impl Console {
    /// Listens in `dir` under a name of its own.
    pub fn listen(dir: &Path, number: u64, container: &ContainerId, poll: &mut Poll) -> io::Result<Self> {
        let name = format!("console-{number}.sock");
        let listener = socket::listen_at(dir, &name)?;
        let token = poll.add(&listener, Source::Console(container.clone()))?;
        Ok(Self { path: dir.join(name), listener, token, peer: None })
    }

    /// Where to connect to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, if it has come.
    pub fn receive(&mut self, container: &ContainerId, poll: &mut Poll) -> io::Result<Option<OwnedFd>> {
        if self.peer.is_none() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    let token = poll.add(&stream, Source::Console(container.clone()))?;
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
                if let Some((stream, token)) = self.peer.take() {
                    poll.remove(&stream, token);
                }
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the socket away.
    pub fn close(self, poll: &mut Poll) {
        if let Some((stream, token)) = &self.peer {
            poll.remove(stream, *token);
        }
        poll.remove(&self.listener, self.token);
        // A socket nobody listens at does no harm, and goes with the pod's folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One message with a descriptor. `None`: the end, or a message without one.
fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    // The runtime sends the path of the terminal as text; nobody needs it.
    let mut text = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut found = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            // Should there be more than one, the others are closed.
            for descriptor in descriptors {
                found.get_or_insert(descriptor);
            }
        }
    }
    Ok(found)
}
