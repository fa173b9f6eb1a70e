//! Port-forward over SPDY: two streams for each connection, one for data, one for what went wrong; the same `requestID`
//! makes them a pair.

use std::collections::{HashMap, VecDeque};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Connect, Surroundings, port_of};
use crate::streaming::copy::{download, upload};
use crate::streaming::multiplex::{Out, limits};
use crate::streaming::spdy::{Connection, Headers, Opening, ResetStatus, Stream};
use crate::types::chain;

/// Most streams of a client: 512 connections at once.
const MAX_STREAMS: usize = 1024;

/// Serves one connection to its end.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    connect: Connect,
    around: &Surroundings,
) {
    let (handle, mut incoming) = Connection::server(io, limits(MAX_STREAMS));
    let mut singles = Singles::default();
    // They are aborted when this function ends.
    let mut forwards = JoinSet::new();
    loop {
        tokio::select! {
            opening = incoming.next() => match opening {
                Some(opening) => {
                    if let Some(pair) = singles.add(opening, Instant::now() + around.creation_timeout) {
                        forwards.spawn(forward(pair, connect.clone(), around.clone()));
                    }
                }
                // The client opens no more, and what it has goes on.
                None => break,
            },
            Some(_) = forwards.join_next() => {}
            late = singles.late() => {
                forwards.spawn(give_up(late));
            }
            _ = around.cut() => {
                handle.close();
                break;
            }
        }
    }
    tokio::select! {
        _ = handle.closed() => {}
        _ = around.cut() => {
            handle.close();
            handle.closed().await;
        }
    }
}

/// The two streams of a connection.
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

/// Streams that wait for their other half.
#[derive(Default)]
struct Singles {
    waiting: HashMap<String, Single>,
    /// When each is given up, earliest first.
    ends: VecDeque<(Instant, String)>,
}

struct Single {
    stream: Stream,
    kind: Kind,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

impl Singles {
    /// Takes a stream; gives a pair if this one completes it.
    fn add(&mut self, opening: Opening, end: Instant) -> Option<Pair> {
        let Some((kind, port)) = wanted(opening.headers()) else {
            opening.reject(ResetStatus::PROTOCOL_ERROR);
            return None;
        };
        let request = opening.headers().get("requestid").filter(|name| !name.is_empty()).map(str::to_owned);
        let stream = opening.accept(Headers::new());
        let request = request.unwrap_or_else(|| unnamed(kind, stream.id()));
        match self.waiting.remove(&request) {
            None => {
                self.ends.push_back((end, request.clone()));
                self.waiting.insert(request, Single { stream, kind, port });
                None
            }
            Some(other) if other.kind == kind => {
                stream.reset(ResetStatus::PROTOCOL_ERROR);
                self.waiting.insert(request, other);
                None
            }
            Some(other) => {
                self.ends.retain(|(_, name)| *name != request);
                Some(match kind {
                    Kind::Data => Pair { port, data: stream, error: other.stream },
                    Kind::Error => Pair { port: other.port, data: other.stream, error: stream },
                })
            }
        }
    }

    /// The next one that waited too long.
    async fn late(&mut self) -> Single {
        loop {
            let Some((end, _)) = self.ends.front() else { std::future::pending().await };
            tokio::time::sleep_until(*end).await;
            let late = self.ends.pop_front().and_then(|(_, request)| self.waiting.remove(&request));
            if let Some(single) = late {
                return single;
            }
        }
    }
}

/// Kind and port of a stream.
fn wanted(headers: &Headers) -> Option<(Kind, u16)> {
    let kind = match headers.get("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    Some((kind, port_of(headers.get("port")?).ok()?))
}

/// For clients that name no request: they open the error stream first, and the data stream right after it.
fn unnamed(kind: Kind, id: u32) -> String {
    let first = match kind {
        Kind::Error => id,
        Kind::Data => id.saturating_sub(2),
    };
    format!("stream {first}")
}

/// One connection, to its end.
async fn forward(pair: Pair, connect: Connect, around: Surroundings) {
    let Pair { port, data, mut error } = pair;
    let socket = match connect(port).await {
        Ok(socket) => socket,
        Err(reason) => {
            let _ = error.write_all(chain(&reason).as_bytes()).await;
            let _ = error.shutdown().await;
            data.reset(ResetStatus::INTERNAL_ERROR);
            return;
        }
    };
    let (read, write) = socket.into_split();
    let (from, to) = tokio::io::split(data);
    let mut to = Out(to);
    // Each half ends by itself; a failure ends both. A connection that the pod reset is no error to be told: clients
    // would give up all their connections for it. Their stream is reset, which says the same.
    let up = upload(from, write, &around.activity, &around.hangup);
    // That the pod has ended its side is told at once: clients may wait for that word before they end theirs.
    let down = async {
        download(read, &mut to, &around.activity).await?;
        error.shutdown().await
    };
    let _ = tokio::try_join!(up, down);
    let _ = error.shutdown().await;
}

/// Tells a client that a stream's other half never came.
async fn give_up(single: Single) {
    let Single { mut stream, kind, .. } = single;
    if kind == Kind::Error {
        let _ = stream.write_all(b"the data stream of this request was not opened in time").await;
        let _ = stream.shutdown().await;
    }
}
