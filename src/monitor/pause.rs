//! The pause process: from a fork of the monitor to a static program in an empty root, in one go.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags};

use crate::sys::fork::{self, Child};
use crate::sys::lsm::{self, Attributes};
use crate::sys::{mounts, netns, process, seccomp};
use crate::types::ErrorKind;
use crate::wire::{Failure, IdMaps, PauseSpec};

/// The program, compiled by build/pause.rs.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// Where the one hierarchy is on machines with scopes.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// What names a failed step.
type Step<T> = Result<T, Failure>;

/// Puts the step's name and the subject before a system error.
fn during<T, E: Into<io::Error>>(what: &str, subject: impl AsRef<Path>, result: Result<T, E>) -> Step<T> {
    result.map_err(|error| {
        let error = error.into();
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => ErrorKind::ResourceExhausted,
            _ => ErrorKind::Internal,
        };
        let subject = subject.as_ref();
        let gap = if subject.as_os_str().is_empty() { "" } else { " " };
        Failure { kind, message: format!("pause: {what}{gap}{}: {error}", subject.display()) }
    })
}

/// Starts pause for the pod whose folder is `dir`, which serves as a mount point in pause's own mount
/// namespace. The pipe stays empty and ends when the program runs; else it holds a [`Failure`].
pub fn start(spec: &PauseSpec, dir: &Path) -> Step<(Child, OwnedFd)> {
    for (name, value) in &spec.sysctls {
        check_sysctl(spec, name, value)?;
    }
    // What can be prepared here is, so that the child has little left to do.
    let program = during("preparing the program", "", program())?;
    let filter = spec.bpf.as_deref().map(|path| during("reading filter", path, filter(path))).transpose()?;
    let netns = spec
        .netns
        .as_deref()
        .filter(|_| spec.user_namespace.is_none())
        .map(|path| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            during("opening network namespace", path, rustix::fs::open(path, flags, Mode::empty()))
        })
        .transpose()?;
    let (unified, folders) = match &spec.scope {
        Some(_) => (None, Vec::new()),
        None => cgroups(&spec.cgroups)?,
    };
    let (told, tell) = during("making a pipe", "", pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK))?;

    let mut namespaces = UnshareFlags::NEWNS;
    namespaces.set(UnshareFlags::NEWIPC, spec.new_ipc);
    namespaces.set(UnshareFlags::NEWUTS, spec.hostname.is_some());
    namespaces.set(UnshareFlags::NEWPID, spec.new_pid);
    // All in one call, so that the user namespace owns the others.
    namespaces.set(UnshareFlags::NEWUSER, spec.user_namespace.is_some());
    namespaces.set(UnshareFlags::NEWNET, spec.user_namespace.is_some() && spec.netns.is_some());
    let (wait, go) = during("making a pipe", "", pipe_with(PipeFlags::CLOEXEC))?;
    let parents_end = go.as_raw_fd();
    let child = fork::fork_into(namespaces, unified.as_ref().map(AsFd::as_fd), || {
        fork::close(parents_end);
        if spec.user_namespace.is_some() && !matches!(rustix::io::read(&wait, &mut [0u8; 1]), Ok(1)) {
            return 1;
        }
        let netns = netns.as_ref().map(AsFd::as_fd);
        let Err(failure) = become_pause(spec, dir, &folders, netns, filter.as_deref(), program.as_fd());
        // If even this fails, the parent sees a child that ended without a word, and says so.
        let _ = serde_json::to_vec(&failure).map(|text| rustix::io::write(&tell, &text));
        1
    });
    let child = during("forking", "", child)?;
    if let Some(maps) = &spec.user_namespace {
        // If this fails, `go` is closed and the child ends.
        raise(spec, maps, child.pid.as_raw_nonzero().get())?;
        during("letting it go on", "", rustix::io::write(&go, &[1]))?;
    }
    Ok((child, told))
}

