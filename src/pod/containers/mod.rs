//! What happens to containers, inside their pod's driver task.

pub(super) mod create;
pub(super) mod slot;
mod streams;
mod update;

use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use create::{Created, Request};
use slot::Slot;

use super::PodError;
use super::config::NamespaceMode;
use super::context::KILL_LIMIT;
use super::driver::{Driver, Reply};
use super::state::Stage as PodStage;
use crate::container::record::{ContainerRecord, Failure, Stage, Volume};
use crate::container::spec;
use crate::image::LayerHold;
use crate::launch::monitor::{LaunchError, Monitor};
use crate::types::container::ContainerConfig;
use crate::types::{ContainerId, ErrorKind, HasKind, Signal, now_ns};
use crate::wire::{Confinement, ExecOutcome, ExecSpec, Exit, IMAGE_VOLUME_FAILED};

impl Driver {
    pub(crate) fn create_container(&mut self, config: ContainerConfig, reply: Reply<ContainerId>) {
        if let Some(slot) = self.containers.values_mut().find(|slot| {
            slot.record.config.name == config.name
                && slot.record.config.attempt == config.attempt
                && slot.record.stage != Stage::Removing
        }) {
            let id = slot.record.id.clone();
            match (slot.record.config == config, slot.record.stage) {
                (false, _) => {
                    let text = format!(
                        "container {:?} attempt {} exists as {id} with another configuration",
                        config.name, config.attempt
                    );
                    drop(reply.send(Err(PodError::failed(ErrorKind::AlreadyExists, text))));
                }
                (true, Stage::Creating) => slot.creating.push(reply),
                (true, _) => drop(reply.send(Ok(id))),
            }
            return;
        }
        match self.accept(config) {
            Ok((id, request)) => {
                let needed = request.record.needed_layers();
                let hold = self.context.images.hold_layers(&needed);
                match needed.iter().find(|layer| !hold.keys().contains(layer)) {
                    None => self.begin_create(id, request, hold, reply),
                    Some(layer) => {
                        hold.release();
                        let text = format!("an image was removed just now (layer {layer})");
                        drop(reply.send(Err(PodError::failed(ErrorKind::NotFound, text))));
                    }
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn accept(&self, config: ContainerConfig) -> Result<(ContainerId, Request), PodError> {
        let monitor = match (self.record.stage, &self.monitor) {
            (PodStage::Ready, Some(monitor)) => monitor.clone(),
            _ => {
                let text = format!("sandbox {} is not ready", self.record.id);
                return Err(PodError::failed(ErrorKind::FailedPrecondition, text));
            }
        };
        if config.security.privileged && !self.record.config.security.privileged {
            return Err(PodError::Invalid {
                field: "config.linux.security_context.privileged",
                value: "true".into(),
                reason: "the sandbox was not made for privileged containers".into(),
            });
        }
        self.same_namespaces(&config)?;
        if let Some(asked) = &config.resources {
            self.context.check_limits(asked)?;
        }
        let (asked, own) = (&config.security.namespaces, &self.record.config.security.namespaces.user);
        // A container that says nothing is in its sandbox's.
        if (asked.user.is_some() || asked.host_user) && asked.user != *own {
            return Err(PodError::Invalid {
                field: "config.linux.security_context.namespace_options.userns_options",
                value: if asked.host_user { "NODE".to_owned() } else { format!("{:?}", asked.user) },
                reason: format!("containers are in the user namespace of their sandbox, which is {own:?}"),
            });
        }
        let image = self
            .context
            .images
            .find(&config.image)
            .ok_or_else(|| PodError::NotFound { what: "image", id: config.image.clone() })?;
        let target_pid = self.target(&config)?;
        let volumes = self.volumes(&config)?;
        let id = ContainerId::generate();
        let parent = self.context.cgroup_parent(&self.record.config.cgroup_parent)?;
        let paths = self.context.paths(&self.record.id);
        let log_path = log_path(&self.record.config.log_directory, &config.log_path)?;
        let record = ContainerRecord {
            pod: self.record.id.clone(),
            resources: config.resources.clone(),
            image_id: image.id,
            image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            layers: image.layers.clone(),
            volumes,
            created_ns: now_ns(),
            stage: Stage::Creating,
            started_ns: 0,
            exit: None,
            failure: None,
            user: Default::default(),
            stop_signal: create::stop_signal(&config, &image),
            log_path,
            process: None,
            bundle: paths.container_state(&id),
            cgroups: self.context.cgroups.container_folders(&parent.leaf(id.as_str())),
            confinement: Confinement::default(),
            config,
            id: id.clone(),
        };
        Ok((
            id,
            Request { context: self.context.clone(), pod: self.record.clone(), monitor, record, image, target_pid },
        ))
    }

    /// Network and IPC namespace are the sandbox's: a container cannot leave it for the host's.
    fn same_namespaces(&self, config: &ContainerConfig) -> Result<(), PodError> {
        let (pod, own) = (&self.record.config.security.namespaces, &config.security.namespaces);
        for (field, pod, own) in [
            ("config.linux.security_context.namespace_options.network", pod.network, own.network),
            ("config.linux.security_context.namespace_options.ipc", pod.ipc, own.ipc),
        ] {
            if own == NamespaceMode::Node && pod != NamespaceMode::Node {
                let reason = "the sandbox has a namespace of its own, which all its containers share";
                return Err(PodError::Invalid { field, value: "NODE".into(), reason: reason.into() });
            }
        }
        Ok(())
    }

    /// The images that are mounted, which must be here already.
    fn volumes(&self, config: &ContainerConfig) -> Result<Vec<Volume>, PodError> {
        let mut volumes: Vec<Volume> = Vec::new();
        for mount in &config.mounts {
            let Some(name) = mount.image.as_ref().filter(|name| volumes.iter().all(|known| known.name != **name))
            else {
                continue;
            };
            let image = self.context.images.find(name).ok_or_else(|| {
                let text = format!(
                    "{IMAGE_VOLUME_FAILED}: config.mounts.image: image {name:?} for {:?} is not on this node",
                    mount.container_path
                );
                PodError::failed(ErrorKind::NotFound, text)
            })?;
            volumes.push(Volume { name: name.clone(), id: image.id, layers: image.layers.clone() });
        }
        Ok(volumes)
    }

    fn target(&self, config: &ContainerConfig) -> Result<Option<i32>, PodError> {
        let namespaces = &config.security.namespaces;
        if namespaces.pid != NamespaceMode::Target {
            return Ok(None);
        }
        let slot = ContainerId::parse(&namespaces.target_id).ok().and_then(|id| self.containers.get(&id));
        let pid = slot.filter(|slot| slot.running()).and_then(|slot| slot.record.process).map(|process| process.pid);
        pid.map(Some).ok_or_else(|| PodError::Invalid {
            field: "config.linux.security_context.namespace_options.target_id",
            value: namespaces.target_id.clone(),
            reason: "no running container of this sandbox".into(),
        })
    }

    fn begin_create(&mut self, id: ContainerId, request: Request, hold: LayerHold, reply: Reply<ContainerId>) {
        let mut slot = Slot::new(request.record.clone(), hold);
        slot.creating.push(reply);
        let journal = slot.journal.clone();
        self.containers.insert(id.clone(), slot);
        self.shared.add_container(&id, &self.record.id);
        self.shared.reserve_level(&id, &request.record.config);
        self.creating += 1;
        let (context, monitor, record) = (self.context.clone(), self.monitor.clone(), request.record.clone());
        let path = context.paths(&record.pod).container_data(&id).join("container.json");
        self.spawn(async move {
            let made = async {
                let folder = path.parent().map(Path::to_owned).unwrap_or_default();
                crate::pod::context::blocking("record", move || crate::pod::files::private_folder(&folder)).await?;
                journal.save(path.clone(), &record).await?;
                let mut created = create::run(request).await?;
                created.record.stage = Stage::Made;
                journal.save(path, &created.record).await?;
                Ok(created)
            }
            .await;
            let undone = match &made {
                Ok(_) => Ok(()),
                Err(_) => create::undo(&context, &record, monitor.as_ref()).await,
            };
            move |driver: &mut Driver| driver.container_created(&id, made, undone)
        });
    }

    fn container_created(&mut self, id: &ContainerId, made: Result<Created, PodError>, undone: Result<(), PodError>) {
        let Some(slot) = self.containers.get_mut(id) else { return self.creation_ended() };
        let waiting = std::mem::take(&mut slot.creating);
        let answer = match made {
            Ok(created) => {
                // An exit may have been reported already: the record here knows it, the new one does not.
                let exit = slot.record.exit.take();
                let ended = exit.is_some();
                slot.record = ContainerRecord { exit, ..created.record };
                slot.process = Some(created.process);
                slot.refresh();
                if ended {
                    self.save_container(id);
                }
                Ok(id.clone())
            }
            Err(error) => {
                if let Err(failure) = undone {
                    tracing::error!(container = %id, error = %failure, "undoing a container failed; tried again with its sandbox");
                }
                if let Some(slot) = self.containers.remove(id) {
                    slot.release();
                }
                self.shared.drop_container(id);
                Err(error)
            }
        };
        self.publish();
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
        self.creation_ended();
    }

    pub(crate) fn start_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let monitor = self.monitor.clone();
        let Some(slot) = self.containers.get_mut(id) else { return drop(reply.send(Err(unknown(id)))) };
        if let Some(waiting) = &mut slot.starting {
            return waiting.push(reply);
        }
        let refuse = |text: &str| PodError::failed(ErrorKind::FailedPrecondition, format!("container {id} {text}"));
        let monitor = match (slot.record.stage, slot.record.started_ns, &slot.record.exit, monitor) {
            (Stage::Made, 0, None, Some(monitor)) => monitor,
            (Stage::Made, started, None, _) if started != 0 => {
                return drop(reply.send(Err(refuse("is running already"))));
            }
            (_, _, Some(_), _) => return drop(reply.send(Err(refuse("has ended; it cannot be started again")))),
            _ => return drop(reply.send(Err(refuse("cannot be started now: its sandbox is not ready")))),
        };
        slot.starting = Some(vec![reply]);
        self.ask_to_start(id.clone(), monitor);
    }

    /// Has the monitor start a container, or tell how that went if it was asked before.
    pub(crate) fn ask_to_start(&mut self, id: ContainerId, monitor: Monitor) {
        self.spawn(async move {
            let started = monitor.start(&id).await;
            move |driver: &mut Driver| match started {
                // The program may run. The monitor is asked again once it is reached, or its end is told.
                Err(LaunchError::Gone(_)) if driver.record.stage == PodStage::Ready => {}
                Err(LaunchError::Gone(_)) => driver.forsake_starts(),
                started => driver.container_started(&id, started.map_err(|error| PodError::of("start", &error))),
            }
        });
    }

    /// Nobody will tell any more how the starts went that are under way.
    pub(crate) fn forsake_starts(&mut self) {
        let gone = PodError::of("start", &LaunchError::Gone(self.record.id.clone()));
        for reply in self.containers.values_mut().filter_map(|slot| slot.starting.take()).flatten() {
            let _ = reply.send(Err(gone.clone()));
        }
    }

    fn container_started(&mut self, id: &ContainerId, started: Result<i64, PodError>) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        let waiting = slot.starting.take().unwrap_or_default();
        let answer = match started {
            Ok(at) => {
                slot.record.started_ns = at;
                Ok(())
            }
            Err(error) => {
                slot.record.failure = Some(Failure { reason: "StartError".into(), message: error.to_string() });
                if slot.record.exit.is_none() {
                    let exit_code = if error.kind() == ErrorKind::PermissionDenied { 126 } else { 127 };
                    let exit = Exit { container: id.clone(), exit_code, oom_killed: false, at_ns: now_ns() };
                    slot.exit.send_replace(Some(exit.clone()));
                    slot.record.exit = Some(exit);
                }
                Err(error)
            }
        };
        slot.refresh();
        self.save_container(id);
        self.publish();
        for reply in waiting {
            let _ = reply.send(answer.clone());
        }
    }

    /// The monitor reports an exit, or it is inferred.
    pub(crate) fn exited(&mut self, exit: Exit) {
        let id = exit.container.clone();
        let Some(slot) = self.containers.get_mut(&id) else { return };
        if slot.record.exit.is_some() {
            return;
        }
        tracing::info!(container = %id, exit_code = exit.exit_code, oom = exit.oom_killed, "container ended");
        slot.record.exit = Some(exit.clone());
        slot.exit.send_replace(Some(exit));
        slot.refresh();
        if slot.record.stage != Stage::Creating {
            self.save_container(&id);
            self.publish();
        }
    }

    /// Writes a container's record in the background.
    pub(crate) fn save_container(&mut self, id: &ContainerId) {
        let Some(slot) = self.containers.get(id) else { return };
        let path = self.context.paths(&self.record.id).container_data(id).join("container.json");
        let (saving, id) = (slot.journal.save(path, &slot.record), id.clone());
        self.spawn(async move {
            let saved = saving.await;
            move |driver: &mut Driver| match saved {
                // With the container its folder is gone, too.
                Err(error) if driver.containers.contains_key(&id) && driver.record.stage != PodStage::Removing => {
                    tracing::error!(container = %id, %error, "record not written");
                }
                _ => {}
            }
        });
    }

    pub(crate) fn stop_container(&mut self, id: &ContainerId, grace: Duration, reply: Reply<()>) {
        let Some(slot) = self.containers.get(id) else { return drop(reply.send(Ok(()))) };
        if !slot.started() {
            return drop(reply.send(Ok(())));
        }
        if self.monitor.is_none() && self.record.stage == PodStage::Ready {
            // Whether the monitor lives is being found out.
            return self.unreached.push((id.clone(), grace, reply));
        }
        // Without a monitor it is being killed with its sandbox.
        let (monitor, exit, signal) = (self.monitor.clone(), slot.exit.subscribe(), slot.record.stop_signal);
        let id = id.clone();
        self.spawn(async move {
            let stopped = stop(monitor.as_ref(), &id, exit, signal, grace).await;
            move |_: &mut Driver| drop(reply.send(stopped))
        });
    }

    pub(crate) fn remove_container(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(slot) = self.containers.get_mut(id) else { return drop(reply.send(Ok(()))) };
        if slot.record.stage == Stage::Creating {
            let text = format!("container {id} is still being made; try again");
            return drop(reply.send(Err(PodError::failed(ErrorKind::Unavailable, text))));
        }
        slot.removing.push(reply);
        if slot.record.stage == Stage::Removing {
            return;
        }
        self.begin_remove_container(id.clone());
    }

    /// Kills what runs, deletes what is left.
    pub(crate) fn begin_remove_container(&mut self, id: ContainerId) {
        let path = self.context.paths(&self.record.id).container_data(&id).join("container.json");
        let Some(slot) = self.containers.get_mut(&id) else { return };
        slot.unmade |= slot.record.stage == Stage::Creating;
        for reply in slot.creating.drain(..) {
            // They have joined a making of an earlier daemon's, which nobody goes on with.
            let text = format!("container {id} was being made when the daemon ended; try again");
            let _ = reply.send(Err(PodError::failed(ErrorKind::Aborted, text)));
        }
        slot.record.stage = Stage::Removing;
        let (record, saving) = (slot.record.clone(), slot.journal.save(path, &slot.record));
        let (context, monitor) = (self.context.clone(), self.monitor.clone());
        self.spawn(async move {
            if let Err(error) = saving.await {
                // On a full disk removals must go on; that it was begun is forgotten with the daemon, no more.
                tracing::warn!(container = %record.id, %error, "record not written");
            }
            let removed = create::undo(&context, &record, monitor.as_ref()).await;
            move |driver: &mut Driver| driver.container_removed(&id, removed)
        });
    }

    fn container_removed(&mut self, id: &ContainerId, removed: Result<(), PodError>) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        let waiting = std::mem::take(&mut slot.removing);
        match &removed {
            Ok(()) => {
                if let Some(slot) = self.containers.remove(id) {
                    slot.release();
                }
                self.shared.drop_container(id);
            }
            Err(error) => {
                tracing::warn!(container = %id, %error, "container could not be removed");
                // A retry begins anew; what nobody knows of goes with the sandbox.
                if !slot.unmade {
                    slot.record.stage = Stage::Made;
                }
            }
        }
        self.publish();
        for reply in waiting {
            let _ = reply.send(removed.clone());
        }
    }

    /// A container whose program runs, and the monitor that looks after it.
    pub(crate) fn running(&self, id: &ContainerId) -> Result<(&Slot, Monitor), PodError> {
        let slot = self.containers.get(id).ok_or_else(|| unknown(id))?;
        match &self.monitor {
            Some(monitor) if slot.running() => Ok((slot, monitor.clone())),
            _ => {
                let text = format!("container {id} is not running");
                Err(PodError::failed(ErrorKind::FailedPrecondition, text))
            }
        }
    }

    pub(crate) fn exec(
        &mut self,
        id: &ContainerId,
        command: &[String],
        timeout: Option<Duration>,
        mut reply: Reply<ExecOutcome>,
    ) {
        let (slot, monitor) = match self.running(id) {
            Ok(running) => running,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (known, bundle) = (slot.process.clone(), slot.record.bundle.clone());
        let limits = self.context.limits.clone();
        let (id, confinement, command) = (id.clone(), slot.record.confinement.clone(), command.to_vec());
        self.spawn(async move {
            let mut read = None;
            let outcome = async {
                let process = match known {
                    Some(process) => process,
                    None => read.insert(create::process_of(bundle).await?).clone(),
                };
                let spec = ExecSpec {
                    container: id.clone(),
                    process: spec::exec_process(&process, &command, false),
                    confinement,
                    timeout_ms: timeout
                        .map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
                    token: token(),
                    output_limit: limits.exec_output,
                    drain_ms: millis(limits.exec_drain),
                };
                let token = spec.token;
                let mut running = pin!(monitor.exec(spec));
                let outcome = tokio::select! {
                    outcome = &mut running => outcome,
                    // The client went away: nobody will see what the process does.
                    () = reply.closed() => {
                        if let Err(error) = monitor.end_exec(&id, token).await {
                            tracing::warn!(container = %id, %error, "ending an exec that nobody waits for");
                        }
                        running.await
                    }
                };
                outcome.map_err(|error| PodError::of("exec", &error))
            }
            .await;
            move |driver: &mut Driver| {
                if let (Some(process), Some(slot)) = (read, driver.containers.get_mut(&id)) {
                    slot.process = Some(process);
                }
                let _ = reply.send(outcome);
            }
        });
    }

    pub(crate) fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        let monitor = match self.running(id) {
            Ok((_, monitor)) => monitor,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let id = id.clone();
        self.spawn(async move {
            let reopened = monitor.reopen_log(&id).await.map_err(|error| PodError::of("log", &error));
            move |_: &mut Driver| drop(reply.send(reopened))
        });
    }
}

/// Names an exec among all that a monitor has, those of an earlier daemon too.
fn token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    now_ns().unsigned_abs().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)).max(1)
}

