//! A container's cgroups on cgroup v1, where libcontainer's own way costs most of a creation: it
//! writes pids to `cgroup.procs`, for which the kernel waits until every CPU has been scheduled once
//! (6 to 16 ms), reads the mount table a dozen times, and binds each hierarchy by about 100 calls.
//!
//! Here the helper moves itself, by writing 0 to `tasks`, which takes no such wait as a process with
//! one thread is moved by itself; init is its descendant and is born inside. libcontainer meanwhile
//! sees a machine without hierarchies, and does nothing about them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;
use serde_json::Value;

use super::{attempt, devices, of_cgroup};
use crate::cgroup::limits;
use crate::sys::mounts::{self, Propagation};
use crate::wire::{CreateSpec, Failure};

/// Where the hierarchies are mounted, in a folder each, on the host and in containers.
const MOUNT: &str = "/sys/fs/cgroup";

/// The container's own part of each hierarchy, until it can be shown there.
pub(super) struct Hierarchies {
    /// Name of the hierarchy's folder, and the mount.
    trees: Vec<(String, OwnedFd)>,
    attributes: MountAttrFlags,
    /// Set last, as the helper's own processes count, too; opened while the host's files are in sight.
    pids: Option<(File, String)>,
}

/// Makes the cgroups that `spec` names, sets their limits, moves this process there, and takes from
/// `config` and from this process's mount namespace what libcontainer would do about cgroups.
/// `None`, and nothing done, where that is not possible: on cgroup v2, and where something of the
/// client's is mounted at or around the place.
pub(super) fn enter(config: &mut Value, spec: &CreateSpec) -> Result<Option<Hierarchies>, Failure> {
    let leaf = |folder: &PathBuf| folder.strip_prefix(MOUNT).is_ok_and(|path| path.components().count() > 1);
    let v2 = Path::new(MOUNT).join("cgroup.controllers").exists();
    if v2 || spec.cgroups.is_empty() || !spec.cgroups.iter().all(leaf) {
        return Ok(None);
    }
    let Some(attributes) = take_mount(config) else { return Ok(None) };
    let resources = config.pointer_mut("/linux/resources").map(Value::take).unwrap_or_default();
    if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
        linux.remove("resources");
    }
    for folder in &spec.cgroups {
        attempt(make(folder), || format!("making cgroup {folder:?}"))?;
    }
    let limits = limits::v1(&resources).map_err(|error| of_cgroup(&error))?;
    limits::set(&spec.cgroups, &limits).map_err(|error| of_cgroup(&error))?;
    if let (Some(folder), Some(rules)) = (find(&spec.cgroups, "devices"), resources.get("devices")) {
        let rules = devices::lines(rules)?;
        attempt(write_devices(folder, &rules), || format!("device rules for cgroup {folder:?}"))?;
    }
    let pids = pids_limit(&spec.cgroups, &resources)?;
    let trees = spec.cgroups.iter().map(|folder| own_part(folder, attributes)).collect::<Result<_, _>>()?;
    for folder in &spec.cgroups {
        attempt(write(&folder.join("tasks"), "0"), || format!("joining cgroup {folder:?}"))?;
    }
    attempt(hide(), || format!("hiding {MOUNT} from libcontainer"))?;
    Ok(Some(Hierarchies { trees, attributes, pids }))
}

impl Hierarchies {
    /// Mounts them in the namespace of the container whose init is `pid`, and sets the last limit.
    /// This process stays in that namespace.
    pub(super) fn show(self, pid: i32) -> Result<(), Failure> {
        attempt(self.mount(pid), || format!("mounting cgroups at {MOUNT} in the container"))?;
        match self.pids {
            None => Ok(()),
            Some((mut file, limit)) => {
                attempt(file.write_all(limit.as_bytes()), || format!("limiting processes to {limit}"))
            }
        }
    }

    fn mount(&self, pid: i32) -> io::Result<()> {
        let namespace =
            rustix::fs::open(format!("/proc/{pid}/ns/mnt"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Mount),
        )?;
        let root = mounts::tmpfs(&[("mode", "755"), ("nr_inodes", "64"), ("size", "64k")], MountAttrFlags::empty())?;
        // By now the container's own root is this process's.
        let place = rustix::fs::openat2(
            CWD,
            MOUNT,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )?;
        mounts::attach_at(&root, &place, "")?;
        for (name, tree) in &self.trees {
            rustix::fs::mkdirat(&root, name.as_str(), Mode::from_raw_mode(0o755))?;
            for alias in name.split(',').filter(|alias| alias != name) {
                rustix::fs::symlinkat(name.as_str(), &root, alias)?;
            }
            mounts::attach_at(tree, &root, name)?;
        }
        mounts::set_tree_attributes(&root, self.attributes)
    }
}

