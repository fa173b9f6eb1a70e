//! Exec and attach: a process's streams to a client and back, and at the end its exit code.
//!
//! Order of an end: the process exits, its output is sent to its last byte, the output streams are finished, the status
//! goes over the error stream, the connection is closed.

mod resize;
mod spdy;
mod status;
mod websocket;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

use super::copy::{self, Ended, InputEnd, Outgoing};
use super::fd::{Sink, Source};
use super::negotiate::Offer;
use super::session::{AtInputEnd, Cut, Session, Surroundings};
use crate::pod::PodError;
use crate::pod::streams::Wanted;
use crate::types::chain;

/// Starts the process, or attaches to it.
pub(super) type Open = Box<dyn FnOnce() -> BoxFuture<'static, Result<Session, PodError>> + Send>;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Streams of an SPDY connection.
    Spdy(Version),
    /// Channels in WebSocket messages.
    WebSocket {
        /// What the channels mean.
        version: Version,
        /// Messages are text: a digit and base64.
        base64: bool,
    },
}

/// Versions of remotecommand, as far as a server sees them differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// The error stream has a message; no resizing over SPDY.
    V2,
    /// With resizing.
    V3,
    /// The error stream has a JSON status.
    V4,
    /// A WebSocket client can end its input.
    V5,
}

/// Names of the protocols. v1 differs from v2 by how clients close their input, which we take either way.
pub(super) const OFFER: Offer<Protocol> = Offer {
    spdy: &[
        ("v5.channel.k8s.io", Protocol::Spdy(Version::V5)),
        ("v4.channel.k8s.io", Protocol::Spdy(Version::V4)),
        ("v3.channel.k8s.io", Protocol::Spdy(Version::V3)),
        ("v2.channel.k8s.io", Protocol::Spdy(Version::V2)),
        ("channel.k8s.io", Protocol::Spdy(Version::V2)),
    ],
    spdy_unnamed: Protocol::Spdy(Version::V2),
    websocket: &[
        ("v5.channel.k8s.io", Protocol::WebSocket { version: Version::V5, base64: false }),
        ("v4.channel.k8s.io", Protocol::WebSocket { version: Version::V4, base64: false }),
        ("v4.base64.channel.k8s.io", Protocol::WebSocket { version: Version::V4, base64: true }),
        ("channel.k8s.io", Protocol::WebSocket { version: Version::V3, base64: false }),
        ("base64.channel.k8s.io", Protocol::WebSocket { version: Version::V3, base64: true }),
    ],
    websocket_unnamed: Some(Protocol::WebSocket { version: Version::V3, base64: false }),
};

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The process did, with this code.
    Exited(i32),
    /// The client left a container that lives on, or that ended while it was attached.
    Detached,
    /// It did not begin, or was cut.
    Failed(String),
    /// Nobody is there to be told anything.
    ClientGone,
}

impl From<Cut> for Ending {
    fn from(cut: Cut) -> Self {
        cut.words().map_or(Self::ClientGone, |words| Self::Failed(words.to_owned()))
    }
}

impl Ending {
    /// For logs, where no word of the process may stand.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Detached => "detached",
            Self::Failed(_) => "failed",
            Self::ClientGone => "client gone",
        }
    }
}

/// A client's streams: those that were asked for.
struct Client<I, O> {
    stdin: Option<I>,
    stdout: Option<O>,
    stderr: Option<O>,
    resize: Option<I>,
}

