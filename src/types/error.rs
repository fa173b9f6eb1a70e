//! What went wrong, as far as a caller can act on it.

use std::error::Error;
use std::fmt::Write as _;

/// The class of an error. The gRPC door maps each to one status code (`cri::status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong; retrying it unchanged cannot help.
    InvalidArgument,
    /// The named object does not exist.
    NotFound,
    /// The name is taken by something different.
    AlreadyExists,
    /// The object is in a state that does not allow the operation.
    FailedPrecondition,
    /// A limit (disk, memory, size bound) was reached.
    ResourceExhausted,
    /// The operation was overtaken by another one (for instance a stop during a create).
    Aborted,
    /// A time limit passed.
    DeadlineExceeded,
    /// The registry refused the credentials.
    Unauthenticated,
    /// The operation is not allowed.
    PermissionDenied,
    /// Something outside is not there for now (registry, plugin, monitor); a retry may help.
    Unavailable,
    /// This runtime, or this handler, cannot do it.
    Unimplemented,
    /// Everything else: a defect, or a failure of the machine.
    Internal,
}

/// An error that knows its class.
pub trait HasKind: Error {
    /// The class of this error.
    fn kind(&self) -> ErrorKind;
}

/// An error and all its sources on one line, separated by `: `; a source that its parent already
/// printed is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.ends_with(&part) {
            let _ = write!(text, ": {part}");
        }
        next = source.source();
    }
    text
}
