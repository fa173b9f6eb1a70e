//! One pod, from its manifest to its exit code, watched by a person or a script.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::proto;
use crate::types::{ErrorKind, HasKind, chain, now_ns};

use super::client::{Cri, CriError};
use super::console::Show;
use super::events::Events;
use super::logs;
use super::manifest::{Manifest, notes};
use super::node;
use super::pod_worker::state::Outcome;
use super::pod_worker::{Halt, Report, Tools, Worker, WorkerError};
use super::qos::CgroupDriver;
use super::record::Claim;
use super::teardown::{PodRef, remove_cgroups, remove_shared_cgroups, stop, teardown};
use super::translate::{Dirs, Origin, PodJob, labels};
use super::uid;
use super::volumes::{self, VolumeError};

/// The label [`super::translate::labels::OWNER`] of pods that are run like this.
pub const OWNER: &str = "run";
/// Exit code when the time limit passed.
pub const TIMED_OUT: u8 = 124;
/// Exit code when the driver or the runtime failed.
pub const FAILED: u8 = 125;

/// The pod could not be run.
#[derive(Debug, thiserror::Error)]
pub enum OneShotError {
    /// Not exactly one pod.
    #[error("the manifest holds {0} pods: want one")]
    Pods(usize),
    /// The runtime does not answer.
    #[error("runtime endpoint {endpoint}")]
    Endpoint {
        /// Endpoint.
        endpoint: String,
        /// Why.
        #[source]
        source: CriError,
    },
    /// A pod of this uid is there.
    #[error("a pod with uid {0} is there already, or being made; remove it first")]
    Exists(String),
    /// The pod's folders cannot be made.
    #[error(transparent)]
    Files(#[from] VolumeError),
    /// The runtime refuses something.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The pod cannot run.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl HasKind for OneShotError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Pods(_) => ErrorKind::InvalidArgument,
            Self::Endpoint { source, .. } | Self::Cri(source) => source.kind(),
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::Files(source) => source.kind(),
            Self::Worker(source) => source.kind(),
        }
    }
}

/// How to run it.
#[derive(Debug)]
pub struct Options {
    /// Runtime endpoint, as given.
    pub endpoint: String,
    /// Where files go.
    pub dirs: Dirs,
    /// Overrides the runtime's cgroup driver.
    pub driver: Option<CgroupDriver>,
    /// Stop the pod after this.
    pub timeout: Option<Duration>,
    /// Remove the pod, its volumes and logs at the end.
    pub remove: bool,
    /// Follow the logs.
    pub logs: bool,
}

/// A request to stop, and the exit code it brings.
#[derive(Debug, Clone, Copy)]
pub struct StopRequest {
    /// Exit code.
    pub code: u8,
}

