//! What the kernel knows of the other end of a TCP connection.
#![expect(unsafe_code, reason = "getsockopt with TCP_INFO has no safe form")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

/// How the other end answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// How long ago the last sign of it came.
    pub silent: Duration,
    /// What was sent in vain since: the same data again, or probes.
    pub unanswered: u32,
}

/// Asks the kernel about a connected TCP socket.
pub fn answers(socket: impl AsFd) -> io::Result<Answers> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes at most `length` bytes to `info`, which
    // has as many.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed before the kernel wrote its part, and all of its fields are numbers.
    let info = unsafe { info.assume_init() };
    Ok(Answers {
        silent: Duration::from_millis(info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv).into()),
        unanswered: u32::from(info.tcpi_retransmits) + u32::from(info.tcpi_probes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_peer_that_is_there_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        server.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let answers = answers(&server).unwrap();
        assert!(answers.silent < Duration::from_secs(60), "{answers:?}");
        assert_eq!(answers.unanswered, 0);
        super::answers(std::fs::File::open("/dev/null").unwrap()).unwrap_err();
    }
}
