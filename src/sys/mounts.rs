//! The new mount API: overlays, bind mounts as detached trees, their propagation and id mapping.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::UnshareFlags;

use super::fork;

/// The kernel takes strings of fewer bytes than this in fsconfig.
const FSCONFIG_STRING: usize = 256;

/// Propagation, always recursive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the host only.
    Slave,
    /// Both ways, with the peers it has.
    Shared,
}

/// Sets the propagation of everything in this mount namespace.
pub fn set_root_propagation(propagation: Propagation) -> io::Result<()> {
    let flag = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    rustix::mount::mount_change("/", flag | MountPropagationFlags::REC).map_err(Into::into)
}

/// A detached copy of the mounts at and below `path`. It stays in the peer groups the originals are in.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags).map_err(Into::into)
}

/// A detached copy of the mount that `file` lies on, with `file` as its root; `recursive`: with what is mounted below.
pub fn clone_at(file: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(file, "", flags).map_err(Into::into)
}

/// Takes the mount at `path` away, with all that is mounted below it.
pub fn detach(path: &Path) -> io::Result<()> {
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(path, flags).map_err(Into::into)
}

/// Attaches a detached tree at `target`.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Into::into)
}

/// Attaches a detached mount at `name` below the folder `place`; empty: at that itself.
pub fn attach_at(tree: impl AsFd, place: impl AsFd, name: &str) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    flags.set(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH, name.is_empty());
    rustix::mount::move_mount(tree, "", place, name, flags).map_err(Into::into)
}

/// A new, detached tmpfs with these options.
pub fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    file_system("tmpfs", options, attributes)
}

/// A new, detached mount of a file system that has no device. What it shows (`proc`, `sysfs`, `mqueue`) is of this
/// process's namespaces.
pub fn file_system(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(Into::into)
}

/// Changes a detached tree and all mounts in it.
pub fn set_tree_propagation(tree: impl AsFd, propagation: Propagation) -> io::Result<()> {
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    setattr(tree.as_fd(), libc::AT_RECURSIVE, &libc::mount_attr { propagation, ..none() })
}

/// Maps the owners of files in a detached mount as the user namespace does. Only this mount, not
/// those below: the kernel refuses to map what is mapped already, or what cannot be.
pub fn set_tree_idmap(tree: impl AsFd, user_namespace: impl AsFd) -> io::Result<()> {
    let fd = u64::try_from(user_namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    setattr(tree.as_fd(), 0, &libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, userns_fd: fd, ..none() })
}

/// Makes a detached mount read-only.
pub fn set_tree_read_only(tree: impl AsFd) -> io::Result<()> {
    set_tree_attributes(tree, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// Adds attributes to a mount that was made by this process, without those below it.
pub fn set_tree_attributes(tree: impl AsFd, attributes: MountAttrFlags) -> io::Result<()> {
    setattr(tree.as_fd(), 0, &libc::mount_attr { attr_set: u64::from(attributes.bits()), ..none() })
}

/// Takes that back from a mount of this process's own, without those below it.
pub fn set_writable(tree: impl AsFd) -> io::Result<()> {
    setattr(tree.as_fd(), 0, &libc::mount_attr { attr_clr: libc::MOUNT_ATTR_RDONLY, ..none() })
}

/// Makes the mount that `path` is the root of read-only, with all that is mounted below it.
pub fn set_read_only_below(path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    set_all_read_only(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes a detached mount read-only, with all that is mounted below it.
pub fn set_all_read_only(tree: impl AsFd) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, ..none() };
    setattr(tree.as_fd(), libc::AT_RECURSIVE, &attr)
}

fn none() -> libc::mount_attr {
    libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 }
}

fn setattr(tree: BorrowedFd<'_>, flags: libc::c_int, attr: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is a static string, `attr` outlives the call and its size is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags | libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An overlay of `lower` (topmost first, at least one with `upper`, else two), attached at `target`. With an SELinux
/// `label`, that is the label of every file in it.
pub fn mount_overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
    target: &Path,
) -> io::Result<()> {
    let mut names = Names::default();
    let result = overlay_by_fsopen(lower, upper, label, &mut names).and_then(|tree| attach(tree, target));
    match result {
        // Before 6.5 layers could not be appended one by one.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            overlay_by_mount(lower, upper, label, target, &mut names)
                .map_err(|old| io::Error::new(old.kind(), format!("{old} (with the new mount API: {error})")))
        }
        other => other,
    }
}

