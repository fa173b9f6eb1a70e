//! Exec and attach over SPDY: a stream for each of the process's, one for the status, one for the terminal's size. The
//! client opens them, in any order, and the process begins when all are there.

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::{Client, Ending, Open, Surroundings, Version, run, status};
use crate::pod::streams::Wanted;
use crate::streaming::copy::Outgoing as _;
use crate::streaming::multiplex::{Out, limits};
use crate::streaming::spdy::{Connection, Headers, Incoming, Opening, ResetStatus, Stream};

/// Most streams of a client: five are of use.
const MAX_STREAMS: usize = 16;

/// Serves one connection to its end.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    version: Version,
    wanted: Wanted,
    open: Open,
    around: &Surroundings,
) -> Ending {
    let (handle, mut incoming) = Connection::server(io, limits(MAX_STREAMS));
    let mut streams = Streams::default();
    let late = tokio::select! {
        all = streams.collect(&mut incoming, wanted, version) => if all { None } else { Some(Ending::ClientGone) },
        () = tokio::time::sleep(around.creation_timeout) => {
            Some(Ending::Failed(format!("not all streams were opened: want {}", kinds(wanted, version).join(", "))))
        }
        cut = around.cut() => Some(cut.into()),
        _ = handle.closed() => Some(Ending::ClientGone),
    };
    let ending = match late {
        Some(ending) => ending,
        None => tokio::select! {
            ending = run(open, &mut streams.client, handle.closed().map(drop), around) => ending,
            cut = around.cut() => cut.into(),
            never = refuse(&mut incoming) => never,
        },
    };
    if ending != Ending::ClientGone {
        let words = status::words(&ending, version >= Version::V4).unwrap_or_default();
        // The end of the connection, below, waits for whatever is not sent yet; but not for ever.
        let _ = tokio::time::timeout(around.creation_timeout, streams.end(&words)).await;
    }
    handle.close();
    handle.closed().await;
    ending
}

async fn finish(output: Option<&mut Out<Stream>>) {
    if let Some(output) = output {
        let _ = output.finish().await;
    }
}

/// What the client opened.
#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    client: Client<Stream, Out<Stream>>,
}

impl Streams {
    /// Tells the status, and finishes what is not finished yet, so that no client takes the end for a loss.
    async fn end(&mut self, words: &[u8]) {
        let Self { error, client } = self;
        let status = async {
            if let Some(error) = error {
                let _ = error.write_all(words).await;
                let _ = error.shutdown().await;
            }
        };
        tokio::join!(finish(client.stdout.as_mut()), finish(client.stderr.as_mut()), status);
    }

    /// Takes streams until all are there that the session needs; `false` if the client opens no more.
    async fn collect(&mut self, incoming: &mut Incoming, wanted: Wanted, version: Version) -> bool {
        let needed = kinds(wanted, version);
        while !needed.iter().all(|kind| self.has(kind)) {
            let Some(opening) = incoming.next().await else { return false };
            self.place(opening, &needed);
        }
        true
    }

    fn has(&self, kind: &str) -> bool {
        match kind {
            "error" => self.error.is_some(),
            "stdin" => self.client.stdin.is_some(),
            "stdout" => self.client.stdout.is_some(),
            "stderr" => self.client.stderr.is_some(),
            "resize" => self.client.resize.is_some(),
            _ => false,
        }
    }

    fn place(&mut self, opening: Opening, needed: &[&'static str]) {
        let kind = opening.headers().get("streamtype").unwrap_or_default();
        let Some(kind) = needed.iter().copied().find(|needed| *needed == kind) else {
            return opening.reject(ResetStatus::REFUSED_STREAM);
        };
        if self.has(kind) {
            return opening.reject(ResetStatus::PROTOCOL_ERROR);
        }
        let stream = opening.accept(Headers::new());
        match kind {
            "error" => self.error = Some(stream),
            "stdin" => self.client.stdin = Some(stream),
            "stdout" => self.client.stdout = Some(Out(stream)),
            "stderr" => self.client.stderr = Some(Out(stream)),
            _ => self.client.resize = Some(stream),
        }
    }
}

/// The streams that a session needs, as the header `streamType` names them.
fn kinds(wanted: Wanted, version: Version) -> Vec<&'static str> {
    let all = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", wanted.tty && version >= Version::V3),
    ];
    all.into_iter().filter(|(_, needed)| *needed).map(|(kind, _)| kind).collect()
}

/// Whatever else a client opens.
async fn refuse<T>(incoming: &mut Incoming) -> T {
    while let Some(opening) = incoming.next().await {
        opening.reject(ResetStatus::REFUSED_STREAM);
    }
    std::future::pending().await
}
