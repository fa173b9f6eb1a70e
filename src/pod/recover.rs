//! What a starting daemon does with what an earlier one left: every sandbox is adopted, stopped or
//! undone, side by side, as its record and this boot say. Lists are right once the records are read and
//! the monitors that live have answered; one that does not answer is waited for in its pod's own task.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};

use super::containers::slot::Slot;
use super::context::{Context, blocking};
use super::driver::Driver;
use super::error::PodError;
use super::record::PodRecord;
use super::state::{Recovery, Stage as PodStage};
use super::{Handle, QUEUE, Shared, placeholder, purge};
use crate::container::record::{ContainerRecord, Failure, Stage};
use crate::launch::monitor::{EventReceiver, LaunchError, Monitor};
use crate::store::{self, StoreError};
use crate::sys::process;
use crate::sys::tree;
use crate::types::{ContainerId, ErrorKind, PodId, chain, now_ns};
use crate::wire::{Exit, State};

/// One try to reach a monitor: it only ever works for milliseconds between two requests.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a monitor that lives but cannot be reached is given before it is taken for lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the start of the daemon waits for monitors.
const START_LIMIT: Duration = Duration::from_millis(500);

struct Found {
    record: PodRecord,
    containers: BTreeMap<ContainerId, Slot>,
}

/// What a sandbox is could not be read, but may be another time: nothing of it is touched.
struct LeftAlone;

/// Finds and takes over everything. Then all containers hold their layers again, and the others may go.
pub(super) async fn run(shared: &Arc<Shared>) -> Result<(), PodError> {
    let context = shared.context.clone();
    let (root, state) = (context.root.clone(), context.state.clone());
    let (known, live) = blocking("records", move || {
        for folder in [root.join("pods"), root.join("trash"), state.join("pods")] {
            super::files::private_folder(&folder)?;
        }
        Ok((folders(&root.join("pods"))?, folders(&state.join("pods"))?))
    })
    .await?;
    let trash = context.root.join("trash");
    tokio::task::spawn_blocking(move || {
        for folder in fs::read_dir(&trash).into_iter().flatten().flatten() {
            let _ = tree::remove(&folder.path());
        }
    });
    let mut reading: FuturesUnordered<_> = known.iter().map(|id| one(shared, id)).collect();
    let mut adopting = FuturesUnordered::new();
    let mut left_alone = false;
    while let Some(adopted) = reading.next().await {
        match adopted {
            Ok(adopted) => adopting.extend(adopted),
            Err(LeftAlone) => left_alone = true,
        }
    }
    drop(reading);
    for id in live.into_iter().filter(|id| !known.contains(id)) {
        // The remains of a removal that was cut short.
        purge::begin(context.clone(), id);
    }
    let all = async { while adopting.next().await.is_some() {} };
    if tokio::time::timeout(START_LIMIT, all).await.is_err() {
        tracing::warn!("some monitors do not answer at once; going on without them for now");
    }
    if left_alone {
        tracing::warn!("sandboxes were left alone: all layers that are here now stay until the next start");
        context.images.keep_present();
    }
    context.images.collect_garbage();
    collect_networks(shared.clone(), known);
    Ok(())
}

/// In the background: plugins may take their time. Sandboxes made meanwhile are spared, for they are
/// looked up when no attach can run; so are those that were `found`, whatever became of them.
fn collect_networks(shared: Arc<Shared>, found: Vec<PodId>) {
    tokio::spawn(async move {
        let kept = || {
            let made: Vec<PodId> = shared.lock().pods.keys().cloned().collect();
            let all: std::collections::BTreeSet<PodId> = made.into_iter().chain(found).collect();
            all.into_iter().map(|id| (id, "eth0".to_owned())).collect()
        };
        if let Err(error) = shared.context.network.gc(kept).await {
            tracing::warn!(%error, "garbage collection of networks failed");
        }
    });
}

fn folders(path: &Path) -> io::Result<Vec<PodId>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(path)? {
        match entry?.file_name().to_str().map(PodId::parse) {
            Some(Ok(id)) => ids.push(id),
            _ => tracing::warn!(path = %path.display(), "something that is not ours lies here; left alone"),
        }
    }
    Ok(ids)
}