impl<I, O> Default for Client<I, O> {
    fn default() -> Self {
        Self { stdin: None, stdout: None, stderr: None, resize: None }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: Protocol,
    wanted: Wanted,
    open: Open,
    around: &Surroundings,
) -> Ending {
    match protocol {
        Protocol::Spdy(version) => spdy::serve(io, version, wanted, open, around).await,
        Protocol::WebSocket { version, base64 } => websocket::serve(io, version, base64, wanted, open, around).await,
    }
}

/// Opens the session and copies until it ends. The session is dropped, and with it the process killed or the container
/// detached from, when this returns or is dropped. The client's streams are left to the caller: closing them is part of
/// the orderly end.
///
/// Once the client is `gone`, what it has sent is still handed to the process, as far as the process takes it: whoever
/// writes a line to a container and leaves at once has written it.
async fn run<I, O>(
    open: Open,
    client: &mut Client<I, O>,
    gone: impl Future<Output = ()> + Send,
    around: &Surroundings,
) -> Ending
where
    I: AsyncRead + Send + Unpin,
    O: Outgoing,
{
    let mut session = match open().await {
        Ok(session) => session,
        Err(error) => return Ending::Failed(chain(&error)),
    };
    around.activity.touch();
    let ends = match ends(&mut session) {
        Ok(ends) => ends,
        Err(error) => return Ending::Failed(format!("streams of the process: {error}")),
    };
    let (tell, ended) = watch::channel(false);
    let ended = Ended { ended, drain: around.drain };
    let exit = async {
        let exit = (&mut session.exit).await;
        let _ = tell.send(true);
        match exit {
            Ok(Ok(_)) if !session.tells_code => Ending::Detached,
            Ok(Ok(code)) => Ending::Exited(code),
            Ok(Err(error)) => Ending::Failed(chain(&error)),
            Err(_) => Ending::Failed("the process was lost sight of".into()),
        }
    };
    let outputs = async {
        let stdout = flow(ends.stdout, client.stdout.as_mut(), ended.clone(), around);
        let stderr = flow(ends.stderr, client.stderr.as_mut(), ended.clone(), around);
        tokio::join!(stdout, stderr);
    };
    let whole = async { tokio::join!(exit, outputs).0 };
    let resizes = async {
        if let Some(stream) = &mut client.resize {
            resize::follow(&mut *stream, session.streams.terminal.as_ref()).await;
            copy::discard(stream).await;
        }
        std::future::pending().await
    };
    let at_end = session.at_input_end;
    let copied = Notify::new();
    let input = async {
        let Some(stream) = &mut client.stdin else {
            copied.notify_one();
            std::future::pending().await
        };
        let end = match ends.stdin {
            Some(sink) => copy::input(&mut *stream, &sink, &around.activity, &around.hangup).await,
            None => InputEnd::Process,
        };
        copied.notify_one();
        match end {
            InputEnd::Gone => Ending::ClientGone,
            InputEnd::Client if at_end == AtInputEnd::Detach => Ending::Detached,
            // The process's input was closed above.
            InputEnd::Client => std::future::pending().await,
            InputEnd::Process => {
                // What nobody reads must not hold up the client's other streams.
                copy::discard(stream).await;
                std::future::pending().await
            }
        }
    };
    let gone = async {
        gone.await;
        copied.notified().await;
        Ending::ClientGone
    };
    tokio::select! {
        // Boxed, for they are large, and there is one of each for every session.
        ending = whole.boxed() => ending,
        ending = input.boxed() => ending,
        ending = resizes.boxed() => ending,
        ending = gone => ending,
    }
}

/// A process's ends, ready to be waited for.
struct Ends {
    stdin: Option<Sink>,
    stdout: Option<Source>,
    stderr: Option<Source>,
}

fn ends(session: &mut Session) -> std::io::Result<Ends> {
    let streams = &mut session.streams;
    Ok(Ends {
        stdin: streams.stdin.take().map(Sink::new).transpose()?,
        stdout: streams.stdout.take().map(Source::new).transpose()?,
        stderr: streams.stderr.take().map(Source::new).transpose()?,
    })
}

/// One output, if the process has it and the client wants it.
async fn flow(source: Option<Source>, to: Option<&mut impl Outgoing>, ended: Ended, around: &Surroundings) {
    match (source, to) {
        (Some(source), Some(to)) => copy::output(source, to, ended, &around.activity).await,
        // Nothing comes: the client need not wait for it.
        (None, Some(to)) => {
            let _ = to.finish().await;
        }
        _ => {}
    }
}
