//! What a container's mounts are mounted on, made for the root of its user namespace: libcontainer would make it as
//! the host's root, whose files nobody inside may touch.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde_json::Value;

use super::{attempt, rootfs};
use crate::wire::{CreateSpec, Failure};

/// Where the runtime's own file systems are: what lies in them belongs to the right users already.
const OWN: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A mount of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    place: PathBuf,
    /// Of a bind mount.
    source: Option<PathBuf>,
    writable: bool,
}

/// The mounts of a spec.
pub(super) fn of(config: &Value) -> Vec<Target> {
    let mounts = config.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let target = |mount: &Value| {
        let is_bind = mount["type"] == "bind";
        let options = mount["options"].as_array().into_iter().flatten();
        Some(Target {
            place: mount["destination"].as_str()?.into(),
            source: mount["source"].as_str().filter(|_| is_bind).map(PathBuf::from),
            writable: !options.into_iter().any(|option| option == "ro" || option == "rro"),
        })
    };
    mounts.filter_map(target).collect()
}

/// Makes them where they are missing, in the root file system, or in the volume that they lie in.
pub(super) fn make(targets: &[Target], spec: &CreateSpec, owner: (u32, u32)) -> Result<(), Failure> {
    let in_own = |place: &Path| OWN.iter().any(|own| place.starts_with(own) && place != Path::new(own));
    for target in targets.iter().filter(|target| !in_own(&target.place)) {
        let above = |other: &&Target| target.place != other.place && target.place.starts_with(&other.place);
        let around = targets.iter().filter(above).max_by_key(|other| other.place.components().count());
        let made = match around {
            None => make_in(&spec.rootfs.mountpoint, &target.place, target, owner),
            // In an idmapped volume root's files are those of root on the disk.
            Some(around) => match spec.mounts.iter().find(|mount| Some(&mount.staged) == around.source.as_ref()) {
                Some(volume) if around.writable && volume.image.is_none() && volume.source.is_dir() => {
                    let owner = if volume.idmap.is_some() { (0, 0) } else { owner };
                    let inside = target.place.strip_prefix(&around.place).unwrap_or(&target.place);
                    make_in(&volume.source, &Path::new("/").join(inside), target, owner)
                }
                _ => Ok(()),
            },
        };
        attempt(made, || format!("making {:?} in the container", target.place))?;
    }
    Ok(())
}

fn make_in(root: &Path, path: &Path, target: &Target, owner: (u32, u32)) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = rustix::fs::open(root, flags, Mode::empty())?;
    let is_file = target.source.as_ref().is_some_and(|source| !source.is_dir());
    let (true, Some(folder), Some(name)) = (is_file, path.parent(), path.file_name()) else {
        return rootfs::make_folder(&root, path, owner).map(drop);
    };
    let folder = rootfs::make_folder(&root, folder, owner)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => {
            rustix::fs::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1))).map_err(Into::into)
        }
        // Whether that can be mounted on shows when it is.
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