/// Starts the task of one sandbox. What comes back fires once its state is known.
async fn one(shared: &Arc<Shared>, id: &PodId) -> Result<Option<oneshot::Receiver<()>>, LeftAlone> {
    let context = shared.context.clone();
    let reader = context.clone();
    let data = context.paths(id).data;
    let read = tokio::task::spawn_blocking(move || read(&reader, &data)).await;
    let Found { record, containers } = match read {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) => {
            // The folder was made, the record was not: nothing else was begun.
            purge::begin(context, id.clone());
            return Ok(None);
        }
        Ok(Err(error @ StoreError::Damaged { .. })) => {
            tracing::error!(pod = %id, %error, "the sandbox cannot be known any more; removing what is left of it");
            purge::begin(context, id.clone());
            return Ok(None);
        }
        Ok(Err(error)) => {
            let error = chain(&error);
            tracing::error!(pod = %id, error, "its records cannot be read; the sandbox is left alone");
            return Err(LeftAlone);
        }
        Err(error) => {
            tracing::error!(pod = %id, %error, "its records cannot be read; the sandbox is left alone");
            return Err(LeftAlone);
        }
    };
    let rebooted = record.boot_id != context.boot_id;
    let recovery = record.stage.recovery(rebooted);
    tracing::info!(pod = %id, ?recovery, rebooted, "found a sandbox");
    context.cgroups.parents().hold(id.as_str(), &record.made_parents);
    if let (Some(selinux), Some(labels)) = (context.lsm.selinux(), &record.labels) {
        selinux.reserve(id.as_str(), labels.level());
    }
    for (container, slot) in &containers {
        shared.reserve_level(container, &slot.record.config);
    }
    let (publish, view) = watch::channel(Arc::new(placeholder(&record)));
    let (commands, queue) = mpsc::channel(QUEUE);
    {
        let mut index = shared.lock();
        // What is being undone does not keep its name.
        if recovery != Recovery::Undo {
            index.keys.insert(record.config.key.clone(), id.clone());
        }
        index.pods.insert(id.clone(), Handle { commands, view });
        for container in containers.keys() {
            index.containers.insert(container.clone(), id.clone());
        }
    }
    let mut driver = Driver::new(shared.clone(), record, containers, publish);
    let waiting = driver.recover(recovery, rebooted);
    driver.publish();
    tokio::spawn(driver.run(queue));
    Ok(waiting)
}

pub(super) type Connected = (Monitor, State, EventReceiver);

