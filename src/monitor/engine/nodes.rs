//! Device nodes that are made here, by folders only, so that a node lies where it was asked for or nowhere. Those
//! outside /dev: libcontainer makes none there, and runtime binaries follow the image's links on the way; they are made
//! in the root file system before anything is mounted in it. And with libcontainer those in /dev, which it would make
//! by names as the host sees them, also in what clients have mounted there: they are made by init in the container's
//! own /dev, before anything of a client's lies in it, and a mount of the client's in their place covers them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use serde_json::Value;

use super::{attempt, failure, rootfs};
use crate::types::ErrorKind;
use crate::wire::{Failure, IdMaps};

const DEV: &str = "/dev";
/// Nodes that libcontainer makes in /dev, or takes away again.
const LIBCONTAINERS: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
/// Links that it makes there, and what has no room for nodes.
const TAKEN: [&str; 7] = ["fd", "stdin", "stdout", "stderr", "kcore", "pts", "mqueue"];

/// Hooks that run before the container's root file system is entered.
const EARLY_HOOKS: [&str; 3] = ["prestart", "createRuntime", "createContainer"];

/// What is to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Where.
    pub path: PathBuf,
    pub kind: FileType,
    pub numbers: (u32, u32),
    pub mode: u32,
    /// As the host numbers them; what is its root's is nobody's in a user namespace.
    pub owner: (u32, u32),
}

impl Device {
    /// What an entry of `linux.devices` asks for, to be made at `path`.
    pub(super) fn read(device: &Value, path: PathBuf) -> Option<Self> {
        let number = |key: &str| device.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
        Some(Self {
            path,
            kind: match device["type"].as_str()? {
                "c" | "u" => FileType::CharacterDevice,
                "b" => FileType::BlockDevice,
                "p" => FileType::Fifo,
                _ => return None,
            },
            numbers: (number("major").unwrap_or(0), number("minor").unwrap_or(0)),
            mode: number("fileMode").unwrap_or(0o666) & 0o777,
            owner: (number("uid").unwrap_or(0), number("gid").unwrap_or(0)),
        })
    }

    /// Whether it is the same device at the same place.
    fn is_same(&self, other: &Self) -> bool {
        (&self.path, self.kind, self.numbers) == (&other.path, other.kind, other.numbers)
    }

