//! Exec and attach over a WebSocket: channels 0 to 2 are the process's streams, 3 the status, 4 the terminal's size.

use std::ops::ControlFlow;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Client, Ending, Open, Surroundings, Version, run, status};
use crate::pod::streams::Wanted;
use crate::streaming::channel::{Codec, Incoming};
use crate::streaming::copy::CHUNK;
use crate::streaming::hangup::Hangup;
use crate::streaming::websocket::{End, Socket, hand_over};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// Bytes of the resize channel that may wait.
const RESIZE_BUFFER: usize = 1024;

/// Serves one connection to its end.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    version: Version,
    base64: bool,
    wanted: Wanted,
    open: Open,
    around: &Surroundings,
) -> Ending {
    let codec = Codec { base64, closes: version >= Version::V5 };
    let mut socket = Socket::new(io, codec).await;
    let writer = socket.writer.clone();
    let (stdin, stdin_reader) = pipe(wanted.stdin, CHUNK);
    let (resize, resize_reader) = pipe(wanted.tty, RESIZE_BUFFER);
    let mut client = Client {
        stdin: stdin_reader,
        stdout: wanted.stdout.then(|| writer.channel(STDOUT)),
        stderr: wanted.stderr.then(|| writer.channel(STDERR)),
        resize: resize_reader,
    };
    // Clients take the first message, on whatever channel they read, as a sign that they are connected.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        STATUS
    };
    if writer.send(first, &[]).await.is_err() {
        return Ending::ClientGone;
    }
    let mut wrong = None;
    let (tell, gone) = oneshot::channel();
    let hearing = async {
        match hear(&mut socket, codec, stdin, resize, &around.hangup).await {
            End::Wrong(code, reason) => (code, reason),
            End::Gone => {
                let _ = tell.send(());
                std::future::pending().await
            }
        }
    };
    let ending = tokio::select! {
        ending = run(open, &mut client, gone.map(drop), around) => ending,
        cut = around.cut() => cut.into(),
        told = hearing => {
            wrong = Some(told);
            Ending::ClientGone
        }
        never = writer.heartbeat() => never,
    };
    if let Some(words) = status::words(&ending, version >= Version::V4) {
        writer.last_words(STATUS, &words).await;
    }
    match (&ending, wrong) {
        (_, Some((code, reason))) => socket.close(code, reason).await,
        (Ending::ClientGone, None) => {}
        _ => socket.close(CloseCode::Normal, "").await,
    }
    ending
}

fn pipe(wanted: bool, size: usize) -> (Option<DuplexStream>, Option<DuplexStream>) {
    wanted.then(|| tokio::io::duplex(size)).unzip()
}

/// Takes what the client sends, up to its end.
async fn hear<S: AsyncRead + AsyncWrite + Send + Unpin>(
    socket: &mut Socket<S>,
    codec: Codec,
    mut stdin: Option<DuplexStream>,
    mut resize: Option<DuplexStream>,
    hangup: &Hangup,
) -> End {
    loop {
        let payload = match socket.next().await {
            ControlFlow::Continue(payload) => payload,
            ControlFlow::Break(end) => return end,
        };
        let there = match codec.decode(payload) {
            Ok(Incoming::Data(STDIN, data)) => hand_over(&mut stdin, &data, hangup).await,
            Ok(Incoming::Data(RESIZE, data)) => hand_over(&mut resize, &data, hangup).await,
            Ok(Incoming::Close(STDIN)) => {
                stdin = None;
                true
            }
            Ok(Incoming::Close(RESIZE)) => {
                resize = None;
                true
            }
            // Channels that are only written, and those nobody knows of.
            Ok(Incoming::Data(..) | Incoming::Close(..) | Incoming::Nothing) => true,
            Err(reason) => return End::Wrong(CloseCode::Protocol, reason),
        };
        if !there {
            return End::Gone;
        }
    }
}
