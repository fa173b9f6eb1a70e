//! Sandboxes: what is asked ([`config`]), and the life of each in its own task ([`state`] has the
//! picture).
//!
//! Architecture Invariant: the index below is locked for look-ups and changes of single entries
//! only, never across an await; everything that takes time happens in the drivers.

mod containers;
mod context;
mod create;
mod driver;
mod error;
mod files;
mod journal;
mod lsm;
mod purge;
mod record;
mod recover;
mod retry;
pub mod state;
pub mod streams;
mod teardown;
pub mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use crate::types::pod as config;
pub use context::{Context, Limits, user_place};
pub use error::PodError;
pub use lsm::{AppArmor, Lsm, Settings as LsmSettings};

use crate::container::view::ContainerView;
use crate::types::container::{ContainerConfig, Resources};
use crate::types::{ContainerId, ErrorKind, PodId, now_ns};
use crate::wire::ExecOutcome;
use config::{PodConfig, PodKey};
use driver::{Command, Driver, Reply};
use record::PodRecord;
use state::Stage;
use tokio::sync::{mpsc, oneshot, watch};
use view::PodView;

/// Commands that may wait for a driver before callers do: drivers only ever work for microseconds
/// between awaits.
const QUEUE: usize = 256;

/// How often a name is looked up whose sandbox is gone when it is spoken to.
const JOIN_TRIES: usize = 8;

/// All sandboxes of this node. Cheap to clone.
///
/// Ids are taken whole or as an unambiguous prefix.
#[derive(Clone)]
pub struct Pods(Arc<Shared>);

/// What drivers and callers share.
pub(crate) struct Shared {
    pub(crate) context: Arc<Context>,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    pods: HashMap<PodId, Handle>,
    keys: HashMap<PodKey, PodId>,
    containers: HashMap<ContainerId, PodId>,
}

#[derive(Debug, Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<PodView>>,
}

impl Pods {
    /// Takes over what earlier daemons left behind; returns once every sandbox is adopted, being
    /// stopped, or forgotten. From then on images' layers that nobody needs are deleted.
    pub async fn recover(context: Context) -> Result<Self, PodError> {
        let pods = Self(Arc::new(Shared { context: Arc::new(context), index: Mutex::default() }));
        recover::run(&pods.0).await?;
        Ok(pods)
    }

    /// Makes a sandbox, or joins the making of the same one, or finds it made.
    ///
    /// # Errors
    /// `AlreadyExists` if the key is taken by a sandbox of another configuration or handler;
    /// `FailedPrecondition` if the handler's program is missing.
    pub async fn run(&self, config: PodConfig, handler: &str) -> Result<PodId, PodError> {
        let context = &self.0.context;
        let known = context.handlers.get(handler).map_err(|error| PodError::of("runtime_handler", &error))?;
        // Pause needs no runtime, so this would not show before the first container.
        known.program().map_err(|error| PodError::of("runtime_handler", &error))?;
        context.check_user_namespace(&config, known)?;
        let parent = self.0.context.cgroup_parent(&config.cgroup_parent)?;
        for _ in 0..JOIN_TRIES {
            // No await between the reservation and the driver: a caller that goes away at any moment
            // leaves a driver behind that finishes the job.
            let handle = match self.0.reserve(&config, handler, &parent)? {
                Reserved::Known(handle) => handle,
                Reserved::New(handle, mut driver, queue) => {
                    driver.create();
                    tokio::spawn(driver.run(queue));
                    handle
                }
            };
            match ask(&handle, Command::Join).await {
                // It vanished between look-up and question: the name is free now.
                Err(PodError::NotFound { .. }) => {}
                answer => return answer,
            }
        }
        Err(PodError::failed(ErrorKind::Aborted, "sandboxes of this name come and go; try again"))
    }

    /// Stops all containers, pause and the network. Unknown: fine (CRI: "idempotent").
    pub async fn stop(&self, id: &str) -> Result<(), PodError> {
        match self.0.find(id) {
            Ok(handle) => or_gone(ask(&handle, Command::Stop).await),
            Err(error) => or_gone(Err(error)),
        }
    }

    /// Stops if needed and forgets. Unknown: fine (CRI: "idempotent").
    pub async fn remove(&self, id: &str) -> Result<(), PodError> {
        match self.0.find(id) {
            Ok(handle) => or_gone(ask(&handle, Command::Remove).await),
            Err(error) => or_gone(Err(error)),
        }
    }

    /// One sandbox.
    pub fn get(&self, id: &str) -> Result<Arc<PodView>, PodError> {
        let view = self.0.find(id)?.view.borrow().clone();
        if view.visible { Ok(view) } else { Err(PodError::NotFound { what: "sandbox", id: id.to_owned() }) }
    }

