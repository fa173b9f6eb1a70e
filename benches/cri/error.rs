//! What can go wrong in the bench.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A failure that ends the scenario under way.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The runtime answered a call with an error.
    #[error("{call}: {code:?}: {message}")]
    Call {
        /// The RPC's name.
        call: &'static str,
        /// Its gRPC code.
        code: tonic::Code,
        /// The runtime's words.
        message: String,
    },
    /// The socket could not be reached.
    #[error("cannot connect to {endpoint}: {reason}")]
    Connect {
        /// The endpoint as given.
        endpoint: String,
        /// Why, as far as known.
        reason: String,
    },
    /// The `true` that was executed in a container did not answer as it must.
    #[error("exec in container {container} ended with {exit_code}: {stderr}")]
    Exec {
        /// The container's id.
        container: String,
        /// The exit code, not 0.
        exit_code: i32,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// A file or folder of the bench itself.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file given with `--compare` is not a report of this bench.
    #[error("{path} is no report of this bench: {source}")]
    NotAReport {
        /// Which one.
        path: PathBuf,
        /// Where it departs.
        source: serde_json::Error,
    },
    /// Pods bearing the bench's label are there after all attempts to remove them.
    #[error("{0} pods of the bench could not be removed")]
    Leftover(usize),
    /// A worker of a parallel scenario ended without an answer.
    #[error("a worker ended early: {0}")]
    Worker(#[from] tokio::task::JoinError),
    /// A signal asked the bench to end.
    #[error("interrupted")]
    Interrupted,
}
