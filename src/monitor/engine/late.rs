//! Mounts that come after all that libcontainer makes in /dev, by descriptors that init brings along: those over
//! devices and links that every container has, where it fails as something stands there already, and a /dev of the
//! client's with all that goes into it, where it would make them in the client's folder.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use serde_json::{Value, json};

use super::attempt;
use crate::sys::mounts;
use crate::wire::Failure;

const DEV: &str = "/dev";
/// The devices that libcontainer makes.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
/// The links. A mount that is asked for there, or below, comes in their place, as with other runtimes.
const LINKS: [&str; 5] = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/kcore"];

/// One of them that is to be covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Late {
    source: PathBuf,
    place: PathBuf,
    attributes: MountAttrFlags,
    recursive: bool,
    /// In a link's place.
    replaces: bool,
}

/// A detached mount, and where it goes.
pub(super) struct Opened {
    tree: OwnedFd,
    place: PathBuf,
    replaces: bool,
}

/// Takes such mounts out of a spec.
pub(super) fn take(config: &mut Value) -> Vec<Late> {
    let mut late = Vec::new();
    if let Some(mounts) = config.get_mut("mounts").and_then(Value::as_array_mut) {
        let clients = mounts.iter().any(|mount| place(mount) == Some(Path::new(DEV)));
        mounts.retain(|mount| match of(mount, clients) {
            Some(found) => {
                late.push(found);
                false
            }
            None => true,
        });
        if clients {
            // Nobody sees it, but for libcontainer.
            let own = ["nosuid", "strictatime", "mode=755", "size=64k"];
            let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
            let dev = json!({ "destination": DEV, "type": "tmpfs", "source": "tmpfs", "options": own });
            let pts = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": terminals });
            mounts.splice(0..0, [dev, pts]);
        }
    }
    late
}

/// Where a bind mount goes.
fn place(mount: &Value) -> Option<&Path> {
    mount["destination"].as_str().filter(|_| mount["type"] == "bind").map(Path::new)
}

/// `clients`: /dev is.
fn of(mount: &Value, clients: bool) -> Option<Late> {
    let place = place(mount)?;
    // In a folder of the client's no link may be touched.
    let replaces = !clients && LINKS.iter().any(|link| place.starts_with(link));
    let covers = DEVICES.iter().any(|device| Path::new(device) == place) || (clients && place.starts_with(DEV));
    if !replaces && !covers {
        return None;
    }
    let (mut attributes, mut recursive) = (MountAttrFlags::empty(), false);
    for option in mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        recursive |= option == "rro";
        attributes |= match option {
            "ro" | "rro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            _ => continue,
        };
    }
    Some(Late {
        source: mount["source"].as_str()?.into(),
        place: place.components().collect(),
        attributes,
        recursive,
        replaces,
    })
}

impl Late {
    /// Where the source is in sight.
    pub(super) fn open(&self) -> Result<Opened, Failure> {
        let tree = mounts::clone_tree(&self.source, true).and_then(|tree| {
            mounts::set_tree_attributes(&tree, self.attributes)?;
            if self.recursive {
                mounts::set_all_read_only(&tree)?;
            }
            Ok(tree)
        });
        let tree = attempt(tree, || format!("mount source {:?}", self.source))?;
        Ok(Opened { tree, place: self.place.clone(), replaces: self.replaces })
    }
}

impl Opened {
    /// Inside the container, by a process that may still mount. What is to be covered is made if it is missing, and
    /// reached by no link: only one that is replaced is taken away.
    pub(super) fn attach(&self) -> io::Result<()> {
        let (path, folder) = (OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, OFlags::DIRECTORY);
        let is_folder = FileType::from_raw_mode(rustix::fs::fstat(&self.tree)?.st_mode).is_dir();
        let mut at = rustix::fs::open(DEV, path | folder, Mode::empty())?;
        let inside = self.place.strip_prefix(DEV).map_err(io::Error::other)?;
        let mut parts = inside.iter().peekable();
        let link = inside.iter().next();
        while let Some(part) = parts.next() {
            let found = rustix::fs::statat(&at, part, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink());
            match is_link {
                true if self.replaces && link == Some(part) => rustix::fs::unlinkat(&at, part, AtFlags::empty())?,
                true => return Err(Errno::LOOP.into()),
                false => {}
            }
            let needs_folder = is_folder || parts.peek().is_some();
            let made = match needs_folder {
                true => rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)),
                false => {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&at, part, flags, Mode::from_raw_mode(0o644)).map(drop)
                }
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = rustix::fs::openat(&at, part, if needs_folder { path | folder } else { path }, Mode::empty())?;
        }
        mounts::attach_at(&self.tree, at, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(source: &str, place: &str, replaces: bool) -> Late {
        let (source, place) = (source.into(), place.into());
        Late { source, place, attributes: MountAttrFlags::empty(), recursive: false, replaces }
    }

    #[test]
    fn only_mounts_over_the_devices_themselves_are_late() {
        let mut config = json!({"mounts": [
            {"destination": "/dev", "type": "tmpfs"},
            {"destination": "/dev/random/", "type": "bind", "source": "/s", "options": ["rbind", "ro", "nosuid"]},
            {"destination": "/dev/mine", "type": "bind", "source": "/m"},
        ]});
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!(take(&mut config), [Late { attributes, ..late("/s", "/dev/random", false) }]);
        assert_eq!(config["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(take(&mut json!({})), []);
    }

    #[test]
    fn nothing_is_made_in_a_dev_of_the_clients() {
        let bind = |source: &str, place: &str| json!({"destination": place, "type": "bind", "source": source});
        let asked = [bind("/a", "/dev/stdout"), bind("/b", "/dev/fd/3"), bind("/c", "/dev/stdoutx")];
        let with = |dev: Value| {
            let mounts = [&[dev], &asked[..]].concat();
            json!({ "mounts": mounts })
        };
        let mut own = with(json!({"destination": "/dev", "type": "tmpfs"}));
        assert_eq!(take(&mut own), [late("/a", "/dev/stdout", true), late("/b", "/dev/fd/3", true)]);
        assert_eq!(own["mounts"].as_array().unwrap().len(), 2);
        let mut clients = with(bind("/dev", "/dev/"));
        let places = [("/dev", "/dev"), ("/a", "/dev/stdout"), ("/b", "/dev/fd/3"), ("/c", "/dev/stdoutx")];
        assert_eq!(take(&mut clients), places.map(|(source, place)| late(source, place, false)));
        let left: Vec<_> = clients["mounts"].as_array().unwrap().iter().map(|mount| mount["type"].clone()).collect();
        assert_eq!(left, ["tmpfs", "devpts"]);
    }
}
