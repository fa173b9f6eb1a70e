//! Looking into the layers below, merged as overlayfs will merge them, without mounting anything.

use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Fault;
use super::tree::{OPAQUE, open_beneath, split};

/// What stands at a path in the merged view.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Something, in the layer with this index (topmost first).
    At {
        /// Index of the layer.
        layer: usize,
        /// Its metadata there.
        stat: Stat,
    },
}

enum InLayer {
    Found(Stat),
    /// Not here; lower layers may have it.
    Missing,
    /// Not here, and lower layers cannot show through.
    Hidden,
}

/// Opened layer folders, topmost first.
pub struct Lower {
    layers: Vec<OwnedFd>,
}

impl Lower {
    /// From opened `fs` folders, topmost first.
    pub fn new(layers: Vec<OwnedFd>) -> Self {
        Self { layers }
    }

    /// A layer's root.
    pub fn root(&self, layer: usize) -> Option<&OwnedFd> {
        self.layers.get(layer)
    }

    /// Finds `path` (clean; symlinks are not followed).
    pub fn find(&self, path: &[u8]) -> Result<Found, Fault> {
        for (layer, root) in self.layers.iter().enumerate() {
            match look(root, path)? {
                InLayer::Found(stat) => return Ok(Found::At { layer, stat }),
                InLayer::Missing => {}
                InLayer::Hidden => break,
            }
        }
        Ok(Found::Nothing)
    }
}

/// Whether a folder above `path` in this layer hides what lower layers have there.
pub fn hides(root: &OwnedFd, path: &[u8]) -> Result<bool, Fault> {
    let mut at = path;
    while let Some((parent, _)) = split(at) {
        match open_beneath(root, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) if is_opaque(&fd) => return Ok(true),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(true),
            Err(error) => return Err(Fault::disk(parent, error)),
        }
        at = parent;
    }
    Ok(false)
}

/// Whether the folder has overlayfs' mark for "nothing of the layers below".
pub fn is_opaque(fd: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    fs::fgetxattr(fd, OPAQUE, &mut value).is_ok_and(|length| length == 1 && value == *b"y")
}

fn look(root: &OwnedFd, path: &[u8]) -> Result<InLayer, Fault> {
    let failed = |error| Fault::disk(path, error);
    let mut folder = open_beneath(root, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    if path.is_empty() {
        return fs::fstat(&folder).map(InLayer::Found).map_err(failed);
    }
    let mut parts = path.split(|b| *b == b'/').peekable();
    while let Some(name) = parts.next() {
        let opaque = is_opaque(&folder);
        let stat = match fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(if opaque { InLayer::Hidden } else { InLayer::Missing }),
            Err(error) => return Err(failed(error)),
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Ok(InLayer::Hidden);
        }
        if parts.peek().is_none() {
            return Ok(InLayer::Found(stat));
        }
        if file_type != FileType::Directory {
            return Ok(InLayer::Hidden);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        folder = fs::openat(&folder, name, flags, Mode::empty()).map_err(failed)?;
    }
    Ok(InLayer::Missing)
}

/// Symlinks followed on one path.
const MAX_LINKS: usize = 40;

impl Lower {
    /// The path that `path` leads to when symlinks of the merged view are followed (never above its root), the last
    /// component's too if `last` says so; `None` if the way there does not exist.
    pub fn resolve(&self, path: &[u8], last: bool) -> Result<Option<Vec<u8>>, Fault> {
        let mut rest: Vec<Vec<u8>> = components(path);
        let mut at: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                at = split(&at).map(|(parent, _)| parent.to_vec()).unwrap_or_default();
                continue;
            }
            let child = super::tree::join(&at, &name);
            if rest.is_empty() && !last {
                return Ok(Some(child));
            }
            let Found::At { layer, stat } = self.find(&child)? else { return Ok(None) };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    let target = self.read_link(layer, &child)?;
                    links += 1;
                    if links > MAX_LINKS || target.len() + rest.len() > 8192 {
                        return Ok(None);
                    }
                    if target.first() == Some(&b'/') {
                        at.clear();
                    }
                    rest.extend(components(&target));
                }
                FileType::Directory => at = child,
                _ if rest.is_empty() => at = child,
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn read_link(&self, layer: usize, path: &[u8]) -> Result<Vec<u8>, Fault> {
        let failed = |error| Fault::disk(path, error);
        let (Some(root), Some((parent, name))) = (self.root(layer), split(path)) else { return Ok(Vec::new()) };
        let folder = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
        Ok(fs::readlinkat(&folder, name, Vec::new()).map_err(failed)?.into_bytes())
    }
}

/// Components, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}
