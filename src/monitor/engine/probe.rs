//! Whether this kernel and a folder's file system can do what user namespaces need.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::thread::UnshareFlags;

use super::layers::Mounter;
use super::{attempt, failure};
use crate::sys::fork;
use crate::sys::mounts::{self, Propagation};
use crate::types::ErrorKind;
use crate::wire::{Failure, IdMaps};

/// Number on the host that root inside has during the probe.
const ROOT: u32 = 100_000;

/// Mounts two layers with shifted owners below `folder`, which exists and is empty, and looks whose the files are.
/// For a process of its own: it stays in a mount namespace made for this.
///
/// # Errors
/// What the kernel or the file system cannot do.
pub fn user_namespaces(folder: &Path) -> Result<(), Failure> {
    attempt(fork::unshare(UnshareFlags::NEWNS), || "a private mount namespace".to_owned())?;
    attempt(mounts::set_root_propagation(Propagation::Slave), || "making mounts one-way".to_owned())?;
    let [lower, upper, work, target] = ["lower", "upper", "work", "root"].map(|name| folder.join(name));
    for place in [&lower, &upper, &work, &target] {
        attempt(fs::create_dir(place), || format!("making {place:?}"))?;
    }
    attempt(fs::write(lower.join("file"), ""), || format!("writing in {lower:?}"))?;
    let maps = IdMaps { uids: vec![(0, ROOT, 65_536)], gids: vec![(0, ROOT, 65_536)] };
    Mounter::new(folder.join("layers"), None).mount(&[lower], Some((&upper, &work)), Some(&maps), &target)?;
    let found = attempt(fs::metadata(target.join("file")), || format!("looking at a file in {target:?}"))?;
    match (found.uid(), found.gid()) {
        (ROOT, ROOT) => Ok(()),
        other => Err(failure(ErrorKind::Internal, format!("files of mapped layers belong to {other:?}"))),
    }
}
