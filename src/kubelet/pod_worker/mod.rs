//! One task per pod: looks, decides, acts, until the pod is over.

mod act;
mod images;
mod look;
pub mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::types::{ErrorKind, HasKind, now_ns};

use super::backoff::Backoff;
use super::client::{Cri, CriError};
use super::events::Listener;
use super::translate::{Dirs, Node, PodJob, TranslateError};
use super::volumes::VolumeError;

pub use images::{Image, pull_policy};
use state::{Action, Outcome, Plan, World, decide};

/// How long a `run` waits for a runtime that went away, for instance to be upgraded.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first and the longest pause between two tries after an error of the runtime.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What keeps a pod from running.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The runtime refuses or does not answer.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// A volume cannot be made.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The manifest does not fit.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// An image cannot be had.
    #[error("image {image}")]
    Pull {
        /// Image.
        image: String,
        /// Why.
        #[source]
        source: CriError,
    },
    /// An image is not there and may not be pulled.
    #[error("image {image} is not there, and imagePullPolicy is Never")]
    NoImage {
        /// Image.
        image: String,
    },
    /// A container cannot be made or started.
    #[error("container {container}")]
    Container {
        /// Container.
        container: String,
        /// The exit code the runtime gave it all the same; 0: none.
        code: i32,
        /// Why.
        #[source]
        source: CriError,
    },
    /// The pod's folder is in other hands.
    #[error("{folder} {by}")]
    Taken {
        /// Folder.
        folder: String,
        /// Whose it is.
        by: String,
    },
    /// A sandbox may come that nobody could find any more.
    #[error(
        "the runtime was asked for its sandbox, did not answer and may still be making it: \
         try again when it is there, or in {} s",
        left.as_secs() + 1
    )]
    Awaited {
        /// How much longer that may be.
        left: Duration,
    },
    /// A thread of the driver broke down.
    #[error("the driver's own work broke down: {0}")]
    Join(#[from] tokio::task::JoinError),
}

impl WorkerError {
    fn is_unavailable(&self) -> bool {
        match self {
            Self::Cri(source) | Self::Pull { source, .. } | Self::Container { source, .. } => source.is_unavailable(),
            _ => false,
        }
    }

    /// The exit code the runtime gave a container that it could not start; 0: none.
    pub fn exit_code(&self) -> i32 {
        if let Self::Container { code, .. } = self { *code } else { 0 }
    }
}

impl HasKind for WorkerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Cri(source) | Self::Pull { source, .. } | Self::Container { source, .. } => source.kind(),
            Self::Volume(source) => source.kind(),
            Self::Translate(source) => source.kind(),
            Self::NoImage { .. } => ErrorKind::NotFound,
            Self::Taken { .. } => ErrorKind::FailedPrecondition,
            Self::Awaited { .. } => ErrorKind::Unavailable,
            Self::Join(_) => ErrorKind::Internal,
        }
    }
}

/// Whether and how a pod is to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Halt {
    /// It is to run.
    #[default]
    No,
    /// Stop with the grace period.
    Gracefully,
    /// Kill.
    Now,
}

/// What happens to a pod, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// An image is being pulled.
    Pulling(String),
    /// It is there.
    Pulled(String, Duration),
    /// The sandbox is being made.
    SandboxStarting,
    /// The sandbox is up, with these addresses (none in the host's network).
    SandboxReady(Vec<String>),
    /// A container is about to start; its log will be this file.
    Starting {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Log file.
        log: PathBuf,
    },
    /// It runs.
    Started(String),
    /// It is over, and its log complete.
    Exited {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Exit code.
        code: i32,
        /// For instance `OOMKilled`.
        reason: String,
        /// Its last words, or the runtime's.
        message: String,
    },
    /// It is not started again before this time (nanoseconds since the epoch).
    BackOff(String, i64),
    /// The pod is being stopped.
    Stopping,
    /// Something failed and will be tried again.
    Trouble(String),
}

/// What a worker needs to know and to hold.
#[derive(Debug)]
pub struct Tools {
    /// The runtime.
    pub cri: Cri,
    /// The machine.
    pub node: Arc<Node>,
    /// Where files go.
    pub dirs: Arc<Dirs>,
    /// When to look again.
    pub listener: Listener,
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
    /// When to stop.
    pub halt: watch::Receiver<Halt>,
    /// Of the sandboxes that the runtime was asked for and has not answered about; once closed, none is asked for.
    pub asking: TaskTracker,
}

