//! What this machine is like. Every look that fails shows as an absent fact.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2, statfs, statvfs};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::Subject;
use crate::cdi;
use crate::launch::apparmor::{DEFAULT_PROFILE, find_parser};
use crate::launch::handlers::{Handler, HandlerError, Handlers};
use crate::network::{Inspection, inspect};
use crate::sys::{lsm, probe};
use crate::types::chain;

/// Mount options of version 1 hierarchies that name no controller.
const NO_CONTROLLER: [&str; 5] = ["rw", "ro", "xattr", "clone_children", "noprefix"];

/// Everything that is judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// `uname -r`
    pub(super) release: String,
    /// Of system calls, by name: whether they are there.
    pub(super) clone3: bool,
    pub(super) pidfd: bool,
    pub(super) openat2: bool,
    pub(super) mount_api: bool,
    pub(super) mount_setattr: bool,
    /// overlayfs, after asking the kernel to load it.
    pub(super) overlay: bool,
    /// What the kernel allows a seccomp filter to do; empty: no seccomp.
    pub(super) seccomp_actions: Vec<String>,
    /// `user.max_user_namespaces`; `None`: no user namespaces.
    pub(super) max_user_namespaces: Option<u64>,
    pub(super) cgroups: Cgroups,
    /// systemd is PID 1.
    pub(super) systemd: bool,
    /// Bits of the effective set; `None`: unknown.
    pub(super) capabilities: Option<u64>,
    pub(super) cni: Inspection,
    pub(super) cni_conf_dir: PathBuf,
    pub(super) cni_bin_dirs: Vec<PathBuf>,
    /// Files that describe devices.
    pub(super) devices: cdi::Inspection,
    /// Of each runtime handler what it runs, or why it cannot.
    pub(super) handlers: Vec<Result<String, Refused>>,
    /// Why there are none.
    pub(super) no_handlers: Option<String>,
    pub(super) iptables: bool,
    pub(super) ip_forward: Option<bool>,
    /// `net.bridge.bridge-nf-call-iptables`; `None`: br_netfilter is not loaded.
    pub(super) bridge_nf: Option<bool>,
    pub(super) apparmor: AppArmor,
    /// SELinux is on: whether it enforces.
    pub(super) selinux: Option<bool>,
    /// The configuration wants it.
    pub(super) selinux_wanted: bool,
    pub(super) inotify_instances: Option<u64>,
    pub(super) inotify_watches: Option<u64>,
    pub(super) root: Disk,
    pub(super) state: Disk,
    /// Where the monitor was looked for, and whether it is there.
    pub(super) monitor: (PathBuf, bool),
}

/// A runtime handler that takes no pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refused {
    /// Why.
    pub(super) problem: String,
    /// Its program is there, but cannot work with this machine's cgroups.
    pub(super) cgroups: bool,
    /// It is the default.
    pub(super) default: bool,
}

/// How AppArmor stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AppArmor {
    /// It is on in the kernel.
    pub(super) on: bool,
    /// The configuration wants it.
    pub(super) wanted: bool,
    /// apparmor_parser is installed.
    pub(super) parser: bool,
    /// The configured profile in the built-in one's place.
    pub(super) profile: Option<String>,
    /// The one of the two is loaded.
    pub(super) loaded: bool,
}

/// A folder and the file system it is on, or would be made on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    /// Magic number of the file system.
    pub(super) kind: u64,
    pub(super) bytes: u64,
    pub(super) bytes_free: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
    pub(super) read_only: bool,
}

/// How control groups are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cgroups {
    /// Version 2 is mounted at `/sys/fs/cgroup` itself.
    pub(super) unified: bool,
    /// Controllers that containers can be limited with.
    pub(super) controllers: BTreeSet<String>,
}