/// Runs the only pod of a manifest to its end. The first stop request stops it gracefully, a second one kills it.
/// Answers with the process's exit code.
///
/// # Errors
/// The pod could not be run; what there is of it is stopped (and removed, if so asked).
pub async fn run(
    cri: Cri,
    manifest: Manifest,
    options: Options,
    mut stops: mpsc::Receiver<StopRequest>,
    show: mpsc::Sender<Show>,
) -> Result<u8, OneShotError> {
    let count = manifest.pods.len();
    let (1, Some(document)) = (count, manifest.pods.into_iter().next()) else { return Err(OneShotError::Pods(count)) };
    let version = cri.version(proto::VersionRequest { version: "v1".to_owned() }).await;
    version.map_err(|source| OneShotError::Endpoint { endpoint: options.endpoint.clone(), source })?;
    let (node, node_notes) = node::discover(&cri, options.driver).await?;
    let job = Arc::new(PodJob {
        uid: if document.pod.metadata.uid.is_empty() { uid::random() } else { document.pod.metadata.uid.clone() },
        pod: document.pod,
        objects: manifest.objects,
        hash: document.hash,
        owner: OWNER.to_owned(),
        origin: Origin { endpoint: options.endpoint.clone(), ..Origin::default() },
    });
    let pod = PodRef::of(&job);
    // Whosever it is: it stands on the same folders.
    if !sandboxes_of(&cri, &job.uid).await?.is_empty() {
        return Err(OneShotError::Exists(job.uid.clone()));
    }
    let dirs = Arc::new(options.dirs);
    let claimed = tokio::task::spawn_blocking({
        let (job, dirs) = (job.clone(), dirs.clone());
        move || Claim::take(&job, &dirs)
    });
    let Some(claim) = claimed.await.map_err(WorkerError::from)?? else {
        return Err(OneShotError::Exists(job.uid.clone()));
    };
    for note in node_notes.into_iter().chain(notes(&job.pod)) {
        let _ = show.send(Show::Line(format!("note: {note}"))).await;
    }
    let events = Events::start(cri.clone());
    let (halt, halted) = watch::channel(Halt::No);
    let (reports, mut incoming) = mpsc::channel(64);
    let tools = Tools {
        cri: cri.clone(),
        node: Arc::new(node),
        dirs: dirs.clone(),
        listener: events.listen(),
        reports,
        halt: halted,
        asking: TaskTracker::new(),
    };
    let mut worker = Worker::new(job.clone(), tools, false);
    let mut task = tokio::spawn(async move { worker.run().await });
    let mut viewer = Viewer::new(&job, show.clone(), options.logs);
    let timeout = tokio::time::sleep(options.timeout.unwrap_or(Duration::MAX));
    tokio::pin!(timeout);
    let mut stop_code = None;
    let result = loop {
        tokio::select! {
            result = &mut task => break result.map_err(WorkerError::from).flatten(),
            Some(report) = incoming.recv() => viewer.report(report).await,
            Some(request) = stops.recv() => {
                let level = if stop_code.is_none() { Halt::Gracefully } else { Halt::Now };
                stop_code.get_or_insert(request.code);
                halt.send_replace(level);
            }
            () = &mut timeout, if stop_code.is_none() => {
                stop_code = Some(TIMED_OUT);
                viewer.line("time limit passed, stopping the pod".to_owned()).await;
                halt.send_replace(Halt::Gracefully);
            }
        }
    };
    while let Ok(report) = incoming.try_recv() {
        viewer.report(report).await;
    }
    if result.is_err()
        && let Err(error) = stop(&cri, &pod, 0).await
    {
        viewer.line(format!("cannot stop the pod: {}", chain(&error))).await;
    }
    viewer.end().await;
    if options.remove {
        match teardown(&cri, &dirs, &pod, 0, &claim).await {
            Err(error) if result.is_err() => viewer.line(format!("cannot remove the pod: {}", chain(&error))).await,
            gone => gone?,
        }
        remove_shared_cgroups();
    } else if is_settled(&result) {
        match sandboxes_of(&cri, &job.uid).await {
            Ok(pods) if pods.is_empty() => forget(claim, job.uid.clone()).await?,
            Ok(_) => {
                let line = format!("pod {0} stays, stopped; podwright rm {1}/{0} removes it", pod.name, pod.namespace);
                let _ = show.send(Show::Line(line)).await;
            }
            Err(error) => tracing::debug!(%error, "cannot tell whether the pod stays"),
        }
    }
    Ok(match result? {
        Outcome::Completed { code } => u8::try_from(code).unwrap_or(u8::MAX),
        Outcome::Halted => stop_code.unwrap_or(FAILED),
        Outcome::DeadlineExceeded => {
            let _ = show.send(Show::Line("activeDeadlineSeconds passed".to_owned())).await;
            TIMED_OUT
        }
        Outcome::SandboxLost => {
            let _ = show.send(Show::Line("the pod's sandbox died".to_owned())).await;
            FAILED
        }
    })
}

async fn sandboxes_of(cri: &Cri, uid: &str) -> Result<Vec<proto::PodSandbox>, CriError> {
    cri.sandboxes([(labels::POD_UID.to_owned(), uid.to_owned())].into()).await
}

/// Whether what the runtime has of the pod now is all that will come: a call that was given up may still be at work.
fn is_settled(result: &Result<Outcome, WorkerError>) -> bool {
    let Err(WorkerError::Cri(error)) = result else { return true };
    !error.may_go_on()
}