/// Short names for long paths: what is behind an open descriptor can be named by /proc.
#[derive(Default)]
struct Names {
    open: Vec<OwnedFd>,
}

impl Names {
    fn short(&mut self, path: &Path) -> io::Result<CString> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let name = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        self.open.push(fd);
        Ok(name)
    }

    fn name(&mut self, path: &Path) -> io::Result<CString> {
        if path.as_os_str().len() < FSCONFIG_STRING {
            Ok(CString::new(path.as_os_str().as_bytes())?)
        } else {
            self.short(path)
        }
    }
}

fn overlay_by_fsopen(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
    names: &mut Names,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &CString| {
        rustix::mount::fsconfig_set_string(&context, key, value.as_c_str()).map_err(|errno| with_log(errno, &context))
    };
    set("source", &c"overlay".into())?;
    if let Some(label) = label {
        set("context", &CString::new(label)?)?;
    }
    for layer in lower {
        set("lowerdir+", &names.name(layer)?)?;
    }
    if let Some((upper, work)) = upper {
        set("upperdir", &names.name(upper)?)?;
        set("workdir", &names.name(work)?)?;
        // Or the whole file system below would be synced when the overlay goes. What is in `upper` is of
        // no use without the container, which no reboot survives.
        rustix::mount::fsconfig_set_flag(&context, "volatile").map_err(|errno| with_log(errno, &context))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(|errno| with_log(errno, &context))?;
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, upper.is_none());
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(Into::into)
}

/// The kernel leaves its explanation to be read from the context.
fn with_log(errno: Errno, context: &OwnedFd) -> io::Error {
    let mut text = [0u8; 512];
    let plain = io::Error::from(errno);
    match rustix::io::read(context, &mut text) {
        Ok(length) if length > 2 && errno != Errno::INVAL => {
            let message = String::from_utf8_lossy(&text[2..length]).trim().to_owned();
            io::Error::new(plain.kind(), format!("{message}: {plain}"))
        }
        _ => plain,
    }
}

fn overlay_by_mount(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
    target: &Path,
    names: &mut Names,
) -> io::Result<()> {
    // One page must hold all options, and `:` and `,` would need escapes: descriptors' names have neither.
    let mut options = b"lowerdir=".to_vec();
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        options.extend_from_slice(names.short(layer)?.as_bytes());
    }
    if let Some((upper, work)) = upper {
        options.extend_from_slice(b",upperdir=");
        options.extend_from_slice(names.short(upper)?.as_bytes());
        options.extend_from_slice(b",workdir=");
        options.extend_from_slice(names.short(work)?.as_bytes());
    }
    if let Some(label) = label {
        // Its categories have a comma between them.
        options.extend_from_slice(format!(",context=\"{label}\"").as_bytes());
    }
    let flags = if upper.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
    let options = CString::new(options)?;
    rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str()).map_err(Into::into)
}

/// A user namespace with these maps in the kernel's text form, kept alive by the descriptor alone.
/// For a single-threaded process.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (ready_read, ready_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (done_read, done_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let keep = [0, 1, 2, done_read.as_raw_fd(), ready_write.as_raw_fd()];
    let child = fork::fork_child(|| {
        let entered = fork::unshare(UnshareFlags::NEWUSER).is_ok();
        let told = rustix::io::write(&ready_write, &[u8::from(entered)]).is_ok();
        // The parent's end must go, or the read below would wait for ourselves.
        if fork::close_all_except(&keep).is_ok() && told {
            let _ = rustix::io::read(&done_read, &mut [0u8; 1]);
        }
        0
    })?;
    drop(ready_write);
    let opened = (|| {
        let mut entered = [0u8; 1];
        if rustix::io::read(&ready_read, &mut entered)? != 1 || entered != [1] {
            return Err(io::Error::other("no user namespace to be had"));
        }
        fs::write(format!("/proc/{child}/uid_map"), uid_map)?;
        fs::write(format!("/proc/{child}/gid_map"), gid_map)?;
        let path = format!("/proc/{child}/ns/user");
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)
    })();
    drop(done_write);
    if let Some(pid) = Pid::from_raw(child) {
        waitpid(Some(pid), WaitOptions::empty())?;
    }
    opened
}
