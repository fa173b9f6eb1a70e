//! A client of a process's or a container's streams, see [`crate::wire::streams`].

use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};

use super::poll::{Poll, Source, Token};
use crate::sys::rights;
use crate::wire::{Told, codec};

/// The monitor's end of a line.
#[derive(Debug)]
pub struct Line {
    socket: OwnedFd,
    token: Token,
}

impl Line {
    /// Reports `Source::Line(number)` once the client hangs up.
    pub fn new(socket: OwnedFd, number: u64, poll: &mut Poll) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let token = poll.add(&socket, Source::Line(number))?;
        Ok(Self { socket, token })
    }

    /// Whether the client is gone. Whatever it says is of no interest.
    pub fn hung_up(&self) -> bool {
        match rights::receive(&self.socket, &mut [0; 64]) {
            Ok(got) => got.bytes == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Tells the client; two short messages always find room. One that is gone is noticed elsewhere.
    pub fn tell(&self, told: Told, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = codec::encode(&told).map_err(io::Error::other)?;
        rights::send(&self.socket, &frame, descriptors).map(drop)
    }

    /// Hangs up.
    pub fn close(self, poll: &mut Poll) {
        poll.remove(&self.socket, self.token);
    }
}