/// Brings one pod up and keeps it as its manifest says.
#[derive(Debug)]
pub struct Worker {
    job: Arc<PodJob>,
    tools: Tools,
    /// Errors end the work of a one-time pod; a stubborn worker goes on trying.
    stubborn: bool,
    plan: Plan,
    world: World,
    /// By container name; entries of `failures` may be "" for the sandbox.
    backoffs: BTreeMap<String, Backoff>,
    failures: BTreeMap<String, Backoff>,
    /// How containers ended, by id: it never changes again.
    exits: HashMap<String, look::Exit>,
    told: BTreeSet<(String, i64)>,
    /// The sandbox whose addresses and files are in order.
    settled: String,
    ips: Vec<String>,
    images: BTreeMap<String, Image>,
}

impl Worker {
    /// A worker for a pod. It takes over what is already there of this uid and owner. A `stubborn` one tries again
    /// after every error; another one only while the runtime is away.
    pub fn new(job: Arc<PodJob>, tools: Tools, stubborn: bool) -> Self {
        let plan = Plan::of(&job.pod);
        Self {
            job,
            tools,
            stubborn,
            plan,
            world: World::default(),
            backoffs: BTreeMap::new(),
            failures: BTreeMap::new(),
            exits: HashMap::new(),
            told: BTreeSet::new(),
            settled: String::new(),
            ips: Vec::new(),
            images: BTreeMap::new(),
        }
    }

    /// Runs the pod to its end. It is stopped then, but not removed.
    ///
    /// # Errors
    /// What keeps it from running; the pod may be there in part.
    pub async fn run(&mut self) -> Result<Outcome, WorkerError> {
        let (mut pause, mut away_since) = (FIRST_PAUSE, None);
        loop {
            let error = match self.step().await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {
                    (pause, away_since) = (FIRST_PAUSE, None);
                    continue;
                }
                Err(error) => error,
            };
            let since = *away_since.get_or_insert_with(tokio::time::Instant::now);
            let patient = error.is_unavailable() && since.elapsed() < PATIENCE;
            if !patient && !self.stubborn {
                return Err(error);
            }
            self.tell(Report::Trouble(crate::types::chain(&error))).await;
            // Nothing tells when an error has gone: a socket that is refused now may be served a moment later.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn step(&mut self) -> Result<Option<Outcome>, WorkerError> {
        self.look().await?;
        match decide(&self.plan, &self.world) {
            Action::Finish(outcome) => return Ok(Some(outcome)),
            Action::Wait { until } => self.wait(until).await,
            Action::Stop => self.stop().await?,
            Action::RunSandbox { attempt } => {
                let result = self.run_sandbox(attempt).await;
                self.hold("", result).await?;
            }
            Action::Launch { container, attempt } => {
                let result = self.launch(&container, attempt).await;
                self.hold(&container, result).await?;
            }
            Action::Start { container } => {
                let result = self.start_existing(&container).await;
                self.hold(&container, result).await?;
            }
        }
        Ok(None)
    }

    /// After a failure a stubborn worker leaves the container (or sandbox) alone for a while and goes on.
    async fn hold(&mut self, name: &str, result: Result<(), WorkerError>) -> Result<(), WorkerError> {
        match result {
            Ok(()) => {
                self.world.held.remove(name);
                Ok(())
            }
            Err(error) if self.stubborn && !error.is_unavailable() => {
                let now = now_ns();
                let backoff = self.failures.entry(name.to_owned()).or_default();
                backoff.restarted(now);
                self.world.held.insert(name.to_owned(), backoff.ready_at(now));
                self.tell(Report::Trouble(crate::types::chain(&error))).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn wait(&mut self, until: Option<i64>) {
        let far = Duration::from_secs(3600);
        let limit = until.map_or(far, |time| Duration::from_nanos(time.saturating_sub(now_ns()).max(0).unsigned_abs()));
        let waiting: Vec<(String, i64)> = self
            .world
            .containers
            .iter()
            .filter(|(name, seen)| {
                seen.ready_at > self.world.now && !self.told.contains(&((*name).clone(), seen.ready_at))
            })
            .map(|(name, seen)| (name.clone(), seen.ready_at))
            .collect();
        for (name, time) in waiting {
            self.told.insert((name.clone(), time));
            self.tell(Report::BackOff(name, time)).await;
        }
        let sandbox = self.world.sandbox.as_ref().map(|sandbox| sandbox.id.clone()).unwrap_or_default();
        let Tools { listener, halt, .. } = &mut self.tools;
        let halted = *halt.borrow_and_update();
        tokio::select! {
            () = listener.wait(&sandbox, limit) => {}
            () = beyond(halt, halted) => {}
        }
    }

    async fn tell(&self, report: Report) {
        // Nobody reading the reports is no reason to stop.
        let _ = self.tools.reports.send(report).await;
    }
}

/// Returns when the pod is to stop more urgently than `level`; never if nobody can say so any more.
async fn beyond(halt: &mut watch::Receiver<Halt>, level: Halt) {
    if halt.wait_for(|now| *now > level).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