/// Removes what was made for a pod that never came to be.
async fn forget(claim: Claim, uid: String) -> Result<(), OneShotError> {
    let removed = tokio::task::spawn_blocking(move || {
        if claim.made().iter().any(|folder| folder.ends_with(&uid)) {
            volumes::remove_content(claim.folder())?;
        }
        let removed = claim.made().iter().map(|folder| volumes::remove_tree(folder)).collect::<Vec<_>>();
        remove_cgroups(&uid);
        remove_shared_cgroups();
        removed.into_iter().collect::<Result<(), _>>()
    });
    Ok(removed.await.map_err(WorkerError::from)??)
}

/// Turns reports into lines and followed logs.
struct Viewer {
    pod: String,
    host_network: bool,
    show: mpsc::Sender<Show>,
    logs: bool,
    followers: JoinSet<()>,
    ends: BTreeMap<(String, u32), CancellationToken>,
    running: Vec<String>,
}

impl Viewer {
    fn new(job: &PodJob, show: mpsc::Sender<Show>, logs: bool) -> Self {
        Self {
            pod: job.pod.metadata.name.clone(),
            host_network: job.pod.spec.host_network,
            show,
            logs,
            followers: JoinSet::new(),
            ends: BTreeMap::new(),
            running: Vec::new(),
        }
    }

    async fn line(&self, text: String) {
        let _ = self.show.send(Show::Line(text)).await;
    }

    async fn status(&self, text: String) {
        let _ = self.show.send(Show::Status(format!("{}: {text}", self.pod))).await;
    }

    async fn running_status(&self) {
        let names = self.running.join(", ");
        self.status(if names.is_empty() { "nothing runs".to_owned() } else { format!("running {names}") }).await;
    }

    async fn report(&mut self, report: Report) {
        match report {
            Report::Pulling(image) => self.status(format!("pulling {image}")).await,
            Report::Pulled(image, took) => self.line(format!("pulled {image} in {:.1} s", took.as_secs_f64())).await,
            Report::SandboxStarting => self.status("making the sandbox".to_owned()).await,
            Report::SandboxReady(ips) => {
                let place = match (ips.is_empty(), self.host_network) {
                    (false, _) => ips.join(", "),
                    (true, true) => "the host's network".to_owned(),
                    (true, false) => "no address".to_owned(),
                };
                self.line(format!("pod {}: {place}", self.pod)).await;
            }
            Report::Starting { container, attempt, log } => {
                self.status(format!("starting {container}")).await;
                self.follow(container, attempt, log);
            }
            Report::Started(container) => {
                self.running.push(container);
                self.running_status().await;
            }
            Report::Exited { container, attempt, code, reason, message } => {
                if let Some(end) = self.ends.remove(&(container.clone(), attempt)) {
                    end.cancel();
                }
                self.running.retain(|name| *name != container);
                let mut text = format!("{container}: exit code {code}");
                if !matches!(reason.as_str(), "" | "Completed" | "Error") {
                    text = format!("{text} ({reason})");
                }
                if !message.is_empty() {
                    text = format!("{text}: {message}");
                }
                self.line(text).await;
                self.running_status().await;
            }
            Report::BackOff(container, until) => {
                let seconds = (until - now_ns()).max(0) / 1_000_000_000 + 1;
                self.line(format!("{container}: next start in {seconds} s")).await;
            }
            Report::Stopping => self.status("stopping".to_owned()).await,
            Report::Trouble(text) => self.line(text).await,
        }
    }

    fn follow(&mut self, container: String, attempt: u32, log: std::path::PathBuf) {
        if !self.logs {
            return;
        }
        let end = CancellationToken::new();
        self.ends.insert((container.clone(), attempt), end.clone());
        let (sender, mut pieces) = mpsc::channel(64);
        let show = self.show.clone();
        self.followers.spawn(async move {
            let forward = async {
                while let Some(piece) = pieces.recv().await {
                    if show.send(Show::Log(container.clone(), piece)).await.is_err() {
                        return;
                    }
                }
            };
            let (result, ()) = tokio::join!(logs::follow(log, sender, end), forward);
            if let Err(error) = result {
                let _ = show.send(Show::Line(chain(&error))).await;
            }
        });
    }

    /// Waits until all logs are shown to their ends.
    async fn end(&mut self) {
        self.ends.values().for_each(CancellationToken::cancel);
        while self.followers.join_next().await.is_some() {}
        let _ = self.show.send(Show::Status(String::new())).await;
    }
}