/// Stop signal, grace, SIGKILL for the whole cgroup. Returns once init has ended. Each call stands for
/// itself: one with a short grace ends what one with a long grace waits for.
async fn stop(
    monitor: Option<&Monitor>,
    id: &ContainerId,
    mut exit: watch::Receiver<Option<Exit>>,
    signal: Signal,
    grace: Duration,
) -> Result<(), PodError> {
    let kill = async |signal: Signal, all: bool| match monitor {
        None => Ok(true),
        Some(monitor) => match monitor.kill(id, signal.number(), all).await {
            // The sandbox is being taken down, and the container with it.
            Ok(()) | Err(LaunchError::Gone(_)) => Ok(true),
            // Nobody is there to pass on a signal.
            Err(LaunchError::Silent(_)) if !all => Ok(false),
            Err(error) => Err(PodError::of("kill", &error)),
        },
    };
    if !grace.is_zero() && signal != Signal::KILL {
        let told = kill(signal, false).await?;
        if told && tokio::time::timeout(grace, exit.wait_for(Option::is_some)).await.is_ok() {
            // What init left behind in a PID namespace that it shared.
            return kill(Signal::KILL, true).await.map(drop);
        }
    }
    kill(Signal::KILL, true).await?;
    match tokio::time::timeout(KILL_LIMIT, exit.wait_for(Option::is_some)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(PodError::failed(ErrorKind::DeadlineExceeded, format!("container {id} does not end on SIGKILL"))),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unknown(id: &ContainerId) -> PodError {
    PodError::NotFound { what: "container", id: id.to_string() }
}

/// The absolute log file, which must lie in the pod's log folder.
fn log_path(folder: &str, file: &str) -> Result<String, PodError> {
    if file.is_empty() || folder.is_empty() {
        return Ok(String::new());
    }
    let relative = Path::new(file);
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(PodError::Invalid {
            field: "config.log_path",
            value: file.chars().take(300).collect(),
            reason: "want a path relative to the sandbox's log_directory, without `..`".into(),
        });
    }
    Ok(PathBuf::from(folder).join(relative).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_stay_in_their_folder() {
        assert_eq!(log_path("/var/log/pods/x", "c/0.log").unwrap(), "/var/log/pods/x/c/0.log");
        assert_eq!(log_path("", "c/0.log").unwrap(), "");
        assert_eq!(log_path("/l", "").unwrap(), "");
        for bad in ["../x", "/etc/passwd", "a/../../b"] {
            assert!(log_path("/l", bad).is_err(), "{bad}");
        }
    }
}
