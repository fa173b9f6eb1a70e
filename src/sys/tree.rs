//! Walks through folders that somebody else filled. A container may nest them by the thousand: the walk takes neither
//! stack nor descriptors for that. It follows no link and enters no mount.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Levels whose folders stay open; from those below the way back is "..".
const HELD: usize = 128;

/// A folder between the top and where the walk is.
struct Level {
    /// Its name in the folder above; the top's is empty.
    name: CString,
    device: u64,
    inode: u64,
    /// `None` while the walk is below and this is too deep to be held.
    folder: Option<OwnedFd>,
    /// Folders in it that are yet to be entered.
    inner: Vec<CString>,
}

/// What is done on the way.
trait Visit {
    /// Something that is no folder.
    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()>;
    /// A folder, when it is entered.
    fn enter(&mut self, found: &Stat);
    /// The folder `name` in `above`, of which all has been seen.
    fn leave(&mut self, above: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()>;
    /// A mount, which is not entered.
    fn mount(&mut self) -> rustix::io::Result<()> {
        Err(Errno::XDEV)
    }
}

/// Bytes on disk and inodes of all that is in `folder`, itself included. Blocks; what vanishes meanwhile is skipped, and
/// what is moved meanwhile may be.
///
/// # Errors
/// The folder, or one in it, cannot be read.
pub fn usage(folder: &Path) -> io::Result<(u64, u64)> {
    let mut total = Usage::default();
    walk(open(CWD, folder, ResolveFlags::empty())?, &mut total)?;
    Ok((total.bytes, total.inodes))
}

/// Removes a folder with all that is in it; of a link, only that. Blocks.
///
/// # Errors
/// It is not there; something in it cannot be removed, as it is a mount for instance. Then some of it may be gone.
pub fn remove(path: &Path) -> io::Result<()> {
    match open(CWD, path, ResolveFlags::empty()) {
        Ok(folder) => walk(folder, &mut Removal)?,
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(rustix::fs::unlink(path)?),
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::fs::rmdir(path)?)
}

#[derive(Default)]
struct Usage {
    bytes: u64,
    inodes: u64,
}

impl Usage {
    fn add(&mut self, found: &Stat) {
        self.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        self.inodes += 1;
    }
}

impl Visit for Usage {
    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        self.add(&rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?);
        Ok(())
    }

    fn enter(&mut self, found: &Stat) {
        self.add(found);
    }

    fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> rustix::io::Result<()> {
        Ok(())
    }

    fn mount(&mut self) -> rustix::io::Result<()> {
        Ok(())
    }
}

struct Removal;

impl Visit for Removal {
    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(folder, name, AtFlags::empty())
    }

    fn enter(&mut self, _: &Stat) {}

    fn leave(&mut self, above: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
    }
}

fn walk(top: OwnedFd, visit: &mut impl Visit) -> rustix::io::Result<()> {
    let mut levels = vec![level(CString::default(), top, visit)?];
    while let Some(deepest) = levels.last_mut() {
        let Some(folder) = &deepest.folder else { return Ok(()) };
        let Some(name) = deepest.inner.pop() else {
            back(&mut levels, visit)?;
            continue;
        };
        match open(folder, &*name, ResolveFlags::BENEATH | ResolveFlags::NO_XDEV) {
            Ok(inner) => {
                let next = level(name, inner, visit)?;
                if levels.len() > HELD
                    && let Some(above) = levels.last_mut()
                {
                    above.folder = None;
                }
                levels.push(next);
            }
            // It vanished, or is no folder any more.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(Errno::XDEV) => visit.mount()?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Goes from the deepest folder to the one above it; to the next that is open if this one was moved elsewhere meanwhile.
fn back(levels: &mut Vec<Level>, visit: &mut impl Visit) -> rustix::io::Result<()> {
    let (Some(done), Some(above)) = (levels.pop(), levels.last_mut()) else { return Ok(()) };
    if above.folder.is_none()
        && let Some(folder) = &done.folder
    {
        let found = open(folder, c"..", ResolveFlags::NO_XDEV)?;
        let stat = rustix::fs::fstat(&found)?;
        if (stat.st_dev, stat.st_ino) == (above.device, above.inode) {
            above.folder = Some(found);
        }
    }
    match &above.folder {
        Some(folder) => unless_gone(visit.leave(folder.as_fd(), &done.name)),
        None => {
            while levels.last().is_some_and(|level| level.folder.is_none()) {
                levels.pop();
            }
            Ok(())
        }
    }
}

/// Enters a folder: looks at all that is in it.
fn level(name: CString, folder: OwnedFd, visit: &mut impl Visit) -> rustix::io::Result<Level> {
    let found = rustix::fs::fstat(&folder)?;
    visit.enter(&found);
    let mut inner = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            },
            known => known,
        };
        if kind == FileType::Directory {
            inner.push(name.to_owned());
        } else {
            unless_gone(visit.file(folder.as_fd(), name))?;
        }
    }
    Ok(Level { name, device: found.st_dev, inode: found.st_ino, folder: Some(folder), inner })
}

