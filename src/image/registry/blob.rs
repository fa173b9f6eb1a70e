//! Streaming a blob: resumed where it broke, moved to the next host where one is too slow.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, header};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::request::{Peer, Refusal, transport};
use crate::image::unpack::Piece;

/// A host that gives fewer bytes per second than this over a whole window is given up.
const FLOOR: u64 = 1024;
/// Times that one host may break off, each having given at least a byte more.
const MAX_RESUMES: u32 = 8;

/// How a stream from one host ended.
pub enum Outcome {
    /// All bytes were handed on.
    Complete,
    /// Nobody takes the bytes any more.
    NobodyListens,
    /// This host gives no more.
    Refused(Refusal),
}

/// Streams from `at` on; `at` moves with every byte handed on, so that another host can go on from there.
pub async fn stream(
    peer: &Peer,
    path: &str,
    size: u64,
    at: &mut u64,
    window: Duration,
    only: bool,
    out: &mpsc::Sender<Piece>,
) -> Outcome {
    let mut resumes = 0;
    let mut broken = String::new();
    loop {
        let before = *at;
        let mut headers = HeaderMap::new();
        if *at > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={at}-"))
        {
            headers.insert(header::RANGE, range);
        }
        let response = match peer.get(path, &headers, only).await {
            Ok(response) => response,
            Err(refusal) if broken.is_empty() => return Outcome::Refused(refusal),
            Err(refusal) => {
                return Outcome::Refused(Refusal::Temporary(format!("{broken}; then {}", refusal.reason())));
            }
        };
        let ended = match offset(&response, *at) {
            Some(skip) => forward(response, skip, size, at, window, out).await,
            None => Ended::Refused(Refusal::Permanent("it answers with another part than was asked for".into())),
        };
        let reason = match ended {
            Ended::Complete => return Outcome::Complete,
            Ended::NobodyListens => return Outcome::NobodyListens,
            Ended::Refused(refusal) => return Outcome::Refused(refusal),
            Ended::Broken(reason) => reason,
        };
        resumes += 1;
        if *at == before || resumes > MAX_RESUMES {
            return Outcome::Refused(Refusal::Temporary(reason));
        }
        tracing::debug!(host = %peer.host.name(), %reason, at = *at, size, "blob download will be resumed");
        broken = reason;
    }
}

enum Ended {
    Complete,
    NobodyListens,
    Refused(Refusal),
    Broken(String),
}

/// How many bytes of the answer are known already; `None`: it begins elsewhere.
fn offset(response: &Response, at: u64) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Some(at);
    }
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let start: u64 = range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()?;
    at.checked_sub(start)
}

async fn forward(
    mut response: Response,
    mut skip: u64,
    size: u64,
    at: &mut u64,
    window: Duration,
    out: &mpsc::Sender<Piece>,
) -> Ended {
    let floor = FLOOR * window.as_secs().max(1);
    // Only time spent waiting for the network counts, so that a slow disk does not condemn the host.
    let mut waited = Duration::ZERO;
    let mut got = 0u64;
    loop {
        let since = Instant::now();
        let next = tokio::time::timeout(window.saturating_sub(waited), response.chunk()).await;
        waited += since.elapsed();
        let chunk = match next {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) if *at == size => return Ended::Complete,
            Ok(Ok(None)) => return Ended::Broken(format!("it ended after {at} of {size} bytes")),
            Ok(Err(error)) => return Ended::Broken(transport(error)),
            Err(_) if got >= floor => {
                (waited, got) = (Duration::ZERO, 0);
                continue;
            }
            Err(_) => {
                return Ended::Refused(Refusal::Temporary(format!("it gave only {got} bytes in {window:?}")));
            }
        };
        got += chunk.len() as u64;
        if waited >= window && got >= floor {
            (waited, got) = (Duration::ZERO, 0);
        }
        let chunk = without_known(chunk, &mut skip);
        if chunk.is_empty() {
            continue;
        }
        if *at + chunk.len() as u64 > size {
            return Ended::Refused(Refusal::Permanent(format!(
                "the blob is longer than the {size} bytes it should have"
            )));
        }
        *at += chunk.len() as u64;
        if out.send(Piece::Data(chunk)).await.is_err() {
            return Ended::NobodyListens;
        }
    }
}

fn without_known(mut chunk: Bytes, skip: &mut u64) -> Bytes {
    let known = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
    *skip -= known as u64;
    chunk.split_off(known)
}
