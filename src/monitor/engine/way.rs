//! The way into a container with a user namespace for a runtime binary, which joins that namespace first and does all
//! else as the root inside: nobody on the host, who may enter no folder of ours and make no device node.
//!
//! So all that the spec names is brought to one place that everybody can reach: a small tmpfs, on an empty folder, in
//! the helper's mount namespace. The container leaves it behind with the helper's root.
//!
//! ```text
//! PLACE/rootfs      the root file system, owners mapped layer by layer
//! PLACE/mount-N     bind mounts, propagation and owners as asked; what is read-only is so before the root inside can
//!                   touch it, and stays so
//! PLACE/fresh-N     /proc, /sys or /dev/mqueue of a namespace of the host's, which only the host's root can mount
//! PLACE/device-N    device nodes: the root inside could only bind the host's of the same name, whatever was asked for
//! PLACE/proc, sys   the kernel lets a namespace mount these if it sees them whole somewhere; the host's may be covered
//! ```

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use serde_json::{Value, json};

use super::nodes::Device;
use super::targets::{self, Target};
use super::{attempt, failure, rootfs};
use crate::sys::mounts;
use crate::types::ErrorKind;
use crate::wire::{CreateSpec, Failure, IdMaps, StagedMount, StagedPropagation};

/// Device nodes that a runtime brings along.
const USUAL: [&str; 8] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"];
/// Options of a bind mount that are carried out here, or say what is so anyway.
const TAKEN: [&str; 13] = [
    "bind", "rbind", "private", "rprivate", "slave", "rslave", "shared", "rshared", "rw", "rro", "exec", "dev", "suid",
];

/// What is to be brought where.
#[derive(Debug)]
pub(super) struct Way {
    spec: CreateSpec,
    place: PathBuf,
    targets: Vec<Target>,
    sealed: Vec<(PathBuf, Attributes)>,
    fresh: Vec<(PathBuf, String, MountAttrFlags)>,
    devices: Vec<Device>,
}

/// What a bind mount's options demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attributes {
    flags: MountAttrFlags,
    /// Read-only with all that is mounted below.
    recursive: bool,
}

impl Way {
    /// Changes an OCI spec so that all in it comes from `place`.
    pub(super) fn plan(config: &mut Value, spec: &CreateSpec, maps: &IdMaps, place: &Path) -> Result<Self, Failure> {
        let mut spec = spec.clone();
        spec.rootfs.mountpoint = place.join("rootfs");
        let path = config.pointer_mut("/root/path").ok_or_else(|| invalid("root.path"))?;
        *path = json!(spec.rootfs.mountpoint);
        let devices = devices(config, place)?;
        let shared = Shared::of(config);
        let list = config.get_mut("mounts").and_then(Value::as_array_mut).ok_or_else(|| invalid("mounts"))?;
        let mut staged = Vec::new();
        for (index, mount) in list.iter_mut().enumerate().filter(|(_, mount)| is_bind(mount)) {
            let here = place.join(format!("mount-{index}"));
            let source = mount["source"].as_str().map(PathBuf::from).ok_or_else(|| invalid("mounts.source"))?;
            let known = spec.mounts.iter().find(|known| known.staged == source).cloned();
            staged.push(StagedMount {
                staged: here.clone(),
                ..known.unwrap_or_else(|| StagedMount {
                    propagation: propagation(&options(mount)),
                    staged: PathBuf::new(),
                    source,
                    idmap: None,
                    image: None,
                })
            });
            mount["source"] = json!(here);
        }
        spec.mounts = staged;
        let targets = targets::of(config);
        let (mut sealed, mut fresh) = (Vec::new(), guards(place));
        let list = config.get_mut("mounts").and_then(Value::as_array_mut).ok_or_else(|| invalid("mounts"))?;
        for (index, mount) in list.iter_mut().enumerate() {
            let asked = options(mount);
            let kind = mount["type"].as_str().unwrap_or_default().to_owned();
            if is_bind(mount) {
                let here = place.join(format!("mount-{index}"));
                let propagation = spec.mounts.iter().find(|known| known.staged == here).map(|known| known.propagation);
                sealed.push((here, attributes(&asked)));
                mount["options"] = json!(left(&asked, propagation));
            } else if shared.has(&kind) {
                let here = place.join(format!("fresh-{index}"));
                bind(mount, &here);
                fresh.push((here, kind, attributes(&asked).flags));
            } else if kind == "devpts" {
                mount["options"] = json!(without_strangers(asked, maps));
            }
        }
        for (device, inside) in &devices {
            let mut mount = json!({ "destination": inside });
            bind(&mut mount, &device.path);
            list.push(mount);
        }
        let devices = devices.into_iter().map(|(device, _)| device).collect();
        Ok(Self { spec, place: place.to_owned(), targets, sealed, fresh, devices })
    }

