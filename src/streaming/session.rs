//! A process's streams on their way to a client, whether it was started for that client or attached to.

use std::any::Any;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::hangup::Hangup;
use super::peer::Peer;
use crate::pod::PodError;
use crate::pod::streams::{AttachSession, ExecSession, Streams};

/// What a client talks to.
pub(super) struct Session {
    /// Its streams.
    pub(super) streams: Streams,
    /// Its exit code, once it has ended.
    pub(super) exit: oneshot::Receiver<Result<i32, PodError>>,
    /// What becomes of it when the client ends its input.
    pub(super) at_input_end: AtInputEnd,
    /// Whether clients are told the exit code.
    pub(super) tells_code: bool,
    /// Dropped with the session: kills, or detaches.
    pub(super) _keep: Box<dyn Any + Send>,
}

/// See [`Session::at_input_end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtInputEnd {
    /// The process's input ends, too.
    Close,
    /// The client leaves, and the input stays open for the next one.
    Detach,
}

impl Session {
    /// Of a process that was started for the client.
    pub(super) fn exec(mut exec: ExecSession) -> Self {
        Self {
            streams: std::mem::take(&mut exec.streams),
            exit: std::mem::replace(&mut exec.exit, closed()),
            at_input_end: AtInputEnd::Close,
            tells_code: true,
            _keep: Box::new(exec),
        }
    }

    /// Of a container.
    pub(super) fn attach(mut attach: AttachSession, at_input_end: AtInputEnd) -> Self {
        Self {
            streams: std::mem::take(&mut attach.streams),
            exit: std::mem::replace(&mut attach.exit, closed()),
            at_input_end,
            tells_code: false,
            _keep: Box::new(attach),
        }
    }
}

fn closed<T>() -> oneshot::Receiver<T> {
    oneshot::channel().1
}

/// What every session is told by the server it runs in.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// Whether the client is gone.
    pub(super) hangup: Hangup,
    /// Whether the client's machine answers.
    pub(super) peer: Peer,
    /// When data was last sent.
    pub(super) activity: Activity,
    /// Whether the daemon ends.
    pub(super) stop: CancellationToken,
    /// Longest time without data.
    pub(super) idle_timeout: Duration,
    /// Longest wait for a client's streams.
    pub(super) creation_timeout: Duration,
    /// How long, after a process has ended, others are heard that hold its streams.
    pub(super) drain: Duration,
}

impl Surroundings {
    /// Ready when the session must end though neither side has ended it; says why.
    pub(super) async fn cut(&self) -> Cut {
        tokio::select! {
            () = self.stop.cancelled() => Cut::Stopping,
            () = self.activity.idle(self.idle_timeout) => Cut::Idle,
            () = self.peer.lost() => Cut::Lost,
        }
    }
}

/// Why a session is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The daemon ends.
    Stopping,
    /// No data went either way.
    Idle,
    /// The client's machine answers no more.
    Lost,
}

impl Cut {
    /// What the client is told; `None`: nobody is there to be told.
    pub(super) fn words(self) -> Option<&'static str> {
        match self {
            Self::Stopping => Some("podwright is stopping"),
            Self::Idle => Some("nothing was sent for too long"),
            Self::Lost => None,
        }
    }
}
