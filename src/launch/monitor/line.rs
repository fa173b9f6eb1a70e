//! The daemon's end of a line, see [`crate::wire::streams`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::sys::rights;
use crate::wire::{Told, codec};

/// Most bytes that may wait: what is told is short.
const MAX: usize = 4096;

/// Stands for a client of a process: when this is dropped, the monitor lets go of the process.
#[derive(Debug)]
pub struct Line {
    socket: UnixStream,
    buffer: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Line {
    /// A line and the end of it that goes to the monitor. Must be called in a tokio runtime.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (socket, theirs) = UnixStream::pair()?;
        Ok((Self { socket, buffer: Vec::new(), descriptors: VecDeque::new() }, theirs.into_std()?.into()))
    }

    /// Waits for the master side of the terminal, which is told before anything else.
    ///
    /// # Errors
    /// The monitor hung up, or said something else.
    pub async fn terminal(&mut self) -> io::Result<OwnedFd> {
        match self.next().await? {
            Told::Terminal => {}
            other @ Told::Ended { .. } => return Err(io::Error::other(format!("{other:?} instead of a terminal"))),
        }
        // The frame is whole, so its descriptor is here, unless this process had no room for it.
        self.descriptors.pop_front().ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
    }

    /// Waits for the exit code of the process, 128+n for a signal.
    ///
    /// # Errors
    /// The monitor hung up before it knew.
    pub async fn ended(&mut self) -> io::Result<i32> {
        loop {
            if let Told::Ended { exit_code } = self.next().await? {
                return Ok(exit_code);
            }
        }
    }

    async fn next(&mut self) -> io::Result<Told> {
        loop {
            if let Some((told, length)) = codec::decode(&self.buffer).map_err(io::Error::other)? {
                self.buffer.drain(..length);
                return Ok(told);
            }
            if self.buffer.len() > MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too long a message on a line"));
            }
            let mut bytes = [0; 256];
            let socket = &self.socket;
            let got = socket.async_io(Interest::READABLE, || rights::receive(socket, &mut bytes)).await?;
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&bytes[..got.bytes]);
            self.descriptors.extend(got.descriptors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[tokio::test]
    async fn what_is_told_comes_in_order_and_a_hang_up_is_an_error() {
        let (mut line, theirs) = Line::new().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        rights::send(&theirs, &codec::encode(&Told::Terminal).unwrap(), &[file.as_fd()]).unwrap();
        let ended = codec::encode(&Told::Ended { exit_code: 7 }).unwrap();
        rights::send(&theirs, &ended[..5], &[]).unwrap();
        line.terminal().await.unwrap();
        rights::send(&theirs, &ended[5..], &[]).unwrap();
        assert_eq!(line.ended().await.unwrap(), 7);
        drop(theirs);
        assert_eq!(line.ended().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
