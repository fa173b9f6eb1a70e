//! Bytes from and to a process: pipes and terminals that the reactor waits for.

use std::io;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use tokio::io::unix::AsyncFd;

use crate::sys::async_fd;

/// The reading end of a pipe, or a terminal's master side.
#[derive(Debug)]
pub(super) struct Source(AsyncFd<OwnedFd>);

impl Source {
    /// `fd` must be nonblocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        async_fd::readable(fd).map(Self)
    }

    /// Appends at most `most` bytes to `buffer`; 0 is the end. Dropping the future loses nothing.
    pub(super) async fn read(&self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(done) = guard.try_io(|fd| read(fd.get_ref(), buffer, most)) {
                return done;
            }
        }
    }

    /// What is there at this moment; `None` if nothing is.
    pub(super) fn read_now(&self, buffer: &mut BytesMut, most: usize) -> io::Result<Option<usize>> {
        match read(self.0.get_ref(), buffer, most) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read(fd: &OwnedFd, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
    let before = buffer.len();
    buffer.resize(before + most, 0);
    let done = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut buffer[before..]));
    // A terminal whose last user is gone gives EIO.
    let done = if done == Err(rustix::io::Errno::IO) { Ok(0) } else { done };
    buffer.truncate(before + done.unwrap_or(0));
    Ok(done?)
}

/// The writing end of a pipe, or a terminal's master side.
#[derive(Debug)]
pub(super) struct Sink(AsyncFd<OwnedFd>);

impl Sink {
    /// `fd` must be nonblocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        async_fd::writable(fd).map(Self)
    }

    /// Writes everything.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            let written = guard.try_io(|fd| Ok(rustix::io::retry_on_intr(|| rustix::io::write(fd.get_ref(), bytes))?));
            match written {
                Ok(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[tokio::test]
    async fn bytes_pass_in_order_and_the_end_is_seen() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let (source, sink) = (Source::new(reader).unwrap(), Sink::new(writer).unwrap());
        let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let bytes = sent.clone();
        let writer = tokio::spawn(async move { sink.write(&bytes).await });
        let mut got = BytesMut::new();
        while source.read(&mut got, 1000).await.unwrap() > 0 {}
        writer.await.unwrap().unwrap();
        assert!(got[..] == sent[..]);
        assert_eq!(source.read_now(&mut got, 10).unwrap(), Some(0));
    }

    #[tokio::test]
    async fn nothing_there_is_not_the_end() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let source = Source::new(reader).unwrap();
        let mut got = BytesMut::new();
        assert_eq!(source.read_now(&mut got, 10).unwrap(), None);
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(source.read_now(&mut got, 10).unwrap(), Some(1));
        assert_eq!(&got[..], b"x");
    }
}
