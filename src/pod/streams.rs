//! What a client that talks to processes of a pod gets hold of: descriptors, never bytes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::driver::Command;
use super::view::PodState;
use super::{PodError, Pods, ask};
use crate::sys::netns;
use crate::types::ErrorKind;

/// How long one address of a port is waited for.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// To write to the process.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its error output; never together with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Ends of a process's streams. All are nonblocking, close-on-exec, and only their owner's.
#[derive(Debug, Default)]
pub struct Streams {
    /// To be written; closing it ends the process's input (unless it is a terminal, or others write, too).
    pub stdin: Option<OwnedFd>,
    /// To be read up to its end. With a terminal: what the terminal shows; the end of that may be told
    /// as EIO.
    pub stdout: Option<OwnedFd>,
    /// To be read up to its end.
    pub stderr: Option<OwnedFd>,
    /// The master side of the terminal, to set its size with ([`rustix::termios::tcsetwinsize`], which
    /// sends SIGWINCH inside); `None` without a terminal. Whoever attached must neither read nor write it.
    pub terminal: Option<OwnedFd>,
}

/// A process that was started for a client. It is killed, with all of its session, when `exit` is
/// dropped before it has ended, or the daemon ends.
#[derive(Debug)]
pub struct ExecSession {
    /// Its streams.
    pub streams: Streams,
    /// Its exit code (128+n for a signal), once it has ended; output may still wait in the streams.
    pub exit: oneshot::Receiver<Result<i32, PodError>>,
}

/// A view of a running container's own streams, from now on. Dropping `exit` detaches and harms nothing.
///
/// A client that leaves output unread is waited for, and so is the container, but not for long: if it
/// takes less than 32 KiB in 10 seconds it is let go. Then its streams end, and `exit` is `Unavailable`.
#[derive(Debug)]
pub struct AttachSession {
    /// Its streams; output ends when the container does.
    pub streams: Streams,
    /// The container's exit code, once it has ended.
    pub exit: oneshot::Receiver<Result<i32, PodError>>,
}

impl Pods {
    /// Starts `command` in a running container; returns once its program runs.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it does not run; what hinders the program to be executed.
    pub async fn exec(&self, id: &str, command: Vec<String>, wanted: Wanted) -> Result<ExecSession, PodError> {
        let (handle, id) = self.0.find_container(id)?;
        ask(&handle, |reply| Command::ExecStreamed(id, command, wanted, reply)).await
    }

    /// Attaches to a running container. `wanted.tty` is as the container was created.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if `wanted.tty` is not as it was created; `FailedPrecondition` if it
    /// does not run, or takes no input although that is wanted; `ResourceExhausted` for too many clients.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<AttachSession, PodError> {
        let (handle, id) = self.0.find_container(id)?;
        ask(&handle, |reply| Command::Attach(id, wanted, reply)).await
    }

    /// Connects to a port of the pod's own loopback, IPv4 first, then IPv6.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if the sandbox is not ready; `Unavailable` if nobody listens,
    /// or nobody answers within [`CONNECT_LIMIT`].
    pub async fn connect(&self, sandbox: &str, port: u16) -> Result<TcpStream, PodError> {
        let view = self.get(sandbox)?;
        if view.state != PodState::Ready {
            let text = format!("sandbox {} is not ready", view.id);
            return Err(PodError::failed(ErrorKind::FailedPrecondition, text));
        }
        if port == 0 {
            let reason = "want a port from 1 to 65535".to_owned();
            return Err(PodError::Invalid { field: "port", value: "0".to_owned(), reason });
        }
        let mut failures = Vec::new();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            match dial(view.netns.clone(), SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) if out_of_descriptors(&error) => {
                    let text = format!("port {port} of sandbox {}: {error}", view.id);
                    return Err(PodError::failed(ErrorKind::ResourceExhausted, text));
                }
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
        let text = format!("port {port} of sandbox {} cannot be reached: {}", view.id, failures.join("; "));
        Err(PodError::failed(ErrorKind::Unavailable, text))
    }
}

/// Connects from within a network namespace (`None`: the host's).
async fn dial(netns: Option<PathBuf>, address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let make = move || -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, SocketType::STREAM, flags, None)?)
    };
    // A socket stays in the namespace it was made in, so only its making has to happen there.
    let socket = match netns {
        None => make()?,
        Some(path) => tokio::task::spawn_blocking(move || netns::within(&path, make)).await??,
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = tokio::time::timeout(CONNECT_LIMIT, socket.connect(address))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))?;
    // Bytes are passed on as they come; holding them back is for whoever made them to choose.
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_port_is_dialled_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        netns::create(&path, || Ok::<_, io::Error>(())).unwrap();
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = netns::within(&path, || std::net::TcpListener::bind(bind)).unwrap();
            let address = listener.local_addr().unwrap();
            let mut stream = dial(Some(path.clone()), address).await.unwrap();
            let accepted = tokio::task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
            drop(accepted);
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            let refused = dial(Some(path.clone()), address).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        netns::remove(&path).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        dial(None, listener.local_addr().unwrap()).await.unwrap();
        assert_eq!(dial(Some(path), listener.local_addr().unwrap()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