/// What a child in a new user namespace cannot do for itself.
fn raise(spec: &PauseSpec, maps: &IdMaps, pid: i32) -> Step<()> {
    for (name, map) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let file = PathBuf::from(format!("/proc/{pid}/{name}"));
        during("mapping ids by", name, write_existing(&file, &IdMaps::text(map)))?;
    }
    set_oom_score(&pid.to_string(), spec.oom_score_adj)?;
    if spec.new_ipc {
        during("giving away the message queues", "", give_queues(spec, pid, maps.root()))?;
    }
    match &spec.netns {
        Some(path) => during("pinning the network namespace at", path, netns::pin_of(pid, path)),
        None => Ok(()),
    }
}

/// Gives the root of the message queues in a process's IPC namespace to `owner`, and labels it: it is whose the process
/// was that made the namespace, the host's root's, and the root inside may label only what is his own.
fn give_queues(spec: &PauseSpec, pid: i32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let open = |of: &str| fs::File::open(format!("/proc/{of}/ns/ipc"));
    let (own, other) = (open("self")?, open(&pid.to_string())?);
    let enter = |namespace: &fs::File| {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))
    };
    enter(&other)?;
    let given = mounts::file_system("mqueue", &[], MountAttrFlags::empty()).and_then(|root| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(root, ".", flags, Mode::empty())?;
        rustix::fs::fchown(&root, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        spec.selinux.as_ref().map_or(Ok(()), |(_, label)| lsm::set_label_of(&root, label))
    });
    enter(&own)?;
    given
}

/// Runs in the child, up to execve.
fn become_pause(
    spec: &PauseSpec,
    dir: &Path,
    cgroups: &[PathBuf],
    netns: Option<BorrowedFd<'_>>,
    filter: Option<&[u8]>,
    program: BorrowedFd<'_>,
) -> Step<Infallible> {
    for file in cgroups {
        during("joining cgroup", file, write_existing(file, "0"))?;
    }
    if let Some(scope) = &spec.scope {
        let folder = spec.cgroups.first().and_then(|folder| folder.strip_prefix(CGROUP_ROOT).ok());
        during("making scope", &scope.unit, scope.enter(folder.unwrap_or(Path::new(""))))?;
    }
    set_labels(spec)?;
    let new_user = spec.user_namespace.is_some();
    if !new_user {
        set_oom_score("self", spec.oom_score_adj)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = during("opening", dir, rustix::fs::open(dir, flags, Mode::empty()))?;
    let mut sysctls = Vec::new();
    if let Some(netns) = netns {
        let joined = rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network));
        during("joining the network namespace", spec.netns.as_deref().unwrap_or(Path::new("")), joined)?;
    }
    if let Some(name) = &spec.hostname {
        during("setting hostname", name, rustix::system::sethostname(name.as_bytes()))?;
    }
    for (name, value) in &spec.sysctls {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        match write_existing(&file, value) {
            // Some want the host's root, as which a child in a new user namespace begins, some that namespace's.
            Err(error) if new_user && error.kind() == io::ErrorKind::PermissionDenied => {
                sysctls.push((name, value, file));
            }
            written => during("setting sysctl", name, written)?,
        }
    }
    if new_user {
        // No path of the host's that is root's alone can be reached from here on.
        during("becoming the user namespace's root", "", process::take_ids(0, 0, &[]))?;
    }
    for (name, value, file) in sysctls {
        during("setting sysctl", name, write_existing(&file, value))?;
    }
    let label = spec.selinux.as_ref().map(|(_, mount)| mount.as_str());
    during("leaving the host's file systems", "", empty_root(place.as_fd(), label))?;
    for stdio in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        during("closing", "", rustix::io::fcntl_setfd(stdio, rustix::io::FdFlags::CLOEXEC))?;
    }
    confine(spec, filter)?;
    let none: [CString; 0] = [];
    let executed = if label.is_some() {
        nix::unistd::execve(c"/pause", &[c"/pause"], &none)
    } else {
        nix::unistd::execveat(program, c"", &[c"/pause"], &none, nix::fcntl::AtFlags::AT_EMPTY_PATH)
    };
    match executed {
        Ok(never) => match never {},
        Err(error) => during("executing", "", Err(error)),
    }
}

