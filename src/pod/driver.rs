//! The one owner of a sandbox: a task that alone changes its state and writes its records.
//!
//! Commands come in by a channel, the monitor's events by another. Anything that takes time is a
//! future in `work`, polled by this same task; when it ends it hands back a closure that is applied
//! to the driver. So operations of one pod overlap (a stop with a long grace period blocks no exec),
//! yet all changes of state happen one after the other, here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};

use super::config::{NamespaceMode, PodConfig};
use super::containers::slot::Slot;
use super::context::{Context, blocking};
use super::error::PodError;
use super::journal::Journal;
use super::record::PodRecord;
use super::retry::Backoff;
use super::state::{Stage, Step};
use super::streams::{AttachSession, ExecSession, Wanted};
use super::view::{PodState, PodView};
use super::{Shared, create, files, teardown};
use crate::launch::monitor::{EventReceiver, Monitor, MonitorEvent};
use crate::types::container::{ContainerConfig, Resources};
use crate::types::{ContainerId, ErrorKind, HasKind, PodId, now_ns};
use crate::wire::{ExecOutcome, Exit};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, PodError>>;
/// A change of state that finished work asks for.
type Change = Box<dyn FnOnce(&mut Driver) + Send>;
type Work = Pin<Box<dyn Future<Output = Change> + Send>>;

/// What can be asked of a sandbox.
pub(crate) enum Command {
    /// Await the creation.
    Join(Reply<PodId>),
    Stop(Reply<()>),
    Remove(Reply<()>),
    CreateContainer(Box<ContainerConfig>, Reply<ContainerId>),
    StartContainer(ContainerId, Reply<()>),
    StopContainer(ContainerId, std::time::Duration, Reply<()>),
    RemoveContainer(ContainerId, Reply<()>),
    Exec(ContainerId, Vec<String>, Option<std::time::Duration>, Reply<ExecOutcome>),
    ExecStreamed(ContainerId, Vec<String>, Wanted, Reply<ExecSession>),
    Attach(ContainerId, Wanted, Reply<AttachSession>),
    ReopenLog(ContainerId, Reply<()>),
    UpdateContainer(ContainerId, Box<Resources>, Reply<()>),
    /// Overhead and resources; `None`: as it was.
    UpdatePod(Box<(Option<Resources>, Option<Resources>)>, Reply<()>),
}

