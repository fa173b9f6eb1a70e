//! What can go wrong between daemon and monitor.

use std::io;
use std::path::PathBuf;

use crate::types::{ErrorKind, HasKind, PodId};
use crate::wire::Failure;

/// A monitor could not be started, reached, or made to do something.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program could not be started.
    #[error("starting {binary:?}")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its socket could not be reached, for a reason that may pass.
    #[error("connecting to the monitor of pod {pod}")]
    Connect {
        /// Which pod's.
        pod: PodId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such monitor any more, or it ended before it answered.
    #[error("the monitor of pod {0} is gone")]
    Gone(PodId),
    /// It lives, but does not answer.
    #[error("the monitor of pod {0} does not answer")]
    Silent(PodId),
    /// The monitor found there serves another pod.
    #[error("the monitor of pod {pod} says it serves pod {found}")]
    Stranger {
        /// Asked for.
        pod: PodId,
        /// Found.
        found: PodId,
    },
    /// The request is longer than a monitor takes.
    #[error("a request of {length} bytes to the monitor of pod {pod}; it takes {limit}")]
    TooLong {
        /// Which pod's.
        pod: PodId,
        /// Bytes.
        length: usize,
        /// Bytes.
        limit: usize,
    },
    /// The monitor says no.
    #[error(transparent)]
    Refused(#[from] Failure),
}

impl HasKind for LaunchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(failure) => failure.kind,
            Self::Connect { .. } | Self::Gone(_) | Self::Silent(_) => ErrorKind::Unavailable,
            Self::TooLong { .. } => ErrorKind::InvalidArgument,
            Self::Spawn { source, .. } => match source.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Internal,
            },
            Self::Stranger { .. } => ErrorKind::Internal,
        }
    }
}
