//! What the application does with a connection and its streams.

use std::io;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::super::error::End;
use super::super::frame::{Frame, ResetStatus};
use super::super::headers::Headers;
use super::core::{Core, Half, Opened, Role, wake};
use super::{OpenError, Taken};

/// What each stream may hold unsent, however much the others do: bytes.
const SEND_LEAST: usize = 4096;

impl Core {
    /// The next stream that the peer opened; `None` once there will be none any more.
    pub(super) fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Taken>> {
        while let Some(stream) = self.incoming.pop_front() {
            if let Some(entry) = self.streams.get_mut(&stream)
                && let Opened::ByPeer(headers) = std::mem::replace(&mut entry.opened, Opened::Taken)
            {
                entry.held = true;
                return Poll::Ready(Some(Taken { stream, headers }));
            }
        }
        if self.ended.is_some() || self.closing || self.peer_goes {
            return Poll::Ready(None);
        }
        self.taker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Refuses what the peer opened and opens, as nobody takes it.
    pub(super) fn refuse_incoming(&mut self) {
        self.no_incoming = true;
        while let Some(stream) = self.incoming.pop_front() {
            self.reset(stream, ResetStatus::REFUSED_STREAM);
        }
        wake(&mut self.driver);
    }

    /// Opens a stream.
    pub(super) fn open(&mut self, headers: Headers, fin: bool) -> Result<u32, OpenError> {
        if let Some(end) = &self.ended {
            return Err(OpenError::Ended(end.clone()));
        }
        if self.closing || self.peer_goes {
            return Err(OpenError::Closing);
        }
        if self.streams.len() - self.peers >= self.peer_allows {
            return Err(OpenError::TooMany(self.peer_allows));
        }
        let stream = self.next_own;
        if stream > 0x7fff_ffff {
            return Err(OpenError::UsedUp);
        }
        self.next_own += 2;
        let mut entry = self.entry(Opened::Asked);
        entry.held = true;
        if fin {
            entry.local = Half::Done;
        }
        self.streams.insert(stream, entry);
        self.control.push_back(Frame::SynStream {
            stream,
            associated: 0,
            priority: 0,
            fin,
            unidirectional: false,
            headers,
        });
        wake(&mut self.driver);
        Ok(stream)
    }

    /// Sends the reply to a stream of the peer.
    pub(super) fn accept(&mut self, stream: u32, headers: Headers) {
        if self.ended.is_none() && self.streams.get(&stream).is_some_and(|entry| entry.reset.is_none()) {
            self.control.push_back(Frame::SynReply { stream, fin: false, headers });
            wake(&mut self.driver);
        }
    }

    pub(super) fn poll_reply(&mut self, stream: u32, cx: &mut Context<'_>) -> Poll<io::Result<Headers>> {
        let ended = self.broken();
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(ended.unwrap_or_else(gone))) };
        match &entry.opened {
            Opened::Replied(headers) => Poll::Ready(Ok(headers.clone())),
            Opened::ByPeer(headers) => Poll::Ready(Ok(headers.clone())),
            Opened::Taken => Poll::Ready(Ok(Headers::new())),
            Opened::Asked => match (entry.reset, ended) {
                (Some(status), _) => Poll::Ready(Err(reset(status))),
                (None, Some(error)) => Poll::Ready(Err(error)),
                (None, None) => {
                    entry.replied = Some(cx.waker().clone());
                    Poll::Pending
                }
            },
        }
    }

    pub(super) fn poll_read(
        &mut self,
        stream: u32,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ended = self.broken();
        let closing = self.closing;
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(ended.unwrap_or_else(gone))) };
        if entry.inbox.is_empty() {
            return match (entry.remote, entry.reset, ended) {
                (Half::Done, _, _) => Poll::Ready(Ok(())),
                (_, Some(status), _) => Poll::Ready(Err(reset(status))),
                (_, None, Some(error)) => Poll::Ready(Err(error)),
                (_, None, None) if closing => Poll::Ready(Err(aborted(End::Closed))),
                (_, None, None) => {
                    entry.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let mut len = 0;
        let (front, back) = entry.inbox.as_slices();
        for part in [front, back] {
            let part = &part[..part.len().min(buf.remaining())];
            buf.put_slice(part);
            len += part.len();
        }
        entry.inbox.drain(..len);
        if entry.inbox.is_empty() && entry.inbox.capacity() > 64 * 1024 {
            entry.inbox = Default::default();
        }
        entry.consumed += len as u32;
        let worth_a_frame = entry.consumed >= self.limits.stream_window / 2 && entry.remote == Half::Open;
        let paused = self.paused();
        self.drop_inbox(len);
        if worth_a_frame && self.ended.is_none() {
            self.queue(stream);
        }
        if worth_a_frame || paused || !self.control.is_empty() {
            wake(&mut self.driver);
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&mut self, stream: u32, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let ended = self.broken();
        let closing = self.closing;
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(ended.unwrap_or_else(gone))) };
        if let Some(status) = entry.reset {
            return Poll::Ready(Err(reset(status)));
        }
        if let Some(error) = ended {
            return Poll::Ready(Err(error));
        }
        if entry.local != Half::Open || closing {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream was shut down")));
        }
        let most = if self.outgoing < self.limits.send_buffer_total { self.limits.send_buffer } else { 0 };
        let room = most.max(SEND_LEAST).saturating_sub(entry.outbox.len());
        if room == 0 {
            entry.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let data = &data[..data.len().min(room)];
        entry.outbox.extend(data);
        self.outgoing += data.len();
        self.queue(stream);
        wake(&mut self.driver);
        Poll::Ready(Ok(data.len()))
    }

    /// Waits until the transport took all that was written to a stream.
    pub(super) fn poll_flush(&mut self, stream: u32, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.broken();
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(ended.unwrap_or_else(gone))) };
        if entry.outbox.is_empty() && entry.local != Half::Ending && entry.sent_at <= self.written {
            return Poll::Ready(match entry.reset {
                Some(status) if entry.local != Half::Done => Err(reset(status)),
                _ => Ok(()),
            });
        }
        if let Some(status) = entry.reset {
            return Poll::Ready(Err(reset(status)));
        }
        if let Some(error) = ended {
            return Poll::Ready(Err(error));
        }
        entry.writer = Some(cx.waker().clone());
        if !entry.flushing {
            entry.flushing = true;
            self.flushing.push(stream);
        }
        Poll::Pending
    }

    /// Writes the end of this half of a stream and waits until the transport took it.
    pub(super) fn poll_shutdown(&mut self, stream: u32, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let alive = self.ended.is_none();
        if let Some(entry) = self.streams.get_mut(&stream)
            && entry.local == Half::Open
            && entry.reset.is_none()
            && alive
        {
            entry.local = Half::Ending;
            self.queue(stream);
            wake(&mut self.driver);
        }
        self.poll_flush(stream, cx)
    }

    /// Resets a stream, for the application.
    pub(super) fn abort(&mut self, stream: u32, status: ResetStatus) {
        if self.ended.is_none() {
            self.reset(stream, status);
            wake(&mut self.driver);
        }
    }

    /// The application lets go of a stream: what was written and ended is still sent, then a stream that is
    /// not over is reset.
    pub(super) fn release(&mut self, stream: u32) {
        let ended = self.ended.is_some();
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.held = false;
        entry.reader = None;
        entry.writer = None;
        entry.replied = None;
        let unread = entry.inbox.len();
        entry.inbox = Default::default();
        let local = entry.local;
        let remote = entry.remote;
        self.drop_inbox(unread);
        if ended {
            if let Some(entry) = self.streams.remove(&stream) {
                self.outgoing -= entry.outbox.len();
            }
            return;
        }
        // An end that is on its way takes what was written with it; the reset then follows it.
        if local == Half::Open || (local == Half::Done && remote != Half::Done) {
            self.reset(stream, ResetStatus::CANCEL);
        }
        self.forget_if_done(stream);
        wake(&mut self.driver);
    }

    /// The application wants the connection closed.
    pub(super) fn close(&mut self) {
        if !self.closing {
            self.closing = true;
            self.refuse_incoming();
            wake(&mut self.taker);
            let held: Vec<usize> =
                self.streams.values_mut().map(|entry| std::mem::take(&mut entry.inbox).len()).collect();
            held.into_iter().for_each(|len| self.drop_inbox(len));
            self.streams.values_mut().for_each(super::core::Entry::wake_all);
            wake(&mut self.driver);
        }
    }

    /// The error of a connection that is over.
    fn broken(&self) -> Option<io::Error> {
        self.ended.clone().map(aborted)
    }

    /// Asks the peer for a sign of life.
    pub(super) fn ping(&mut self) {
        let id = if self.role == Role::Server { 2 } else { 1 };
        self.control.push_back(Frame::Ping(id));
    }
}

fn aborted(end: End) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, end)
}

fn reset(status: ResetStatus) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("the stream was reset: {status}"))
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "there is no such stream any more")
}