    /// All sandboxes, oldest first.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        let handles: Vec<Handle> = self.0.lock().pods.values().cloned().collect();
        let mut views: Vec<_> =
            handles.iter().map(|handle| handle.view.borrow().clone()).filter(|view| view.visible).collect();
        views.sort_by_key(|view| view.created_ns);
        views
    }

    /// Makes a container, or joins the making of the same one, or finds it made.
    ///
    /// # Errors
    /// `AlreadyExists` if name and attempt are taken by one of another configuration.
    pub async fn create_container(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId, PodError> {
        let handle = self.0.find(pod)?;
        ask(&handle, |reply| Command::CreateContainer(Box::new(config), reply)).await
    }

    /// Lets it run.
    pub async fn start_container(&self, id: &str) -> Result<(), PodError> {
        let (handle, id) = self.0.find_container(id)?;
        ask(&handle, |reply| Command::StartContainer(id, reply)).await
    }

    /// Stop signal, grace, SIGKILL. Unknown or ended: fine.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), PodError> {
        match self.0.find_container(id) {
            Ok((handle, id)) => or_gone(ask(&handle, |reply| Command::StopContainer(id, grace, reply)).await),
            Err(error) => or_gone(Err(error)),
        }
    }

    /// Kills if needed and forgets. Unknown: fine.
    pub async fn remove_container(&self, id: &str) -> Result<(), PodError> {
        match self.0.find_container(id) {
            Ok((handle, id)) => or_gone(ask(&handle, |reply| Command::RemoveContainer(id, reply)).await),
            Err(error) => or_gone(Err(error)),
        }
    }

    /// One container.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, PodError> {
        let (handle, full) = self.0.find_container(id)?;
        let view = handle.view.borrow().clone();
        let found = view.containers.iter().find(|container| container.id == full).cloned();
        found.ok_or_else(|| PodError::NotFound { what: "container", id: id.to_owned() })
    }

    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        let mut all: Vec<_> = self.list().iter().flat_map(|pod| pod.containers.clone()).collect();
        all.sort_by_key(|view| view.created_ns);
        all
    }

    /// Runs a command in a running container.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutcome, PodError> {
        let (handle, id) = self.0.find_container(id)?;
        ask(&handle, |reply| Command::Exec(id, command, timeout, reply)).await
    }

    /// Changes the resources of a container that has not ended: all that is not 0 or empty, or nothing.
    pub async fn update_container(&self, id: &str, asked: Resources) -> Result<(), PodError> {
        let (handle, id) = self.0.find_container(id)?;
        ask(&handle, |reply| Command::UpdateContainer(id, Box::new(asked), reply)).await
    }

    /// Notes other resources of a sandbox; `None`: as they were.
    pub async fn update(
        &self,
        id: &str,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<(), PodError> {
        let handle = self.0.find(id)?;
        ask(&handle, |reply| Command::UpdatePod(Box::new((overhead, resources)), reply)).await
    }

    /// Closes the log file and opens its path anew.
    pub async fn reopen_log(&self, id: &str) -> Result<(), PodError> {
        let (handle, id) = self.0.find_container(id)?;
        ask(&handle, |reply| Command::ReopenLog(id, reply)).await
    }
}

enum Reserved {
    Known(Handle),
    New(Handle, Box<Driver>, mpsc::Receiver<Command>),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Index> {
        // Nothing that can panic runs under the lock; a poisoned one is as good as any.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(
        self: &Arc<Self>,
        config: &PodConfig,
        handler: &str,
        parent: &crate::cgroup::Parent,
    ) -> Result<Reserved, PodError> {
        let mut index = self.lock();
        if let Some((id, handle)) = index.keys.get(&config.key).and_then(|id| Some((id, index.pods.get(id)?))) {
            let view = handle.view.borrow().clone();
            if *view.config == *config && view.handler == handler {
                return Ok(Reserved::Known(handle.clone()));
            }
            let text = format!(
                "sandbox {}/{} attempt {} exists as {id} with another configuration",
                config.key.namespace, config.key.name, config.key.attempt
            );
            return Err(PodError::failed(ErrorKind::AlreadyExists, text));
        }
        let id = PodId::generate();
        let record = PodRecord {
            id: id.clone(),
            boot_id: self.context.boot_id.clone(),
            config: config.clone(),
            handler: handler.to_owned(),
            created_ns: now_ns(),
            stage: Stage::Creating,
            ips: Vec::new(),
            overhead: config.overhead.clone(),
            resources: config.resources.clone(),
            pause: None,
            monitor: None,
            cgroups: self.context.cgroups.folders(&parent.leaf(id.as_str())),
            made_parents: Vec::new(),
            labels: match self.context.lsm.selinux() {
                Some(selinux) => Some(selinux.claim(id.as_str(), config.security.selinux.as_ref())?),
                None => None,
            },
        };
        let (publish, view) = watch::channel(Arc::new(placeholder(&record)));
        let (commands, queue) = mpsc::channel(QUEUE);
        let handle = Handle { commands, view };
        // Both under one lock: who finds the key finds the sandbox.
        index.keys.insert(config.key.clone(), id.clone());
        index.pods.insert(id, handle.clone());
        let driver = Driver::new(self.clone(), record, Default::default(), publish);
        Ok(Reserved::New(handle, Box::new(driver), queue))
    }

