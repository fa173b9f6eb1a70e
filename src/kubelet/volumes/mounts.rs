//! The driver's own mounts on the host: tmpfs volumes and subPath binds.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::sys::mounts::{Propagation, set_tree_propagation};

use super::{VolumeError, io_error};

/// Mounts a tmpfs, unless one is there already.
pub(super) fn tmpfs(path: &Path, options: &str) -> Result<(), VolumeError> {
    if is_mount(path)? {
        return Ok(());
    }
    let options = std::ffi::CString::new(options).map_err(|error| io_error(path, "mount tmpfs")(error.into()))?;
    mount("tmpfs", path, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, Some(options.as_c_str()))
        .map_err(|errno| io_error(path, "mount tmpfs")(errno.into()))
}

/// True if another file system begins here.
fn is_mount(path: &Path) -> Result<bool, VolumeError> {
    let here = fs::symlink_metadata(path).map_err(io_error(path, "look up"))?;
    let above = fs::symlink_metadata(path.join("..")).map_err(io_error(path, "look up"))?;
    Ok(here.dev() != above.dev())
}

/// Unmounts whatever is mounted below `root`, a path without links, and makes sure that neither it nor anything in it is
/// a mount then.
pub(super) fn unmount_below(root: &Path) -> Result<(), VolumeError> {
    let mut found = points()?;
    found.retain(|point| point.starts_with(root) && point != root);
    // Each goes with all that is on it; one that was covered follows it.
    found.sort_by_key(|point| point.components().count());
    for point in &found {
        match detach(CWD, point) {
            // Gone together with one above it, or moved: then it shows below.
            Err(Errno::INVAL | Errno::NOENT | Errno::LOOP | Errno::NOTDIR) | Ok(()) => {}
            Err(errno) => return Err(io_error(point, "unmount")(errno.into())),
        }
    }
    none_at(root)
}

/// An error if `root`, a path without links, or anything in it is a mount.
pub(super) fn none_at(root: &Path) -> Result<(), VolumeError> {
    match points()?.into_iter().find(|point| point.starts_with(root)) {
        Some(point) => Err(io_error(&point, "unmount")(io::Error::from(io::ErrorKind::ResourceBusy))),
        None => Ok(()),
    }
}

/// Unmounts what is mounted here, with all that is mounted on it. No link below `base` is followed: whoever can write
/// into a volume might put one there.
///
/// A `subPath` is a copy of the host's own mounts and hears of what becomes of them, and they of it: it is cut off first,
/// or the host's would be unmounted with it.
pub(super) fn detach(base: impl AsFd, point: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(base, point, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)?;
    set_tree_propagation(&found, Propagation::Private)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    unmount(format!("/proc/self/fd/{}", found.as_raw_fd()), UnmountFlags::DETACH)
}

/// The mount points of this mount namespace.
fn points() -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    Ok(read_points(&fs::read(table).map_err(io_error(table, "read"))?))
}

/// The mount points of a mountinfo table, in its order (a mount stands after the one it covers).
fn read_points(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|b| *b == b'\n');
    lines.filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(|field| PathBuf::from(unescape(field))).collect()
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
                out.push(u8::try_from(value).unwrap_or(b'?'));
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_to_what_is_unmounted() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("victim/m")).unwrap();
        std::os::unix::fs::symlink(root.path().join("victim"), root.path().join("volume")).unwrap();
        std::os::unix::fs::symlink("m", root.path().join("victim/last")).unwrap();
        for point in ["volume/m", "victim/last/."] {
            assert_eq!(detach(CWD, &root.path().join(point)), Err(Errno::LOOP), "{point}");
        }
        assert_eq!(detach(CWD, &root.path().join("gone")), Err(Errno::NOENT));
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table = b"22 1 0:20 / /a rw - tmpfs x rw\n23 22 0:21 / /a/b\\040c\\134d rw - tmpfs x rw\n";
        assert_eq!(read_points(table), [PathBuf::from("/a"), PathBuf::from("/a/b c\\d")]);
        assert!(read_points(b"").is_empty());
    }
}
