//! Copying with one fixed buffer per direction, from processes to clients and back.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::activity::Activity;
use super::fd::{Sink, Source};
use super::hangup::Hangup;

/// Bytes copied at once.
pub(super) const CHUNK: usize = 32 << 10;
/// Free bytes at the front of each chunk, for what a transport puts before it.
pub(super) const HEADROOM: usize = 1;
/// Most that is read of a pipe after its process has ended and the time for others that hold it is over, bytes: no less
/// than any pipe holds, so that nothing that the process wrote is lost to a slow client.
const MOST_LEFT: usize = 1 << 20;

/// One stream to a client, whatever carries it.
pub(super) trait Outgoing: Send {
    /// Sends the bytes after the first [`HEADROOM`]; waits while the client cannot take them. An error: the client does
    /// not take this stream any more.
    fn send(&mut self, chunk: BytesMut) -> impl Future<Output = io::Result<()>> + Send;

    /// Says that nothing more comes, if the transport can.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

/// What [`output`] has to know of the process.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    /// True from its end on.
    pub(super) ended: watch::Receiver<bool>,
    /// How long then others are waited for that hold its streams.
    pub(super) drain: Duration,
}

impl Ended {
    /// Ready when the time for others is over.
    async fn past(&mut self) {
        if self.ended.wait_for(|ended| *ended).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(Instant::now() + self.drain).await;
    }
}

/// Copies a process's output to its client, up to its end, then finishes the client's stream.
///
/// After the process has ended, everything it wrote is sent still, however slow the client; but others that hold the
/// pipe (children in the background) are heard for a while only.
pub(super) async fn output(source: Source, to: &mut impl Outgoing, mut ended: Ended, activity: &Activity) {
    let mut buffer = BytesMut::new();
    let past = ended.past();
    tokio::pin!(past);
    let mut left = None;
    loop {
        buffer.resize(HEADROOM, 0);
        let count = match left {
            None => tokio::select! {
                count = source.read(&mut buffer, CHUNK) => count,
                () = &mut past => {
                    left = Some(MOST_LEFT);
                    continue;
                }
            },
            Some(0) => break,
            Some(most) => {
                let count = source.read_now(&mut buffer, CHUNK.min(most)).map(Option::unwrap_or_default);
                left = Some(most - count.as_ref().copied().unwrap_or(0).min(most));
                count
            }
        };
        if !matches!(count, Ok(1..)) {
            break;
        }
        activity.touch();
        if to.send(buffer.split()).await.is_err() {
            // Nobody listens: the process learns it as from any broken pipe.
            return;
        }
        activity.touch();
        buffer.reserve(HEADROOM + CHUNK);
    }
    let _ = to.finish().await;
}

/// How an input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// The client has ended it.
    Client,
    /// The process reads no more.
    Process,
    /// The client is gone, and the process did not read.
    Gone,
}

/// Copies a client's input to a process.
pub(super) async fn input(
    mut from: impl AsyncRead + Unpin,
    to: &Sink,
    activity: &Activity,
    hangup: &Hangup,
) -> InputEnd {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    loop {
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Ok(1..) => activity.touch(),
            _ => return InputEnd::Client,
        }
        tokio::select! {
            biased;
            written = to.write(&buffer) => if written.is_err() {
                return InputEnd::Process;
            },
            () = hangup.gone() => return InputEnd::Gone,
        }
        activity.touch();
    }
}

/// Reads and drops, up to the end.
pub(super) async fn discard(mut from: impl AsyncRead + Unpin) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    while matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
        buffer.clear();
    }
}

/// Copies what a client sends to a socket, and ends the socket's input when the client has ended. What the socket takes
/// no more is read and dropped: it must not hold up the client's other streams. An error: the client is gone, or has
/// given up.
pub(super) async fn upload(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
    hangup: &Hangup,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let mut open = true;
    loop {
        buffer.clear();
        if from.read_buf(&mut buffer).await? == 0 {
            let _ = to.shutdown().await;
            return Ok(());
        }
        activity.touch();
        while open && buffer.has_remaining() {
            tokio::select! {
                biased;
                written = to.write_buf(&mut buffer) => open = matches!(written, Ok(1..)),
                () = hangup.gone() => return Err(io::ErrorKind::ConnectionReset.into()),
            }
            activity.touch();
        }
    }
}

