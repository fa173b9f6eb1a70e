//! The images of this node: the public face, and the one owner of their records.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::auth::Auth;
use super::error::ImageError;
use super::index::{Entry, Index};
use super::layers::{LayerHold, Layers};
use super::platform::Platform;
use super::record::{Image, ImageRecord};
use super::reference::Reference;
use super::registry::{Clients, Defaults};
use crate::store::{self, Durability};
use crate::sys::process;
use crate::types::{Digest, now_ns};

/// How images are pulled and where they are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The daemon's root folder; `images/` and `layers/` in it are ours.
    pub root: PathBuf,
    /// Folder with a `hosts.toml` per registry, containerd's `certs.d` layout.
    pub registry_config_dir: Option<PathBuf>,
    /// Layers downloaded and unpacked at the same time, over all pulls.
    pub max_concurrent_layers: usize,
    /// How long a registry may be silent, or slower than 1 KiB/s, before the next host is asked.
    pub pull_progress_timeout: Duration,
    /// Registries on loopback speak plain http unless hosts.toml says otherwise.
    pub plain_http_loopback: bool,
    /// Further registries (host with port) that speak plain http.
    pub plain_http_hosts: Vec<String>,
}

impl Settings {
    /// What holds without configuration.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            registry_config_dir: None,
            max_concurrent_layers: 6,
            pull_progress_timeout: Duration::from_secs(30),
            plain_http_loopback: true,
            plain_http_hosts: Vec::new(),
        }
    }
}

/// Disk usage of all images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// Folder on the file system that holds them.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
    /// When this was true, ns since the epoch.
    pub timestamp_ns: i64,
}

pub(super) type Job<T> = Shared<BoxFuture<'static, Result<T, ImageError>>>;
pub(super) type WeakJob<T> = WeakShared<BoxFuture<'static, Result<T, ImageError>>>;
type PullKey = (String, Option<Auth>, Platform);

/// The images of this node. Clones are the same.
#[derive(Clone)]
pub struct Images {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    folder: PathBuf,
    boot_id: String,
    pub(super) layers: Arc<Layers>,
    pub(super) clients: Clients,
    pub(super) defaults: Defaults,
    pub(super) window: Duration,
    /// Bounds layers under way.
    pub(super) slots: Arc<Semaphore>,
    index: ArcSwap<Index>,
    /// Whoever changes the index or a record has this.
    writing: Arc<tokio::sync::Mutex<()>>,
    syncing: AtomicBool,
    pulls: Mutex<HashMap<PullKey, WeakJob<Digest>>>,
    /// Layers being fetched, by diff id.
    pub(super) fetching: Mutex<HashMap<Digest, WeakJob<Arc<LayerHold>>>>,
}

