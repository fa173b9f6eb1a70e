//! Whether the other side of a connection is gone, known without reading from it.
//!
//! While a process does not read its input, nothing more is read from its client: that is what holds the client back.
//! But then the end of the connection, which comes after that input, would not be seen, and the process would live on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use tokio::io::unix::AsyncFd;

use crate::sys::async_fd;

/// Tells when the other side of a socket has closed or is lost.
#[derive(Debug, Clone)]
pub(super) struct Hangup(Option<Arc<AsyncFd<OwnedFd>>>);

impl Hangup {
    /// Watches `socket`. Costs nothing while data flows: an epoll set of its own holds the socket and waits for its end
    /// only, and the reactor waits for that set.
    pub(super) fn watch(socket: impl AsFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wanted = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        epoll::add(&set, socket, epoll::EventData::new_u64(0), wanted)?;
        Ok(Self(Some(Arc::new(async_fd::readable(set)?))))
    }

    /// For what is no socket: is never told.
    #[cfg(test)]
    pub(super) fn never() -> Self {
        Self(None)
    }

    /// Ready once the other side is gone; must be used only while the socket is open.
    pub(super) async fn gone(&self) {
        let seen = match &self.0 {
            Some(set) => set.readable().await.is_ok(),
            None => false,
        };
        if !seen {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn an_end_behind_unread_data_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let hangup = Hangup::watch(&server).unwrap();
        client.write_all(b"not read by anybody").await.unwrap();
        tokio::select! {
            biased;
            () = hangup.gone() => panic!("it is still there"),
            ready = server.readable() => ready.unwrap(),
        }
        drop(client);
        hangup.gone().await;
        hangup.clone().gone().await;
    }
}