/// For the execve to come, while there is a /proc.
fn set_labels(spec: &PauseSpec) -> Step<()> {
    if spec.selinux.is_none() && spec.apparmor_profile.is_none() {
        return Ok(());
    }
    let attributes = during("opening", "/proc", Attributes::open())?;
    if let Some((label, _)) = &spec.selinux {
        during("setting the SELinux label", label, attributes.set_selinux(label))?;
    }
    if let Some(profile) = &spec.apparmor_profile {
        during("setting the AppArmor profile", profile, attributes.set_apparmor(profile))?;
    }
    Ok(())
}

/// A root of this process's own: read-only, and nothing of the host behind it. It is empty, but where there is an
/// SELinux `label`: a policy lets programs be executed that are labelled so, and a file in memory cannot be.
fn empty_root(place: BorrowedFd<'_>, label: Option<&str>) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0555")?;
    if let Some(label) = label {
        fsconfig_set_string(&context, "size", PROGRAM.len().next_multiple_of(4096).to_string())?;
        fsconfig_set_string(&context, "nr_inodes", "2")?;
        fsconfig_set_string(&context, "context", label)?;
    } else {
        fsconfig_set_string(&context, "size", "4096")?;
        fsconfig_set_string(&context, "nr_inodes", "1")?;
        fsconfig_set_flag(&context, "ro")?;
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    if label.is_none() {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            // It hinders a change of label, too.
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
    }
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    if label.is_some() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&root, "pause", flags, Mode::from_raw_mode(0o555))?;
        fs::File::from(file).write_all(PROGRAM)?;
        mounts::set_tree_read_only(&root)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&root, "", place, "", flags)?;
    rustix::process::fchdir(&root)?;
    // Puts the old root on top of the new one, from where it is taken away (pivot_root(2), notes).
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// No capabilities, no way to get any, the user's ids, the filter.
fn confine(spec: &PauseSpec, filter: Option<&[u8]>) -> Step<()> {
    let load = || match filter {
        Some(filter) => during("installing the seccomp filter", "", seccomp::load_filter(filter)),
        None => Ok(()),
    };
    // A policy need not allow a change of label with no_new_privs, and without that a filter takes a capability.
    let labelled = spec.selinux.is_some();
    if labelled {
        load()?;
    }
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know, nobody has.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return during("dropping capabilities", "", Err(error)),
        }
    }
    let taken = process::take_ids(spec.user.0, spec.user.1, &spec.groups);
    during("taking the ids of user", spec.user.0.to_string(), taken)?;
    during("dropping ambient capabilities", "", rustix::thread::clear_ambient_capability_set())?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    during("dropping capabilities", "", rustix::thread::set_capabilities(None, sets))?;
    // Without this, executing a program as root would raise capabilities again, had any been left in the bounding set.
    if !labelled {
        during("setting no_new_privs", "", rustix::thread::set_no_new_privs(true))?;
    }
    let unblocked = nix::sys::signal::SigSet::empty().thread_set_mask();
    during("unblocking signals", "", unblocked)?;
    if labelled { Ok(()) } else { load() }
}

/// A pause that is somewhat likelier to be killed is no reason to fail.
fn set_oom_score(pid: &str, score: i32) -> Step<()> {
    let set = process::set_oom_score_adj(pid, score.into());
    during("setting oom_score_adj", score.to_string(), set.map(drop))
}

