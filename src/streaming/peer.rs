//! Whether the machine at the other end of a connection still answers.
//!
//! The kernel asks one that is silent (keepalive), but not while something is on its way to it, and a session's pings
//! always are. Then it gives up after a quarter of an hour only, and a limit of its own for that (TCP_USER_TIMEOUT) cuts
//! clients, too, that are alive and do not read, such as a pager's.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;

use crate::sys::tcp::{self, Answers};

/// Unanswered questions of keepalive after which the kernel takes the other end for lost.
const KEEPALIVE_COUNT: u32 = 4;
/// So many times in its limit a silent end is looked at.
const LOOKS: u32 = 8;

/// The other end of a connection. Holds the socket by a descriptor of its own: the connection is not closed before this
/// is dropped, too.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    socket: Arc<OwnedFd>,
    limit: Duration,
}

impl Peer {
    /// That of `socket`, a TCP connection, which may be silent for `limit`.
    pub(super) fn of(socket: impl AsFd, limit: Duration) -> io::Result<Self> {
        let second = Duration::from_secs(1);
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, (limit / 2).max(second))?;
        sockopt::set_tcp_keepintvl(&socket, (limit / 2 / KEEPALIVE_COUNT).max(second))?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?;
        Ok(Self { socket: Arc::new(rustix::io::fcntl_dupfd_cloexec(&socket, 0)?), limit })
    }

    /// Ready when it has answered nothing for the limit though it was asked.
    pub(super) async fn lost(&self) {
        loop {
            tokio::time::sleep(self.limit / LOOKS).await;
            match tcp::answers(&self.socket) {
                Ok(answers) if is_lost(answers, self.limit) => return,
                Ok(_) => {}
                // Not TCP: nothing can be told.
                Err(_) => pending().await,
            }
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One that does not read is asked from time to time, ever more seldom, whether it does by now: a single question may
/// just be on its way.
fn is_lost(answers: Answers, limit: Duration) -> bool {
    answers.silent >= limit && answers.unanswered >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_in_vain_is_lost() {
        let limit = Duration::from_secs(120);
        let is = |silent, unanswered| is_lost(Answers { silent: Duration::from_secs(silent), unanswered }, limit);
        assert!(is(120, 2) && is(900, 15));
        assert!(!is(119, 9), "it is not silent for long");
        assert!(!is(10_000, 0), "it was not asked");
        assert!(!is(120, 1), "it was asked a moment ago");
    }
}
