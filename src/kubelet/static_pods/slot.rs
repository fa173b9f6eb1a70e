//! One pod name: runs what is wanted under it, and clears away what no longer is.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::types::chain;

use super::super::pod_worker::{Halt, Report, Tools, Worker, WorkerError};
use super::super::record::{Claim, Record};
use super::super::teardown::{PodRef, teardown};
use super::super::translate::{PodJob, labels};
use super::{FIRST_PAUSE, Key, LONGEST_PAUSE, Shared, records};

type Wanted = watch::Receiver<Option<Arc<PodJob>>>;

/// Goes on for as long as somebody may want something: a name that comes back finds what is left of it.
pub(super) async fn run(shared: Arc<Shared>, key: Key, mut wanted: Wanted) {
    let pod = format!("{}/{}", key.0, key.1);
    let mut pause = FIRST_PAUSE;
    loop {
        let job = wanted.borrow_and_update().clone();
        let begun = async {
            clear(&shared, &key, job.as_deref()).await?;
            let Some(job) = &job else { return Ok(None) };
            claim(&shared, PodRef::of(job), Some(job.clone())).await.map(Some)
        };
        // Held until something else is wanted.
        let _claim = match begun.await {
            Ok(claim) => claim,
            Err(error) => {
                tracing::warn!(%pod, error = %chain(&error), "a former pod, or another's, is in the way");
                // Nothing tells when a runtime's trouble is over, nor another driver's work.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = FIRST_PAUSE;
        if let Some(job) = job {
            work(&shared, &pod, job, &mut wanted).await;
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Runs a pod to its end, or until something else is wanted.
async fn work(shared: &Shared, pod: &str, job: Arc<PodJob>, wanted: &mut Wanted) {
    let (halt, halted) = watch::channel(Halt::No);
    let (reports, incoming) = mpsc::channel(64);
    let tools = Tools {
        cri: shared.cri.clone(),
        node: shared.node.clone(),
        dirs: shared.dirs.clone(),
        listener: shared.events.listen(),
        reports,
        halt: halted,
        asking: shared.asking.clone(),
    };
    tracing::info!(%pod, uid = %job.uid, "pod wanted");
    let mut worker = Worker::new(job, tools, true);
    let run = async move { worker.run().await };
    let log = log(pod, incoming);
    let changed = async {
        // `wait_for` would look at the value at hand; only a new one counts.
        let mut later = wanted.clone();
        if later.changed().await.is_ok() {
            halt.send_replace(Halt::Gracefully);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        (result, ()) = async { tokio::join!(run, log) } => match result {
            Ok(outcome) => tracing::info!(%pod, ?outcome, "pod over"),
            Err(error) => tracing::error!(%pod, error = %chain(&error), "pod failed"),
        },
        () = changed => {}
    }
}

async fn log(pod: &str, mut reports: mpsc::Receiver<Report>) {
    while let Some(report) = reports.recv().await {
        match report {
            Report::Pulling(image) => tracing::info!(%pod, %image, "pulling"),
            Report::Pulled(image, took) => tracing::info!(%pod, %image, ?took, "pulled"),
            Report::SandboxStarting => tracing::debug!(%pod, "making the sandbox"),
            Report::SandboxReady(ips) => tracing::info!(%pod, ?ips, "sandbox ready"),
            Report::Starting { container, attempt, .. } => tracing::debug!(%pod, %container, attempt, "starting"),
            Report::Started(container) => tracing::info!(%pod, %container, "started"),
            Report::Exited { container, attempt, code, reason, message } => {
                tracing::info!(%pod, %container, attempt, code, %reason, %message, "exited");
            }
            Report::BackOff(container, until) => {
                tracing::info!(%pod, %container, until = %crate::types::rfc3339_nano(until), "backing off");
            }
            Report::Stopping => tracing::info!(%pod, "stopping"),
            Report::Trouble(error) => tracing::warn!(%pod, %error, "will try again"),
        }
    }
}

/// Removes the pods of this name but the one that is wanted.
async fn clear(shared: &Shared, key: &Key, keep: Option<&PodJob>) -> Result<(), WorkerError> {
    let mine = [(labels::OWNER, &shared.owner), (labels::POD_NAMESPACE, &key.0), (labels::POD_NAME, &key.1)];
    let mine = mine.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut doomed = BTreeMap::new();
    for sandbox in shared.cri.sandboxes(mine).await? {
        let Some(pod) = PodRef::from_labels(&sandbox.labels) else { continue };
        let hash = sandbox.annotations.get(labels::MANIFEST_HASH);
        if keep.is_some_and(|job| job.uid == pod.uid && Some(&job.hash) == hash) {
            continue;
        }
        let grace = sandbox.annotations.get(labels::GRACE).and_then(|text| text.parse().ok()).unwrap_or(30);
        doomed.insert(pod, grace);
    }
    // Those that never had a sandbox, or whose sandbox another client removed.
    for Record { pod, grace, .. } in records(shared).await? {
        if pod.namespace == key.0 && pod.name == key.1 && keep.is_none_or(|job| job.uid != pod.uid) {
            doomed.entry(pod).or_insert(grace);
        }
    }
    for (pod, grace) in doomed {
        tracing::info!(pod = %format!("{}/{}", key.0, key.1), uid = %pod.uid, "removing");
        let claim = claim(shared, pod.clone(), None).await?;
        teardown(&shared.cri, &shared.dirs, &pod, grace, &claim).await?;
    }
    Ok(())
}

/// Claims a pod's folder, to run this job in it or to remove it. An error if it is another's.
async fn claim(shared: &Shared, pod: PodRef, job: Option<Arc<PodJob>>) -> Result<Claim, WorkerError> {
    let dirs = shared.dirs.clone();
    let claimed = tokio::task::spawn_blocking(move || {
        let claimed = match job {
            Some(job) => Claim::take(&job, &dirs)?,
            None => Claim::of(&pod, &dirs)?,
        };
        claimed.ok_or_else(|| {
            let folder = dirs.pods.join(&pod.uid);
            let by = Record::read(&folder).map_or_else(|| "is in use".to_owned(), |record| record.whose());
            WorkerError::Taken { folder: folder.display().to_string(), by }
        })
    });
    claimed.await?
}