/// Takes the cgroup mount out of the spec and says how it is to be mounted; `None` where it must stay.
fn take_mount(config: &mut Value) -> Option<MountAttrFlags> {
    let list = config.get_mut("mounts").and_then(Value::as_array_mut)?;
    let is_ours = |mount: &Value| mount["type"] == "cgroup" && mount["destination"] == MOUNT;
    let touches = |mount: &&Value| {
        let at = Path::new(mount["destination"].as_str().unwrap_or_default());
        at.starts_with(MOUNT) || (Path::new(MOUNT).starts_with(at) && mount["type"] != "sysfs")
    };
    let index = list.iter().position(is_ours)?;
    if list.iter().filter(touches).count() != 1 {
        return None;
    }
    let mut flags = MountAttrFlags::empty();
    for option in list.remove(index)["options"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        flags |= match option {
            "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            _ => MountAttrFlags::empty(),
        };
    }
    Some(flags)
}

fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // Nobody can be moved to a cpuset that has nothing yet.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, above) = (folder.join(file), folder.parent().map(|parent| parent.join(file)));
        match (fs::read_to_string(&own), above) {
            (Ok(text), Some(above)) if text.trim().is_empty() => write(&own, fs::read_to_string(above)?.trim())?,
            _ => {}
        }
    }
    Ok(())
}

fn pids_limit(cgroups: &[PathBuf], resources: &Value) -> Result<Option<(File, String)>, Failure> {
    let limit = resources.pointer("/pids/limit").and_then(Value::as_i64);
    let (Some(limit), Some(folder)) = (limit, find(cgroups, "pids")) else { return Ok(None) };
    let path = folder.join("pids.max");
    let file = attempt(OpenOptions::new().write(true).open(&path), || format!("opening {path:?}"))?;
    Ok(Some((file, if limit > 0 { limit.to_string() } else { "max".to_owned() })))
}

fn write_devices(folder: &Path, rules: &[(bool, String)]) -> io::Result<()> {
    let open = |file| OpenOptions::new().write(true).open(folder.join(file));
    let (mut allow, mut deny) = (open("devices.allow")?, open("devices.deny")?);
    // Each write is one rule.
    rules
        .iter()
        .try_for_each(|(allowed, line)| if *allowed { &mut allow } else { &mut deny }.write_all(line.as_bytes()))
}

/// The folder of the hierarchy with this controller.
fn find<'a>(cgroups: &'a [PathBuf], controller: &str) -> Option<&'a PathBuf> {
    cgroups.iter().find(|folder| hierarchy(folder).is_some_and(|name| name.split(',').any(|part| part == controller)))
}

fn hierarchy(folder: &Path) -> Option<&str> {
    folder.strip_prefix(MOUNT).ok()?.iter().next()?.to_str()
}

fn own_part(folder: &PathBuf, attributes: MountAttrFlags) -> Result<(String, OwnedFd), Failure> {
    let cloned = (|| {
        let tree = mounts::clone_tree(folder, false)?;
        mounts::set_tree_propagation(&tree, Propagation::Private)?;
        mounts::set_tree_attributes(&tree, attributes)?;
        Ok::<_, io::Error>(tree)
    })();
    let tree = attempt(cloned, || format!("cloning the mount of {folder:?}"))?;
    Ok((hierarchy(folder).unwrap_or_default().to_owned(), tree))
}

/// Puts an empty folder in place of the hierarchies, in this process's own mount namespace.
fn hide() -> io::Result<()> {
    rustix::mount::unmount(MOUNT, UnmountFlags::DETACH)?;
    mounts::attach(mounts::tmpfs(&[("nr_inodes", "2"), ("size", "4k")], MountAttrFlags::empty())?, Path::new(MOUNT))
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mount_of_the_clients_is_never_covered() {
        let ours = json!({"destination": MOUNT, "type": "cgroup", "options": ["ro", "nosuid"]});
        let sysfs = json!({"destination": "/sys", "type": "sysfs"});
        let other = |at: &str| json!({"destination": at, "type": "bind"});
        let mut fine = json!({"mounts": [sysfs, ours, other("/data"), other("/sys/fs/bpf")]});
        assert_eq!(take_mount(&mut fine), Some(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID));
        assert_eq!(fine["mounts"].as_array().unwrap().len(), 3);
        for at in ["/sys", "/sys/fs", "/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/"] {
            let mut config = json!({"mounts": [sysfs, ours, other(at)]});
            let before = config.clone();
            assert_eq!((take_mount(&mut config), &config), (None, &before), "{at}");
        }
        assert_eq!(take_mount(&mut json!({"mounts": [sysfs]})), None);
    }

    #[test]
    fn controllers_are_found_by_name() {
        let folders = [PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a/b"), PathBuf::from("/sys/fs/cgroup/memory/a/b")];
        assert_eq!(find(&folders, "cpuacct"), folders.first());
        assert_eq!(find(&folders, "memory"), folders.last());
        assert_eq!(find(&folders, "pids"), None);
    }
}
