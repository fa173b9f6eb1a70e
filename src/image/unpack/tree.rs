//! Finding places inside a layer's folder, whatever the archive says.
//!
//! Folders are only ever opened beneath the layer's root: by one openat2 that follows no symlink, or, where the
//! archive itself made a symlink on the way, component by component with O_NOFOLLOW, following links by hand and
//! never above the root.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::Fault;

/// What makes a folder hide the same folder of lower layers (kernel: filesystems/overlayfs).
pub const OPAQUE: &str = "trusted.overlay.opaque";
/// Symlinks followed on one path.
const MAX_LINKS: usize = 40;
/// Deepest path, components.
pub const MAX_DEPTH: usize = 256;

/// A folder of the layer.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder, opened O_PATH.
    pub fd: Rc<OwnedFd>,
    /// Its path below the root after symlinks; empty: the root.
    pub path: Rc<Vec<u8>>,
}

impl Place {
    /// The path of `name` in this folder.
    pub fn child(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// A layer's folder.
pub struct Tree {
    root: Place,
    last: Option<(Vec<u8>, Place)>,
}

/// A path without `.`, `..`, doubled or leading slashes.
///
/// `a/../b` is `b`, a leading slash means the layer's root; a path that climbs above the root is refused.
pub fn clean(path: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    let shown = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
                    return Err(Fault::Archive(format!("{shown:?} climbs out of the layer")));
                }
            }
            other => parts.push(other),
        }
        if parts.len() > MAX_DEPTH {
            return Err(Fault::Archive(format!("a path has more than {MAX_DEPTH} components")));
        }
    }
    Ok(parts.join(&b'/'))
}

/// Parent and last component of a clean path; `None` for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

/// `folder/name`, where an empty folder is the root.
pub fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

impl Tree {
    /// A tree whose root is the opened folder.
    pub fn new(root: OwnedFd) -> Self {
        Self { root: Place { fd: Rc::new(root), path: Rc::new(Vec::new()) }, last: None }
    }

    /// The root.
    pub fn root(&self) -> Place {
        self.root.clone()
    }

    /// Forgets the folder found last; needed after anything was removed.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// The folder at `path` (clean). Folders that are not there are made, and their paths given to `made`.
    pub fn folder(&mut self, path: &[u8], made: &mut dyn FnMut(Vec<u8>)) -> Result<Place, Fault> {
        if let Some((known, place)) = &self.last
            && known == path
        {
            return Ok(place.clone());
        }
        let place = match self.direct(path)? {
            Some(place) => place,
            None => self.walk(path, Some(made))?.ok_or_else(|| Fault::Archive("a folder vanished".into()))?,
        };
        self.last = Some((path.to_vec(), place.clone()));
        Ok(place)
    }

    /// The folder at `path` (clean), `None` where this layer has none.
    pub fn existing(&self, path: &[u8]) -> Result<Option<Place>, Fault> {
        match self.direct(path)? {
            Some(place) => Ok(Some(place)),
            None => self.walk(path, None),
        }
    }

