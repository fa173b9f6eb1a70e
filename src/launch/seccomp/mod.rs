//! Seccomp: the runtime's own profile, profiles from files, and their compilation.
//!
//! A profile is compiled once on a node, in the daemon, and the result kept as a file: compiling
//! takes about 10 ms, loading the result less than one. Runtime binaries get the profile itself, in
//! the OCI spec; our own Executor loads the file.

mod compile;
mod default;
mod numbers;
mod parse;
#[cfg(test)]
mod simulate;

use std::path::PathBuf;

use crate::types::{ErrorKind, HasKind};

pub use compile::SeccompCompiler;
pub use default::default_profile;
pub use parse::{MAX_PROFILE, parse_profile};

/// A profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file is over [`MAX_PROFILE`].
    #[error("a seccomp profile of {0} bytes is over the limit of {MAX_PROFILE}")]
    TooLarge(usize),
    /// The text is no profile.
    #[error("a seccomp profile that cannot be read")]
    Json(#[from] serde_json::Error),
    /// The runtime's own profile cannot be put together.
    #[error("the built-in seccomp profile")]
    BuiltIn(#[from] oci_spec::OciSpecError),
    /// A part of it makes no sense.
    #[error("seccomp profile: {what} {value:?} is not known")]
    Unknown {
        /// Which part.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// It asks for something that is not offered.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(&'static str),
    /// libseccomp refused it.
    #[error("compiling a seccomp profile: {what}")]
    Compile {
        /// Which rule.
        what: String,
        /// Why.
        #[source]
        source: libseccomp::error::SeccompError,
    },
    /// The compiled filter could not be kept.
    #[error("seccomp filter {path:?}")]
    Io {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl HasKind for SeccompError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge(_) | Self::Json(_) | Self::Unknown { .. } | Self::Compile { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Unsupported(_) => ErrorKind::Unimplemented,
            Self::BuiltIn(_) | Self::Io { .. } => ErrorKind::Internal,
        }
    }
}