    /// Makes it as `name` in `folder`, where nobody else makes anything. The same device may be there.
    pub(super) fn make(&self, folder: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
        let (mode, number) = (Mode::from_raw_mode(self.mode), rustix::fs::makedev(self.numbers.0, self.numbers.1));
        match rustix::fs::mknodat(&folder, name, self.kind, mode, number) {
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(found.st_mode) != self.kind || found.st_rdev != number {
                    return Err(Errno::EXIST);
                }
            }
            made => made?,
        }
        rustix::fs::chmodat(&folder, name, mode, AtFlags::empty())?;
        let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
        rustix::fs::chownat(&folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Takes the devices that are not to be in /dev out of a spec.
pub(super) fn take(config: &mut Value) -> Result<Vec<Device>, Failure> {
    let mut taken = Vec::new();
    if let Some(list) = config.pointer_mut("/linux/devices").and_then(Value::as_array_mut) {
        for device in list.extract_if(.., |device| !device["path"].as_str().is_some_and(in_dev)) {
            let made = device["path"].as_str().and_then(|path| Device::read(&device, path.into()));
            taken.push(made.ok_or_else(|| failure(ErrorKind::InvalidArgument, format!("no valid device: {device}")))?);
        }
    }
    Ok(taken)
}

/// Takes those that are for /dev out of a spec for libcontainer, but for the ones that it makes itself; and for all, if
/// hooks are to find them that run before init comes to it: all mounts of clients in /dev come later then, too. But
/// libcontainer knows nothing of `maps`, and would give folders to the host's root.
pub(super) fn take_inside(config: &mut Value, maps: Option<&IdMaps>) -> Result<Vec<Device>, Failure> {
    let clients = config["mounts"].as_array().is_some_and(|mounts| {
        mounts.iter().any(|mount| mount["type"] == "bind" && mount["destination"].as_str().is_some_and(is_dev))
    });
    let hooked = maps.is_none() && EARLY_HOOKS.iter().any(|kind| config["hooks"].get(kind).is_some());
    let Some(list) = config.pointer_mut("/linux/devices").and_then(Value::as_array_mut) else { return Ok(Vec::new()) };
    let (mut taken, mut left) = (Vec::<Device>::new(), Vec::new());
    for device in list.extract_if(.., |device| !device["path"].as_str().is_some_and(is_libcontainers)) {
        let bad = |reason: &str| {
            let path = device["path"].as_str().unwrap_or_default();
            let text = format!("config.devices.container_path {path:?} (or a CDI device's): {reason}");
            failure(ErrorKind::InvalidArgument, text)
        };
        let path: PathBuf = device["path"].as_str().map(Path::new).into_iter().flat_map(Path::components).collect();
        match path.strip_prefix(DEV).ok().and_then(|inside| inside.iter().next()) {
            None => return Err(bad("that is the folder of all devices")),
            Some(first) if TAKEN.iter().chain(&LIBCONTAINERS).any(|name| first == *name) => {
                return Err(bad("something that every container has is there"));
            }
            Some(_) => {}
        }
        let read = Device::read(&device, path).ok_or_else(|| bad("that is no valid device"))?;
        if !taken.iter().any(|known| known.is_same(&read)) {
            left.push(device);
        }
        taken.push(read);
    }
    match () {
        // A /dev of the client's has what it has.
        () if clients => Ok(Vec::new()),
        () if hooked => {
            list.extend(left);
            Ok(Vec::new())
        }
        () => Ok(taken),
    }
}

/// Makes them, inside the container.
pub(super) fn make_inside(devices: &[Device], owner: (u32, u32)) -> Result<(), Failure> {
    if devices.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = attempt(rustix::fs::open("/", flags, Mode::empty()), || "opening the root folder".to_owned())?;
    devices.iter().try_for_each(|device| attempt(place(device, &root, owner), || format!("device {:?}", device.path)))
}

fn is_dev(path: &str) -> bool {
    Path::new(path) == Path::new(DEV)
}

fn is_libcontainers(path: &str) -> bool {
    let inside = Path::new(path).strip_prefix(DEV);
    inside.is_ok_and(|inside| LIBCONTAINERS.iter().any(|name| inside == Path::new(name)))
}

fn in_dev(path: &str) -> bool {
    Path::new(path).starts_with(DEV)
}

/// Makes them in the root file system that `config` names, while nothing is mounted in there yet. Folders on the way
/// are made for the root inside.
pub(super) fn make(devices: &[Device], config: &Value, maps: Option<&IdMaps>) -> Result<(), Failure> {
    if devices.is_empty() {
        return Ok(());
    }
    let path = config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = attempt(rustix::fs::open(path, flags, Mode::empty()), || format!("opening {path:?}"))?;
    let owner = maps.map_or((0, 0), IdMaps::root);
    devices.iter().try_for_each(|device| {
        place(device, &root, owner).map_err(|error| {
            let (kind, reason) = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOTDIR | Errno::LOOP | Errno::INVAL) => {
                    (ErrorKind::InvalidArgument, "a link or a file of the image is on the way".to_owned())
                }
                Some(Errno::EXIST) => (ErrorKind::InvalidArgument, "something of the image is there".to_owned()),
                Some(Errno::NOSPC | Errno::DQUOT) => (ErrorKind::ResourceExhausted, error.to_string()),
                _ => (ErrorKind::Internal, error.to_string()),
            };
            failure(kind, format!("config.devices.container_path {:?} (or a CDI device's): {reason}", device.path))
        })
    })
}