impl Images {
    /// Reads the records. Images that a power loss may have damaged are dropped, unfinished layers deleted. Layers that
    /// no image needs stay until [`Images::collect_garbage`].
    pub fn open(settings: Settings) -> Result<Self, ImageError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(path).map_err(ImageError::io("read", path))?.trim().to_owned();
        Self::open_in_boot(settings, boot_id)
    }

    pub(super) fn open_in_boot(settings: Settings, boot_id: String) -> Result<Self, ImageError> {
        let folder = settings.root.join("images");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(ImageError::io("create", &folder))?;
        let mut records = load(&folder)?;
        records.retain(|record| {
            let sound = record.synced || record.boot_id == boot_id;
            if !sound {
                tracing::warn!(image = %record.image.id, tags = ?record.image.tags, "image was not on disk before the reboot; dropped");
            }
            sound || !forget(&folder, record.image.id)
        });
        let durable: HashSet<Digest> = records.iter().flat_map(|record| needs(&record.image)).collect();
        let layers = Layers::open(&settings.root.join("layers"), &boot_id, &durable)?;
        records.sort_by_key(|record| record.tagged_ns);
        let mut index = Index::default();
        for record in records {
            let image = Arc::new(record.image);
            let hold = Arc::new(layers.hold(needs(&image)));
            hold.free_on_drop(false);
            if let Some(missing) = image.layers.iter().find(|key| !hold.keys().contains(key)) {
                tracing::warn!(image = %image.id, tags = ?image.tags, layer = %missing, "layer is missing; image dropped");
                forget(&folder, image.id);
                continue;
            }
            let (boot_id, synced, tagged_ns) = (record.boot_id, record.synced, record.tagged_ns);
            index.put(Entry { image, boot_id, synced, tagged_ns, hold });
        }
        let inner = Inner {
            folder,
            boot_id,
            layers,
            clients: Clients::default(),
            defaults: Defaults {
                folder: settings.registry_config_dir,
                plain_loopback: settings.plain_http_loopback,
                plain: settings.plain_http_hosts,
            },
            window: settings.pull_progress_timeout,
            slots: Arc::new(Semaphore::new(settings.max_concurrent_layers.max(1))),
            index: ArcSwap::from_pointee(index),
            writing: Arc::default(),
            syncing: AtomicBool::new(false),
            pulls: Mutex::default(),
            fetching: Mutex::default(),
        };
        let images = Self { inner: Arc::new(inner) };
        images.inner.sync_soon();
        Ok(images)
    }

    /// Keeps all layers that are here, whoever needs them, for as long as this daemon runs.
    pub fn keep_present(&self) {
        self.inner.layers.keep_present();
    }

    /// Deletes layers that neither an image nor a [`LayerHold`] needs, now and from now on. Called once, when all
    /// containers from before the start have their holds back.
    pub fn collect_garbage(&self) {
        self.inner.layers.begin_collecting();
    }

    /// Pulls an image for this machine, or for `platform`, and gives its id. Callers that want the same with the same
    /// credentials share one pull; when the last of them goes away, it is given up and leaves nothing.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        platform: Option<Platform>,
    ) -> Result<Digest, ImageError> {
        let reference = Reference::parse(reference)?;
        let platform = platform.unwrap_or_else(Platform::host);
        let auth = auth.filter(|auth| !auth.is_empty());
        let key = (reference.to_string(), auth.clone(), platform.clone());
        let job = {
            let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.retain(|_, job| job.upgrade().is_some_and(|job| job.peek().is_none()));
            match pulls.get(&key).and_then(WeakJob::upgrade) {
                Some(job) => job,
                None => {
                    let task = AbortOnDrop::spawn(super::pull::run(self.inner.clone(), reference, auth, platform));
                    let job: Job<Digest> = task.wait("pull").boxed().shared();
                    job.downgrade().map(|weak| pulls.insert(key, weak));
                    job
                }
            }
        };
        job.await
    }

    /// All images.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.index.load().images().map(|entry| entry.image.clone()).collect()
    }

    /// An image by id, id prefix, tag, digest reference or short name. An ambiguous prefix is an error.
    pub fn resolve(&self, reference_or_id: &str) -> Result<Option<Arc<Image>>, ImageError> {
        Ok(self.inner.index.load().resolve(reference_or_id)?.map(|entry| entry.image.clone()))
    }

    /// [`Images::resolve`] where an ambiguous prefix counts as not found.
    pub fn find(&self, reference_or_id: &str) -> Option<Arc<Image>> {
        self.resolve(reference_or_id).ok().flatten()
    }

    /// Removes an image with all its names: once this returns, it is gone from all lists and nothing brings it back. Its
    /// layers are deleted after that, in the background: see [`Images::deleted`]. One that is not here is fine. Layers
    /// that containers hold stay until those are gone.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), ImageError> {
        let inner = self.inner.clone();
        let text = reference_or_id.to_owned();
        blocking(move || {
            let writing = inner.writing.blocking_lock();
            let Some(id) = inner.index.load().resolve(&text)?.map(|entry| entry.image.id) else { return Ok(()) };
            let path = path_of(&inner.folder, id);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("remove", &path)(error));
                }
                _ => {}
            }
            let mut index = Index::clone(&inner.index.load());
            let removed = index.take(id);
            inner.index.store(Arc::new(index));
            drop(writing);
            // Readers may hold the old index for a moment yet; whoever is last throws the layers away.
            if let Some(removed) = removed {
                inner.layers.note_removal();
                removed.hold.free_on_drop(true);
            }
            tracing::info!(image = %id, "image removed");
            Ok(())
        })
        .await
    }

    /// Waits until the layers of what was removed are deleted, at most so long.
    pub async fn deleted(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.inner.layers.emptied()).await;
    }

    /// Disk usage, with that of what is still to be deleted.
    pub fn fs_info(&self) -> FsInfo {
        let layers = &self.inner.layers;
        let (used_bytes, inodes_used) = layers.usage();
        FsInfo { mountpoint: layers.folder().to_owned(), used_bytes, inodes_used, timestamp_ns: now_ns() }
    }

    /// Keeps an image's layers while a container uses them, also after the image is removed, until
    /// [`LayerHold::release`].
    pub fn hold(&self, image: &Image) -> LayerHold {
        self.hold_layers(&image.layers)
    }

    /// The same from [`Image::layers`] of a container's record, after a restart. Those not here are left out.
    pub fn hold_layers(&self, layers: &[Digest]) -> LayerHold {
        let hold = self.inner.layers.hold(layers.iter().copied());
        hold.free_on_drop(false);
        hold
    }
}

impl Inner {
    /// Images as they are now.
    pub(super) fn index(&self) -> Arc<Index> {
        self.index.load_full()
    }

    pub(super) async fn begin_writing(&self) -> OwnedMutexGuard<()> {
        self.writing.clone().lock_owned().await
    }

