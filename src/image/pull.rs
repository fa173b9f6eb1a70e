//! A pull from reference to record: manifest, config, all layers at once, fitting, commit.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::try_join_all;
use tokio::sync::mpsc;

use super::auth::Auth;
use super::error::ImageError;
use super::images::{AbortOnDrop, Inner, Job, WeakJob, blocking};
use super::layers::LayerHold;
use super::manifest::{self, ConfigBlob, Descriptor, Document, Manifest};
use super::platform::Platform;
use super::record::{Image, LayerRecord};
use super::reference::{Reference, Version};
use super::registry::Session;
use super::unpack::{self, Wanted};
use crate::types::{Digest, ErrorKind, HasKind as _};

/// Pieces of a blob between network and decompressor.
const PIECES: usize = 8;

/// Longest wait for the remains of a failed pull to be gone.
const CLEANUP: Duration = Duration::from_secs(5);

/// Held by everything that works for a pull; when all are dropped, nothing of it goes on.
type Alive = mpsc::Sender<()>;

/// Pulls; the image's id.
pub(super) async fn run(
    inner: Arc<Inner>,
    reference: Reference,
    auth: Option<Auth>,
    platform: Platform,
) -> Result<Digest, ImageError> {
    let began = std::time::Instant::now();
    let mut first = true;
    loop {
        let (alive, mut gone) = mpsc::channel(1);
        let (emptying, removals) = (inner.layers.is_emptying(), inner.layers.removals());
        let error = match attempt(&inner, &reference, auth.clone(), platform.clone(), alive).await {
            Ok(image) => {
                tracing::info!(%reference, %image, elapsed = ?began.elapsed(), "image pulled");
                return Ok(image);
            }
            Err(error) => error,
        };
        tracing::debug!(%reference, %error, "pull failed");
        // So that the caller who hears of the failure finds nothing left of it. A layer that another pull has
        // joined lives on for that one; it is not waited for.
        let _ = tokio::time::timeout(CLEANUP, gone.recv()).await;
        // Not whether something is being deleted now: the layers that this pull finished are.
        let more_room = emptying || inner.layers.removals() != removals;
        if !(first && more_room && error.kind() == ErrorKind::ResourceExhausted) {
            return Err(error);
        }
        // Whoever makes room by removing an image may pull the next one at once.
        tracing::info!(%reference, %error, "pulling once more when removed layers are deleted");
        first = false;
        inner.layers.emptied().await;
    }
}

async fn attempt(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<Auth>,
    platform: Platform,
    alive: Alive,
) -> Result<Digest, ImageError> {
    let what = reference.to_string();
    let (clients, defaults) = (&inner.clients, &inner.defaults);
    let session = Arc::new(Session::new(reference, auth.as_ref(), clients, defaults, inner.window)?);
    if let Some(id) = unmoved(inner, &session, reference, &platform).await {
        return Ok(id);
    }
    let found = find_manifest(&session, &what, reference.version(), &platform).await?;
    match known(inner, &found, reference).await? {
        Some(id) => Ok(id),
        None => fetch(inner, &session, reference, &platform, found, alive).await,
    }
}

/// The image's id, if the tag is here and the registry says that it has not moved. The registry is asked even so, since
/// only it can tell whether this caller may have the image.
async fn unmoved(inner: &Arc<Inner>, session: &Session, reference: &Reference, platform: &Platform) -> Option<Digest> {
    let Version::Tag(tag) = reference.version() else { return None };
    let index = inner.index();
    let entry = index.resolve(&reference.to_string()).ok()??;
    let digest = session.digest_of(tag).await?;
    let name = format!("{}@{digest}", reference.repository());
    let same = entry.image.digests.contains(&name) && *platform == Platform::host();
    same.then_some(entry.image.id).filter(|id| inner.index().get(*id).is_some())
}

struct Found {
    /// Digest that the tag gave: of the index, where there is one.
    top: Digest,
    manifest: Manifest,
    /// Bytes of the image's own manifest.
    manifest_size: u64,
}

