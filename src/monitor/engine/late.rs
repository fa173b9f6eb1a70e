//! Mounts that come after all that libcontainer makes, by descriptors that init brings along: those in /dev, where it
//! fails as something stands there already, or would make devices in the client's folder; a /dev of the client's with
//! all that goes into it; and those whose way leads through another mount. Of that way anybody may make links who shares
//! what is mounted, and libcontainer would mount while it still sees the host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use serde_json::{Value, json};

use super::users::with_files_of;
use super::{attempt, failure, labels, rootfs};
use crate::sys::mounts;
use crate::types::ErrorKind;
use crate::wire::Failure;

const DEV: &str = "/dev";
/// The links that libcontainer makes. A mount that is asked for there, or below, comes in their place, as with other
/// runtimes.
const LINKS: [&str; 5] = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/kcore"];
/// What the container's terminal needs, or lies over.
const EARLY: [&str; 2] = ["/dev/pts", "/dev/console"];
/// What `/proc` is (statfs(2)).
const PROC_MAGIC: u64 = 0x9fa0;

/// How a place is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By no links, below /dev.
    Plain,
    /// As that, but the first part gives way if it is a link.
    Replacing,
    /// By links, too, but not out of the container.
    Links,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Late {
    source: PathBuf,
    place: PathBuf,
    /// But for being read-only.
    attributes: MountAttrFlags,
    read_only: bool,
    /// Read-only with all that is mounted below the source.
    all_read_only: bool,
    /// With what is mounted below the source.
    recursive: bool,
    way: Way,
}

/// A detached mount, and where it goes.
pub(super) struct Opened {
    tree: OwnedFd,
    place: PathBuf,
    read_only: bool,
    way: Way,
}