/// Copies what a socket gives to a client, and finishes the client's stream. An error: one of them failed.
pub(super) async fn download(
    mut from: impl AsyncRead + Unpin,
    to: &mut impl Outgoing,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(HEADROOM + CHUNK);
        buffer.resize(HEADROOM, 0);
        if from.read_buf(&mut buffer).await? == 0 {
            return to.finish().await;
        }
        activity.touch();
        to.send(buffer.split()).await?;
        activity.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::os::fd::OwnedFd;
    use tokio::sync::mpsc;

    /// A client that takes a chunk whenever it is asked to.
    struct Taker(mpsc::Sender<Vec<u8>>);

    impl Outgoing for Taker {
        async fn send(&mut self, chunk: BytesMut) -> io::Result<()> {
            self.0.send(chunk[HEADROOM..].to_vec()).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
        }

        async fn finish(&mut self) -> io::Result<()> {
            self.send(BytesMut::from(&b"-end"[..])).await
        }
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap()
    }

    #[tokio::test]
    async fn a_pipe_s_bytes_arrive_and_then_its_end() {
        let (reader, writer) = pipe();
        let (sender, mut taken) = mpsc::channel(1);
        let (_end, ended) = watch::channel(false);
        let ended = Ended { ended, drain: Duration::ZERO };
        let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let bytes = sent.clone();
        let writer = tokio::spawn(async move { Sink::new(writer).unwrap().write(&bytes).await });
        let copy = tokio::spawn(async move {
            output(Source::new(reader).unwrap(), &mut Taker(sender), ended, &Activity::new()).await;
        });
        let mut got = Vec::new();
        while let Some(chunk) = taken.recv().await {
            got.extend(chunk);
        }
        assert!(got.strip_suffix(b"end").unwrap() == sent);
        writer.await.unwrap().unwrap();
        copy.await.unwrap();
    }

    #[tokio::test]
    async fn what_an_ended_process_wrote_reaches_a_slow_client_though_others_hold_the_pipe() {
        let (reader, writer) = pipe();
        let (sender, mut taken) = mpsc::channel(1);
        let (_end, ended) = watch::channel(true);
        let ended = Ended { ended, drain: Duration::from_millis(1) };
        let filled = rustix::io::write(&writer, &[7; 65_536]).unwrap();
        let copy = tokio::spawn(async move {
            output(Source::new(reader).unwrap(), &mut Taker(sender), ended, &Activity::new()).await;
        });
        // The client begins to read only when the time is over.
        tokio::time::timeout(Duration::from_millis(50), std::future::pending::<()>()).await.unwrap_err();
        let mut got = Vec::new();
        while let Some(chunk) = taken.recv().await {
            got.extend(chunk);
        }
        assert_eq!(got.len(), filled + b"end".len());
        copy.await.unwrap();
        drop(writer);
    }

    #[tokio::test]
    async fn a_holder_that_goes_on_writing_is_cut() {
        let (reader, writer) = pipe();
        let (sender, mut taken) = mpsc::channel(1);
        let (_end, ended) = watch::channel(true);
        let ended = Ended { ended, drain: Duration::from_millis(1) };
        let chatter = tokio::spawn(async move {
            let sink = Sink::new(writer).unwrap();
            while sink.write(&[1; 4096]).await.is_ok() {}
        });
        let copy = tokio::spawn(async move {
            output(Source::new(reader).unwrap(), &mut Taker(sender), ended, &Activity::new()).await;
        });
        while taken.recv().await.is_some() {}
        copy.await.unwrap();
        chatter.await.unwrap();
    }

    #[tokio::test]
    async fn input_ends_as_its_client_or_its_process_does() {
        let (activity, never) = (Activity::new(), Hangup::never());
        let (reader, writer) = pipe();
        let sink = Sink::new(writer).unwrap();
        assert_eq!(input(&b"abc"[..], &sink, &activity, &never).await, InputEnd::Client);
        let mut got = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut got).unwrap(), 3);
        drop(reader);
        assert_eq!(input(&b"abc"[..], &sink, &activity, &never).await, InputEnd::Process);
    }
}
