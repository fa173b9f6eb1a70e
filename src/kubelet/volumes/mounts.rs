//! The driver's own mounts on the host: tmpfs volumes and subPath binds.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

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

/// Unmounts whatever is mounted at or below `root`, deepest and latest first.
pub(super) fn unmount_below(root: &Path) -> Result<(), VolumeError> {
    let Ok(root) = fs::canonicalize(root) else { return Ok(()) };
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(io_error(table, "read"))?;
    let mut found = points(&text);
    found.retain(|point| point.starts_with(&root));
    for point in found.iter().rev() {
        match detach(point) {
            // Gone together with one above it, or moved: then it shows below.
            Err(Errno::INVAL | Errno::NOENT | Errno::LOOP | Errno::NOTDIR) | Ok(()) => {}
            Err(errno) => return Err(io_error(point, "unmount")(errno.into())),
        }
    }
    let text = fs::read(table).map_err(io_error(table, "read"))?;
    match points(&text).into_iter().find(|point| point.starts_with(&root)) {
        Some(point) => Err(io_error(&point, "unmount")(io::Error::from(io::ErrorKind::ResourceBusy))),
        None => Ok(()),
    }
}

/// Unmounts what is mounted here. No link on the way is followed: whoever can write into a volume might put one there.
fn detach(point: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(CWD, point, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)?;
    unmount(format!("/proc/self/fd/{}", found.as_raw_fd()), UnmountFlags::DETACH)
}

/// The mount points of a mountinfo table, in its order (a mount stands after the one it covers).
fn points(table: &[u8]) -> Vec<PathBuf> {
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
            assert_eq!(detach(&root.path().join(point)), Err(Errno::LOOP), "{point}");
        }
        assert_eq!(detach(&root.path().join("gone")), Err(Errno::NOENT));
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table = b"22 1 0:20 / /a rw - tmpfs x rw\n23 22 0:21 / /a/b\\040c\\134d rw - tmpfs x rw\n";
        assert_eq!(points(table), [PathBuf::from("/a"), PathBuf::from("/a/b c\\d")]);
        assert!(points(b"").is_empty());
    }
}
