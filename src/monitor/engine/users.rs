//! A container's user namespace, which is the pod's, and the ids of a process in it.
//!
//! libcontainer makes the container as the host's root, in namespaces whose owner is the host's: so every mount can be
//! made and every path be reached, also on kernels and nodes where a namespace's own root may not mount /proc, /sys or
//! device nodes. The Executor then joins the pod's user namespace, before the container counts as created, and copies
//! the mounts into a namespace that belongs to it: from there none of them can be taken away, or be made writable.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nix::unistd::{setfsgid, setfsuid};
use rustix::fs::{Mode, OFlags, Uid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde_json::{Value, json};

use super::{attempt, failure};
use crate::sys::{caps, fork, process};
use crate::types::ErrorKind;
use crate::wire::{Failure, IdMaps};

/// What a spec says of its user namespace and of who is to run in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodUser {
    /// To be joined.
    path: PathBuf,
    maps: IdMaps,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// The container gets a cgroup namespace of its own.
    cgroup: bool,
}

impl PodUser {
    /// Takes the user namespace out of a spec, and leaves what the host's root is to make; `None`: there is none.
    pub(super) fn take(config: &mut Value) -> Result<Option<Self>, Failure> {
        let invalid =
            |what: &str| failure(ErrorKind::InvalidArgument, format!("the container's OCI spec has no {what}"));
        let linux = config.get_mut("linux").and_then(Value::as_object_mut).ok_or_else(|| invalid("linux"))?;
        let namespaces = linux.get_mut("namespaces").and_then(Value::as_array_mut);
        let namespaces = namespaces.ok_or_else(|| invalid("linux.namespaces"))?;
        let of = |wanted| move |namespace: &Value| namespace["type"] == wanted;
        let cgroup = namespaces.iter().any(of("cgroup"));
        let Some(index) = namespaces.iter().position(of("user")) else { return Ok(None) };
        let path = namespaces.remove(index)["path"].as_str().map(PathBuf::from);
        let path = path.ok_or_else(|| invalid("path of the user namespace"))?;
        let mut maps = |key| linux.remove(key).as_ref().map(mappings).unwrap_or_default();
        let maps = IdMaps { uids: maps("uidMappings"), gids: maps("gidMappings") };
        for mount in config.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
            own(mount, &maps);
        }
        let user = config.pointer_mut("/process/user").ok_or_else(|| invalid("process.user"))?;
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let groups = user["additionalGids"].as_array().into_iter().flatten().filter_map(number).collect();
        let (uid, gid) = (number(&user["uid"]).unwrap_or(0), number(&user["gid"]).unwrap_or(0));
        *user = json!({ "uid": 0, "gid": 0 });
        Ok(Some(Self { path, maps, uid, gid, groups, cgroup }))
    }

    /// Root's ids inside, as the host numbers them.
    pub(super) fn root(&self) -> (u32, u32) {
        self.maps.root()
    }

    /// Opens the namespace, while its path can be reached.
    pub(super) fn open(self) -> Result<Joining, Failure> {
        let opened = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let namespace = attempt(opened, || format!("opening the pod's user namespace {:?}", self.path))?;
        Ok(Joining { namespace, user: self })
    }
}

/// Ready to be joined.
pub(super) struct Joining {
    namespace: OwnedFd,
    user: PodUser,
}

impl Joining {
    /// Root's ids inside, as the host numbers them.
    pub(super) fn root(&self) -> (u32, u32) {
        self.user.root()
    }

    /// Becomes a process of the user namespace, with all capabilities in there and none outside.
    pub(super) fn join(&self) -> io::Result<()> {
        let PodUser { maps, uid, gid, groups, cgroup, .. } = &self.user;
        let owner = maps.uid(*uid).ok_or_else(|| io::Error::other(format!("there is no user {uid} in it")))?;
        if rustix::termios::isatty(rustix::stdio::stdin()) {
            rustix::fs::fchown(rustix::stdio::stdin(), Some(Uid::from_raw(owner)), None)?;
        }
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::User))?;
        let mut own = UnshareFlags::NEWNS;
        own.set(UnshareFlags::NEWCGROUP, *cgroup);
        fork::unshare(own)?;
        assume(*uid, *gid, groups)
    }
}

/// Takes these ids, as this user namespace numbers them. All capabilities stay.
pub(super) fn assume(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    process::take_ids(uid, gid, groups)?;
    rustix::thread::set_keep_capabilities(false)?;
    let all = caps::permitted()?;
    caps::set(all, all, 0)
}

/// Does `work` as this user and group of the host's where files are concerned, with all capabilities still. For a
/// process of the host's root.
pub(super) fn with_files_of<T>((uid, gid): (u32, u32), work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let all = caps::permitted()?;
    let own = (setfsuid(nix::unistd::Uid::from_raw(uid)), setfsgid(nix::unistd::Gid::from_raw(gid)));
    // The kernel has just taken those that have to do with files.
    let done = caps::set(all, all, 0).and_then(|()| work());
    setfsgid(own.1);
    setfsuid(own.0);
    done
}

/// A file system that the host's root makes for the root inside.
fn own(mount: &mut Value, maps: &IdMaps) {
    let kind = mount["type"].as_str().unwrap_or_default().to_owned();
    let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) else { return };
    let is = |option: &Value, key: &str| option.as_str().is_some_and(|option| option.starts_with(key));
    match kind.as_str() {
        "tmpfs" if !options.iter().any(|option| is(option, "uid=") || is(option, "gid=")) => {
            let (uid, gid) = maps.root();
            options.extend([json!(format!("uid={uid}")), json!(format!("gid={gid}"))]);
        }
        "devpts" => {
            let gid = options.iter().find_map(|option| option.as_str()?.strip_prefix("gid=")?.parse().ok());
            options.retain(|option| !is(option, "gid="));
            options.extend(gid.and_then(|gid| maps.gid(gid)).map(|gid| json!(format!("gid={gid}"))));
        }
        _ => {}
    }
}

/// An OCI list of mappings.
pub(super) fn mappings(list: &Value) -> Vec<(u32, u32, u32)> {
    let number = |map: &Value, key| map.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    let one = |map| Some((number(map, "containerID")?, number(map, "hostID")?, number(map, "size")?));
    list.as_array().into_iter().flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libcontainer_is_left_what_the_hosts_root_makes() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
        let mut config = json!({
            "process": { "user": { "uid": 1, "gid": 2, "additionalGids": [3] } },
            "mounts": [
                { "type": "tmpfs", "options": ["mode=755"] },
                { "type": "devpts", "options": ["gid=5", "newinstance"] },
                { "type": "bind", "options": ["ro"] },
            ],
            "linux": {
                "namespaces": [{ "type": "user", "path": "/proc/7/ns/user" }, { "type": "cgroup" }],
                "uidMappings": map, "gidMappings": map,
            },
        });
        let user = PodUser::take(&mut config).unwrap().unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice(), user.cgroup), (1, 2, &[3][..], true));
        assert_eq!((user.root(), user.maps.uid(9), user.maps.uid(10)), ((1000, 1000), Some(1009), None));
        assert_eq!(
            config,
            json!({
                "process": { "user": { "uid": 0, "gid": 0 } },
                "mounts": [
                    { "type": "tmpfs", "options": ["mode=755", "uid=1000", "gid=1000"] },
                    { "type": "devpts", "options": ["newinstance", "gid=1005"] },
                    { "type": "bind", "options": ["ro"] },
                ],
                "linux": { "namespaces": [{ "type": "cgroup" }] },
            })
        );
        assert_eq!(PodUser::take(&mut config), Ok(None));
    }
}
