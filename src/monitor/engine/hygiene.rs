//! What a helper sheds of its parent before it makes or joins a container: all that a process
//! inherits and that libcontainer would hand on.

use std::fs;
use std::io;

use rustix::fs::Mode;

use super::attempt;
use crate::sys::lsm::Attributes;
use crate::sys::{caps, fork, process};
use crate::wire::Failure;

/// Drops supplementary groups, umask and session keyring, and takes `oom_score_adj`. The helper
/// keeps its own if the kernel refuses, which takes CAP_SYS_RESOURCE for going below it. The keyring
/// has the SELinux label of those who will use it.
pub(super) fn shed(oom_score_adj: i64, label: Option<&str>) -> Result<(), Failure> {
    attempt(rustix::thread::set_thread_groups(&[]), || "dropping supplementary groups".to_owned())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(label) = label {
        // execve forgets it again.
        let set = Attributes::open().and_then(|attributes| attributes.set_key_label(label));
        attempt(set, || format!("setting the label {label:?} for keyrings"))?;
    }
    attempt(fork::fresh_session_keyring(), || "a fresh session keyring".to_owned())?;
    let what = || format!("setting oom_score_adj to {oom_score_adj}");
    if attempt(own_oom_score_adj(), what)? != oom_score_adj
        && !attempt(process::set_oom_score_adj("self", oom_score_adj), what)?
    {
        tracing::warn!(oom_score_adj, "not permitted to lower oom_score_adj; the container keeps the monitor's");
    }
    Ok(())
}

/// This process's oom_score_adj.
pub(super) fn own_oom_score_adj() -> io::Result<i64> {
    fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse().map_err(io::Error::other)
}

/// Whether this process may take any oom_score_adj.
pub(super) fn may_lower_oom_score_adj() -> bool {
    caps::permitted().is_ok_and(|set| set & caps::SYS_RESOURCE != 0)
}