/// The state of the task.
pub(crate) struct Driver {
    pub(crate) context: Arc<Context>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) record: PodRecord,
    /// The record's configuration, shared with readers.
    config: Arc<PodConfig>,
    journal: Journal,
    pub(crate) monitor: Option<Monitor>,
    pub(crate) containers: BTreeMap<ContainerId, Slot>,
    /// Containers whose creation is under way: a removal waits for them.
    pub(crate) creating: usize,
    events: Option<EventReceiver>,
    work: FuturesUnordered<Work>,
    publish: watch::Sender<Arc<PodView>>,
    joining: Vec<Reply<PodId>>,
    stopping: Vec<Reply<()>>,
    removing: Vec<Reply<()>>,
    stop_under_way: bool,
    /// Pauses between tries to undo or to stop; `retrying`: one is running.
    backoff: Backoff,
    retrying: bool,
    /// Nothing is left of the sandbox: the task ends.
    gone: bool,
    /// Stops of containers that wait for the monitor to be reached again, or found lost.
    pub(super) unreached: Vec<(ContainerId, std::time::Duration, Reply<()>)>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: PodRecord,
        containers: BTreeMap<ContainerId, Slot>,
        publish: watch::Sender<Arc<PodView>>,
    ) -> Self {
        Self {
            context: shared.context.clone(),
            shared,
            config: Arc::new(record.config.clone()),
            journal: Journal::default(),
            record,
            monitor: None,
            containers,
            creating: 0,
            events: None,
            work: FuturesUnordered::new(),
            publish,
            joining: Vec::new(),
            stopping: Vec::new(),
            removing: Vec::new(),
            stop_under_way: false,
            backoff: Backoff::default(),
            retrying: false,
            gone: false,
            unreached: Vec::new(),
        }
    }

    /// Takes over a monitor that was found alive.
    pub(super) fn adopt(&mut self, monitor: Monitor, events: EventReceiver) {
        self.monitor = Some(monitor);
        self.events = Some(events);
    }

    /// Runs until the sandbox is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.publish();
        while !self.gone {
            tokio::select! {
                // Events first: an exit that was reported before an answer is seen before it.
                biased;
                event = next_event(&mut self.events) => self.event(event),
                Some(change) = self.work.next(), if !self.work.is_empty() => change(&mut self),
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    // All handles are gone: the daemon is ending. The pod lives on without it.
                    None => return,
                },
            }
        }
    }

    /// Starts work whose result is applied by the returned closure.
    pub(crate) fn spawn<C: FnOnce(&mut Self) + Send + 'static>(
        &mut self,
        work: impl Future<Output = C> + Send + 'static,
    ) {
        self.work.push(Box::pin(async move { Box::new(work.await) as Change }));
    }

    /// Shows the present state to all readers.
    pub(crate) fn publish(&self) {
        self.publish.send_replace(Arc::new(self.view()));
    }

    fn view(&self) -> PodView {
        let record = &self.record;
        let mut containers: Vec<_> =
            self.containers.values().filter(|slot| slot.visible()).map(|slot| slot.view.clone()).collect();
        containers.sort_by_key(|view| view.created_ns);
        let own_network = record.config.security.namespaces.network != NamespaceMode::Node;
        PodView {
            id: record.id.clone(),
            config: self.config.clone(),
            handler: record.handler.clone(),
            visible: record.stage.shown().is_some(),
            state: record.stage.shown().unwrap_or(PodState::NotReady),
            created_ns: record.created_ns,
            ips: record.ips.clone(),
            overhead: record.overhead.clone(),
            resources: record.resources.clone(),
            netns: own_network.then(|| self.context.paths(&record.id).netns()),
            pause: record.pause,
            cgroups: record.cgroups.clone(),
            monitor: record.monitor.map(|process| process.pid),
            containers,
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join(reply) => match self.record.stage {
                // The reason of a failure is told once it is undone.
                Stage::Creating | Stage::Undoing => self.joining.push(reply),
                // Made, but not written down yet.
                Stage::Ready if !self.joining.is_empty() => self.joining.push(reply),
                Stage::Ready => drop(reply.send(Ok(self.record.id.clone()))),
                Stage::Stopping | Stage::Stopped | Stage::Removing => drop(reply.send(Err(self.taken()))),
            },
            Command::Stop(reply) => self.stop(reply),
            Command::Remove(reply) => self.remove(reply),
            Command::CreateContainer(config, reply) => self.create_container(*config, reply),
            Command::StartContainer(id, reply) => self.start_container(&id, reply),
            Command::StopContainer(id, grace, reply) => self.stop_container(&id, grace, reply),
            Command::RemoveContainer(id, reply) => self.remove_container(&id, reply),
            Command::Exec(id, command, timeout, reply) => self.exec(&id, &command, timeout, reply),
            Command::ExecStreamed(id, command, wanted, reply) => self.exec_streamed(&id, command, wanted, reply),
            Command::Attach(id, wanted, reply) => self.attach(&id, wanted, reply),
            Command::ReopenLog(id, reply) => self.reopen_log(&id, reply),
            Command::UpdateContainer(id, asked, reply) => self.update_container(&id, *asked, reply),
            Command::UpdatePod(asked, reply) => self.update_pod(asked.0, asked.1, reply),
        }
    }

    fn taken(&self) -> PodError {
        let (key, id) = (&self.record.config.key, &self.record.id);
        let text = format!(
            "sandbox {}/{} attempt {} exists as {id} and is not ready; remove it, or use another attempt",
            key.namespace, key.name, key.attempt
        );
        PodError::failed(ErrorKind::AlreadyExists, text)
    }

    /// Writes the record as it is now.
    pub(super) fn save(&self) -> impl Future<Output = Result<(), PodError>> + Send + use<> {
        self.journal.save(self.context.paths(&self.record.id).record(), &self.record)
    }

    /// Begins the phases of the creation.
    pub(super) fn create(&mut self) {
        let (context, mut record, journal) = (self.context.clone(), self.record.clone(), self.journal.clone());
        self.spawn(async move {
            let made = async {
                let (looker, pod) = (context.clone(), record.clone());
                record.made_parents = blocking("folders", move || {
                    let paths = looker.paths(&pod.id);
                    files::private_folder(&paths.data)?;
                    files::private_folder(&paths.state)?;
                    // Refused before, if it is wrong.
                    let parent = looker.cgroup_parent(&pod.config.cgroup_parent).ok();
                    Ok(parent.map(|parent| looker.cgroups.claim(pod.id.as_str(), &parent)).unwrap_or_default())
                })
                .await?;
                // What is too large to be written down leaves nothing outside its own folders.
                journal.save(context.paths(&record.id).record(), &record).await?;
                log_folder(&record.config.log_directory).await?;
                create::run(&context, &record).await
            }
            .await;
            move |driver: &mut Self| {
                driver.record.made_parents = record.made_parents;
                match made {
                    Ok(made) => driver.created(made),
                    Err(error) => driver.undo(error),
                }
            }
        });
    }

    fn created(&mut self, made: create::Made) {
        self.record.ips = made.ips;
        self.record.pause = Some(made.pause);
        self.record.monitor = Some(made.monitor_process);
        self.adopt(made.monitor, made.events);
        self.advance(Step::Made);
        let saving = self.save();
        self.spawn(async move {
            let saved = saving.await;
            move |driver: &mut Self| match saved {
                Ok(()) => {
                    driver.publish();
                    for reply in driver.joining.drain(..) {
                        let _ = reply.send(Ok(driver.record.id.clone()));
                    }
                    if !driver.stopping.is_empty() || !driver.removing.is_empty() {
                        driver.begin_stop();
                    }
                }
                // Pause may have ended meanwhile: then it is being stopped already, and must be removed.
                Err(error) if driver.record.stage != Stage::Ready => {
                    tracing::error!(pod = %driver.record.id, %error, "record not written");
                    for reply in driver.joining.drain(..) {
                        let _ = reply.send(Err(error.clone()));
                    }
                }
                Err(error) => {
                    driver.record.stage = Stage::Undoing;
                    driver.undo(error);
                }
            }
        });
    }

    /// Takes back a failed creation, then answers with why it failed.
    pub(super) fn undo(&mut self, cause: PodError) {
        tracing::warn!(pod = %self.record.id, error = %cause, "sandbox could not be made; undoing");
        if self.record.stage != Stage::Undoing {
            self.advance(Step::Failed);
        }
        let (context, record, monitor) = (self.context.clone(), self.record.clone(), self.monitor.take());
        let saving = self.save();
        let cgroups = self.container_cgroups();
        self.spawn(async move {
            let undone = match teardown::run(&context, &record, monitor, cgroups).await {
                Ok(()) => forget(&context, &record).await,
                Err(error) => {
                    // What the record says is true without it: a daemon that finds `Creating` undoes, too.
                    let _ = saving.await;
                    Err(error)
                }
            };
            move |driver: &mut Self| driver.undone(cause, undone)
        });
    }

    fn undone(&mut self, mut cause: PodError, result: Result<(), PodError>) {
        let (joining, waiting) = (
            std::mem::take(&mut self.joining),
            self.stopping.drain(..).chain(self.removing.drain(..)).collect::<Vec<_>>(),
        );
        match &result {
            Ok(()) => self.leave(),
            Err(failure) => {
                cause = PodError::failed(
                    HasKind::kind(&cause),
                    format!("{cause}; undoing it failed, too, and is tried again: {failure}"),
                );
                // What is left bears this sandbox's id and hinders no other attempt.
                self.shared.release_key(&self.record);
            }
        }
        for reply in joining {
            let _ = reply.send(Err(cause.clone()));
        }
        for reply in waiting {
            let _ = reply.send(result.clone());
        }
        if let Err(error) = result {
            self.retry_later(&error);
        }
    }

    /// Tries again, after a pause, to undo or to stop.
    fn retry_later(&mut self, error: &PodError) {
        if std::mem::replace(&mut self.retrying, true) {
            return;
        }
        let pause = self.backoff.next();
        tracing::warn!(pod = %self.record.id, %error, ?pause, "something of the sandbox is left; trying again");
        let cause = PodError::failed(ErrorKind::Aborted, "the sandbox could not be made");
        self.spawn(async move {
            tokio::time::sleep(pause).await;
            move |driver: &mut Self| {
                driver.retrying = false;
                match driver.record.stage {
                    Stage::Undoing => driver.undo(cause),
                    Stage::Stopping => driver.begin_stop(),
                    _ => {}
                }
            }
        });
    }

    fn stop(&mut self, reply: Reply<()>) {
        match self.record.stage {
            Stage::Stopped | Stage::Removing => drop(reply.send(Ok(()))),
            // Carried out as soon as it is made, or answered once it is undone.
            Stage::Creating | Stage::Undoing => self.stopping.push(reply),
            Stage::Ready | Stage::Stopping => {
                self.stopping.push(reply);
                self.begin_stop();
            }
        }
    }

    /// Stops, unless that is under way; joins otherwise.
    pub(super) fn begin_stop(&mut self) {
        self.advance(Step::Stop);
        if self.stop_under_way {
            return;
        }
        self.stop_under_way = true;
        self.publish();
        // A container that is being made is no reason to wait: its making ends with the monitor.
        let (context, record, monitor) = (self.context.clone(), self.record.clone(), self.monitor.clone());
        let (saving, cgroups) = (self.save(), self.container_cgroups());
        self.spawn(async move {
            note(saving.await, &record);
            let stopped = teardown::run(&context, &record, monitor, cgroups).await;
            move |driver: &mut Self| driver.stopped(stopped)
        });
    }

    fn container_cgroups(&self) -> Vec<PathBuf> {
        self.containers.values().flat_map(|slot| slot.record.cgroups.clone()).collect()
    }

    fn stopped(&mut self, result: Result<(), PodError>) {
        self.stop_under_way = false;
        if let Err(error) = result {
            for reply in self.stopping.drain(..).chain(self.removing.drain(..)) {
                let _ = reply.send(Err(error.clone()));
            }
            self.publish();
            return self.retry_later(&error);
        }
        self.monitor = None;
        self.events = None;
        self.record.pause = None;
        self.record.monitor = None;
        self.end_all();
        self.advance(Step::Stopped);
        let saving = self.save();
        self.spawn(async move {
            let saved = saving.await;
            move |driver: &mut Self| {
                note(saved, &driver.record);
                driver.publish();
                for reply in driver.stopping.drain(..) {
                    let _ = reply.send(Ok(()));
                }
                if !driver.removing.is_empty() {
                    driver.begin_remove();
                }
            }
        });
    }

    fn remove(&mut self, reply: Reply<()>) {
        match self.record.stage {
            Stage::Creating | Stage::Undoing => self.removing.push(reply),
            Stage::Ready | Stage::Stopping => {
                self.removing.push(reply);
                self.begin_stop();
            }
            Stage::Stopped => {
                self.removing.push(reply);
                self.begin_remove();
            }
            Stage::Removing => self.removing.push(reply),
        }
    }

    /// Removes a stopped sandbox with all its containers.
    pub(super) fn begin_remove(&mut self) {
        if self.creating > 0 || self.record.stage == Stage::Removing {
            // A container's making may still write files; its end calls this again.
            return;
        }
        self.advance(Step::Remove);
        self.go_on_removing();
    }

    /// The removal itself, which an earlier daemon may have begun.
    pub(super) fn go_on_removing(&mut self) {
        let (context, record, saving) = (self.context.clone(), self.record.clone(), self.save());
        self.spawn(async move {
            note(saving.await, &record);
            let forgotten = forget(&context, &record).await;
            move |driver: &mut Self| {
                match &forgotten {
                    Ok(()) => driver.leave(),
                    Err(_) => driver.record.stage = Stage::Stopped,
                }
                for reply in driver.removing.drain(..) {
                    let _ = reply.send(forgotten.clone());
                }
            }
        });
    }

    /// A container's making is over, in whatever way.
    pub(crate) fn creation_ended(&mut self) {
        self.creating -= 1;
        if self.record.stage == Stage::Stopped && !self.removing.is_empty() {
            self.begin_remove();
        }
    }

    fn leave(&mut self) {
        self.gone = true;
        self.shared.forget(&self.record, self.containers.keys());
        for slot in std::mem::take(&mut self.containers).into_values() {
            slot.release();
        }
    }

    /// Goes to the next stage; a step that the state machine does not know here changes nothing.
    pub(super) fn advance(&mut self, step: Step) {
        match self.record.stage.after(step) {
            Some(stage) => self.record.stage = stage,
            None => tracing::error!(pod = %self.record.id, stage = ?self.record.stage, ?step, "impossible step"),
        }
    }

    fn event(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::Exited(exit) => self.exited(exit),
            MonitorEvent::PauseExited => {
                tracing::warn!(pod = %self.record.id, "pause ended although nobody asked; stopping the sandbox");
                self.record.pause = None;
                if self.record.stage == Stage::Ready {
                    self.begin_stop();
                }
            }
            MonitorEvent::Gone => {
                self.events = None;
                self.monitor = None;
                if self.record.stage == Stage::Ready {
                    tracing::warn!(pod = %self.record.id, "connection to the monitor lost although nobody asked");
                    drop(self.reach(false));
                }
            }
        }
    }

    /// Every container is over: what was not reported was killed with the sandbox.
    pub(super) fn end_all(&mut self) {
        for id in self.not_ended() {
            let killed = Exit { container: id.clone(), exit_code: 137, oom_killed: false, at_ns: now_ns() };
            self.exited(self.told_exit(&id).unwrap_or(killed));
        }
    }

    /// Containers whose end nobody has told yet.
    pub(super) fn not_ended(&self) -> Vec<ContainerId> {
        let living = self.containers.values().filter(|slot| slot.record.exit.is_none());
        living.map(|slot| slot.record.id.clone()).collect()
    }

    /// What the monitor left written of a container's end.
    pub(super) fn told_exit(&self, id: &ContainerId) -> Option<Exit> {
        let file = self.context.paths(&self.record.id).container_state(id).join("exit.json");
        let exit: Exit = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        (exit.container == *id).then_some(exit)
    }
}

