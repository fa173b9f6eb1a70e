//! What can go wrong with a pod's network.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::StoreError;
use crate::types::{ErrorKind, HasKind};

/// A CNI operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Verify an attachment.
    Check,
    /// Drop what belongs to no living attachment.
    Gc,
    /// Can the plugin serve an ADD?
    Status,
    /// Which versions of the protocol does it speak?
    Version,
}

impl Verb {
    /// As in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a plugin call failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginFailure {
    /// No such file in the plugin folders.
    #[error("no executable of that name in {}", Folders(.searched))]
    Missing {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The process could not be started or spoken to.
    #[error("cannot run {path:?}")]
    Spawn {
        /// The executable.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plugin answered with an error.
    #[error("{message}{}{} (code {code})", if .details.is_empty() { "" } else { "; " }, .details)]
    Refused {
        /// CNI error code.
        code: u64,
        /// Its message.
        message: String,
        /// Its details.
        details: String,
    },
    /// It ended with a failure and printed no CNI error.
    #[error("{status}, output {stdout:?}, stderr {stderr:?}")]
    Died {
        /// Exit status, in words.
        status: String,
        /// Start of its output.
        stdout: String,
        /// End of its stderr.
        stderr: String,
    },
    /// It said it succeeded, yet what it printed is no CNI result.
    #[error("its result cannot be used: {reason}; output {stdout:?}")]
    Rubbish {
        /// What is wrong.
        reason: String,
        /// Start of its output.
        stdout: String,
    },
    /// It printed more than is taken.
    #[error("it printed more than {limit} bytes")]
    TooMuch {
        /// Bytes taken.
        limit: usize,
    },
    /// It did not end in time and was killed.
    #[error("it did not end within {limit:?} and was killed; stderr {stderr:?}")]
    Hung {
        /// Time given.
        limit: Duration,
        /// End of its stderr.
        stderr: String,
    },
}

struct Folders<'a>(&'a [PathBuf]);

impl fmt::Display for Folders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, folder) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ":" }, folder.display())?;
        }
        Ok(())
    }
}

/// Errors of the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No usable configuration; `reason` names the folder and every file that was refused.
    #[error("no CNI network: {reason}")]
    NoConfig {
        /// Why.
        reason: String,
    },
    /// There is a configuration, but a plugin answers STATUS with an error.
    #[error("the CNI network is not ready: {reason}")]
    NotReady {
        /// What the plugin said.
        reason: String,
    },
    /// A plugin failed.
    #[error("CNI {verb} of network {network:?}: plugin {plugin:?}")]
    Plugin {
        /// The operation.
        verb: Verb,
        /// Network name.
        network: String,
        /// The plugin's `type`.
        plugin: String,
        /// Why.
        #[source]
        source: Box<PluginFailure>,
    },
    /// The plugins succeeded, yet gave the pod no address.
    #[error("CNI ADD of network {network:?} gave interface {interface:?} no address")]
    NoAddress {
        /// Network name.
        network: String,
        /// Interface asked for.
        interface: String,
    },
    /// An attach failed, and so did the DEL that followed; the record stays so that it can be repeated.
    #[error("{error}; then its undo: {undo}")]
    Undo {
        /// The first error.
        error: Box<NetworkError>,
        /// What the DEL said.
        undo: Box<NetworkError>,
    },
    /// Several plugins failed where all are called regardless.
    #[error("{}", .0.iter().map(|e| crate::types::chain(e)).collect::<Vec<_>>().join("; "))]
    Several(Vec<NetworkError>),
    /// The request cannot be served as it stands.
    #[error("{field}: {reason} (got {value:?})")]
    Invalid {
        /// What part of it.
        field: &'static str,
        /// As given, shortened.
        value: String,
        /// What is wanted.
        reason: &'static str,
    },
    /// The pod is attached already, or an earlier attach was not undone.
    #[error("pod {0} has a network record already")]
    Attached(String),
    /// There is no attachment to check.
    #[error("no attachment is recorded at {0:?}")]
    NotAttached(PathBuf),
    /// A plugin that an earlier daemon started is still running and does not die.
    #[error("a CNI plugin of an earlier daemon still runs for {record:?}")]
    Busy {
        /// The record.
        record: PathBuf,
    },
    /// A kernel parameter was refused.
    #[error("sysctl {name:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("{what} {path:?}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HasKind for NetworkError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoConfig { .. } | Self::NotReady { .. } | Self::Busy { .. } => ErrorKind::Unavailable,
            Self::Plugin { source, .. } => match **source {
                PluginFailure::Missing { .. } | PluginFailure::Refused { code: 11 | 50 | 51, .. } => {
                    ErrorKind::Unavailable
                }
                // An executable that is being replaced right now.
                PluginFailure::Spawn { ref source, .. } if source.kind() == io::ErrorKind::ExecutableFileBusy => {
                    ErrorKind::Unavailable
                }
                PluginFailure::Hung { .. } => ErrorKind::DeadlineExceeded,
                _ => ErrorKind::Internal,
            },
            Self::Invalid { .. } | Self::Sysctl { .. } => ErrorKind::InvalidArgument,
            Self::Attached(_) | Self::NotAttached(_) => ErrorKind::FailedPrecondition,
            Self::Undo { error, .. } => error.kind(),
            Self::Several(errors) => errors.first().map_or(ErrorKind::Internal, HasKind::kind),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
            Self::Store(source) => source.kind(),
            Self::NoAddress { .. } | Self::Io { .. } => ErrorKind::Internal,
        }
    }
}

/// An `Invalid`, its value shortened.
pub(super) fn invalid(field: &'static str, value: &str, reason: &'static str) -> NetworkError {
    NetworkError::Invalid { field, value: value.chars().take(120).collect(), reason }
}
