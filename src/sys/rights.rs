//! Open descriptors that travel over Unix sockets (SCM_RIGHTS).
//!
//! The kernel hands descriptors over together with the first byte that was sent with them, and one
//! call of [`receive`] never returns bytes of what was sent after that: so the descriptors of one
//! [`send`] always arrive together.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most descriptors sent at once.
pub const MAX: usize = 8;

/// What one call of [`receive`] got.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes, at the start of the buffer; 0: the end.
    pub bytes: usize,
    /// Close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// There were more descriptors than this process, or [`MAX`], has room for; those are closed.
    pub truncated: bool,
}

/// Sends `bytes`, or as much of them as there is room for, and with the first of them `descriptors`.
/// Returns how many bytes went.
///
/// # Errors
/// `InvalidInput` for more than [`MAX`] descriptors, and whatever sendmsg(2) says.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let pushed = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
    if descriptors.len() > MAX || !pushed {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors at once"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives into `buffer` what is there, with the descriptors that came along.
///
/// # Errors
/// Whatever recvmsg(2) says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            descriptors.extend(some);
        }
    }
    Ok(Received { bytes: message.bytes, descriptors, truncated: message.flags.contains(ReturnFlags::CTRUNC) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_come_with_their_own_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(send(&ours, b"before", &[]).unwrap(), 6);
        assert_eq!(send(&ours, b"with", &[writer.as_fd()]).unwrap(), 4);
        assert_eq!(send(&ours, b"more", &[reader.as_fd(), reader.as_fd()]).unwrap(), 4);
        let mut buffer = [0; 64];
        let first = receive(&theirs, &mut buffer).unwrap();
        assert_eq!(&buffer[..first.bytes], b"beforewith");
        assert_eq!((first.descriptors.len(), first.truncated), (1, false));
        let second = receive(&theirs, &mut buffer).unwrap();
        assert_eq!((second.bytes, second.descriptors.len()), (4, 2));
        writer.write_all(b"x").unwrap();
        drop((writer, first));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "all copies of the other end are closed");
        let all = vec![reader.as_fd(); MAX + 1];
        assert_eq!(send(&ours, b"x", &all).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(ours);
        assert_eq!(receive(&theirs, &mut buffer).unwrap().bytes, 0);
    }
}