    /// Puts an image in and writes all records that change by it; blocks. `writing` proves that nobody else does.
    pub(super) fn commit(
        self: &Arc<Self>,
        image: Image,
        hold: LayerHold,
        _writing: &OwnedMutexGuard<()>,
    ) -> Result<(), ImageError> {
        let id = image.id;
        let old = self.index.load().get(id).map(|entry| (entry.synced, entry.hold.clone()));
        // Nothing new on disk but the record itself: as durable as it was.
        let (synced, hold) = match old {
            Some((synced, old)) if old.keys() == hold.keys() => (synced, old),
            Some((_, old)) => {
                old.free_on_drop(true);
                (false, Arc::new(hold))
            }
            None => (false, Arc::new(hold)),
        };
        let entry = Entry { image: Arc::new(image), boot_id: self.boot_id.clone(), synced, tagged_ns: now_ns(), hold };
        let mut index = Index::clone(&self.index.load());
        let robbed = index.put(entry);
        // The new owner of a name first: after a crash between the two, the later of them wins.
        for changed in std::iter::once(id).chain(robbed) {
            if let Some(entry) = index.get(changed) {
                self.save(entry)?;
            }
        }
        // From here on the layers belong to the image, which outlives this process.
        index.get(id).inspect(|entry| entry.hold.free_on_drop(false));
        self.index.store(Arc::new(index));
        self.sync_soon();
        Ok(())
    }

    fn save(&self, entry: &Entry) -> Result<(), ImageError> {
        let durability = if entry.synced { Durability::Power } else { Durability::Process };
        Ok(store::save(&path_of(&self.folder, entry.image.id), &entry.record(), durability)?)
    }

    /// Brings images pulled since the last time to the disk, in the background.
    fn sync_soon(self: &Arc<Self>) {
        if !self.index.load().images().any(|entry| !entry.synced) || self.syncing.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.clone();
        let spawned = std::thread::Builder::new().name("image-sync".into()).spawn(move || {
            loop {
                let done = inner.sync();
                inner.syncing.store(false, Ordering::Release);
                if let Err(error) = &done {
                    tracing::warn!(error = %crate::types::chain(error), "images could not be synced to disk");
                }
                // An image may have come between the last look and the store above.
                let more = inner.index.load().images().any(|entry| !entry.synced);
                if done.is_err() || !more || inner.syncing.swap(true, Ordering::AcqRel) {
                    // The pull before has done with its buffers.
                    process::trim_memory();
                    return;
                }
            }
        });
        if spawned.is_err() {
            self.syncing.store(false, Ordering::Release);
        }
    }

    fn sync(&self) -> Result<(), ImageError> {
        let unsynced: Vec<_> =
            self.index.load().images().filter(|e| !e.synced).map(|e| (e.image.id, e.image.layers.clone())).collect();
        let folder = self.layers.folder();
        let file = File::open(folder).map_err(ImageError::io("open", folder))?;
        rustix::fs::syncfs(file).map_err(|error| ImageError::io("sync", folder)(error.into()))?;
        let _writing = self.writing.blocking_lock();
        let mut index = Index::clone(&self.index.load());
        for (id, layers) in unsynced {
            let Some(entry) = index.get(id).filter(|entry| entry.image.layers == layers) else { continue };
            let entry = Entry { synced: true, ..entry.clone() };
            self.save(&entry)?;
            index.put(entry);
        }
        self.index.store(Arc::new(index));
        Ok(())
    }
}

/// Layers that an image keeps: those it is made of, and the shared ones that fitted ones were made from.
pub(super) fn needs(image: &Image) -> Vec<Digest> {
    let mut keys = image.layers.clone();
    keys.extend(image.diff_ids.iter().filter(|diff_id| !image.layers.contains(diff_id)));
    keys
}

/// Runs blocking work on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let gone = |_| ImageError::Aborted { what: "image operation".into() };
    tokio::task::spawn_blocking(work).await.map_err(gone)?
}

/// A task that ends with its owner.
pub(super) struct AbortOnDrop<T>(tokio::task::JoinHandle<Result<T, ImageError>>);

impl<T: Send + 'static> AbortOnDrop<T> {
    pub(super) fn spawn(work: impl Future<Output = Result<T, ImageError>> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    pub(super) async fn wait(mut self, what: &'static str) -> Result<T, ImageError> {
        (&mut self.0).await.unwrap_or_else(|_| Err(ImageError::Aborted { what: what.into() }))
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn path_of(folder: &Path, id: Digest) -> PathBuf {
    folder.join(format!("{}.json", id.hex()))
}

/// Whether the record is gone.
fn forget(folder: &Path, id: Digest) -> bool {
    let removed = fs::remove_file(path_of(folder, id));
    if let Err(error) = &removed {
        tracing::warn!(image = %id, %error, "image record could not be removed");
    }
    true
}

fn load(folder: &Path) -> Result<Vec<ImageRecord>, ImageError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).map_err(ImageError::io("read", folder))? {
        let path = entry.map_err(ImageError::io("read", folder))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match store::load::<ImageRecord>(&path) {
            Ok(record) => records.extend(record),
            // One damaged record must not keep the node from starting; the image can be pulled again.
            Err(error @ store::StoreError::Damaged { .. }) => {
                tracing::warn!(error = %crate::types::chain(&error), "image record is set aside");
                let aside = path.with_extension("damaged");
                fs::rename(&path, &aside).map_err(ImageError::io("rename", &path))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(records)
}
