//! Mounts over devices that every container has: libcontainer makes those devices after all mounts, and fails where
//! something stands already. So these mounts come last, by descriptors that init brings along.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use serde_json::Value;

use super::attempt;
use crate::sys::mounts;
use crate::wire::Failure;

/// The devices that libcontainer makes.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// One of them that is to be covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Late {
    source: PathBuf,
    place: &'static Path,
    attributes: MountAttrFlags,
}

/// A detached mount, and where it goes.
pub(super) struct Opened {
    tree: OwnedFd,
    place: &'static Path,
}

/// Takes such mounts out of a spec.
pub(super) fn take(config: &mut Value) -> Vec<Late> {
    let mut late = Vec::new();
    if let Some(mounts) = config.get_mut("mounts").and_then(Value::as_array_mut) {
        mounts.retain(|mount| match of(mount) {
            Some(found) => {
                late.push(found);
                false
            }
            None => true,
        });
    }
    late
}

fn of(mount: &Value) -> Option<Late> {
    let place = mount["destination"].as_str().filter(|_| mount["type"] == "bind")?;
    let place = DEVICES.into_iter().find(|device| Path::new(device) == Path::new(place))?;
    let mut attributes = MountAttrFlags::empty();
    for option in mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        attributes |= match option {
            "ro" | "rro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            _ => continue,
        };
    }
    Some(Late { source: mount["source"].as_str()?.into(), place: Path::new(place), attributes })
}

impl Late {
    /// Where the source is in sight.
    pub(super) fn open(&self) -> Result<Opened, Failure> {
        let tree = mounts::clone_tree(&self.source, false).and_then(|tree| {
            mounts::set_tree_attributes(&tree, self.attributes)?;
            Ok(tree)
        });
        let tree = attempt(tree, || format!("mount source {:?}", self.source))?;
        Ok(Opened { tree, place: self.place })
    }
}

impl Opened {
    /// Inside the container, by a process that may still mount.
    pub(super) fn attach(&self) -> io::Result<()> {
        let place = rustix::fs::open(self.place, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        mounts::attach_at(&self.tree, place, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_mounts_over_the_devices_themselves_are_late() {
        let mut config = json!({"mounts": [
            {"destination": "/dev", "type": "tmpfs"},
            {"destination": "/dev/random/", "type": "bind", "source": "/s", "options": ["rbind", "ro", "nosuid"]},
            {"destination": "/dev/mine", "type": "bind", "source": "/m"},
        ]});
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let want = Late { source: "/s".into(), place: Path::new("/dev/random"), attributes };
        assert_eq!(take(&mut config), [want]);
        assert_eq!(config["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(take(&mut json!({})), []);
    }
}
