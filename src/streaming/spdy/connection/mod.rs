//! Streams over one transport. A task of its own (`driver.rs`) does the I/O; it and the handles share the
//! connection's state (`core.rs`) under a lock that is held for no longer than a copy takes.

mod app;
mod core;
mod driver;
mod output;
mod pace;
mod stream;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use self::core::{Core, Role};
use self::driver::Driver;
pub use self::stream::Stream;
use super::error::End;
use super::frame::ResetStatus;
use super::headers::Headers;
use super::limits::Limits;

/// A SPDY/3.1 connection over any transport; see [`Connection::server`].
#[derive(Debug)]
pub enum Connection {}

impl Connection {
    /// The end that was connected to. A task is spawned that does the I/O, until the connection ends; so this
    /// must be called within a tokio runtime.
    ///
    /// Once the [`Handle`]s, the [`Incoming`] and all [`Stream`]s are dropped, the connection closes as by
    /// [`Handle::close`].
    pub fn server<T>(io: T, limits: Limits) -> (Handle, Incoming)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        start(io, Role::Server, limits)
    }

    /// The end that connected, otherwise like [`Connection::server`].
    pub fn client<T>(io: T, limits: Limits) -> (Handle, Incoming)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        start(io, Role::Client, limits)
    }
}

fn start<T>(io: T, role: Role, limits: Limits) -> (Handle, Incoming)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared(Mutex::new(Core::new(role, limits.clone()))));
    let (ended, over) = watch::channel(None);
    tokio::spawn(Driver::new(io, shared.clone(), &limits, ended));
    let owner = Arc::new(Owner(shared));
    (Handle { owner: owner.clone(), over }, Incoming { owner })
}

/// One end of a connection. Clones are the same end.
#[derive(Debug, Clone)]
pub struct Handle {
    owner: Arc<Owner>,
    over: watch::Receiver<Option<End>>,
}

impl Handle {
    /// Opens a stream with these headers, on which this end sends nothing if `fin`. It may be written to at
    /// once, but some peers drop what comes before they replied: wait for [`Stream::reply`], which also tells
    /// whether the peer accepts it.
    ///
    /// # Errors
    /// The connection is over, or the peer allows no further stream.
    pub fn open(&self, headers: Headers, fin: bool) -> Result<Stream, OpenError> {
        let stream = self.owner.lock().open(headers.clone(), fin)?;
        Ok(Stream::new(self.owner.clone(), stream, headers))
    }

    /// Closes the connection: no stream is opened or taken any more, nothing can be written or read any more,
    /// what was written is sent, then the peer is told goodbye and the transport is shut down. All that goes
    /// on without the caller; [`Handle::closed`] tells when it is done.
    pub fn close(&self) {
        self.owner.lock().close();
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> End {
        let mut over = self.over.clone();
        match over.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(End::Closed),
            // The driver's task was dropped with the runtime.
            Err(_) => End::Hangup,
        }
    }

    /// How many streams there are, and bytes of theirs unread and unsent.
    #[cfg(test)]
    pub(super) fn left(&self) -> (usize, usize, usize) {
        let core = self.owner.lock();
        (core.streams.len(), core.buffered, core.outgoing)
    }

    /// Why the connection is over, if it is.
    pub fn ended(&self) -> Option<End> {
        self.over.borrow().clone()
    }
}

/// The streams that the peer opens. Once it is dropped, they are refused.
#[derive(Debug)]
pub struct Incoming {
    owner: Arc<Owner>,
}

impl Incoming {
    /// The next stream that the peer opened; `None` once there will be none any more, as the connection is
    /// over or one of its ends said goodbye. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Opening> {
        let taken = poll_fn(|cx| self.owner.lock().poll_incoming(cx)).await?;
        Some(Opening { stream: Some(Stream::new(self.owner.clone(), taken.stream, taken.headers)) })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.owner.lock().refuse_incoming();
    }
}

/// A stream that the peer asks for. Dropped, it is refused.
#[derive(Debug)]
pub struct Opening {
    stream: Option<Stream>,
}

impl Opening {
    /// The headers it was opened with.
    pub fn headers(&self) -> &Headers {
        static NONE: std::sync::LazyLock<Headers> = std::sync::LazyLock::new(Headers::new);
        self.stream.as_ref().map_or(&NONE, Stream::headers)
    }

    /// Accepts it, with these headers in the reply.
    #[must_use = "a stream that is dropped is reset"]
    pub fn accept(mut self, headers: Headers) -> Stream {
        #[expect(clippy::unwrap_used, reason = "only this and `reject` take it, and they consume self")]
        let stream = self.stream.take().unwrap();
        stream.owner().lock().accept(stream.id(), headers);
        stream
    }

    /// Refuses it, for the reason given.
    pub fn reject(mut self, status: ResetStatus) {
        if let Some(stream) = self.stream.take() {
            stream.reset(status);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.reset(ResetStatus::REFUSED_STREAM);
        }
    }
}

/// Why no stream can be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The connection is over.
    #[error("the connection is over: {0}")]
    Ended(End),
    /// One of the ends said goodbye.
    #[error("the connection is being closed")]
    Closing,
    /// As many are open as the peer allows.
    #[error("the peer allows {0} streams at a time")]
    TooMany(usize),
    /// Numbers for streams have run out.
    #[error("the connection has used up its stream numbers")]
    UsedUp,
}

/// A stream on its way to the application.
struct Taken {
    stream: u32,
    headers: Headers,
}

/// What the driver and the handles share.
#[derive(Debug)]
struct Shared(Mutex<Core>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handles' share: when the last one goes, the connection closes.
#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Owner {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.lock().close();
    }
}