    fn find(&self, id: &str) -> Result<Handle, PodError> {
        let index = self.lock();
        let full = by_prefix(index.pods.keys(), id, PodId::as_str, "sandbox", "pod_sandbox_id")?;
        index.pods.get(full).cloned().ok_or_else(|| PodError::NotFound { what: "sandbox", id: id.to_owned() })
    }

    fn find_container(&self, id: &str) -> Result<(Handle, ContainerId), PodError> {
        let index = self.lock();
        let full = by_prefix(index.containers.keys(), id, ContainerId::as_str, "container", "container_id")?;
        let handle = index.containers.get(full).and_then(|pod| index.pods.get(pod));
        handle
            .map(|handle| (handle.clone(), full.clone()))
            .ok_or_else(|| PodError::NotFound { what: "container", id: id.to_owned() })
    }

    pub(crate) fn add_container(&self, id: &ContainerId, pod: &PodId) {
        self.lock().containers.insert(id.clone(), pod.clone());
    }

    pub(crate) fn drop_container(&self, id: &ContainerId) {
        self.lock().containers.remove(id);
        self.release_level(id.as_str());
    }

    /// No pod gets the SELinux level that a container asked for beside its pod's.
    pub(crate) fn reserve_level(&self, id: &ContainerId, config: &ContainerConfig) {
        if let (Some(selinux), Some(asked)) = (self.context.lsm.selinux(), &config.security.selinux) {
            selinux.reserve(id.as_str(), &asked.level);
        }
    }

    fn release_level(&self, owner: &str) {
        if let Some(selinux) = self.context.lsm.selinux() {
            selinux.release(owner);
        }
    }

    /// What is left of a sandbox does not keep its name.
    pub(crate) fn release_key(&self, record: &PodRecord) {
        self.lock().keys.retain(|_, id| *id != record.id);
    }

    /// A sandbox and what was in it is gone.
    pub(crate) fn forget<'a>(&self, record: &PodRecord, containers: impl Iterator<Item = &'a ContainerId>) {
        let mut index = self.lock();
        index.pods.remove(&record.id);
        index.keys.retain(|_, id| *id != record.id);
        self.release_level(record.id.as_str());
        for id in containers {
            index.containers.remove(id);
            self.release_level(id.as_str());
        }
    }
}

/// What is shown before the driver publishes for the first time: nothing, but enough to compare.
fn placeholder(record: &PodRecord) -> PodView {
    PodView {
        id: record.id.clone(),
        config: Arc::new(record.config.clone()),
        handler: record.handler.clone(),
        visible: false,
        state: view::PodState::NotReady,
        created_ns: record.created_ns,
        ips: Vec::new(),
        overhead: None,
        resources: None,
        netns: None,
        pause: None,
        cgroups: Vec::new(),
        monitor: None,
        containers: Vec::new(),
    }
}

fn by_prefix<'a, T>(
    ids: impl Iterator<Item = &'a T>,
    wanted: &str,
    text: impl Fn(&T) -> &str,
    what: &'static str,
    field: &'static str,
) -> Result<&'a T, PodError> {
    if wanted.is_empty() {
        return Err(PodError::Invalid { field, value: String::new(), reason: "must not be empty".into() });
    }
    let mut found = ids.filter(|id| text(id).starts_with(wanted));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(PodError::NotFound { what, id: wanted.chars().take(100).collect() }),
        (Some(_), Some(_)) => Err(PodError::Invalid {
            field,
            value: wanted.to_owned(),
            reason: "fits more than one id; give more of it".into(),
        }),
    }
}

async fn ask<T>(handle: &Handle, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, PodError> {
    let (reply, answer) = oneshot::channel();
    let gone = || PodError::NotFound { what: "sandbox", id: "just removed".into() };
    handle.commands.send(command(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// Stop and remove are idempotent: what is not there is stopped and removed.
fn or_gone(result: Result<(), PodError>) -> Result<(), PodError> {
    match result {
        Err(PodError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