fn place(device: &Device, root: &OwnedFd, owner: (u32, u32)) -> std::io::Result<()> {
    let inside = device.path.strip_prefix("/").unwrap_or(&device.path);
    if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Errno::INVAL.into());
    }
    let (Some(folders), Some(name)) = (inside.parent(), inside.file_name()) else { return Err(Errno::INVAL.into()) };
    let mut at = root.try_clone()?;
    for part in folders.iter() {
        at = rootfs::step(&at, part, owner)?;
    }
    device.make(&at, name).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zero(path: &str) -> Value {
        json!({ "path": path, "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4 })
    }

    #[test]
    fn only_those_outside_dev_are_taken() {
        let mut config = json!({ "linux": { "devices": [zero("/dev/x"), zero("/opt/x"), zero("/device")] } });
        let taken: Vec<_> = take(&mut config).unwrap().into_iter().map(|device| device.path).collect();
        assert_eq!(taken, [Path::new("/opt/x"), Path::new("/device")]);
        assert_eq!(config["linux"]["devices"], json!([zero("/dev/x")]));
        assert_eq!(take(&mut json!({})).unwrap(), []);
        assert!(take(&mut json!({ "linux": { "devices": [{ "path": "/opt/x" }] } })).is_err());
    }

    #[test]
    fn libcontainer_makes_none_in_dev_but_its_own() {
        let take = |paths: &[&str], mounts: Value| {
            let devices: Vec<_> = paths.iter().map(|path| zero(path)).collect();
            let mut config = json!({ "linux": { "devices": devices }, "mounts": mounts });
            let taken: Vec<_> = take_inside(&mut config, None)?.into_iter().map(|device| device.path).collect();
            Ok::<_, Failure>((taken, config["linux"]["devices"].as_array().unwrap().len()))
        };
        let paths = ["/dev/null", "/dev/ptmx", "/dev/x", "/dev/net/tun"];
        assert_eq!(take(&paths, json!([])).unwrap(), (vec!["/dev/x".into(), "/dev/net/tun".into()], 2));
        assert_eq!(take(&paths, json!([{ "destination": "/dev/", "type": "bind" }])).unwrap(), (vec![], 2));
        for path in ["/dev", "/dev/", "/dev/fd", "/dev/fd/3", "/dev/pts/0", "/dev/kcore", "/dev/console/x"] {
            let failed = take(&[path], json!([])).unwrap_err();
            assert!(failed.kind == ErrorKind::InvalidArgument && failed.message.contains(path), "{failed:?}");
        }
    }

    #[test]
    fn hooks_find_what_was_asked_for() {
        let maps = IdMaps { uids: vec![(0, 1000, 5)], gids: vec![(0, 2000, 5)] };
        let left = |hook: &str, maps: Option<&IdMaps>| {
            let devices = [zero("/dev/null"), zero("/dev/x"), zero("/dev/x")];
            let mut config = json!({ "linux": { "devices": devices }, "mounts": [], "hooks": { hook: [] } });
            let taken = take_inside(&mut config, maps).unwrap().len();
            (taken, config["linux"]["devices"].as_array().unwrap().len())
        };
        for hook in ["createRuntime", "createContainer"] {
            assert_eq!(left(hook, None), (0, 2), "the same once");
        }
        assert_eq!(left("createContainer", Some(&maps)), (2, 1));
        assert_eq!(left("startContainer", None), (2, 1), "it runs inside");
    }

    #[test]
    fn nodes_lie_where_they_were_asked_for_or_nowhere() {
        use std::os::unix::fs::{MetadataExt as _, symlink};
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = json!({ "root": { "path": folder.path() } });
        let put = |path: &str| make(&[Device::read(&zero(path), path.into()).unwrap()], &config, None);
        for (link, target) in [
            ("abs", outside.path()),
            ("up", Path::new("../..")),
            ("fd", Path::new("/proc/self/fd")),
            ("own", Path::new("real")),
        ] {
            symlink(target, folder.path().join(link)).unwrap();
        }
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        symlink("real/there", folder.path().join("leaf")).unwrap();
        for path in ["/abs/x", "/up/x", "/fd/x", "/own/x", "/file/x", "/file", "/leaf", "/real", "/a/../x", "/"] {
            let failed = put(path).unwrap_err();
            assert_eq!(failed.kind, ErrorKind::InvalidArgument, "{path}: {failed:?}");
            assert!(failed.message.contains(&format!("{path:?}")), "{path}: {failed:?}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(folder.path().join("real")).unwrap().count(), 0);
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for path in ["/new/folder/x", "/real/x", "/real/x"] {
            put(path).unwrap();
            let found = std::fs::symlink_metadata(folder.path().join(&path[1..])).unwrap();
            assert_eq!((found.mode(), found.uid(), found.gid()), (0o020_640, 3, 4), "{path}");
            assert_eq!(found.rdev(), rustix::fs::makedev(1, 5));
        }
    }
}
