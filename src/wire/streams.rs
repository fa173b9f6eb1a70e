//! Processes whose streams are the daemon's own descriptors.
//!
//! With each of these requests goes one end of a socket pair, the *line*. It stands for the client:
//! once the daemon's end of it is closed, by whatever cause, the client is gone. In the other
//! direction the monitor tells on it, in frames as everywhere, what [`Told`] lists.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{ExecSpec, Failure};
use crate::types::{ContainerId, ErrorKind};

/// Which pipes come along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// A read end.
    #[serde(default)]
    pub stdin: bool,
    /// A write end.
    #[serde(default)]
    pub stdout: bool,
    /// A write end.
    #[serde(default)]
    pub stderr: bool,
}

/// A process to run in a container with streams of the daemon's.
#[derive(Debug, Serialize, Deserialize)]
pub struct StreamedExec {
    /// The process. What this says about output does not apply.
    pub exec: ExecSpec,
    /// It gets a terminal of its own, whose master side is sent on the line; no pipes come along then.
    pub terminal: bool,
    /// Pipes; what is missing is /dev/null.
    pub ends: Ends,
    /// Beside the frame: the line, then what `ends` says, in its order.
    #[serde(skip)]
    pub descriptors: Vec<OwnedFd>,
}

/// A client that wants to see what a running container prints from now on, and to write to it.
#[derive(Debug, Serialize, Deserialize)]
pub struct AttachSpec {
    /// Which.
    pub container: ContainerId,
    /// As the container was created. Its terminal's master side is sent on the line, to set its size with.
    pub terminal: bool,
    /// Pipes; a terminal's output counts as stdout.
    pub ends: Ends,
    /// Beside the frame: the line, then what `ends` says, in its order.
    #[serde(skip)]
    pub descriptors: Vec<OwnedFd>,
}

/// What the monitor says on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Beside this frame: the master side of the terminal.
    Terminal,
    /// The process, or the container, has ended; nothing follows.
    Ended {
        /// Exit code; 128+n for a signal.
        exit_code: i32,
    },
}

/// What came along, sorted.
#[derive(Debug)]
pub struct Sorted {
    /// The line.
    pub line: OwnedFd,
    /// To read from.
    pub stdin: Option<OwnedFd>,
    /// To write to.
    pub stdout: Option<OwnedFd>,
    /// To write to.
    pub stderr: Option<OwnedFd>,
}

impl Ends {
    /// Tells apart what came along.
    ///
    /// # Errors
    /// `InvalidArgument`: there are more or fewer than this says.
    pub fn sort(self, descriptors: Vec<OwnedFd>) -> Result<Sorted, Failure> {
        let wrong = || Failure {
            kind: ErrorKind::InvalidArgument,
            message: "other descriptors came along than the request says".to_owned(),
        };
        let mut all = descriptors.into_iter();
        let line = all.next().ok_or_else(wrong)?;
        let mut next = |wanted: bool| if wanted { all.next().ok_or_else(wrong).map(Some) } else { Ok(None) };
        let sorted = Sorted { line, stdin: next(self.stdin)?, stdout: next(self.stdout)?, stderr: next(self.stderr)? };
        if all.next().is_some() { Err(wrong()) } else { Ok(sorted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn descriptors_are_told_apart_by_their_order() {
        let some = |count: usize| -> Vec<OwnedFd> {
            (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
        };
        let ends = Ends { stdin: true, stdout: false, stderr: true };
        let three = some(3);
        let numbers: Vec<_> = three.iter().map(|fd| fd.as_raw_fd()).collect();
        let sorted = ends.sort(three).unwrap();
        assert_eq!(sorted.line.as_raw_fd(), numbers[0]);
        assert_eq!(sorted.stdin.unwrap().as_raw_fd(), numbers[1]);
        assert!(sorted.stdout.is_none());
        assert_eq!(sorted.stderr.unwrap().as_raw_fd(), numbers[2]);
        for count in [0, 1, 2, 4] {
            assert!(ends.sort(some(count)).is_err(), "{count}");
        }
        assert!(Ends::default().sort(some(1)).is_ok());
    }
}