/// Reaches the monitor of a sandbox; `None`: it is gone, or lost.
pub(super) async fn connect(context: &Context, record: &PodRecord) -> Option<Connected> {
    let folder = context.paths(&record.id).state;
    let begun = Instant::now();
    loop {
        match tokio::time::timeout(CONNECT_LIMIT, context.launcher.connect(&record.id, &folder)).await {
            Ok(Ok(connected)) => return Some(connected),
            Ok(Err(LaunchError::Gone(_)))
                if !record.monitor.is_some_and(|monitor| process::lives(monitor.pid, monitor.start_time)) =>
            {
                return None;
            }
            Ok(Err(error)) => tracing::warn!(pod = %record.id, %error, "monitor cannot be reached"),
            Err(_) => tracing::warn!(pod = %record.id, "monitor does not answer"),
        }
        if begun.elapsed() > PATIENCE {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Driver {
    /// Does what the record asks for.
    fn recover(&mut self, recovery: Recovery, rebooted: bool) -> Option<oneshot::Receiver<()>> {
        match recovery {
            Recovery::Undo => {
                let text = "the daemon ended while the sandbox was being made";
                self.undo(PodError::failed(ErrorKind::Aborted, text));
            }
            Recovery::Adopt => return Some(self.reach(true)),
            Recovery::Stop => {
                if rebooted {
                    self.lost("the node was rebooted");
                }
                self.finish_removals();
                self.begin_stop();
            }
            Recovery::Keep => {
                // The sandbox's end may have been written down, and its containers' not.
                self.end_all();
                self.finish_removals();
            }
            Recovery::Remove => self.go_on_removing(),
        }
        None
    }

    /// Connects to the monitor and takes over what it knows; the sandbox is stopped if that fails.
    /// `inherited`: what is half made or half removed was left by an earlier daemon.
    pub(super) fn reach(&mut self, inherited: bool) -> oneshot::Receiver<()> {
        let (done, waiting) = oneshot::channel();
        let (context, record) = (self.context.clone(), self.record.clone());
        self.spawn(async move {
            let connected = connect(&context, &record).await;
            move |driver: &mut Self| {
                driver.reached(connected, inherited);
                for (id, grace, reply) in std::mem::take(&mut driver.unreached) {
                    driver.stop_container(&id, grace, reply);
                }
                // Nobody may wait any more.
                let _ = done.send(());
            }
        });
        waiting
    }

    fn reached(&mut self, connected: Option<Connected>, inherited: bool) {
        if self.record.stage != PodStage::Ready {
            // A stop came first; it ends the monitor by itself.
            return;
        }
        let Some((monitor, state, events)) = connected else {
            tracing::warn!(pod = %self.record.id, "monitor is gone; stopping the sandbox");
            if inherited {
                self.finish_removals();
            }
            return self.begin_stop();
        };
        self.take_over(&state);
        self.forget_strangers(&monitor, &state);
        self.adopt(monitor, events);
        if inherited {
            self.finish_removals();
        }
        if state.pause.is_none() {
            tracing::warn!(pod = %self.record.id, "pause ended meanwhile; stopping the sandbox");
            self.begin_stop();
        }
        self.publish();
    }

    /// Brings the records up to what the monitor knows.
    fn take_over(&mut self, state: &State) {
        for told in &state.containers {
            let Some(slot) = self.containers.get_mut(&told.container) else { continue };
            slot.record.process = Some(told.process);
            slot.record.started_ns = told.started_ns.unwrap_or(slot.record.started_ns);
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

    /// Containers of the monitor without a record here, because it was damaged: nobody can ask for them.
    fn forget_strangers(&mut self, monitor: &Monitor, state: &State) {
        for told in &state.containers {
            if self.containers.contains_key(&told.container) {
                continue;
            }
            let (id, monitor, context) = (told.container.clone(), monitor.clone(), self.context.clone());
            let paths = context.paths(&self.record.id);
            self.spawn(async move {
                let removed = async {
                    monitor.delete(&id).await.map_err(|error| PodError::of("delete", &error))?;
                    context.discard(paths.container_state(&id)).await?;
                    context.discard(paths.container_data(&id)).await
                }
                .await;
                move |_: &mut Self| match removed {
                    Ok(()) => tracing::warn!(container = %id, "removed a container without a record"),
                    Err(error) => tracing::error!(container = %id, %error, "container without a record not removed"),
                }
            });
        }
    }

    /// Nothing of the sandbox can be alive.
    fn lost(&mut self, why: &str) {
        for id in self.not_ended() {
            self.fail(&id, why);
        }
    }

    /// It is over, and only its monitor may have known how.
    fn fail(&mut self, id: &ContainerId, why: &str) {
        if let Some(exit) = self.told_exit(id) {
            return self.exited(exit);
        }
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

fn read(context: &super::Context, data: &Path) -> Result<Option<Found>, StoreError> {
    let Some(mut record) = store::load::<PodRecord>(&data.join("pod.json"))? else { return Ok(None) };
    if record.boot_id != context.boot_id {
        record.pause = None;
        record.monitor = None;
    }
    let containers = records(&data.join("containers"))?.into_iter().map(|container| {
        let hold = context.images.hold_layers(&container.needed_layers());
        (container.id.clone(), Slot::new(container, hold))
    });
    Ok(Some(Found { record, containers: containers.collect() }))
}

/// The records of a sandbox's containers, but for those that are damaged. Whoever is not among them is removed: so it is
/// an error if that there is none, or that one is damaged, cannot be said for sure.
fn records(folder: &Path) -> Result<Vec<ContainerRecord>, StoreError> {
    let failed = |source| StoreError::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let folder = entry.map_err(failed)?.path();
        match store::load::<ContainerRecord>(&folder.join("container.json")) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => drop(tree::remove(&folder)),
            Err(error @ StoreError::Damaged { .. }) => {
                let error = chain(&error);
                tracing::error!(error, "container record cannot be read; the container is removed");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_lost_is_passed_over() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("containers");
        assert!(records(&folder).unwrap().is_empty());
        let place = |name: &str| {
            fs::create_dir_all(folder.join(name)).unwrap();
            folder.join(name).join("container.json")
        };
        fs::write(place("damaged"), "{").unwrap();
        place("not-begun");
        assert!(records(&folder).unwrap().is_empty());
        assert!(folder.join("damaged").exists() && !folder.join("not-begun").exists());
        fs::write(place("newer"), r#"{"version":99,"body":{}}"#).unwrap();
        assert!(matches!(records(&folder), Err(StoreError::Version { .. })));
        fs::remove_dir_all(folder.join("newer")).unwrap();
        fs::create_dir(place("unreadable")).unwrap();
        assert!(matches!(records(&folder), Err(StoreError::Io { .. })));
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        assert!(matches!(records(&folder), Err(StoreError::Io { .. })));
    }
}
