//! Fitting a layer to the layers below it.
//!
//! All layers of an image are unpacked at once, each into a folder of its own that other images share. Two things in
//! an archive mean nothing without the layers below: a folder that is used but not described (it must look as it does
//! below, and may be a symlink there), and a hard link to a file of a lower layer. Where they make a difference, the
//! image gets a folder of its own for that layer: a copy of the shared one (a container can see a file's number of
//! links, and programs such as cron refuse files that have too many), fitted, and named by a digest over the diff id and everything that was fitted, so that images with the same need share it, too.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::entries::times;
use super::lower::{Found, Lower, hides, is_opaque};
use super::tree::{self, join, open_beneath, split};
use super::{Fault, Summary};
use crate::image::error::ImageError;
use crate::image::record::{LayerRecord, PathBytes};
use crate::types::Digest;

/// What must be changed in a layer so that it fits those below it.
#[derive(Debug, Default, Serialize)]
pub struct Fit {
    /// Folders that get the looks they have below; made if they are not there.
    folders: Vec<Folder>,
    /// Folders whose content moves, since below their name is a symlink: from, to.
    moves: Vec<(PathBytes, PathBytes)>,
    /// Hard links.
    links: Vec<Link>,
    /// The layer's root hides all lower layers.
    #[serde(skip)]
    pub opaque: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Folder {
    path: PathBytes,
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: Vec<(PathBytes, PathBytes)>,
    /// No part of what makes two fits equal: nobody relies on it.
    #[serde(skip)]
    mtime: (i64, u32),
}

#[derive(Debug, Serialize)]
struct Link {
    path: PathBytes,
    /// Folder name of the layer that has the target.
    layer: Digest,
    target: PathBytes,
}

impl Fit {
    /// The name of the fitted layer's folder; `None` if the shared one fits as it is.
    pub fn key(&self, diff_id: Digest) -> Option<Digest> {
        if self.folders.is_empty() && self.moves.is_empty() && self.links.is_empty() {
            return None;
        }
        // Serialising plain structs of numbers and text cannot fail.
        let text = serde_json::to_vec(&("fitted layer 1", diff_id, self)).unwrap_or_default();
        Some(Digest::from_bytes(Sha256::digest(&text).into()))
    }
}

/// Finds out what must be fitted in the layer at `own` above the layers in `below` (topmost first: key and folder).
pub fn plan(own: &Path, record: &LayerRecord, below: &[(Digest, PathBuf)]) -> Result<Fit, ImageError> {
    let of = |fault: Fault| fault_of(fault, record.diff_id, own);
    let root = open(own)?;
    let lower = below.iter().map(|(_, path)| open(path)).collect::<Result<Vec<_>, _>>()?;
    let lower = Lower::new(lower);
    let mut fit = Fit { opaque: is_opaque(&root), ..Fit::default() };
    for path in &record.implied {
        implied(&mut fit, &root, &lower, &path.0).map_err(of)?;
    }
    fit.folders.sort_by(|a, b| a.path.cmp(&b.path));
    fit.folders.dedup_by(|a, b| a.path == b.path);
    for (path, target) in &record.links {
        let reason = || ImageError::Layer {
            layer: record.diff_id,
            reason: format!("{:?} is a hard link to {:?}, which no layer has", lossy(&path.0), lossy(&target.0)),
        };
        let target = lower.resolve(&target.0, false).map_err(of)?.ok_or_else(reason)?;
        let hidden = fit.opaque || hides(&root, &target).map_err(of)?;
        match lower.find(&target).map_err(of)? {
            Found::At { layer, stat } if !hidden && !is_folder(&stat) => {
                let (layer, _) = below.get(layer).ok_or_else(reason)?;
                let path = PathBytes(place_of(record, &lower, &path.0).map_err(of)?);
                fit.links.push(Link { path, layer: *layer, target: PathBytes(target) });
            }
            _ => return Err(reason()),
        }
    }
    Ok(fit)
}

/// Where a link ends up: with its folder, if that is only implied and a symlink below.
fn place_of(record: &LayerRecord, lower: &Lower, path: &[u8]) -> Result<Vec<u8>, Fault> {
    if let Some((parent, name)) = split(path)
        && record.implied.iter().any(|implied| implied.0 == parent)
        && let Some(real) = lower.resolve(parent, true)?
    {
        return Ok(join(&real, name));
    }
    Ok(path.to_vec())
}

fn implied(fit: &mut Fit, own: &OwnedFd, lower: &Lower, path: &[u8]) -> Result<(), Fault> {
    if hides(own, path)? {
        return Ok(());
    }
    let Some(real) = lower.resolve(path, true)? else { return Ok(()) };
    let Found::At { layer, stat } = lower.find(&real)? else { return Ok(()) };
    if !is_folder(&stat) {
        return Ok(());
    }
    if real != path {
        if hides(own, &real)? {
            return Ok(());
        }
        // Of nested folders, moving the outermost moves the rest; an inner symlink is a move of its own.
        let outer = match split(path) {
            Some((parent, name)) => lower.resolve(parent, true)?.map(|parent| join(&parent, name)),
            None => None,
        };
        if outer.as_deref() != Some(&real) {
            fit.moves.push((PathBytes(path.to_vec()), PathBytes(real.clone())));
        }
        let mut at = real.as_slice();
        while let Some((parent, _)) = split(at) {
            if !exists(own, at)?
                && let Found::At { layer, stat } = lower.find(at)?
            {
                fit.folders.push(folder(lower, layer, at, &stat)?);
            }
            at = parent;
        }
        return Ok(());
    }
    let folder = folder(lower, layer, path, &stat)?;
    let usual = (folder.mode, folder.uid, folder.gid) == (0o755, 0, 0) && folder.xattrs.is_empty();
    if !usual {
        fit.folders.push(folder);
    }
    Ok(())
}

fn folder(lower: &Lower, layer: usize, path: &[u8], stat: &Stat) -> Result<Folder, Fault> {
    let mut xattrs = Vec::new();
    if let Some(root) = lower.root(layer) {
        let fd = open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| Fault::disk(path, e))?;
        xattrs = attributes(&fd).map_err(|e| Fault::disk(path, e))?;
    }
    Ok(Folder {
        path: PathBytes(path.to_vec()),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        xattrs: xattrs.into_iter().map(|(name, value)| (PathBytes(name), PathBytes(value))).collect(),
        mtime: mtime(stat),
    })
}

