//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store::StoreError;
use crate::types::{Digest, ErrorKind, HasKind};

/// An image operation failed. Clones share their sources, since one pull may answer many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The text is no image reference.
    #[error("invalid image reference {value:?}: {reason}")]
    Reference {
        /// As given, cut to a sane length.
        value: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// An id prefix fits more than one image.
    #[error("{value:?} fits more than one image")]
    Ambiguous {
        /// As given.
        value: String,
    },
    /// The registries answer that there is no such thing.
    #[error("{what} not found: {reason}")]
    NotFound {
        /// Image or blob.
        what: String,
        /// Each host's answer.
        reason: String,
    },
    /// The registry wants credentials, or others than those given.
    #[error("{host} refuses to give {what}: {reason}")]
    Unauthenticated {
        /// Registry.
        host: String,
        /// Image or blob.
        what: String,
        /// Its answer.
        reason: String,
    },
    /// The credentials are good, but not for this.
    #[error("{host} forbids {what}: {reason}")]
    Forbidden {
        /// Registry.
        host: String,
        /// Image or blob.
        what: String,
        /// Its answer.
        reason: String,
    },
    /// No registry could be reached, or all of them failed for now. (The kubelet reads the first word.)
    #[error("RegistryUnavailable: {what}: {reason}")]
    Unavailable {
        /// Image or blob.
        what: String,
        /// Each host's failure.
        reason: String,
    },
    /// Manifest, index or config is not what the specifications allow.
    #[error("{what}: {reason}")]
    Manifest {
        /// Image or blob.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image exists, but not for this machine.
    #[error("{what} has no variant for {platform}; it has {found}")]
    Platform {
        /// Image.
        what: String,
        /// Wanted.
        platform: String,
        /// Offered.
        found: String,
    },
    /// The bytes are not those that the manifest promised.
    #[error("{what} is corrupt: {reason}")]
    Corrupt {
        /// Blob.
        what: String,
        /// Expected and found.
        reason: String,
    },
    /// The registries answer with something that asking again would not change.
    #[error("{what} cannot be had: {reason}")]
    Refused {
        /// Image or blob.
        what: String,
        /// Each host's answer.
        reason: String,
    },
    /// A layer's archive is malformed, or tries what no layer may.
    #[error("layer {layer} cannot be unpacked: {reason}")]
    Layer {
        /// Diff id.
        layer: Digest,
        /// Entry and reason.
        reason: String,
    },
    /// A file of the node's registry configuration is wrong.
    #[error("registry configuration {path:?}: {reason}")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The file system failed.
    #[error("{what} {path:?}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// A record failed.
    #[error("image record")]
    Store(#[source] Arc<StoreError>),
    /// Nobody waited for the result any more.
    #[error("{what} was given up")]
    Aborted {
        /// Image or layer.
        what: String,
    },
}

impl ImageError {
    /// For `map_err`: an I/O error with what was tried on which path.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl HasKind for ImageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference { .. } | Self::Ambiguous { .. } => ErrorKind::InvalidArgument,
            Self::NotFound { .. } | Self::Platform { .. } => ErrorKind::NotFound,
            Self::Unauthenticated { .. } => ErrorKind::Unauthenticated,
            Self::Forbidden { .. } => ErrorKind::PermissionDenied,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Manifest { .. }
            | Self::Corrupt { .. }
            | Self::Refused { .. }
            | Self::Layer { .. }
            | Self::Hosts { .. } => ErrorKind::FailedPrecondition,
            Self::Io { source, .. } if full(source) => ErrorKind::ResourceExhausted,
            Self::Io { .. } => ErrorKind::Internal,
            Self::Store(error) => error.kind(),
            Self::Aborted { .. } => ErrorKind::Aborted,
        }
    }
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