pub(super) fn gather(subject: &Subject) -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let number = |path: &str| read(path).trim().parse().ok();
    let switch = |path: &str| number(path).map(|value: u64| value != 0);
    let mounts = read("/proc/self/mountinfo");
    let handlers = Handlers::load(&subject.handlers.0, &subject.handlers.1).map(identified);
    let monitor = subject
        .monitor
        .clone()
        .unwrap_or_else(|| std::env::current_exe().unwrap_or_default().with_file_name("podwright-monitor"));
    Facts {
        release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        clone3: probe::has_clone3(),
        pidfd: pidfd_open(getpid(), PidfdFlags::empty()).is_ok(),
        openat2: openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).is_ok(),
        // Without the privilege the answer is EPERM, which tells that the call is there.
        mount_api: matches!(fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC), Ok(_) | Err(Errno::PERM)),
        mount_setattr: probe::has_mount_setattr(),
        overlay: fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).is_ok()
            || read("/proc/filesystems").split_whitespace().any(|word| word == "overlay"),
        seccomp_actions: read("/proc/sys/kernel/seccomp/actions_avail").split_whitespace().map(str::to_owned).collect(),
        max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
        cgroups: cgroups(&mounts, &read("/sys/fs/cgroup/cgroup.controllers")),
        systemd: Path::new("/run/systemd/system").is_dir(),
        capabilities: effective(&read("/proc/self/status")),
        cni: inspect(&subject.network),
        cni_conf_dir: subject.network.conf_dir.clone(),
        cni_bin_dirs: subject.network.bin_dirs.clone(),
        devices: subject.devices.inspect(),
        handlers: handlers.iter().flat_map(|all| all.iter().map(|one| program(one, all.default_name()))).collect(),
        no_handlers: handlers.err().map(|error| chain(&error)),
        iptables: in_path("iptables"),
        ip_forward: switch("/proc/sys/net/ipv4/ip_forward"),
        bridge_nf: switch("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        apparmor: apparmor(subject),
        selinux: switch("/sys/fs/selinux/enforce"),
        selinux_wanted: subject.selinux,
        inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
        inotify_watches: number("/proc/sys/fs/inotify/max_user_watches"),
        root: disk(&subject.root),
        state: disk(&subject.state),
        monitor: (monitor.clone(), monitor.is_file()),
    }
}

/// Asks the handlers' programs what they are, as the daemon does when it starts.
fn identified(mut handlers: Handlers) -> Handlers {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(handlers.identify()),
        Err(error) => tracing::debug!(%error, "cannot ask the runtime handlers' programs"),
    }
    handlers
}

/// What a handler runs.
fn program(handler: &Handler, default: &str) -> Result<String, Refused> {
    match handler.program() {
        Ok(Some(program)) => Ok(format!("{} ({})", handler.name, program.display())),
        Ok(None) => Ok(handler.name.clone()),
        Err(error) => Err(Refused {
            problem: chain(&error),
            cgroups: matches!(error, HandlerError::Hybrid { .. }),
            default: handler.name == default,
        }),
    }
}

fn apparmor(subject: &Subject) -> AppArmor {
    let profile = Some(subject.apparmor_profile.clone()).filter(|name| !name.is_empty());
    AppArmor {
        on: lsm::apparmor_enabled(),
        wanted: subject.apparmor,
        parser: find_parser().is_some(),
        loaded: lsm::apparmor_loaded(profile.as_deref().unwrap_or(DEFAULT_PROFILE)).unwrap_or(false),
        profile,
    }
}

/// The effective capability set in the text of `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// From the text of `/proc/self/mountinfo` and that of `cgroup.controllers` in the unified root.
fn cgroups(mounts: &str, controllers: &str) -> Cgroups {
    let mut found = Cgroups::default();
    for line in mounts.lines() {
        // ID PARENT DEVICE ROOT PLACE OPTIONS [TAGS] - TYPE SOURCE SUPER-OPTIONS
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let place = before.split(' ').nth(4);
        match after.split(' ').collect::<Vec<_>>()[..] {
            ["cgroup2", ..] if place == Some("/sys/fs/cgroup") => found.unified = true,
            ["cgroup", _, options] => {
                let known = |option: &&str| !option.contains('=') && !NO_CONTROLLER.contains(option);
                found.controllers.extend(options.split(',').filter(known).map(str::to_owned));
            }
            _ => {}
        }
    }
    if found.unified {
        found.controllers = controllers.split_whitespace().map(str::to_owned).collect();
    }
    found
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The file system of `path`, or of the nearest folder above it that exists.
fn disk(path: &Path) -> Disk {
    let Some(existing) = path.ancestors().find(|path| path.is_dir()) else {
        return Disk { path: path.to_owned(), ..Disk::default() };
    };
    let (Ok(kind), Ok(room)) = (statfs(existing), statvfs(existing)) else {
        return Disk { path: path.to_owned(), ..Disk::default() };
    };
    #[expect(clippy::cast_sign_loss, reason = "a magic number; its type differs between architectures")]
    let kind = kind.f_type as u64;
    Disk {
        path: path.to_owned(),
        kind,
        bytes: room.f_blocks.saturating_mul(room.f_frsize),
        bytes_free: room.f_bavail.saturating_mul(room.f_frsize),
        inodes: room.f_files,
        inodes_free: room.f_favail,
        read_only: room.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_layouts() {
        let unified = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let found = cgroups(unified, "cpuset cpu io memory pids\n");
        assert!(found.unified && found.controllers.contains("memory") && found.controllers.len() == 5);
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let found = cgroups(hybrid, "");
        assert!(!found.unified && found.controllers == ["cpu", "cpuacct"].map(String::from).into());
        assert_eq!(cgroups("rubbish\n - \n1 2 - cgroup", "x"), Cgroups::default());
    }

    #[test]
    fn capability_sets() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective("CapEff:\tx\n"), None);
        assert_eq!(effective(""), None);
    }
}
