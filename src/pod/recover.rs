//! What a starting daemon does with what an earlier one left: every sandbox is adopted, stopped or
//! undone, side by side, as its record and this boot say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};

use super::containers::slot::Slot;
use super::context::blocking;
use super::driver::Driver;
use super::error::PodError;
use super::record::PodRecord;
use super::state::Recovery;
use super::{Handle, QUEUE, Shared, placeholder};
use crate::container::record::{ContainerRecord, Failure, Stage};
use crate::store;
use crate::types::{ContainerId, ErrorKind, PodId, now_ns};
use crate::wire::{Exit, State};

/// A monitor that does not answer within this is taken for lost: it only ever works for
/// milliseconds between two requests.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

struct Found {
    record: PodRecord,
    containers: BTreeMap<ContainerId, Slot>,
}

/// Finds and takes over everything.
pub(super) async fn run(shared: &Arc<Shared>) -> Result<(), PodError> {
    let context = shared.context.clone();
    let (root, state) = (context.root.clone(), context.state.clone());
    let ids = blocking("records", move || {
        for folder in [root.join("pods"), root.join("trash"), state.join("pods")] {
            super::files::private_folder(&folder)?;
        }
        Ok((folders(&root.join("pods"))?, folders(&state.join("pods"))?))
    })
    .await?;
    let trash = context.root.join("trash");
    tokio::task::spawn_blocking(move || {
        for folder in fs::read_dir(&trash).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(folder.path());
        }
    });
    let (known, live) = ids;
    let mut adopted: FuturesUnordered<_> = known.iter().map(|id| one(shared, id.clone())).collect();
    while adopted.next().await.is_some() {}
    for id in live.iter().filter(|id| !known.contains(id)) {
        sweep(shared, id).await;
    }
    let kept: Vec<(PodId, String)> = shared.lock().pods.keys().map(|id| (id.clone(), "eth0".to_owned())).collect();
    if let Err(error) = context.network.gc(&kept).await {
        tracing::warn!(%error, "garbage collection of networks failed");
    }
    Ok(())
}

fn folders(path: &Path) -> std::io::Result<Vec<PodId>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(path)? {
        match entry?.file_name().to_str().map(PodId::parse) {
            Some(Ok(id)) => ids.push(id),
            _ => tracing::warn!(path = %path.display(), "something that is not ours lies here; left alone"),
        }
    }
    Ok(ids)
}

/// A sandbox without a record: the remains of a removal that was cut short.
async fn sweep(shared: &Arc<Shared>, id: &PodId) {
    tracing::info!(pod = %id, "removing what is left of a sandbox without a record");
    let context = &shared.context;
    let paths = context.paths(id);
    if let Ok((monitor, _, _)) = context.launcher.connect(id, &paths.state).await {
        let _ = monitor.shutdown().await;
    }
    if let Err(error) = context.network.remove_netns(&paths.netns()).await {
        tracing::warn!(pod = %id, %error, "network namespace not removed");
    }
    let unmounted = paths.clone();
    let _ = blocking("shm", move || super::files::unmount(&unmounted)).await;
    if let Err(error) = context.discard(paths.state).await {
        tracing::warn!(pod = %id, %error, "folder not removed");
    }
}

async fn one(shared: &Arc<Shared>, id: PodId) {
    let context = shared.context.clone();
    let paths = context.paths(&id);
    let reader = context.clone();
    let read = tokio::task::spawn_blocking(move || read(&reader, &paths.data)).await;
    let Found { record, containers } = match read {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) => {
            // The folder was made, the record was not: nothing else was begun.
            sweep(shared, &id).await;
            let _ = context.discard(context.paths(&id).data).await;
            return;
        }
        Ok(Err(error)) => {
            tracing::error!(pod = %id, %error, "record cannot be read; left alone for a person to look at");
            return;
        }
        Err(error) => {
            tracing::error!(pod = %id, %error, "record cannot be read");
            return;
        }
    };
    let rebooted = record.boot_id != context.boot_id;
    let recovery = record.stage.recovery(rebooted);
    tracing::info!(pod = %id, ?recovery, rebooted, "found a sandbox");
    let (publish, view) = watch::channel(Arc::new(placeholder(&record)));
    let (commands, queue) = mpsc::channel(QUEUE);
    {
        let mut index = shared.lock();
        index.keys.insert(record.config.key.clone(), id.clone());
        index.pods.insert(id.clone(), Handle { commands, view });
        for container in containers.keys() {
            index.containers.insert(container.clone(), id.clone());
        }
    }
    let mut driver = Driver::new(shared.clone(), record, containers, publish);
    match recovery {
        Recovery::Undo => {
            driver.undo(PodError::failed(ErrorKind::Aborted, "the daemon ended while the sandbox was being made"))
        }
        Recovery::Adopt => adopt(&mut driver).await,
        Recovery::Stop => {
            if rebooted {
                driver.lost("the node was rebooted");
            } else if let Ok(Ok((monitor, state, events))) = connect(&driver).await {
                driver.take_over(&state);
                driver.adopt(monitor, events);
            }
            driver.begin_stop();
        }
        Recovery::Keep => driver.finish_removals(),
        Recovery::Remove => driver.begin_remove(),
    }
    driver.publish();
    tokio::spawn(driver.run(queue));
}