    /// Brings it all there, in a mount namespace that this process enters for good.
    pub(super) fn open(&self) -> Result<(), Failure> {
        let trees = rootfs::enter(&self.spec.mounts)?;
        self.furnish()?;
        rootfs::mount(&self.spec, trees, &self.targets)?;
        for (path, attributes) in &self.sealed {
            attempt(seal(path, *attributes), || format!("setting the attributes of {path:?}"))?;
        }
        Ok(())
    }

    /// The place itself, what it takes to mount things there, and what is not the container's alone.
    fn furnish(&self) -> Result<(), Failure> {
        let Self { spec, place, fresh, devices, .. } = self;
        // An image volume takes two at most, and labels count, too.
        let inodes = (2 * (2 + 2 * spec.mounts.len() + fresh.len() + devices.len())).to_string();
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mut options = vec![("mode", "711"), ("size", "64k"), ("nr_inodes", inodes.as_str())];
        // Of the device nodes; what is mounted here has labels of its own.
        options.extend(spec.rootfs.label.as_deref().map(|label| ("context", label)));
        let made = mounts::tmpfs(&options, attributes).and_then(|root| mounts::attach(root, place));
        attempt(made, || format!("mounting a tmpfs on {place:?}"))?;
        let folder = |path: &Path| attempt(DirBuilder::new().mode(0o700).create(path), || format!("making {path:?}"));
        folder(&spec.rootfs.mountpoint)?;
        for mount in spec.mounts.iter().filter(|mount| mount.image.is_none()) {
            let source = &mount.source;
            let found = attempt(fs::metadata(source), || format!("mount source {source:?}"))?;
            match found.is_dir() {
                true => folder(&mount.staged)?,
                false => attempt(fs::write(&mount.staged, ""), || format!("making {:?}", mount.staged))?,
            }
        }
        for (path, kind, flags) in fresh {
            folder(path)?;
            let mounted = mounts::file_system(kind, &[], *flags).and_then(|tree| mounts::attach(tree, path));
            attempt(mounted, || format!("mounting {kind} on {path:?}"))?;
        }
        devices.iter().try_for_each(|device| {
            attempt(device.make(CWD, device.path.as_os_str()), || format!("making {:?}", device.path))
        })
    }
}

/// Namespaces that are the host's.
struct Shared {
    pid: bool,
    network: bool,
    ipc: bool,
}

impl Shared {
    fn of(config: &Value) -> Self {
        let namespaces = || config.pointer("/linux/namespaces").and_then(Value::as_array).into_iter().flatten();
        let lacks = |kind: &str| !namespaces().any(|namespace| namespace["type"] == kind);
        Self { pid: lacks("pid"), network: lacks("network"), ipc: lacks("ipc") }
    }

    /// Whether a file system of this type shows one of them.
    fn has(&self, kind: &str) -> bool {
        match kind {
            "proc" => self.pid,
            "sysfs" => self.network,
            "mqueue" => self.ipc,
            _ => false,
        }
    }
}

fn guards(place: &Path) -> Vec<(PathBuf, String, MountAttrFlags)> {
    let guard = |name: &str, kind: &str| (place.join(name), kind.to_owned(), MountAttrFlags::empty());
    vec![guard("proc", "proc"), guard("sys", "sysfs")]
}

