//! Layer folders on disk: which are here, who needs them, and their end.
//!
//! `layers/sha256/KEY/fs` with `layer.json` beside it is a whole, verified layer: it was built as `layers/tmp.N` and
//! renamed. Which of those that earlier boots unpacked were found on the disk in this one stands in `layers/boot.json`.
//! What nobody holds is renamed into `layers/trash` at once and deleted after, by one thread that nobody waits
//! for but who must know of the space: deleting many files takes seconds.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{IFlags, Mode, OFlags};
use tokio::sync::watch;

use super::error::ImageError;
use super::record::{BootRecord, LayerRecord};
use crate::store::{self, Durability, StoreError};
use crate::types::{Digest, chain};

/// Layers that are deleted at once.
const DELETERS: usize = 4;
/// What is deleted leaves the processors to all else.
const NICE: i32 = 10;

/// All layers of a node.
pub struct Layers {
    folder: PathBuf,
    boot_id: String,
    state: Mutex<State>,
    emptying: watch::Sender<Emptying>,
    /// The trash could not be emptied for want of a thread or a descriptor.
    owed: AtomicBool,
    /// How often something was removed by whom it was made for, which may have filled the trash.
    removals: AtomicU64,
    /// Held by tests that want the trash to be full for a while.
    #[cfg(test)]
    pub(super) stall: Mutex<()>,
    serial: AtomicU64,
}

/// What the thread does that empties the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Emptying {
    /// There is none.
    No,
    /// It deletes what it found.
    Yes,
    /// The same, and will look again, as more came meanwhile.
    Again,
}

#[derive(Default)]
struct State {
    known: HashMap<Digest, Known>,
    /// What is still to be deleted: folder in the trash, bytes, inodes.
    trash: HashMap<PathBuf, (u64, u64)>,
    /// False until everybody who needs layers from before the start has said so.
    collecting: bool,
}

struct Known {
    record: Arc<LayerRecord>,
    holds: usize,
}

/// Keeps layers from being deleted.
///
/// A hold that is simply dropped, as all are when the daemon ends, deletes nothing: containers outlive the daemon. Only
/// [`LayerHold::release`] says that the layers are of no use to the holder any more.
#[must_use = "layers are held as long as this lives"]
pub struct LayerHold {
    layers: Arc<Layers>,
    keys: Vec<Digest>,
    /// Deletes what nobody else holds when it is dropped.
    frees: AtomicBool,
}

impl LayerHold {
    /// Ends the hold; layers that nobody else holds are deleted.
    pub fn release(self) {
        self.layers.note_removal();
        self.free_on_drop(true);
    }

    /// Whether the last owner's drop counts as a release.
    pub(super) fn free_on_drop(&self, frees: bool) {
        self.frees.store(frees, Ordering::Release);
    }

    /// The folder names of the layers held.
    pub fn keys(&self) -> &[Digest] {
        &self.keys
    }
}

impl std::fmt::Debug for LayerHold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LayerHold").field(&self.keys).finish()
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        if self.layers.release(&self.keys, self.frees.load(Ordering::Acquire)) {
            self.layers.delete_soon();
        }
    }
}

/// A layer folder being built; removed unless [`Layers::insert`] takes it.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    /// Where the layer's content goes.
    pub fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "unfinished layer could not be removed");
        }
    }
}