fn write_existing(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// A sealed, executable file in memory.
fn program() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Before Linux 6.3 memfds are always executable and the flag is unknown.
    let file = match rustix::fs::memfd_create("pause", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("pause", flags)?,
        other => other?,
    };
    let file = fs::File::from(file);
    (&file).write_all(PROGRAM)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn filter(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    if FileType::from_raw_mode(std::os::unix::fs::MetadataExt::mode(&meta)) != FileType::RegularFile
        || meta.len() > seccomp::MAX_FILTER as u64
    {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no compiled filter"));
    }
    fs::read(path)
}

/// The cgroup v2 folder to be born in, and the files by which to join the others. Writing to
/// `cgroup.procs` takes a lock that all processes of the host share, and waits for every CPU; being
/// born somewhere does not, nor does moving one's only thread by the `tasks` of cgroup v1.
fn cgroups(folders: &[PathBuf]) -> Step<(Option<OwnedFd>, Vec<PathBuf>)> {
    let (mut unified, mut rest) = (None, Vec::new());
    for folder in folders {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = during("opening cgroup", folder, rustix::fs::open(folder, flags, Mode::empty()))?;
        let system = during("opening cgroup", folder, rustix::fs::fstatfs(&opened))?;
        if unified.is_none() && system.f_type == CGROUP2_SUPER_MAGIC {
            unified = Some(opened);
        } else {
            let v2 = system.f_type == CGROUP2_SUPER_MAGIC;
            rest.push(folder.join(if v2 { "cgroup.procs" } else { "tasks" }));
        }
    }
    Ok((unified, rest))
}

/// Refuses a sysctl that is not of the pod's own namespaces, or would leave /proc/sys.
fn check_sysctl(spec: &PauseSpec, name: &str, value: &str) -> Step<()> {
    let refuse = |why: &str| {
        let kind = ErrorKind::InvalidArgument;
        Err(Failure { kind, message: format!("sysctl {:?}: {why}", name.chars().take(80).collect::<String>()) })
    };
    let strange =
        |part: &str| part.is_empty() || !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if name.len() > 256 || name.split('.').any(strange) {
        return refuse("not a name");
    }
    if value.len() > 4096 || value.contains(['\n', '\0']) {
        return refuse("not a value");
    }
    let own = match name {
        "kernel.sem" => spec.new_ipc,
        "kernel.hostname" | "kernel.domainname" => spec.hostname.is_some(),
        _ if name.starts_with("net.") => spec.netns.is_some(),
        _ if ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|start| name.starts_with(start)) => spec.new_ipc,
        _ => false,
    };
    if own { Ok(()) } else { refuse("not in a namespace of the pod's own") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PauseSpec {
        PauseSpec {
            netns: Some("/netns".into()),
            user_namespace: None,
            new_ipc: true,
            new_pid: false,
            hostname: Some("h".into()),
            sysctls: Vec::new(),
            cgroups: Vec::new(),
            scope: None,
            user: (65535, 65535),
            groups: Vec::new(),
            bpf: None,
            apparmor_profile: None,
            selinux: None,
            oom_score_adj: -998,
        }
    }

    #[test]
    fn sysctls_stay_in_the_pods_namespaces() {
        for name in
            ["net.ipv4.ip_forward", "kernel.shm_rmid_forced", "kernel.msgmax", "fs.mqueue.msg_max", "kernel.sem"]
        {
            assert!(check_sysctl(&spec(), name, "1").is_ok(), "{name}");
        }
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net..x",
            "net.ipv4/../../x",
            "net.../../kernel",
            "",
            ".",
            "kernel.sem\n",
        ] {
            assert!(check_sysctl(&spec(), name, "1").is_err(), "{name}");
        }
        assert!(check_sysctl(&spec(), "kernel.sem", "1\n2").is_err());
        let host = PauseSpec { netns: None, new_ipc: false, hostname: None, ..spec() };
        for name in ["net.ipv4.ip_forward", "kernel.shmmax", "kernel.domainname"] {
            assert!(check_sysctl(&host, name, "1").is_err(), "{name}");
        }
    }

    #[test]
    fn the_program_is_tiny_and_cannot_be_written() {
        assert!(PROGRAM.starts_with(b"\x7fELF") && PROGRAM.len() <= 4096, "{}", PROGRAM.len());
        let file = fs::File::from(program().unwrap());
        assert!((&file).write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }
}
