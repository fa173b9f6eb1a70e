//! What each entry of an archive makes in the layer's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind};
use super::tree::{self, OPAQUE, Place, Tree};
use super::{Fault, Summary};
use crate::image::record::PathBytes;

/// Most entries in a layer.
const MAX_ENTRIES: u64 = 8_000_000;
/// Most bytes that paths of implied folders and unresolved links may take in the layer's record.
const MAX_NOTES: usize = 4 << 20;
/// Unit in which disk usage is counted.
const UNIT: u64 = 4096;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks a whole archive into the folder `root`.
pub fn unpack<R: BufRead>(archive: &mut Archive<R>, root: OwnedFd) -> Result<Summary, Fault> {
    let mut layer = Layer {
        tree: Tree::new(root),
        implied: BTreeSet::from([Vec::new()]),
        links: Vec::new(),
        times: BTreeMap::new(),
        notes: 0,
        bytes: UNIT,
        inodes: 1,
    };
    let mut count = 0u64;
    while let Some(entry) = archive.next_entry()? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(Fault::Archive(format!("it has more than {MAX_ENTRIES} entries")));
        }
        layer.apply(&entry, archive)?;
    }
    layer.finish()
}

struct Layer {
    tree: Tree,
    /// Folders made on the way to something else and not described so far.
    implied: BTreeSet<Vec<u8>>,
    /// Link and target, both below the root and free of symlinks as far as this layer knows.
    links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Folders' times; set last, since every change inside a folder moves them.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    notes: usize,
    bytes: u64,
    inodes: u64,
}

