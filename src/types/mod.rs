//! The small vocabulary every module shares: ids, digests, error kinds, times and signals.
//!
//! Architecture Invariant: this module imports nothing of the project and does no I/O.

mod digest;
mod error;
mod id;
mod signal;
mod time;

pub use digest::{Digest, DigestError};
pub use error::{ErrorKind, HasKind, chain};
pub use id::{ContainerId, IdError, PodId};
pub use signal::{Signal, SignalError};
pub use time::{now_ns, rfc3339_nano};
