//! What can go wrong with sandboxes and containers.

use crate::types::{ErrorKind, HasKind};

/// Errors of sandboxes and containers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PodError {
    /// Not there.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container`, ….
        what: &'static str,
        /// As asked.
        id: String,
    },
    /// The request is wrong.
    #[error("{field}: {reason} (got {value:?})")]
    Invalid {
        /// CRI field path, such as `config.metadata.name`.
        field: &'static str,
        /// As given.
        value: String,
        /// What is wanted.
        reason: String,
    },
    /// Not built yet, or not for this handler.
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
    /// A phase failed.
    #[error("{message}")]
    Failed {
        /// Class.
        kind: ErrorKind,
        /// The stage, its error, and what the clean-up reported.
        message: String,
    },
}

impl HasKind for PodError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Unimplemented(_) => ErrorKind::Unimplemented,
            Self::Failed { kind, .. } => *kind,
        }
    }
}