impl Layer {
    fn apply<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Fault> {
        let path = tree::clean(&entry.path)?;
        let Some((parent, name)) = tree::split(&path) else {
            return if entry.kind == Kind::Folder {
                self.root(entry)
            } else {
                Err(Fault::archive(b"/", "is no folder"))
            };
        };
        // aufs kept its own housekeeping in layers; none of it is content.
        if path.split(|b| *b == b'/').any(|part| part.starts_with(AUFS) && part != OPAQUE_MARK) {
            return Ok(());
        }
        if parent.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return Err(Fault::archive(&path, "lies below a whiteout"));
        }
        let place = self.parent(parent)?;
        self.date_implied(&place.path, entry.mtime);
        if name == OPAQUE_MARK {
            return self.opaque(&place);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&place, hidden);
        }
        match entry.kind {
            Kind::Folder => self.folder(&place, name, entry),
            Kind::File => self.file(&place, name, entry, archive),
            Kind::Symlink => self.symlink(&place, name, entry),
            Kind::Hardlink => self.hardlink(&place, name, entry),
            Kind::Char | Kind::Block | Kind::Fifo => self.node(&place, name, entry),
        }
    }

    fn parent(&mut self, path: &[u8]) -> Result<Place, Fault> {
        let mut made = Vec::new();
        let place = self.tree.folder(path, &mut |path| made.push(path))?;
        for path in made {
            self.count(UNIT);
            self.note(path.len())?;
            self.implied.insert(path);
        }
        Ok(place)
    }

    /// A folder that is not described is as old as the youngest thing put into it.
    fn date_implied(&mut self, folder: &[u8], mtime: (i64, u32)) {
        let mut at = Some(folder);
        while let Some(path) = at.filter(|path| self.implied.contains(*path)) {
            match self.times.get_mut(path) {
                Some(time) if *time >= mtime => return,
                Some(time) => *time = mtime,
                None => {
                    self.times.insert(path.to_vec(), mtime);
                }
            }
            at = tree::split(path).map(|(parent, _)| parent);
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Fault> {
        self.implied.remove(&b""[..]);
        let fd = tree::open_beneath(&*self.tree.root().fd, b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|error| Fault::disk(b"", error))?;
        self.times.insert(Vec::new(), entry.mtime);
        describe(&fd, b"", entry)
    }

    fn folder(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let path = place.child(name);
        let failed = |error| Fault::disk(&path, error);
        match fs::mkdirat(&*place.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.count(UNIT),
            Err(Errno::EXIST) => {
                if self.kind_of(place, name)? != Some(FileType::Directory) {
                    // Something else stood here, or a whiteout: what lower layers have below this name is gone.
                    self.clear(place, name)?;
                    fs::mkdirat(&*place.fd, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                    tree::set_opaque(place, name)?;
                    self.count(UNIT);
                }
            }
            Err(error) => return Err(failed(error)),
        }
        self.implied.remove(&path);
        let fd = tree::open_beneath(&*place.fd, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        describe(&fd, &path, entry)?;
        self.times.insert(path, entry.mtime);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Fault> {
        let path = place.child(name);
        let failed = |error| Fault::disk(&path, error);
        let fd = self.fresh(place, name, |place, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::openat(&*place.fd, name, flags, Mode::from_raw_mode(0o600))
        })?;
        let stored = match &entry.pieces {
            None => write_piece(&fd, &path, 0, u64::MAX, archive)?,
            Some(pieces) => {
                fs::ftruncate(&fd, entry.size).map_err(failed)?;
                let mut sum = 0;
                for (offset, length) in pieces {
                    sum += write_piece(&fd, &path, *offset, *length, archive)?;
                }
                sum
            }
        };
        self.count(stored.next_multiple_of(UNIT));
        describe(&fd, &path, entry)?;
        fs::futimens(&fd, &times(entry.mtime)).map_err(failed)
    }

    fn symlink(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        if entry.link.is_empty() {
            return Err(Fault::archive(&place.child(name), "is a symlink to nothing"));
        }
        self.fresh(place, name, |place, name| fs::symlinkat(&entry.link[..], &*place.fd, name))?;
        self.count(0);
        own_and_date(place, name, entry)
    }

    fn node(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let file_type = match entry.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = fs::makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(entry.mode);
        self.fresh(place, name, |place, name| fs::mknodat(&*place.fd, name, file_type, mode, device))?;
        self.count(0);
        own_and_date(place, name, entry)?;
        // Made just now by us, so it is no symlink; changing the owner may have taken setuid bits.
        fs::chmodat(&*place.fd, name, mode, AtFlags::empty()).map_err(|error| Fault::disk(&place.child(name), error))
    }

    fn hardlink(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let path = place.child(name);
        let target = tree::clean(&entry.link)?;
        let Some((target_parent, target_name)) = tree::split(&target) else {
            return Err(Fault::archive(&path, "is a hard link to the root"));
        };
        let source = self.tree.existing(target_parent)?;
        let Some(source) = source else { return self.link_below(place, name, path, target) };
        if source.child(target_name) == path {
            return Ok(());
        }
        match self.kind_of(&source, target_name)? {
            None => self.link_below(place, name, path, source.child(target_name)),
            Some(FileType::Directory) => Err(Fault::archive(&path, "is a hard link to a folder")),
            Some(FileType::CharacterDevice) if self.is_whiteout(&source, target_name)? => {
                Err(Fault::archive(&path, "is a hard link to what this layer deletes"))
            }
            Some(_) => {
                self.fresh(place, name, |place, name| {
                    fs::linkat(&*source.fd, target_name, &*place.fd, name, AtFlags::empty())
                })?;
                Ok(())
            }
        }
    }

    /// The target is in a lower layer, which may not even be here yet: noted, and made when it is.
    fn link_below(&mut self, place: &Place, name: &[u8], path: Vec<u8>, target: Vec<u8>) -> Result<(), Fault> {
        self.clear(place, name)?;
        self.note(path.len() + target.len())?;
        // A link to such a link is a link to the same target.
        let target = self.links.iter().find(|(link, _)| *link == target).map_or(target, |(_, first)| first.clone());
        self.links.push((path, target));
        Ok(())
    }

    fn whiteout(&mut self, place: &Place, hidden: &[u8]) -> Result<(), Fault> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::archive(&place.path, "holds a whiteout without a name"));
        }
        let device = fs::mknodat(&*place.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0);
        match device {
            Ok(()) => self.count(0),
            // A whiteout is about the layers below; what this layer itself has stays.
            Err(Errno::EXIST) if self.kind_of(place, hidden)? == Some(FileType::Directory) => {
                tree::set_opaque(place, hidden)?;
                self.implied.remove(&place.child(hidden));
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(Fault::disk(&place.child(hidden), error)),
        }
        Ok(())
    }

    fn opaque(&mut self, place: &Place) -> Result<(), Fault> {
        let failed = |error| Fault::disk(&place.path, error);
        let fd = tree::open_beneath(&*place.fd, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        fs::fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty()).map_err(failed)
    }

    /// Makes something under a name that nothing else in the layer has afterwards.
    fn fresh<T>(
        &mut self,
        place: &Place,
        name: &[u8],
        make: impl Fn(&Place, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, Fault> {
        let made = match make(place, name) {
            Err(Errno::EXIST) => {
                self.clear(place, name)?;
                make(place, name)
            }
            other => other,
        };
        let made = made.map_err(|error| Fault::disk(&place.child(name), error))?;
        if !self.links.is_empty() {
            let path = place.child(name);
            self.links.retain(|(link, _)| *link != path);
        }
        Ok(made)
    }

    /// Removes what has this name, with all that is below it.
    fn clear(&mut self, place: &Place, name: &[u8]) -> Result<(), Fault> {
        tree::remove(place, name)?;
        self.tree.forget();
        let path = place.child(name);
        let below = |other: &[u8]| other == path || (other.starts_with(&path) && other.get(path.len()) == Some(&b'/'));
        self.implied.retain(|other| !below(other));
        self.links.retain(|(link, _)| !below(link));
        self.times.retain(|other, _| !below(other));
        Ok(())
    }

    fn kind_of(&self, place: &Place, name: &[u8]) -> Result<Option<FileType>, Fault> {
        match fs::statat(&*place.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Fault::disk(&place.child(name), error)),
        }
    }

    fn is_whiteout(&self, place: &Place, name: &[u8]) -> Result<bool, Fault> {
        let stat = fs::statat(&*place.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.map(|s| s.st_rdev == 0).map_err(|error| Fault::disk(&place.child(name), error))
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.inodes += 1;
    }

    fn note(&mut self, bytes: usize) -> Result<(), Fault> {
        self.notes += bytes;
        if self.notes > MAX_NOTES { Err(Fault::Archive("it leaves too much to other layers".into())) } else { Ok(()) }
    }

    fn finish(self) -> Result<Summary, Fault> {
        let root = self.tree.root();
        for (path, mtime) in &self.times {
            set_time(&root, path, *mtime)?;
        }
        Ok(Summary {
            bytes: self.bytes,
            inodes: self.inodes,
            implied: self.implied.into_iter().map(PathBytes).collect(),
            links: self.links.into_iter().map(|(link, target)| (PathBytes(link), PathBytes(target))).collect(),
        })
    }
}

fn write_piece<R: BufRead>(
    fd: &OwnedFd,
    path: &[u8],
    offset: u64,
    length: u64,
    archive: &mut Archive<R>,
) -> Result<u64, Fault> {
    let mut done = 0u64;
    while done < length {
        let data = archive.data()?;
        if data.is_empty() {
            break;
        }
        let most = usize::try_from(length - done).unwrap_or(usize::MAX).min(data.len());
        let written = match rustix::io::pwrite(fd, &data[..most], offset + done) {
            Ok(0) => return Err(Fault::disk(path, Errno::NOSPC)),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(Fault::disk(path, error)),
        };
        archive.consume(written);
        done += written as u64;
    }
    Ok(done)
}

/// Owner, then mode (a change of owner takes setuid bits), then attributes.
fn describe(fd: &OwnedFd, path: &[u8], entry: &Entry) -> Result<(), Fault> {
    let failed = |error| Fault::disk(path, error);
    fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(failed)?;
    fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
    for (name, value) in &entry.xattrs {
        set_attribute(fd, name, value).map_err(failed)?;
    }
    Ok(())
}

/// Attributes an image may bring are file capabilities and `user.*`; the rest belongs to this node (labels,
/// overlayfs' own marks, which would let an image hide or redirect other layers).
fn set_attribute(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let capability = name == b"security.capability";
    if !capability && (!name.starts_with(b"user.") || name.starts_with(b"user.overlay.")) {
        tracing::debug!(name = %String::from_utf8_lossy(name), "extended attribute of an image left out");
        return Ok(());
    }
    match fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        // User attributes that the file system cannot keep are no reason to refuse the image; a lost capability is. (ext4
        // answers "no space" to a value that does not fit its block.)
        Err(error) if !capability => {
            tracing::debug!(name = %String::from_utf8_lossy(name), %error, "extended attribute of an image is lost");
            Ok(())
        }
        other => other,
    }
}

fn own_and_date(place: &Place, name: &[u8], entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    fs::chownat(&*place.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| fs::utimensat(&*place.fd, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW))
        .map_err(|error| Fault::disk(&place.child(name), error))
}

fn set_time(root: &Place, path: &[u8], mtime: (i64, u32)) -> Result<(), Fault> {
    let set = tree::open_beneath(&*root.fd, path, OFlags::RDONLY | OFlags::DIRECTORY)
        .and_then(|fd| fs::futimens(fd, &times(mtime)));
    set.map_err(|error| Fault::disk(path, error))
}

/// One time for access and modification.
pub fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
