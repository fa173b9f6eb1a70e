//! The vocabulary every module shares: ids, digests, error kinds, times and signals, and what a client
//! asks of a sandbox ([`pod`]) and of a container ([`container`]).
//!
//! Architecture Invariant: this module imports nothing of the project and does no I/O.

pub mod container;
mod digest;
mod error;
mod id;
pub mod pod;
mod signal;
mod time;

pub use digest::{Digest, DigestError};
pub use error::{ErrorKind, HasKind, chain};
pub use id::{ContainerId, IdError, PodId};
pub use signal::{Signal, SignalError};
pub use time::{now_ns, rfc3339_nano};