    /// One system call for the usual case: all components are folders of this layer.
    fn direct(&self, path: &[u8]) -> Result<Option<Place>, Fault> {
        if path.is_empty() {
            return Ok(Some(self.root()));
        }
        match open_beneath(&*self.root.fd, path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(Place { fd: Rc::new(fd), path: Rc::new(path.to_vec()) })),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Fault::disk(path, error)),
        }
    }

    fn walk(&self, path: &[u8], mut made: Option<&mut dyn FnMut(Vec<u8>)>) -> Result<Option<Place>, Fault> {
        let mut rest: Vec<Vec<u8>> = components(path);
        let mut stack = vec![self.root()];
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let Some(here) = stack.last().cloned() else { return Ok(None) };
            let child = here.child(&name);
            match open_folder(&*here.fd, &name) {
                Ok(fd) => stack.push(Place { fd: Rc::new(fd), path: Rc::new(child) }),
                Err(Errno::NOENT) => {
                    let Some(made) = made.as_deref_mut() else { return Ok(None) };
                    stack.push(make_folder(&here, &name)?);
                    made(child);
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let stat = fs::statat(&*here.fd, &name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|error| Fault::disk(&child, error))?;
                    match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Symlink => {
                            links += 1;
                            let target = fs::readlinkat(&*here.fd, &name, Vec::new())
                                .map_err(|error| Fault::disk(&child, error))?;
                            let target = target.as_bytes();
                            if links > MAX_LINKS || rest.len() + target.len() > 2 * 4096 {
                                return Err(Fault::archive(path, "leads through too many symlinks"));
                            }
                            if target.first() == Some(&b'/') {
                                stack.truncate(1);
                            }
                            rest.extend(components(target));
                        }
                        FileType::CharacterDevice if stat.st_rdev == 0 && made.is_some() => {
                            // Deleted from the layers below and made anew: nothing of them may show in it.
                            unlink(&here, &name)?;
                            let place = make_folder(&here, &name)?;
                            set_opaque(&here, &name)?;
                            stack.push(place);
                        }
                        FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(None),
                        _ if made.is_none() => return Ok(None),
                        _ => return Err(Fault::archive(path, "has a parent that is no folder")),
                    }
                }
                Err(error) => return Err(Fault::disk(&child, error)),
            }
            if stack.len() > MAX_DEPTH {
                return Err(Fault::archive(path, "is too deep"));
            }
        }
        Ok(stack.pop())
    }
}

/// Opens `path` beneath `root`, following no symlink.
pub fn open_beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Marks the folder `name` as hiding what lower layers have in it.
pub fn set_opaque(parent: &Place, name: &[u8]) -> Result<(), Fault> {
    let path = parent.child(name);
    let fd = open_beneath(&*parent.fd, name, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|error| Fault::disk(&path, error))?;
    fs::fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty()).map_err(|error| Fault::disk(&path, error))
}

/// Removes a file, link, device or whole folder; what is not there is fine.
pub fn remove(parent: &Place, name: &[u8]) -> Result<(), Fault> {
    match fs::unlinkat(&*parent.fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(Fault::disk(&parent.child(name), error)),
    }
    let path = parent.child(name);
    let failed = |error| Fault::disk(&path, error);
    let fd = open_beneath(&*parent.fd, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let inner = Place { path: Rc::new(path.clone()), fd: Rc::new(fd) };
    for entry in Dir::read_from(&*inner.fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            remove(&inner, child)?;
        }
    }
    fs::unlinkat(&*parent.fd, name, AtFlags::REMOVEDIR).map_err(failed)
}

fn unlink(parent: &Place, name: &[u8]) -> Result<(), Fault> {
    fs::unlinkat(&*parent.fd, name, AtFlags::empty()).map_err(|error| Fault::disk(&parent.child(name), error))
}

fn open_folder(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

fn make_folder(parent: &Place, name: &[u8]) -> Result<Place, Fault> {
    let path = parent.child(name);
    let made = fs::mkdirat(&*parent.fd, name, Mode::from_raw_mode(0o755))
        .and_then(|()| {
            fs::openat(
                &*parent.fd,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })
        .and_then(|fd| {
            // Whatever umask and a setgid parent made of it.
            fs::fchown(&fd, Some(fs::Uid::ROOT), Some(fs::Gid::ROOT))?;
            fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
            Ok(fd)
        });
    let fd = made.map_err(|error| Fault::disk(&path, error))?;
    Ok(Place { fd: Rc::new(fd), path: Rc::new(path) })
}

/// Components to walk, the first one last, with `..` kept.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_made_relative_or_refused() {
        for (path, want) in [
            ("", Some("")),
            ("./", Some("")),
            ("/", Some("")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a//b/./c/", Some("a/b/c")),
            ("a/../b", Some("b")),
            ("..", None),
            ("a/../../b", None),
            ("/../x", None),
        ] {
            let cleaned = clean(path.as_bytes()).ok().map(|p| String::from_utf8(p).unwrap());
            assert_eq!(cleaned.as_deref(), want, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_clean_path_stays_below(path in "[./a]{0,30}") {
            if let Ok(cleaned) = clean(path.as_bytes()) {
                prop_assert!(cleaned.split(|b| *b == b'/').all(|p| p != b".." && p != b"."));
                prop_assert_eq!(clean(&cleaned).unwrap(), cleaned);
            }
        }
    }
}