/// Makes the fitted layer in the empty folder `into` from the shared one at `own`; blocks.
pub fn apply(
    own: &Path,
    record: &LayerRecord,
    fit: &Fit,
    below: &[(Digest, PathBuf)],
    into: &Path,
) -> Result<Summary, ImageError> {
    let of = |fault: Fault| fault_of(fault, record.diff_id, into);
    let target = open(into)?;
    let mut copy = Copy { root: open(into)?, links: HashMap::new(), times: BTreeMap::new(), bytes: 0, inodes: 0 };
    copy.folder(&open(own)?, &target, b"").map_err(of)?;
    let mut tree = tree::Tree::new(target);
    for (from, to) in &fit.moves {
        move_content(&mut tree, &from.0, &to.0).map_err(of)?;
        copy.times.retain(|path, _| *path != from.0 && !path.starts_with(&join(&from.0, b"")));
    }
    for folder in &fit.folders {
        let place = tree.folder(&folder.path.0, &mut |_| copy.inodes += 1).map_err(of)?;
        let fd = open_beneath(&*place.fd, b"", OFlags::RDONLY | OFlags::DIRECTORY);
        let done = fd.and_then(|fd| {
            look_alike(&fd, folder.mode, folder.uid, folder.gid)?;
            folder
                .xattrs
                .iter()
                .try_for_each(|(name, value)| fs::fsetxattr(&fd, &name.0[..], &value.0, XattrFlags::empty()))
        });
        done.map_err(|error| of(Fault::disk(&folder.path.0, error)))?;
        copy.times.insert(folder.path.0.clone(), folder.mtime);
    }
    for link in &fit.links {
        let Some((_, source)) = below.iter().find(|(key, _)| *key == link.layer) else { continue };
        copy.link_from(&open(source)?, &link.target.0, &mut tree, &link.path.0).map_err(of)?;
    }
    let root = tree.root();
    for (path, time) in &copy.times {
        let fd = open_beneath(&*root.fd, path, OFlags::RDONLY | OFlags::DIRECTORY);
        let set = fd.and_then(|fd| fs::futimens(fd, &times(*time)));
        match set {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(of(Fault::disk(path, error))),
        }
    }
    Ok(Summary { bytes: copy.bytes, inodes: copy.inodes, ..Summary::default() })
}

