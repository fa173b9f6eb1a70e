//! Masked and read-only paths in mounts that come last, see [`super::late`]: libcontainer covers what is there when it
//! has mounted all, and those mounts would lie over its covers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use serde_json::Value;

use super::labels::mask_options;
use super::late::Late;
use super::{attempt, failure};
use crate::sys::mounts;
use crate::types::ErrorKind;
use crate::wire::Failure;

/// The null device (makedev(3)).
const NULL: (u32, u32) = (1, 3);

/// A path that is to be covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cover {
    path: PathBuf,
    /// By nothing; else it is only made read-only.
    masked: bool,
}

/// One that is ready to be.
pub(super) struct Prepared<'a> {
    path: &'a Path,
    /// The null device, for what is masked.
    null: Option<OwnedFd>,
}

/// Takes those that lie in a late mount out of a spec.
pub(super) fn take(config: &mut Value, late: &[Late]) -> Vec<Cover> {
    let mut taken = Vec::new();
    for (key, masked) in [("/linux/maskedPaths", true), ("/linux/readonlyPaths", false)] {
        let Some(list) = config.pointer_mut(key).and_then(Value::as_array_mut) else { continue };
        let is_late = |path: &str| late.iter().any(|mount| mount.holds(Path::new(path)));
        let found = list.extract_if(.., |path| path.as_str().is_some_and(is_late));
        taken.extend(found.filter_map(|path| Some(Cover { path: path.as_str()?.into(), masked })));
    }
    // A mask lies over what is read-only.
    taken.sort_by_key(|cover| cover.masked);
    taken
}

/// While /dev is the container's own still.
pub(super) fn prepare(covers: &[Cover]) -> Result<Vec<Prepared<'_>>, Failure> {
    let one = |cover: &'_ Cover| cover.masked.then(null).transpose();
    let ready = covers.iter().map(|cover| Ok(Prepared { path: &cover.path, null: one(cover)? }));
    attempt(ready.collect::<io::Result<_>>(), || "opening the null device, to mask with".to_owned())
}

fn null() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    let found = rustix::fs::fstat(&device)?;
    let numbers = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice || numbers != NULL {
        return Err(io::Error::other("/dev/null is another one"));
    }
    mounts::clone_at(device, false)
}

impl Prepared<'_> {
    /// Inside the container, once all is mounted, by a process that may still mount. What is not there needs no cover.
    /// `label`: that of the container's mounts.
    pub(super) fn cover(&self, label: Option<&str>) -> Result<(), Failure> {
        let what = || format!("covering {:?}", self.path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = attempt(rustix::fs::open("/", flags, Mode::empty()), what)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let at = match rustix::fs::openat2(&root, self.path, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            // Whatever it leads to, it is not covered.
            Err(Errno::LOOP) => {
                let text = format!("{:?} is to be masked or read-only, and cannot be followed to its end", self.path);
                return Err(failure(ErrorKind::InvalidArgument, text));
            }
            opened => attempt(opened, what)?,
        };
        let covered = match &self.null {
            None => read_only(&at),
            Some(null) => mask(&at, null, label),
        };
        attempt(covered.and_then(|tree| mounts::attach_at(tree, &at, "")), what)
    }
}

fn read_only(at: &OwnedFd) -> io::Result<OwnedFd> {
    let tree = mounts::clone_at(at, true)?;
    mounts::set_tree_read_only(&tree)?;
    Ok(tree)
}

/// What shows nothing in the place of a folder, or of anything else.
fn mask(at: &OwnedFd, null: &OwnedFd, label: Option<&str>) -> io::Result<OwnedFd> {
    match FileType::from_raw_mode(rustix::fs::fstat(at)?.st_mode) {
        FileType::Directory => mounts::tmpfs(&mask_options(label), MountAttrFlags::MOUNT_ATTR_RDONLY),
        _ => null.try_clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn those_in_late_mounts_are_taken() {
        let bind = |place: &str| json!({"destination": place, "type": "bind", "source": "/s"});
        let mut config = json!({
            "mounts": [bind("/v"), bind("/v/in"), bind("/dev/d")],
            "linux": {
                "maskedPaths": ["/proc/acpi", "/v/out", "/v/in/x", "/v/inside", "/dev/d/x"],
                "readonlyPaths": ["/v/in", "/proc/bus"],
            },
        });
        let late = super::super::late::take(&mut config, &["/v/in".into()]);
        let cover = |path: &str, masked| Cover { path: path.into(), masked };
        let want = [cover("/v/in", false), cover("/v/in/x", true), cover("/dev/d/x", true)];
        assert_eq!(take(&mut config, &late), want);
        let left = json!({
            "maskedPaths": ["/proc/acpi", "/v/out", "/v/inside"],
            "readonlyPaths": ["/proc/bus"],
        });
        assert_eq!(config["linux"], left);
        assert_eq!(take(&mut json!({}), &late), []);
    }
}