/// Makes the folder for the pod's logs.
async fn log_folder(folder: &str) -> Result<(), PodError> {
    if folder.is_empty() {
        return Ok(());
    }
    let path = PathBuf::from(folder);
    let made = tokio::task::spawn_blocking(move || std::fs::create_dir_all(path)).await.map_err(std::io::Error::other);
    made.flatten().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotADirectory
        | std::io::ErrorKind::AlreadyExists
        | std::io::ErrorKind::InvalidFilename
        | std::io::ErrorKind::ReadOnlyFilesystem => PodError::Invalid {
            field: "config.log_directory",
            value: folder.chars().take(300).collect(),
            reason: error.to_string(),
        },
        _ => PodError::io("log folder", &error),
    })
}

/// On the way down a record that cannot be written, on a full disk say, is no reason to stop: a daemon
/// that finds the older one does again what was done, which is harmless.
fn note(saved: Result<(), PodError>, record: &PodRecord) {
    if let Err(error) = saved {
        tracing::warn!(pod = %record.id, %error, "record not written");
    }
}

async fn next_event(events: &mut Option<EventReceiver>) -> MonitorEvent {
    match events {
        Some(receiver) => receiver.recv().await.unwrap_or(MonitorEvent::Gone),
        None => std::future::pending().await,
    }
}

/// Removes every file of the sandbox; the record's folder last, so that a crash before it leads back here.
pub(super) async fn forget(context: &Context, record: &PodRecord) -> Result<(), PodError> {
    let paths = context.paths(&record.id);
    context.discard(paths.state).await?;
    context.discard(paths.data).await
}
