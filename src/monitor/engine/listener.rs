//! Whoever decides on system calls in the filter's stead (SCMP_ACT_NOTIFY): reached by a socket of the
//! host, told of the process, and given the descriptor by which the kernel asks (OCI runtime spec,
//! "The Container Process State").

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use super::{attempt, failure};
use crate::types::{ContainerId, ErrorKind};
use crate::wire::{Confinement, Failure};

const OCI_VERSION: &str = "1.0.2";

/// A connection to the one who decides.
pub(super) struct Listener {
    socket: UnixStream,
    state: RefCell<Value>,
    /// The host's /proc, where a process finds the pid that others know it by; dropped before the wait
    /// for the start, when others may reach this process.
    proc: RefCell<Option<OwnedFd>>,
}

impl Listener {
    /// Connects, as long as the host's files are in sight. `None`: the filter decides by itself.
    pub(super) fn connect(
        confinement: &Confinement,
        container: &ContainerId,
        bundle: &Path,
        status: &str,
    ) -> Result<Option<Self>, Failure> {
        let Some(notify) = &confinement.notify else { return Ok(None) };
        let socket = UnixStream::connect(&notify.listener).map_err(|error| {
            let text = format!("seccomp listener {:?}: {error}", notify.listener);
            failure(ErrorKind::FailedPrecondition, text)
        })?;
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let proc = attempt(proc, || "opening /proc".to_owned())?;
        let state = json!({
            "ociVersion": OCI_VERSION,
            "fds": ["seccompFd"],
            "pid": 0,
            "metadata": notify.metadata,
            "state": {
                "ociVersion": OCI_VERSION, "id": container.as_str(), "status": status, "pid": 0, "bundle": bundle,
            },
        });
        Ok(Some(Self { socket, state: RefCell::new(state), proc: RefCell::new(Some(proc)) }))
    }

    /// In the process itself: notes its pid on the host.
    pub(super) fn name_myself(&self) -> io::Result<()> {
        let Some(proc) = self.proc.borrow_mut().take() else { return Ok(()) };
        let name = rustix::fs::readlinkat(&proc, "self", Vec::new())?;
        let pid: i32 = name.to_string_lossy().parse().map_err(io::Error::other)?;
        let mut state = self.state.borrow_mut();
        state["pid"] = json!(pid);
        if state["state"]["status"] == "creating" {
            state["state"]["pid"] = json!(pid);
        }
        Ok(())
    }

    /// Hands over the descriptor.
    pub(super) fn tell(&self, filter: &OwnedFd) -> io::Result<()> {
        let text = serde_json::to_vec(&*self.state.borrow())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [filter.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let sent = rustix::net::sendmsg(&self.socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent == text.len() { Ok(()) } else { Err(io::Error::other("the seccomp listener does not read")) }
    }
}