impl Layers {
    /// Reads what is in `folder`. A layer of another boot that is not in `durable`, and was not when this boot began, may
    /// have been damaged by power loss and goes, as does everything unfinished.
    pub fn open(folder: &Path, boot_id: &str, durable: &HashSet<Digest>) -> Result<Arc<Self>, ImageError> {
        let layers = Self {
            folder: folder.to_owned(),
            boot_id: boot_id.to_owned(),
            state: Mutex::default(),
            emptying: watch::Sender::new(Emptying::No),
            owed: AtomicBool::new(false),
            removals: AtomicU64::new(0),
            #[cfg(test)]
            stall: Mutex::default(),
            serial: AtomicU64::new(0),
        };
        for path in [folder.to_owned(), layers.folder.join("sha256"), layers.trash()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(ImageError::io("create", &path))?;
        }
        spread(folder);
        // What cannot be deleted counts until somebody does it.
        let count = |path: PathBuf, size| layers.lock().trash.extend([(path, size)]);
        for (_, path) in entries(&layers.trash())? {
            let size = size_of(&path);
            count(path, size);
        }
        for (name, path) in entries(folder)? {
            if name.starts_with("tmp.") {
                let size = size_of(&path);
                count(layers.throw(&path)?, size);
            }
        }
        let noted = layers.noted()?;
        let mut older = BTreeSet::new();
        for (name, path) in entries(&folder.join("sha256"))? {
            let key = Digest::from_hex(&name);
            let record = match store::load::<LayerRecord>(&path.join("layer.json")) {
                // Nothing is known of it, and something may run from it.
                Err(error) if key.is_some() && !matches!(error, StoreError::Damaged { .. }) => return Err(error.into()),
                record => record,
            };
            let usable = |key: &Digest, record: &LayerRecord| {
                record.boot_id == boot_id || durable.contains(key) || noted.contains(key)
            };
            match (key, record) {
                (Some(key), Ok(Some(record))) if usable(&key, &record) && path.join("fs").is_dir() => {
                    if record.boot_id != boot_id {
                        older.insert(key);
                    }
                    layers.lock().known.insert(key, Known { record: Arc::new(record), holds: 0 });
                }
                (_, record) => {
                    let error = record.err().map(|error| error.to_string());
                    tracing::info!(layer = %name, error, "layer is not usable and will be deleted");
                    let size = size_of(&path);
                    count(layers.throw(&path)?, size);
                }
            }
        }
        if !older.is_subset(&noted) {
            layers.note(older);
        }
        let layers = Arc::new(layers);
        layers.delete_soon();
        Ok(layers)
    }

    /// Keeps all that is here for as long as this daemon runs: there may be somebody who cannot be asked.
    pub fn keep_present(&self) {
        self.lock().known.values_mut().for_each(|known| known.holds += 1);
    }

    /// From now on what nobody holds is deleted; what nobody holds now goes first.
    pub fn begin_collecting(self: &Arc<Self>) {
        let mut state = self.lock();
        state.collecting = true;
        let unheld: Vec<_> = state.known.iter().filter(|(_, k)| k.holds == 0).map(|(key, _)| *key).collect();
        self.discard(&mut state, &unheld);
        drop(state);
        self.delete_soon();
    }

    /// The folder of a layer's content.
    pub fn fs(&self, key: Digest) -> PathBuf {
        self.place(key).join("fs")
    }

    /// Holds those of `keys` that are here, for a piece of work: dropping it frees them.
    pub fn hold(self: &Arc<Self>, keys: impl IntoIterator<Item = Digest>) -> LayerHold {
        let mut state = self.lock();
        let mut held = Vec::new();
        for key in keys {
            if let Some(known) = state.known.get_mut(&key) {
                known.holds += 1;
                held.push(key);
            }
        }
        LayerHold { layers: self.clone(), keys: held, frees: AtomicBool::new(true) }
    }

    /// Holds one layer, if it is here.
    pub fn try_hold(self: &Arc<Self>, key: Digest) -> Option<LayerHold> {
        Some(self.hold([key])).filter(|hold| !hold.keys.is_empty())
    }

    /// A layer's record.
    pub fn record(&self, key: Digest) -> Option<Arc<LayerRecord>> {
        self.lock().known.get(&key).map(|known| known.record.clone())
    }

    /// A new folder to build a layer in, with an empty `fs`.
    pub fn temporary(&self) -> Result<Temporary, ImageError> {
        loop {
            let path = self.folder.join(format!("tmp.{}", self.serial.fetch_add(1, Ordering::Relaxed)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let temporary = Temporary { path, kept: false };
                    let root = temporary.fs();
                    // What an image that does not describe its root gets; umask must not narrow it.
                    DirBuilder::new()
                        .create(&root)
                        .and_then(|()| fs::set_permissions(&root, Permissions::from_mode(0o755)))
                        .map_err(ImageError::io("create", &root))?;
                    return Ok(temporary);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ImageError::io("create", &path)(error)),
            }
        }
    }

