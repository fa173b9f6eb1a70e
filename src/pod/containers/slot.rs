//! A container as its pod's driver task holds it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use crate::container::record::{ContainerRecord, Stage};
use crate::container::view::ContainerView;
use crate::image::LayerHold;
use crate::pod::PodError;
use crate::pod::journal::Journal;
use crate::types::ContainerId;
use crate::types::container::{ContainerConfig, Resources};
use crate::wire::Exit;

/// A change of resources, and who asked for it.
pub(crate) type Update = (Resources, oneshot::Sender<Result<(), PodError>>);

/// One container.
pub(crate) struct Slot {
    pub(crate) record: ContainerRecord,
    pub(crate) journal: Journal,
    /// The published snapshot of `record`.
    pub(crate) view: Arc<ContainerView>,
    /// Tells waiting stops and removals of the exit.
    pub(crate) exit: watch::Sender<Option<Exit>>,
    /// Keeps the image's layers; also when it is dropped, since containers outlive the daemon.
    hold: LayerHold,
    /// The spec's `process`, for exec; read from the bundle when first needed.
    pub(crate) process: Option<Arc<serde_json::Value>>,
    pub(crate) creating: Vec<oneshot::Sender<Result<ContainerId, PodError>>>,
    pub(crate) starting: Option<Vec<oneshot::Sender<Result<(), PodError>>>>,
    pub(crate) removing: Vec<oneshot::Sender<Result<(), PodError>>>,
    /// A change of resources is under way; further ones wait here.
    pub(crate) updating: Option<VecDeque<Update>>,
    /// It was never made: what its making left is being removed, and nobody is to see it.
    pub(crate) unmade: bool,
    config: Arc<ContainerConfig>,
}

impl Slot {
    pub(crate) fn new(record: ContainerRecord, hold: LayerHold) -> Self {
        let config = Arc::new(record.config.clone());
        Self {
            view: Arc::new(view(&record, &config)),
            exit: watch::Sender::new(record.exit.clone()),
            record,
            journal: Journal::default(),
            hold,
            process: None,
            creating: Vec::new(),
            starting: None,
            removing: Vec::new(),
            updating: None,
            unmade: false,
            config,
        }
    }

    /// In lists: made and not about to vanish unmade.
    pub(crate) fn visible(&self) -> bool {
        self.record.stage != Stage::Creating && !self.unmade
    }

    /// Its program runs.
    pub(crate) fn running(&self) -> bool {
        self.record.started_ns != 0 && self.record.exit.is_none()
    }

    /// The container is gone: its layers may go, too.
    pub(crate) fn release(self) {
        self.hold.release();
    }

    /// It runs, or may do so in a moment.
    pub(crate) fn started(&self) -> bool {
        self.running() || (self.starting.is_some() && self.record.exit.is_none())
    }

    /// Brings the snapshot up to date.
    pub(crate) fn refresh(&mut self) {
        self.view = Arc::new(view(&self.record, &self.config));
    }
}

fn view(record: &ContainerRecord, config: &Arc<ContainerConfig>) -> ContainerView {
    ContainerView {
        id: record.id.clone(),
        pod: record.pod.clone(),
        config: config.clone(),
        resources: record.resources.clone(),
        image_id: record.image_id,
        image_ref: record.image_ref.clone(),
        volumes: record.volumes.iter().map(|volume| (volume.name.clone(), volume.id)).collect(),
        state: record.state(),
        created_ns: record.created_ns,
        started_ns: record.started_ns,
        finished_ns: record.exit.as_ref().map_or(0, |exit| exit.at_ns),
        exit_code: record.exit.as_ref().map_or(0, |exit| exit.exit_code),
        reason: record.reason(),
        message: record.failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default(),
        log_path: record.log_path.clone(),
        user: record.user.clone(),
        stop_signal: record.stop_signal,
        pid: record.process.filter(|_| record.exit.is_none()).map(|process| process.pid),
        cgroups: record.cgroups.clone(),
        bundle: record.bundle.clone(),
    }
}

/// The `process` object of a bundle's `config.json`. Blocks.
pub(crate) fn read_process(bundle: &Path) -> std::io::Result<serde_json::Value> {
    let text = std::fs::read(bundle.join("config.json"))?;
    let mut spec: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(spec["process"].take())
}