type Connected = (crate::launch::monitor::Monitor, State, crate::launch::monitor::EventReceiver);

async fn connect(
    driver: &Driver,
) -> Result<Result<Connected, crate::launch::monitor::LaunchError>, tokio::time::error::Elapsed> {
    let folder = driver.context.paths(&driver.record.id).state;
    tokio::time::timeout(CONNECT_LIMIT, driver.context.launcher.connect(&driver.record.id, &folder)).await
}

async fn adopt(driver: &mut Driver) {
    match connect(driver).await {
        Ok(Ok((monitor, state, events))) => {
            driver.take_over(&state);
            driver.adopt(monitor, events);
            driver.finish_removals();
            if state.pause.is_none() {
                tracing::warn!(pod = %driver.record.id, "pause ended meanwhile; stopping the sandbox");
                driver.begin_stop();
            }
        }
        Ok(Err(error)) => {
            tracing::warn!(pod = %driver.record.id, %error, "monitor is gone; stopping the sandbox");
            driver.begin_stop();
        }
        Err(_) => {
            tracing::warn!(pod = %driver.record.id, "monitor does not answer; stopping the sandbox");
            driver.begin_stop();
        }
    }
}

impl Driver {
    /// Brings the records up to what the monitor knows.
    fn take_over(&mut self, state: &State) {
        for told in &state.containers {
            let Some(slot) = self.containers.get_mut(&told.container) else { continue };
            slot.record.process = Some(told.process);
            slot.record.started_ns = told.started_ns.unwrap_or(0);
            slot.refresh();
            if let Some(exit) = &told.exit {
                self.exited(exit.clone());
            }
        }
        // Made, but the monitor does not know it any more: deleted there, or lost with an earlier monitor.
        let living: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|slot| slot.record.stage == Stage::Made && slot.record.exit.is_none())
            .filter(|slot| !state.containers.iter().any(|told| told.container == slot.record.id))
            .map(|slot| slot.record.id.clone())
            .collect();
        for id in living {
            self.fail(&id, "its monitor does not know it any more");
        }
    }

    /// Nothing of the sandbox can be alive.
    fn lost(&mut self, why: &str) {
        let living: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|slot| slot.record.exit.is_none())
            .map(|slot| slot.record.id.clone())
            .collect();
        for id in living {
            self.fail(&id, why);
        }
    }

    fn fail(&mut self, id: &ContainerId, why: &str) {
        if let Some(slot) = self.containers.get_mut(id) {
            slot.record.failure = Some(Failure { reason: "Unknown".into(), message: why.to_owned() });
            slot.record.process = None;
        }
        self.exited(Exit { container: id.clone(), exit_code: 255, oom_killed: false, at_ns: now_ns() });
    }

    /// Goes on with containers that were being made or removed when the last daemon ended.
    fn finish_removals(&mut self) {
        let unfinished: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|slot| slot.record.stage != Stage::Made)
            .map(|slot| slot.record.id.clone())
            .collect();
        for id in unfinished {
            self.begin_remove_container(id);
        }
    }
}

fn read(context: &super::Context, data: &Path) -> Result<Option<Found>, store::StoreError> {
    let Some(mut record) = store::load::<PodRecord>(&data.join("pod.json"))? else { return Ok(None) };
    if record.boot_id != context.boot_id {
        record.pause = None;
        record.monitor = None;
    }
    let mut containers = BTreeMap::new();
    for folder in fs::read_dir(data.join("containers")).into_iter().flatten().flatten() {
        let path: PathBuf = folder.path().join("container.json");
        match store::load::<ContainerRecord>(&path) {
            Ok(Some(container)) => {
                let hold = context.images.hold_layers(&container.layers);
                containers.insert(container.id.clone(), Slot::new(container, hold));
            }
            Ok(None) => drop(fs::remove_dir_all(folder.path())),
            Err(error) => {
                tracing::error!(%error, "container record cannot be read; the container is forgotten with its pod")
            }
        }
    }
    Ok(Some(Found { record, containers }))
}