struct Copy {
    /// Of what is made.
    root: OwnedFd,
    /// Where the first of several names of a file went, by the original's inode.
    links: HashMap<u64, Vec<u8>>,
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    bytes: u64,
    inodes: u64,
}

impl Copy {
    /// Copies a folder with all that is in it.
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, path: &[u8]) -> Result<(), Fault> {
        let failed = |error| Fault::disk(path, error);
        let stat = fs::fstat(from).map_err(failed)?;
        look_alike(to, stat.st_mode & 0o7777, stat.st_uid, stat.st_gid).map_err(failed)?;
        for (name, value) in attributes(from).map_err(failed)? {
            fs::fsetxattr(to, &name[..], &value, XattrFlags::empty()).map_err(failed)?;
        }
        if is_opaque(from) {
            fs::fsetxattr(to, tree::OPAQUE, b"y", XattrFlags::empty()).map_err(failed)?;
        }
        self.times.insert(path.to_vec(), mtime(&stat));
        self.bytes += 4096;
        self.inodes += 1;
        for entry in list(from).map_err(failed)? {
            let (name, file_type) = entry;
            let child = join(path, name.to_bytes());
            let failed = |error| Fault::disk(&child, error);
            if file_type != FileType::Directory {
                self.file(from, &name, to, &child).map_err(failed)?;
                continue;
            }
            fs::mkdirat(to, &*name, Mode::from_raw_mode(0o700)).map_err(failed)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let inner_from = open_beneath(from, name.to_bytes(), flags).map_err(failed)?;
            let inner_to = open_beneath(to, name.to_bytes(), flags).map_err(failed)?;
            self.folder(&inner_from, &inner_to, &child)?;
        }
        Ok(())
    }

    /// Copies a file; names that share an inode do so in the copy, too.
    fn file(&mut self, from: &OwnedFd, name: &CStr, to: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
        let stat = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                return fs::linkat(&self.root, &first[..], to, name, AtFlags::empty());
            }
            self.links.insert(stat.st_ino, path.to_vec());
        }
        self.copy(from, name, to, name)
    }

    fn link_from(&mut self, source: &OwnedFd, target: &[u8], tree: &mut tree::Tree, path: &[u8]) -> Result<(), Fault> {
        let (Some((from, from_name)), Some((to, to_name))) = (split(target), split(path)) else { return Ok(()) };
        let from = open_beneath(source, from, OFlags::PATH | OFlags::DIRECTORY).map_err(|e| Fault::disk(target, e))?;
        let to = tree.folder(to, &mut |_| ())?;
        tree::remove(&to, to_name)?;
        let name = |name: &[u8]| CString::new(name).map_err(|_| Fault::disk(path, Errno::INVAL));
        self.link(&from, &name(from_name)?, &to.fd, &name(to_name)?).map_err(|error| Fault::disk(path, error))
    }

    fn link(&mut self, from: &OwnedFd, from_name: &CStr, to: &OwnedFd, to_name: &CStr) -> Result<(), Errno> {
        match fs::linkat(from, from_name, to, to_name, AtFlags::empty()) {
            // An inode takes only so many links; then a copy must do.
            Err(Errno::MLINK) => self.copy(from, from_name, to, to_name),
            other => other,
        }
    }

    fn copy(&mut self, from: &OwnedFd, from_name: &CStr, to: &OwnedFd, to_name: &CStr) -> Result<(), Errno> {
        let stat = fs::statat(from, from_name, AtFlags::SYMLINK_NOFOLLOW)?;
        let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        self.inodes += 1;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let source = File::from(open_beneath(from, from_name.to_bytes(), OFlags::RDONLY)?);
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let target = File::from(fs::openat(to, to_name, flags, Mode::from_raw_mode(0o600))?);
                let length = std::io::copy(&mut &source, &mut &target).map_err(errno)?;
                self.bytes += length.next_multiple_of(4096);
                fs::fchown(&target, uid, gid)?;
                fs::fchmod(&target, mode)?;
                for (name, value) in attributes(&source.into())? {
                    fs::fsetxattr(&target, &name[..], &value, XattrFlags::empty())?;
                }
                return fs::futimens(&target, &times(mtime(&stat)));
            }
            FileType::Symlink => fs::symlinkat(fs::readlinkat(from, from_name, Vec::new())?, to, to_name)?,
            other => {
                fs::mknodat(to, to_name, other, mode, stat.st_rdev)?;
                fs::chmodat(to, to_name, mode, AtFlags::empty())?;
            }
        }
        fs::chownat(to, to_name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        fs::utimensat(to, to_name, &times(mtime(&stat)), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Moves what is in `from` into `to`, merging folders; what moves wins over what is there. Then removes `from`.
fn move_content(tree: &mut tree::Tree, from: &[u8], to: &[u8]) -> Result<(), Fault> {
    let Some(source) = tree.existing(from)? else { return Ok(()) };
    let Some((parent, name)) = split(from) else { return Ok(()) };
    let target = tree.folder(to, &mut |_| ())?;
    let fd = open_beneath(&*source.fd, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| Fault::disk(from, e))?;
    for (child, file_type) in list(&fd).map_err(|error| Fault::disk(from, error))? {
        let failed = |error| Fault::disk(&join(from, child.to_bytes()), error);
        let there = match fs::statat(&*target.fd, &*child, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        match (file_type, there) {
            (FileType::Directory, Some(FileType::Directory)) => {
                move_content(tree, &join(from, child.to_bytes()), &join(to, child.to_bytes()))?;
                continue;
            }
            (_, Some(_)) => tree::remove(&target, child.to_bytes())?,
            (_, None) => {}
        }
        fs::renameat(&*source.fd, &*child, &*target.fd, &*child).map_err(failed)?;
    }
    tree.forget();
    if let Some(parent) = tree.existing(parent)? {
        tree::remove(&parent, name)?;
    }
    Ok(())
}

/// Name and value.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

fn list(folder: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            let file_type = match entry.file_type() {
                FileType::Unknown => {
                    let stat = fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                known => known,
            };
            names.push((entry.file_name().to_owned(), file_type));
        }
    }
    Ok(names)
}

/// Extended attributes that an image may bring, by name and value.
fn attributes(fd: &OwnedFd) -> Result<Attributes, Errno> {
    let mut names = vec![0u8; 64 << 10];
    let length = match fs::flistxattr(fd, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0) {
        let ours =
            name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        if ours {
            let mut value = vec![0u8; 64 << 10];
            let length = fs::fgetxattr(fd, name, &mut value[..])?;
            value.truncate(length);
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

fn look_alike(fd: &OwnedFd, mode: u32, uid: u32, gid: u32) -> Result<(), Errno> {
    fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fs::fchmod(fd, Mode::from_raw_mode(mode))
}

fn exists(root: &OwnedFd, path: &[u8]) -> Result<bool, Fault> {
    match open_beneath(root, path, OFlags::PATH) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(error) => Err(Fault::disk(path, error)),
    }
}

fn open(path: &Path) -> Result<OwnedFd, ImageError> {
    File::open(path).map(OwnedFd::from).map_err(ImageError::io("open", path))
}

fn fault_of(fault: Fault, layer: Digest, folder: &Path) -> ImageError {
    fault.of(layer, folder)
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn mtime(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned()
}