/// Takes the device nodes out of a spec: what they are to be, and their paths inside.
fn devices(config: &mut Value, place: &Path) -> Result<Vec<(Device, String)>, Failure> {
    let taken = config.get_mut("linux").and_then(Value::as_object_mut).and_then(|linux| linux.remove("devices"));
    let list = taken.as_ref().and_then(Value::as_array).into_iter().flatten();
    let wanted = list.filter(|device| device["path"].as_str().is_some_and(|path| !USUAL.contains(&path)));
    let one = |(index, device): (usize, &Value)| {
        Some((Device::read(device, place.join(format!("device-{index}")))?, device["path"].as_str()?.to_owned()))
    };
    wanted.enumerate().map(|device| one(device).ok_or_else(|| invalid("linux.devices"))).collect()
}

fn options(mount: &Value) -> Vec<String> {
    let list = mount["options"].as_array().into_iter().flatten();
    list.filter_map(|option| option.as_str().map(str::to_owned)).collect()
}

fn is_bind(mount: &Value) -> bool {
    mount["type"] == "bind" || options(mount).iter().any(|option| option == "bind" || option == "rbind")
}

fn bind(mount: &mut Value, source: &Path) {
    mount["type"] = json!("bind");
    mount["source"] = json!(source);
    mount["options"] = json!(["rbind", "rprivate"]);
}

fn propagation(options: &[String]) -> StagedPropagation {
    let has = |names: [&str; 2]| options.iter().any(|option| names.contains(&option.as_str()));
    match () {
        () if has(["shared", "rshared"]) => StagedPropagation::Shared,
        () if has(["slave", "rslave"]) => StagedPropagation::Slave,
        () => StagedPropagation::Private,
    }
}

fn attributes(options: &[String]) -> Attributes {
    let flag = |option: &String| match option.as_str() {
        "ro" | "rro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        _ => MountAttrFlags::empty(),
    };
    let flags = options.iter().map(flag).fold(MountAttrFlags::empty(), |all, one| all | one);
    Attributes { flags, recursive: options.iter().any(|option| option == "rro") }
}

/// What is left for the runtime to do. Nothing of the host's can be shared out of a user namespace. What restricts is
/// carried out once more: crun copies mounts, and not all that holds for them.
fn left(asked: &[String], propagation: Option<StagedPropagation>) -> Vec<&str> {
    let has = |name: &str| asked.iter().any(|option| option == name);
    let bind = if has("bind") && !has("rbind") { "bind" } else { "rbind" };
    let propagation = match propagation {
        None | Some(StagedPropagation::Private) => "rprivate",
        Some(StagedPropagation::Slave | StagedPropagation::Shared) => "rslave",
    };
    let read_only = has("rro").then_some("ro");
    let rest = asked.iter().map(String::as_str).filter(|option| !TAKEN.contains(option));
    [bind, propagation].into_iter().chain(read_only).chain(rest).collect()
}

/// A group that does not exist inside cannot be given anything.
fn without_strangers(mut options: Vec<String>, maps: &IdMaps) -> Vec<String> {
    options.retain(|option| {
        let gid = option.strip_prefix("gid=").and_then(|gid| gid.parse().ok());
        gid.is_none_or(|gid| maps.gid(gid).is_some())
    });
    options
}

fn seal(path: &Path, attributes: Attributes) -> std::io::Result<()> {
    if attributes.flags.is_empty() {
        return Ok(());
    }
    let root = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    mounts::set_tree_attributes(&root, attributes.flags)?;
    match attributes.recursive && path.is_dir() {
        true => mounts::set_read_only_below(path),
        false => Ok(()),
    }
}