async fn find_manifest(
    session: &Session,
    what: &str,
    version: &Version,
    platform: &Platform,
) -> Result<Found, ImageError> {
    let fetched = session.manifest(version).await?;
    let top = fetched.digest;
    match manifest::parse(what, &fetched.content_type, &fetched.body)? {
        Document::Manifest(manifest) => Ok(Found { top, manifest, manifest_size: fetched.body.len() as u64 }),
        Document::Index(entries) => {
            let chosen = manifest::choose(what, &entries, platform)?;
            let fetched = session.manifest(&Version::Digest(chosen.digest)).await?;
            match manifest::parse(what, &fetched.content_type, &fetched.body)? {
                Document::Manifest(manifest) => Ok(Found { top, manifest, manifest_size: fetched.body.len() as u64 }),
                Document::Index(_) => {
                    Err(ImageError::Manifest { what: what.to_owned(), reason: "its index leads to an index".into() })
                }
            }
        }
    }
}

/// If the image is here already, it only gets the new names.
async fn known(inner: &Arc<Inner>, found: &Found, reference: &Reference) -> Result<Option<Digest>, ImageError> {
    let id = found.manifest.config.digest;
    if inner.index().get(id).is_none() {
        return Ok(None);
    }
    let writing = inner.begin_writing().await;
    let Some(entry) = inner.index().get(id).cloned() else { return Ok(None) };
    let mut image = (*entry.image).clone();
    add_names(&mut image, reference, found.top);
    let is_current = image == *entry.image;
    if !is_current {
        let (inner, hold) = (inner.clone(), inner.layers.hold(entry.hold.keys().iter().copied()));
        blocking(move || inner.commit(image, hold, &writing)).await?;
    }
    Ok(Some(id))
}

async fn fetch(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    reference: &Reference,
    platform: &Platform,
    found: Found,
    alive: Alive,
) -> Result<Digest, ImageError> {
    let what = &reference.to_string();
    let Manifest { config, layers } = found.manifest;
    let body = session.small_blob(&config).await?;
    let blob = manifest::parse_config(what, &body, layers.len(), platform)?;
    let tasks = layers.iter().zip(&blob.diff_ids).map(|(descriptor, diff_id)| {
        AbortOnDrop::spawn(layer(inner.clone(), session.clone(), descriptor.clone(), *diff_id, alive.clone()))
            .wait("layer")
    });
    // The first failure drops the others, which stops them.
    let holds = try_join_all(tasks).await?;
    let sizes = layers.iter().map(|layer| layer.size).chain([config.size, found.manifest_size]);
    let size = sizes.fold(0, u64::saturating_add);
    let ConfigBlob { diff_ids, config: run, created } = blob;
    let mut image = Image {
        id: config.digest,
        tags: Vec::new(),
        digests: Vec::new(),
        size,
        layers: Vec::new(),
        diff_ids,
        config: run,
        pinned: false,
        created,
    };
    let settled = inner.clone();
    let diff_ids = image.diff_ids.clone();
    let (keys, fitted) = blocking(move || settle(&settled, &diff_ids)).await?;
    image.layers = keys;
    let writing = inner.begin_writing().await;
    // Somebody may have committed the same image under another name meanwhile.
    if let Some(entry) = inner.index().get(image.id) {
        image.tags.clone_from(&entry.image.tags);
        image.digests.clone_from(&entry.image.digests);
    }
    add_names(&mut image, reference, found.top);
    let id = image.id;
    let owner = inner.clone();
    let hold = inner.layers.hold(super::images::needs(&image));
    blocking(move || owner.commit(image, hold, &writing)).await?;
    drop((holds, fitted));
    Ok(id)
}

fn add_names(image: &mut Image, reference: &Reference, top: Digest) {
    let add = |list: &mut Vec<String>, name: String| {
        if !list.contains(&name) {
            list.push(name);
        }
    };
    if let Version::Tag(_) = reference.version() {
        add(&mut image.tags, reference.to_string());
    }
    add(&mut image.digests, format!("{}@{top}", reference.repository()));
}

