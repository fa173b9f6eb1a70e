//! A watched folder of manifests, kept running: one task per pod name, which outlives changes of the manifest.

mod scan;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{Inotify, WatchMask};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::types::{ErrorKind, HasKind, chain};

use super::client::Cri;
use super::events::Events;
use super::node;
use super::pod_worker::WorkerError;
use super::qos::CgroupDriver;
use super::record::Record;
use super::teardown::PodRef;
use super::translate::{Dirs, Node, PodJob, labels};

pub use scan::{Folder, Key, Pods};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the runtime's answers about sandboxes are waited for at the end: the next driver would have to wait longer
/// for those that never come.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// The folder cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("manifests folder {path}")]
pub struct StaticPodsError {
    /// Folder.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl HasKind for StaticPodsError {
    fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        }
    }
}

/// What to run, and how.
#[derive(Debug)]
pub struct Options {
    /// Folder of manifests.
    pub manifests: PathBuf,
    /// Where files go.
    pub dirs: Dirs,
    /// Overrides the runtime's cgroup driver.
    pub driver: Option<CgroupDriver>,
}

/// What all tasks share.
struct Shared {
    cri: Cri,
    node: Arc<Node>,
    dirs: Arc<Dirs>,
    events: Events,
    owner: String,
    asking: TaskTracker,
}

/// Keeps the pods of a folder running until `stop` is cancelled. They go on then; the next driver for the same
/// folder takes them over.
///
/// # Errors
/// The folder cannot be watched or read.
pub async fn serve(cri: Cri, options: Options, stop: CancellationToken) -> Result<(), StaticPodsError> {
    let Options { manifests, dirs, driver } = options;
    let fail = |source| StaticPodsError { path: manifests.clone(), source };
    let canonical = std::fs::canonicalize(&manifests).map_err(fail)?;
    let inotify = Inotify::init().map_err(fail)?;
    // A manifest is read when its writer is done with it.
    let mask =
        WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::CREATE | WatchMask::DELETE_SELF;
    inotify.watches().add(&canonical, mask).map_err(fail)?;
    let mut changes = inotify.into_event_stream([0u8; 4096]).map_err(fail)?;
    let Some(node) = until(&stop, "the runtime does not answer", || node::discover(&cri, driver)).await else {
        return Ok(());
    };
    node.1.iter().for_each(|note| tracing::warn!("{note}"));
    let owner = owner(&canonical);
    tracing::info!(manifests = %canonical.display(), %owner, "driver up");
    let events = Events::start(cri.clone());
    let shared = Arc::new(Shared {
        cri,
        node: Arc::new(node.0),
        dirs: Arc::new(dirs),
        events,
        owner,
        asking: TaskTracker::new(),
    });
    let mut slots = Slots { shared: shared.clone(), wanted: BTreeMap::new(), tasks: JoinSet::new() };
    let mut folder = Folder::default();
    let mut shown = BTreeSet::new();
    slots.apply(&read(&mut folder, &canonical, &shared.owner, &mut shown).map_err(fail)?);
    // What an earlier driver left of manifests that are gone since.
    let Some(left) = until(&stop, "cannot list pods", || leftovers(&shared)).await else {
        last_answers(&shared).await;
        return Ok(());
    };
    left.into_iter().for_each(|key| slots.want(key, None));
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                last_answers(&shared).await;
                return Ok(());
            }
            change = changes.next() => {
                if let Some(Err(error)) = change {
                    return Err(fail(error));
                }
                match read(&mut folder, &canonical, &shared.owner, &mut shown) {
                    Ok(pods) => slots.apply(&pods),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(fail(error)),
                    Err(error) => tracing::error!(manifests = %canonical.display(), %error, "cannot read the folder"),
                }
            }
            Some(ended) = slots.tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a pod's task broke down");
                }
            }
        }
    }
}

/// Asks for no more sandboxes, and waits for what is still to be told of those that were asked for.
async fn last_answers(shared: &Shared) {
    shared.asking.close();
    if tokio::time::timeout(LAST_ANSWERS, shared.asking.wait()).await.is_err() {
        tracing::warn!("the runtime has not answered about a sandbox that it was asked for");
    }
}

/// The owner label: two drivers with different folders never touch each other's pods.
fn owner(folder: &Path) -> String {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("dir-{hex}")
}

fn read(folder: &mut Folder, path: &Path, owner: &str, shown: &mut BTreeSet<String>) -> io::Result<Pods> {
    let (pods, errors) = folder.scan(path, owner)?;
    for error in errors.iter().filter(|error| !shown.contains(*error)) {
        tracing::error!("{error}");
    }
    *shown = errors.into_iter().collect();
    Ok(pods)
}

/// What stands in the driver's folders of pods of this folder.
async fn records(shared: &Shared) -> Result<Vec<Record>, WorkerError> {
    let dirs = shared.dirs.clone();
    let mut records = tokio::task::spawn_blocking(move || Record::all(&dirs)).await??;
    records.retain(|record| record.pod.owner == shared.owner);
    Ok(records)
}

async fn leftovers(shared: &Shared) -> Result<Vec<Key>, WorkerError> {
    let mine = [(labels::OWNER.to_owned(), shared.owner.clone())].into();
    let pods = shared.cri.sandboxes(mine).await?.into_iter().filter_map(|sandbox| PodRef::from_labels(&sandbox.labels));
    let pods = pods.chain(records(shared).await?.into_iter().map(|record| record.pod));
    Ok(pods.map(|pod| (pod.namespace, pod.name)).collect::<BTreeSet<_>>().into_iter().collect())
}

/// Tries until it works, with growing pauses; `None` if told to stop.
async fn until<T, E: std::error::Error + 'static, F>(
    stop: &CancellationToken,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, E>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let result = tokio::select! {
            result = attempt() => result,
            () = stop.cancelled() => return None,
        };
        match result {
            Ok(value) => return Some(value),
            Err(error) => tracing::warn!(error = %chain(&error), "{what}"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return None,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One task per pod name ever seen.
struct Slots {
    shared: Arc<Shared>,
    wanted: BTreeMap<Key, watch::Sender<Option<Arc<PodJob>>>>,
    tasks: JoinSet<()>,
}

impl Slots {
    fn apply(&mut self, pods: &Pods) {
        for (key, sender) in &self.wanted {
            if !pods.contains_key(key) {
                sender.send_if_modified(|known| known.take().is_some());
            }
        }
        for (key, job) in pods {
            self.want(key.clone(), Some(job.clone()));
        }
    }

    fn want(&mut self, key: Key, job: Option<Arc<PodJob>>) {
        let same = |a: &Arc<PodJob>, b: &Arc<PodJob>| a.uid == b.uid && a.hash == b.hash;
        match (self.wanted.get(&key), job) {
            // Left over, and wanted after all.
            (Some(_), None) => {}
            (Some(sender), Some(job)) => {
                sender.send_if_modified(|known| {
                    let changed = !known.as_ref().is_some_and(|known| same(known, &job));
                    if changed {
                        *known = Some(job);
                    }
                    changed
                });
            }
            (None, job) => {
                let (sender, receiver) = watch::channel(job);
                self.wanted.insert(key.clone(), sender);
                self.tasks.spawn(slot::run(self.shared.clone(), key, receiver));
            }
        }
    }
}