fn invalid(what: &str) -> Failure {
    failure(ErrorKind::InvalidArgument, format!("the container's OCI spec has no valid {what:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ContainerId;
    use crate::wire::{Confinement, Engine, Rootfs, StdioSpec};
    use rustix::fs::FileType;

    const PLACE: &str = "/run/p/userns";

    fn spec(mounts: Vec<StagedMount>) -> CreateSpec {
        CreateSpec {
            container: ContainerId::generate(),
            engine: Engine::Oci {
                binary: "/r".into(),
                root: "/s".into(),
                args: Vec::new(),
                systemd_cgroup: false,
                place: Some(PLACE.into()),
            },
            bundle: "/b".into(),
            rootfs: Rootfs {
                lower: vec!["/l".into()],
                upper: None,
                mountpoint: "/b/rootfs".into(),
                label: None,
                idmap: Some(maps()),
            },
            mounts,
            folders: Vec::new(),
            confinement: Confinement::default(),
            stdio: StdioSpec::default(),
            cgroups: Vec::new(),
            timeout_ms: 0,
        }
    }

    fn maps() -> IdMaps {
        IdMaps { uids: vec![(0, 1000, 5)], gids: vec![(0, 2000, 5)] }
    }

    fn plan(config: &mut Value, mounts: Vec<StagedMount>) -> Way {
        Way::plan(config, &spec(mounts), &maps(), Path::new(PLACE)).unwrap()
    }

    #[test]
    fn everything_comes_from_one_place() {
        let staged = StagedMount {
            source: "/v".into(),
            staged: "/b/mounts/0".into(),
            propagation: StagedPropagation::Slave,
            idmap: Some(maps()),
            image: None,
        };
        let mut config = json!({
            "root": { "path": "/b/rootfs", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["mode=0620", "gid=5"] },
                { "destination": "/v", "type": "bind", "source": "/b/mounts/0", "options": ["rbind", "ro", "noexec"] },
                { "destination": "/c", "type": "bind", "source": "/c", "options": ["bind", "rshared", "rro", "noatime"] },
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }] },
        });
        let way = plan(&mut config, vec![staged]);
        assert_eq!(config["root"], json!({ "path": "/run/p/userns/rootfs", "readonly": true }));
        let options = |index: usize| config["mounts"][index]["options"].clone();
        assert_eq!((options(0), &config["mounts"][0]["type"]), (json!(["nosuid"]), &json!("proc")));
        let sys = json!({
            "destination": "/sys", "type": "bind", "source": "/run/p/userns/fresh-1", "options": ["rbind", "rprivate"],
        });
        assert_eq!(config["mounts"][1], sys, "a network namespace of the host's");
        assert_eq!(options(2), json!(["mode=0620"]), "there is no group 5");
        assert_eq!(options(3), json!(["rbind", "rslave", "ro", "noexec"]));
        assert_eq!(options(4), json!(["bind", "rslave", "ro", "noatime"]));
        assert_eq!(config["mounts"][4]["source"], "/run/p/userns/mount-4");
        let [first, second] = &way.spec.mounts[..] else { panic!("{:?}", way.spec.mounts) };
        assert_eq!((&first.source, first.idmap.is_some()), (&PathBuf::from("/v"), true));
        assert_eq!((&second.source, second.propagation), (&PathBuf::from("/c"), StagedPropagation::Shared));
        let [(_, first), (_, second)] = way.sealed[..] else { panic!("{:?}", way.sealed) };
        let (ro, noexec) = (MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::MOUNT_ATTR_NOEXEC);
        assert_eq!(first, Attributes { flags: ro | noexec, recursive: false });
        assert_eq!(second, Attributes { flags: ro, recursive: true });
        let kinds: Vec<_> = way.fresh.iter().map(|(path, kind, _)| (path.to_str().unwrap(), kind.as_str())).collect();
        let own = [("/run/p/userns/proc", "proc"), ("/run/p/userns/sys", "sysfs"), ("/run/p/userns/fresh-1", "sysfs")];
        assert_eq!(kinds, own);
    }

    #[test]
    fn device_nodes_are_those_that_were_asked_for() {
        let mut config = json!({
            "root": { "path": "/b/rootfs" },
            "mounts": [],
            "linux": { "namespaces": [], "devices": [
                { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
                { "path": "/dev/x", "type": "b", "major": 8, "minor": 1, "fileMode": 0o660, "uid": 1003, "gid": 7 },
            ] },
        });
        let way = plan(&mut config, Vec::new());
        let device = Device {
            path: "/run/p/userns/device-0".into(),
            kind: FileType::BlockDevice,
            numbers: (8, 1),
            mode: 0o660,
            owner: (1003, 7),
        };
        assert_eq!(way.devices, [device]);
        assert_eq!(config["mounts"][0]["destination"], "/dev/x");
        assert_eq!(config["linux"], json!({ "namespaces": [] }));
        let mut bad = json!({ "root": { "path": "/b" }, "mounts": [], "linux": { "devices": [{ "path": "/dev/x" }] } });
        assert!(Way::plan(&mut bad, &spec(Vec::new()), &maps(), Path::new(PLACE)).is_err());
    }
}