/// Takes such mounts out of a spec. `led`: the places of those that lead through another.
pub(super) fn take(config: &mut Value, led: &[PathBuf]) -> Vec<Late> {
    let mut late = Vec::new();
    let led = |place: &Path| led.iter().any(|led| led == place);
    if let Some(mounts) = config.get_mut("mounts").and_then(Value::as_array_mut) {
        let clients = mounts.iter().any(|mount| place(mount) == Some(Path::new(DEV)));
        mounts.retain(|mount| match of(mount, clients, led) {
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
fn of(mount: &Value, clients: bool, led: impl Fn(&Path) -> bool) -> Option<Late> {
    let place = place(mount)?;
    let way = match () {
        // In a folder of the client's no link may be touched.
        () if clients && place.starts_with(DEV) => Way::Plain,
        () if LINKS.iter().any(|link| place.starts_with(link)) => Way::Replacing,
        () if place.starts_with(DEV) && !EARLY.iter().any(|early| place == Path::new(early)) => Way::Plain,
        () if led(place) => Way::Links,
        () => return None,
    };
    let mut late = Late {
        source: mount["source"].as_str()?.into(),
        place: place.components().collect(),
        attributes: MountAttrFlags::empty(),
        read_only: false,
        all_read_only: false,
        recursive: false,
        way,
    };
    for option in mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        late.recursive |= option == "rbind";
        late.read_only |= option == "ro" || option == "rro";
        late.all_read_only |= option == "rro";
        late.attributes |= match option {
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            _ => continue,
        };
    }
    Some(late)
}

impl Late {
    /// Whether `path` lies in it.
    pub(super) fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.place)
    }

    /// Where the source is in sight.
    pub(super) fn open(&self) -> Result<Opened, Failure> {
        let tree = mounts::clone_tree(&self.source, self.recursive).and_then(|tree| {
            mounts::set_tree_attributes(&tree, self.attributes)?;
            if self.all_read_only {
                let was = rustix::fs::fstatvfs(&tree)?.f_flag.contains(StatVfsMountFlags::RDONLY);
                mounts::set_all_read_only(&tree)?;
                // What others are mounted on may have to be made in it.
                if !was {
                    mounts::set_writable(&tree)?;
                }
            }
            Ok(tree)
        });
        let tree = attempt(tree, || format!("mount source {:?}", self.source))?;
        Ok(Opened { tree, place: self.place.clone(), read_only: self.read_only, way: self.way })
    }
}

impl Opened {
    /// Inside the container, by a process that may still mount. What is to be covered is made if it is missing, for
    /// `owner`: root inside, as the host numbers it.
    pub(super) fn attach(&self, owner: (u32, u32)) -> io::Result<()> {
        let is_folder = FileType::from_raw_mode(rustix::fs::fstat(&self.tree)?.st_mode).is_dir();
        let reach = || match self.way {
            Way::Links => self.by_links(is_folder, owner),
            Way::Plain | Way::Replacing => self.below_dev(is_folder, owner),
        };
        let at = match reach() {
            // In an idmapped volume only who exists in the user namespace can make anything.
            Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => with_files_of(owner, reach)?,
            reached => reached?,
        };
        mounts::attach_at(&self.tree, at, "")
    }

    /// Once all are attached: what they lie on could not be made in one that is read-only.
    pub(super) fn finish(&self) -> io::Result<()> {
        if self.read_only { mounts::set_tree_read_only(&self.tree) } else { Ok(()) }
    }

    /// Whether this may change what a path leads to.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        self.way == Way::Links || path.starts_with(&self.place)
    }

    /// What to say of an error.
    pub(super) fn failed(&self, error: &io::Error) -> Failure {
        failure(ErrorKind::Internal, format!("mounting on {:?}: {error}", self.place))
    }

    /// By no link: only one that is replaced is taken away.
    fn below_dev(&self, is_folder: bool, owner: (u32, u32)) -> io::Result<OwnedFd> {
        let (path, folder) = (OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, OFlags::DIRECTORY);
        let mut at = rustix::fs::open(DEV, path | folder, Mode::empty())?;
        let inside = self.place.strip_prefix(DEV).map_err(io::Error::other)?;
        let mut parts = inside.iter().enumerate().peekable();
        while let Some((depth, part)) = parts.next() {
            let found = rustix::fs::statat(&at, part, AtFlags::SYMLINK_NOFOLLOW);
            match found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink()) {
                true if self.way == Way::Replacing && depth == 0 => {
                    rustix::fs::unlinkat(&at, part, AtFlags::empty())?;
                }
                true => return Err(Errno::LOOP.into()),
                false => {}
            }
            if !is_folder && parts.peek().is_none() {
                rootfs::make_file(&at, part, owner)?;
                return rustix::fs::openat(&at, part, path, Mode::empty()).map_err(Into::into);
            }
            at = rootfs::step(&at, part, owner)?;
        }
        Ok(at)
    }

    fn by_links(&self, is_folder: bool, owner: (u32, u32)) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty())?;
        let at = match (self.place.parent(), self.place.file_name()) {
            (Some(folder), Some(name)) if !is_folder => {
                rootfs::make_file(&rootfs::make_folder(&root, folder, owner)?, name, owner)?;
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(&root, &self.place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?
            }
            _ => rootfs::make_folder(&root, &self.place, owner)?,
        };
        let of = |file: &OwnedFd| rustix::fs::fstat(file).map(|found| (found.st_dev, found.st_ino));
        if of(&at)? == of(&root)? {
            return Err(io::Error::other("by links it leads to the container's root folder"));
        }
        if labels::kind(&at)? == PROC_MAGIC {
            return Err(io::Error::other("by links it leads to /proc"));
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(source: &str, place: &str, way: Way) -> Late {
        let (source, place) = (source.into(), place.into());
        let (read_only, all_read_only, recursive) = (false, false, false);
        Late { source, place, attributes: MountAttrFlags::empty(), read_only, all_read_only, recursive, way }
    }

    fn bind(source: &str, place: &str) -> Value {
        json!({"destination": place, "type": "bind", "source": source})
    }

    #[test]
    fn what_lies_in_dev_or_leads_through_others_is_late() {
        let options = ["rbind", "ro", "nosuid"];
        let mut config = json!({
            "mounts": [
                {"destination": "/dev", "type": "tmpfs"},
                {"destination": "/dev/random/", "type": "bind", "source": "/s", "options": options},
                bind("/m", "/dev/mine"), bind("/p", "/dev/pts"), bind("/c", "/dev/console"),
                bind("/v", "/v"), bind("/in", "/v/in"),
            ],
        });
        let random = Late {
            attributes: MountAttrFlags::MOUNT_ATTR_NOSUID,
            read_only: true,
            recursive: true,
            ..late("/s", "/dev/random", Way::Plain)
        };
        let led = ["/v/in".into()];
        let want = [random, late("/m", "/dev/mine", Way::Plain), late("/in", "/v/in", Way::Links)];
        assert_eq!(take(&mut config, &led), want);
        let left: Vec<_> = config["mounts"].as_array().unwrap().iter().filter_map(place).collect();
        assert_eq!(left, ["/dev/pts", "/dev/console", "/v"].map(Path::new));
        assert_eq!(take(&mut json!({}), &[]), []);
    }

    #[test]
    fn nothing_is_made_in_a_dev_of_the_clients() {
        let asked = [bind("/a", "/dev/stdout"), bind("/b", "/dev/fd/3"), bind("/c", "/dev/stdoutx")];
        let with = |dev: Value| {
            let mounts = [&[dev], &asked[..]].concat();
            json!({ "mounts": mounts })
        };
        let mut own = with(json!({"destination": "/dev", "type": "tmpfs"}));
        let want = [
            late("/a", "/dev/stdout", Way::Replacing),
            late("/b", "/dev/fd/3", Way::Replacing),
            late("/c", "/dev/stdoutx", Way::Plain),
        ];
        assert_eq!(take(&mut own, &[]), want);
        assert_eq!(own["mounts"].as_array().unwrap().len(), 1);
        let mut clients = with(bind("/dev", "/dev/"));
        let places = [("/dev", "/dev"), ("/a", "/dev/stdout"), ("/b", "/dev/fd/3"), ("/c", "/dev/stdoutx")];
        assert_eq!(take(&mut clients, &[]), places.map(|(source, place)| late(source, place, Way::Plain)));
        let left: Vec<_> = clients["mounts"].as_array().unwrap().iter().map(|mount| mount["type"].clone()).collect();
        assert_eq!(left, ["tmpfs", "devpts"]);
    }
}