    /// Takes a finished layer in under `key`. If it came from elsewhere meanwhile, this one is dropped.
    pub fn insert(
        self: &Arc<Self>,
        mut temporary: Temporary,
        key: Digest,
        mut record: LayerRecord,
    ) -> Result<LayerHold, ImageError> {
        record.boot_id.clone_from(&self.boot_id);
        store::save(&temporary.path.join("layer.json"), &record, Durability::Process)?;
        let mut state = self.lock();
        match state.known.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().holds += 1,
            Entry::Vacant(free) => {
                let place = self.place(key);
                fs::rename(&temporary.path, &place).map_err(ImageError::io("rename a layer to", &place))?;
                temporary.kept = true;
                free.insert(Known { record: Arc::new(record), holds: 1 });
            }
        }
        drop(state);
        Ok(LayerHold { layers: self.clone(), keys: vec![key], frees: AtomicBool::new(true) })
    }

    /// Bytes and inodes of all layers, and of those that are not deleted yet.
    pub fn usage(&self) -> (u64, u64) {
        let mut state = self.lock();
        // What could not be deleted may have been by hand.
        let is_gone =
            |path: &Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        state.trash.retain(|path, _| !is_gone(path));
        let known = state.known.values().map(|known| (known.record.bytes, known.record.inodes));
        let trash = state.trash.values().copied();
        known.chain(trash).fold((0, 0), |(bytes, inodes), (more, others)| (bytes + more, inodes + others))
    }

    /// The folder that holds all layers.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is something to wait for by [`Layers::emptied`].
    pub fn is_emptying(&self) -> bool {
        *self.emptying.borrow() != Emptying::No
    }

    /// Notes that an image or a container is removed.
    pub fn note_removal(&self) {
        self.removals.fetch_add(1, Ordering::AcqRel);
    }

    /// How many were, since the start.
    pub fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Waits until all that went into the trash is deleted, or could not be. If that was for want of something that may
    /// be had by now, it is tried again.
    pub async fn emptied(self: &Arc<Self>) {
        if self.owed.swap(false, Ordering::AcqRel) {
            self.delete_soon();
        }
        // It cannot fail while this lives, which has the sender.
        let _ = self.emptying.subscribe().wait_for(|now| *now == Emptying::No).await;
    }

    /// Has the trash emptied. At most one thread does it at a time; one that is at it looks again.
    fn delete_soon(self: &Arc<Self>) {
        let is_first = self.emptying.send_if_modified(|now| {
            let is_first = *now == Emptying::No;
            *now = if is_first { Emptying::Yes } else { Emptying::Again };
            is_first
        });
        if !is_first {
            return;
        }
        let layers = self.clone();
        let work = move || {
            // What cannot be had is no loss: it is only a courtesy.
            let _ = rustix::process::nice(NICE);
            loop {
                layers.delete();
                let is_done = layers.emptying.send_if_modified(|now| {
                    let is_done = *now == Emptying::Yes;
                    *now = if is_done { Emptying::No } else { Emptying::Yes };
                    is_done
                });
                if is_done {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("layer-trash".into()).spawn(work) {
            tracing::warn!(%error, "no thread to delete old layers; tried again when their space is asked for");
            self.owed.store(true, Ordering::Release);
            self.emptying.send_replace(Emptying::No);
        }
    }

    /// Deletes what is in the trash now.
    fn delete(&self) {
        #[cfg(test)]
        let _stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        // Side by side: one takes as long as it takes to find each file's inode.
        let left = match entries(&self.trash()) {
            Ok(found) => Mutex::new(found),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "old layers cannot be listed; tried again when their space is asked for");
                self.owed.store(true, Ordering::Release);
                return;
            }
        };
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = || {
            while let Some((_, path)) = next() {
                match fs::remove_dir_all(&path) {
                    Ok(()) => drop(self.lock().trash.remove(&path)),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "old layer could not be deleted"),
                }
            }
        };
        let more = left.lock().unwrap_or_else(PoisonError::into_inner).len().clamp(1, DELETERS) - 1;
        std::thread::scope(|scope| {
            for _ in 0..more {
                // What no thread could be had for is done by this one.
                let _ = std::thread::Builder::new().name("layer-trash".into()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// Whether anything went into the trash.
    fn release(&self, keys: &[Digest], frees: bool) -> bool {
        let mut state = self.lock();
        let mut free = Vec::new();
        for key in keys {
            if let Some(known) = state.known.get_mut(key) {
                known.holds = known.holds.saturating_sub(1);
                if known.holds == 0 {
                    free.push(*key);
                }
            }
        }
        if !frees || !state.collecting || free.is_empty() {
            return false;
        }
        self.discard(&mut state, &free);
        true
    }

    /// Under the lock, so that a new layer of the same name finds its place free.
    fn discard(&self, state: &mut State, keys: &[Digest]) {
        for key in keys {
            match self.throw(&self.place(*key)) {
                Ok(thrown) => {
                    let record = state.known.remove(key).map(|known| known.record);
                    state.trash.extend(record.map(|record| (thrown, (record.bytes, record.inodes))));
                }
                Err(error) => tracing::warn!(layer = %key, %error, "layer could not be moved to the trash"),
            }
        }
    }

    /// Gives the place in the trash.
    fn throw(&self, path: &Path) -> Result<PathBuf, ImageError> {
        let mut name = [0u8; 8];
        // A clash of names only makes the rename fail.
        let _ = getrandom::fill(&mut name);
        let target = self.trash().join(format!("{:016x}", u64::from_ne_bytes(name)));
        fs::rename(path, &target).map_err(ImageError::io("move to the trash", path))?;
        Ok(target)
    }

    /// Layers of earlier boots that an earlier start in this boot found whole.
    fn noted(&self) -> Result<BTreeSet<Digest>, ImageError> {
        match store::load::<BootRecord>(&self.note_place()) {
            Ok(Some(record)) if record.boot_id == self.boot_id => Ok(record.whole),
            // Only power loss damages it, and so it was another boot's.
            Ok(_) | Err(StoreError::Damaged { .. }) => Ok(BTreeSet::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Written once per boot, and for all layers in one file that no layer depends on: so it needs no sync. What power loss
    /// leaves of it, the boot after that has no use for.
    fn note(&self, whole: BTreeSet<Digest>) {
        let record = BootRecord { boot_id: self.boot_id.clone(), whole };
        if let Err(error) = store::save(&self.note_place(), &record, Durability::Process) {
            // A disk that is full is no reason not to start: somebody has to delete something.
            let error = chain(&error);
            tracing::warn!(
                error,
                "layers of earlier boots are not noted; with their image's record they go at the next start"
            );
        }
    }

    fn note_place(&self) -> PathBuf {
        self.folder.join("boot.json")
    }

    fn place(&self, key: Digest) -> PathBuf {
        self.folder.join("sha256").join(key.hex())
    }

    fn trash(&self) -> PathBuf {
        self.folder.join("trash")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks ext4 to put each folder made in here elsewhere on the disk, as it does with users' homes: layers are written side
/// by side, and each is deleted as a whole. In one place they would queue for it; and without a journal, a new layer
/// would have to look past every file of those just deleted. Other file systems know no such thing, and need not.
fn spread(folder: &Path) {
    let set = || -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let known = rustix::fs::ioctl_getflags(&folder)?;
        rustix::fs::ioctl_setflags(&folder, known | IFlags::TOPDIR)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "layers are not spread over the disk");
    }
}

/// Bytes and inodes of a layer's folder as its record tells; none: nothing is known of it.
fn size_of(folder: &Path) -> (u64, u64) {
    let record = store::load::<LayerRecord>(&folder.join("layer.json")).ok().flatten();
    record.map_or((0, 0), |record| (record.bytes, record.inodes))
}

fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, ImageError> {
    let failed = || ImageError::io("read", folder);
    fs::read_dir(folder)
        .map_err(failed())?
        .map(|entry| {
            let entry = entry.map_err(failed())?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
        })
        .collect()
}