fn unless_gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn open(at: impl AsFd, path: impl rustix::path::Arg, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(at, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Makes a folder of so many levels, with a file in the deepest.
    fn nest(top: &Path, levels: usize) {
        let mut at = open(CWD, top, ResolveFlags::empty()).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            at = open(&at, "d", ResolveFlags::empty()).unwrap();
        }
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&at, "f", flags, Mode::from_raw_mode(0o600)).unwrap();
    }

    #[test]
    fn depth_takes_neither_stack_nor_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        nest(&top, 20_000);
        for name in ["a", "z"] {
            fs::create_dir(top.join("d/d").join(name)).unwrap();
            fs::write(top.join("d/d").join(name).join("f"), "x").unwrap();
        }
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let work = move || {
            assert_eq!(usage(&top).unwrap().1, 1 + 20_000 + 1 + 4);
            remove(&top).unwrap();
            assert!(!top.exists());
        };
        small.spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn links_are_counted_and_removed_and_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let (top, outside) = (root.path().join("top"), root.path().join("outside"));
        fs::create_dir(&top).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), vec![1u8; 100_000]).unwrap();
        fs::write(top.join("f"), vec![1u8; 10_000]).unwrap();
        symlink(&outside, top.join("l")).unwrap();
        symlink(&outside, root.path().join("link")).unwrap();
        let (bytes, inodes) = usage(&top).unwrap();
        assert_eq!(inodes, 3);
        assert!((10_000..100_000).contains(&bytes), "{bytes}");
        assert!(usage(&root.path().join("link")).is_err());
        remove(&top).unwrap();
        remove(&root.path().join("link")).unwrap();
        assert!(!top.exists() && !root.path().join("link").is_symlink() && outside.join("precious").exists());
        assert_eq!(remove(&top).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// The folder that the walk is in moves: it goes on where it knows the way, and nowhere else.
    #[test]
    fn folders_that_move_lead_nowhere() {
        struct Mover<'a>(&'a Path, usize);
        impl Visit for Mover<'_> {
            fn file(&mut self, _: BorrowedFd<'_>, _: &CStr) -> rustix::io::Result<()> {
                let deep = ["d"; HELD + 5].iter().collect::<std::path::PathBuf>();
                fs::rename(self.0.join("top").join(deep), self.0.join("elsewhere/d")).unwrap();
                Ok(())
            }
            fn enter(&mut self, _: &Stat) {}
            fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> rustix::io::Result<()> {
                self.1 += 1;
                Ok(())
            }
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("elsewhere")).unwrap();
        fs::create_dir(root.path().join("top")).unwrap();
        nest(&root.path().join("top"), HELD + 10);
        let mut mover = Mover(root.path(), 0);
        walk(open(CWD, root.path().join("top"), ResolveFlags::empty()).unwrap(), &mut mover).unwrap();
        assert!((HELD - 2..HELD + 10).contains(&mover.1), "{}", mover.1);
    }
}
