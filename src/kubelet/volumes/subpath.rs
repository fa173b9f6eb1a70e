//! `subPath`: a folder or file below a volume's root, which containers may fill with symbolic links.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{VolumeError, io_error, make_dir, mounts};

/// Mounts `root/below` on `inner` below the folder `base`, where it is made. Folders that are missing are made.
///
/// What is opened is what is mounted, so that a container that swaps a link meanwhile gains nothing; the runtime
/// is given the mount, which no container can touch.
pub(super) fn bind(root: &Path, below: &str, base: &Path, inner: &Path) -> Result<(), VolumeError> {
    let target = &base.join(inner);
    let fail = |doing| move |errno: Errno| io_error(&root.join(below), doing)(io::Error::from(errno));
    let found = open_below(root, below).map_err(fail("resolve subPath"))?;
    let is_dir = fstat(&found).map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(fail("look up"))?
        == FileType::Directory;
    clear(base, inner)?;
    if is_dir {
        make_dir(target, 0o750)?;
    } else {
        if let Some(parent) = target.parent() {
            make_dir(parent, 0o750)?;
        }
        drop(super::open_file(target, 0o600, true)?);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(found.as_fd(), "", flags).map_err(fail("clone mount"))?;
    move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| io_error(target, "mount")(errno.into()))
}

/// Takes the mount of an earlier attempt away, with the place it was on: copies of it in other mount namespaces go with
/// that.
fn clear(base: &Path, inner: &Path) -> Result<(), VolumeError> {
    let target = base.join(inner);
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(base, path, Mode::empty()).map_err(|errno| io_error(base, "open")(errno.into()))?;
    loop {
        match mounts::detach(&folder, inner) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            // No mount, or none any more.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(io_error(&target, "unmount")(errno.into())),
        }
    }
    let is_dir = fs::symlink_metadata(&target).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_dir { fs::remove_dir(&target) } else { fs::remove_file(&target) };
    removed.map_err(io_error(&target, "replace"))
}

/// Opens a path below `root`; links in it are followed as if `root` were `/`.
fn open_below(root: &Path, below: &str) -> Result<OwnedFd, Errno> {
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, path | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, below, path, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut walked = String::new();
    let mut parent = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
    for part in below.split('/').filter(|part| !part.is_empty() && *part != ".") {
        walked.push_str(part);
        let next = match openat2(&root, &walked, path, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {
                // A link to nowhere is left alone: mkdirat does not follow it.
                match mkdirat(&parent, part, Mode::from_raw_mode(0o750)) {
                    Ok(()) => {
                        let mode = fstat(&parent)?.st_mode & 0o7777;
                        let made = openat2(
                            &parent,
                            part,
                            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                            Mode::empty(),
                            ResolveFlags::BENEATH,
                        )?;
                        // As open as the folder it stands in: the container's user must get in.
                        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
                    }
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                openat2(&root, &walked, path, Mode::empty(), resolve)?
            }
            other => other?,
        };
        parent = next;
        walked.push('/');
    }
    Ok(parent)
}