/// Gets a layer: it is here, or under way in another pull, or is fetched.
async fn layer(
    inner: Arc<Inner>,
    session: Arc<Session>,
    descriptor: Descriptor,
    diff_id: Digest,
    alive: Alive,
) -> Result<Arc<LayerHold>, ImageError> {
    loop {
        let (job, ours) = {
            let mut fetching = inner.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            // Looked at under the lock: a fetch that ends puts the layer in before it leaves this list.
            if let Some(hold) = inner.layers.try_hold(diff_id) {
                return Ok(Arc::new(hold));
            }
            fetching.retain(|_, job| job.upgrade().is_some_and(|job| job.peek().is_none()));
            match fetching.get(&diff_id).and_then(WeakJob::upgrade) {
                Some(job) => (job, false),
                None => {
                    let work = fetch_layer(inner.clone(), session.clone(), descriptor.clone(), diff_id, alive.clone());
                    let job: Job<Arc<LayerHold>> = work.boxed().shared();
                    job.downgrade().map(|weak| fetching.insert(diff_id, weak));
                    (job, true)
                }
            }
        };
        match job.await {
            // It was another pull's registry or credentials that failed; ours may not.
            Err(error) if !ours => tracing::debug!(layer = %diff_id, %error, "joined download failed; trying again"),
            result => return result,
        }
    }
}

async fn fetch_layer(
    inner: Arc<Inner>,
    session: Arc<Session>,
    descriptor: Descriptor,
    diff_id: Digest,
    alive: Alive,
) -> Result<Arc<LayerHold>, ImageError> {
    let gone = || ImageError::Aborted { what: format!("layer {diff_id}") };
    let _slot = inner.slots.clone().acquire_owned().await.map_err(|_| gone())?;
    let wanted = Wanted { blob: descriptor.digest, size: descriptor.size, diff_id };
    let mut first = 0;
    loop {
        let (tx, rx) = mpsc::channel(PIECES);
        let (layers, alive) = (inner.layers.clone(), alive.clone());
        let unpack = move || -> Result<LayerHold, ImageError> {
            // Owned here, so that it is removed wherever this ends, also if nobody waits any more.
            let temporary = layers.temporary()?;
            let summary = unpack::unpack(rx, wanted, &temporary.fs())?;
            let record = LayerRecord {
                diff_id,
                bytes: summary.bytes,
                inodes: summary.inodes,
                boot_id: String::new(),
                implied: summary.implied,
                links: summary.links,
            };
            layers.insert(temporary, diff_id, record)
        };
        // The result first: if nobody takes it any more, it is dropped before the sign of life is.
        let unpacking = tokio::task::spawn_blocking(move || (unpack(), alive));
        let (source, from) = (session.clone(), descriptor.clone());
        let download = AbortOnDrop::spawn(async move { source.stream(&from, first, &tx).await });
        let downloaded = download.wait("download").await;
        let unpacked = unpacking.await.map_or_else(|_| Err(gone()), |(unpacked, _)| unpacked);
        match (downloaded, unpacked) {
            // What came was not what was promised; another host may do better.
            (Ok(_), Err(error @ ImageError::Corrupt { .. })) if first + 1 < session.hosts() => {
                tracing::warn!(%error, "layer will be fetched from the next host");
                first += 1;
            }
            (Ok(_), unpacked) => return unpacked.map(Arc::new),
            (Err(error), _) => return Err(error),
        }
    }
}

/// Fits each layer to those below it. Gives the folder names, bottom first, and a hold of the fitted ones.
fn settle(inner: &Arc<Inner>, diff_ids: &[Digest]) -> Result<(Vec<Digest>, Vec<LayerHold>), ImageError> {
    let mut below: Vec<(Digest, PathBuf)> = Vec::new();
    let mut fitted = Vec::new();
    for diff_id in diff_ids {
        let gone = || ImageError::Aborted { what: format!("layer {diff_id}") };
        let record = inner.layers.record(*diff_id).ok_or_else(gone)?;
        let own = inner.layers.fs(*diff_id);
        let fit = unpack::plan_fit(&own, &record, &below)?;
        let key = match fit.key(*diff_id) {
            None => *diff_id,
            Some(key) => {
                let hold = match inner.layers.try_hold(key) {
                    Some(hold) => hold,
                    None => {
                        let temporary = inner.layers.temporary()?;
                        let summary = unpack::apply_fit(&own, &record, &fit, &below, &temporary.fs())?;
                        let record = LayerRecord {
                            diff_id: *diff_id,
                            bytes: summary.bytes,
                            inodes: summary.inodes,
                            boot_id: String::new(),
                            implied: Vec::new(),
                            links: Vec::new(),
                        };
                        inner.layers.insert(temporary, key, record)?
                    }
                };
                fitted.push(hold);
                key
            }
        };
        if fit.opaque {
            below.clear();
        }
        below.insert(0, (key, inner.layers.fs(key)));
    }
    Ok((below.into_iter().rev().map(|(key, _)| key).collect(), fitted))
}
