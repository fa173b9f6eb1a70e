//! Changing the resources of a container that is there: its cgroups, its processes, its spec, its
//! record, in this order. Changes of one container follow each other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::create::of_change;
use super::unknown;
use crate::cgroup::limits;
use crate::container::record::Stage;
use crate::container::{resources, spec};
use crate::pod::PodError;
use crate::pod::context::Context;
use crate::pod::driver::{Driver, Reply};
use crate::pod::state::Stage as PodStage;
use crate::types::container::Resources;
use crate::types::{ContainerId, ErrorKind};

/// Changes of one container that may wait for their turn.
const MAX_WAITING: usize = 64;

impl Driver {
    /// UpdateContainerResources: all of `asked`, or nothing.
    pub(crate) fn update_container(&mut self, id: &ContainerId, asked: Resources, reply: Reply<()>) {
        let Some(slot) = self.containers.get_mut(id) else { return drop(reply.send(Err(unknown(id)))) };
        if let Some(waiting) = &mut slot.updating {
            if waiting.len() < MAX_WAITING {
                return waiting.push_back((asked, reply));
            }
            let text = format!("container {id}: too many changes of its resources wait");
            return drop(reply.send(Err(PodError::failed(ErrorKind::ResourceExhausted, text))));
        }
        if let Some(why) = refusal(slot.record.stage, slot.record.exit.is_some()) {
            let text = format!("container {id} {why}: its resources cannot be changed");
            return drop(reply.send(Err(PodError::failed(ErrorKind::FailedPrecondition, text))));
        }
        let present = slot.record.resources.clone().unwrap_or_default();
        let change = match resources::change(&present, &asked) {
            Ok(change) => change,
            Err(error) => return drop(reply.send(Err(of_change(error)))),
        };
        slot.updating = Some(Default::default());
        let (cgroups, bundle) = (slot.record.cgroups.clone(), slot.record.bundle.clone());
        let (id, written, after) = (id.clone(), change.written, change.after.clone());
        let v2 = self.context.cgroups.is_v2();
        self.spawn(async move {
            let done =
                tokio::task::spawn_blocking(move || carry_out(v2, &cgroups, &bundle, &present, &written, &after));
            let done = match done.await {
                Ok(done) => done,
                Err(error) => Err(PodError::failed(ErrorKind::Internal, format!("resources: {error}"))),
            };
            move |driver: &mut Driver| driver.container_updated(id, change.after, done, reply)
        });
    }

    fn container_updated(
        &mut self,
        id: ContainerId,
        after: Resources,
        mut done: Result<serde_json::Value, PodError>,
        reply: Reply<()>,
    ) {
        let path = self.context.paths(&self.record.id).container_data(&id).join("container.json");
        let Some(slot) = self.containers.get_mut(&id) else { return drop(reply.send(Err(unknown(&id)))) };
        if slot.record.exit.is_some() && done.is_err() {
            // Its cgroups may have gone in the middle of it.
            let text = format!("container {id} ended while its resources were being changed");
            done = Err(PodError::failed(ErrorKind::FailedPrecondition, text));
        }
        match done {
            Err(error) => {
                let _ = reply.send(Err(error));
                self.next_update(&id);
            }
            Ok(process) => {
                tracing::info!(container = %id, resources = ?after, "resources changed");
                slot.record.resources = Some(after);
                slot.process = Some(process.into());
                slot.refresh();
                let saving = slot.journal.save(path, &slot.record);
                self.publish();
                self.spawn(async move {
                    let saved = saving.await.map_err(|error| {
                        let text = format!("the container's new resources are in force, but not written down: {error}");
                        PodError::failed(ErrorKind::Internal, text)
                    });
                    move |driver: &mut Driver| {
                        let _ = reply.send(saved);
                        driver.next_update(&id);
                    }
                });
            }
        }
    }

    fn next_update(&mut self, id: &ContainerId) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        let mut waiting = slot.updating.take().unwrap_or_default();
        while let Some((asked, reply)) = waiting.pop_front() {
            self.update_container(id, asked, reply);
            if let Some(slot) = self.containers.get_mut(id)
                && let Some(updating) = &mut slot.updating
            {
                updating.append(&mut waiting);
                return;
            }
        }
    }

    /// UpdatePodSandboxResources. The cgroup that a sandbox lies in is its client's, who has changed
    /// it already; here the new numbers are remembered and shown.
    pub(crate) fn update_pod(&mut self, overhead: Option<Resources>, resources: Option<Resources>, reply: Reply<()>) {
        if self.record.stage != PodStage::Ready {
            let text = format!("sandbox {} is not ready: its resources cannot be changed", self.record.id);
            return drop(reply.send(Err(PodError::failed(ErrorKind::FailedPrecondition, text))));
        }
        let before = (self.record.overhead.clone(), self.record.resources.clone());
        self.record.overhead = overhead.or(before.0.clone());
        self.record.resources = resources.or(before.1.clone());
        let saving = self.save();
        self.publish();
        self.spawn(async move {
            let saved = saving.await;
            move |driver: &mut Driver| {
                if saved.is_err() {
                    (driver.record.overhead, driver.record.resources) = before;
                    driver.publish();
                }
                let _ = reply.send(saved);
            }
        });
    }
}

fn refusal(stage: Stage, ended: bool) -> Option<&'static str> {
    match (stage, ended) {
        (_, true) => Some("has ended"),
        (Stage::Creating, _) => Some("is still being made"),
        (Stage::Removing, _) => Some("is being removed"),
        (Stage::Made, _) => None,
    }
}

/// All of it, or nothing. Returns the spec's `process` as it is now. Blocks.
fn carry_out(
    v2: bool,
    cgroups: &[PathBuf],
    bundle: &Path,
    present: &Resources,
    written: &Resources,
    after: &Resources,
) -> Result<serde_json::Value, PodError> {
    let failed = |error: crate::cgroup::CgroupError| PodError::of("resources", &error);
    let files = |resources: &Resources| {
        let json = spec::resources(resources);
        if v2 { Ok(limits::v2(&json)) } else { limits::v1(&json) }
    };
    // The spec is written beside the old one first: a full disk is found before anything is changed.
    let (new, process) = new_spec(bundle, after).map_err(|error| PodError::io("runtime spec", &error))?;
    let changed = files(written).and_then(|limits| limits::change(cgroups, &limits));
    let adjusted = changed.map_err(failed).and_then(|()| adjust(cgroups, present, after));
    let put = adjusted.and_then(|()| {
        fs::rename(&new, bundle.join("config.json")).map_err(|error| PodError::io("runtime spec", &error))
    });
    match put {
        Ok(()) => Ok(process),
        Err(error) => {
            let _ = fs::remove_file(&new);
            Err(error)
        }
    }
}

/// What the kernel does not permit is done without, as it is when a container is made.
fn adjust(cgroups: &[PathBuf], present: &Resources, after: &Resources) -> Result<(), PodError> {
    if present.oom_score_adj == after.oom_score_adj {
        return Ok(());
    }
    match limits::adjust_oom_score(cgroups, present.oom_score_adj, after.oom_score_adj) {
        Ok(true) => Ok(()),
        Ok(false) => {
            tracing::warn!(asked = after.oom_score_adj, "this node does not permit to lower oom_score_adj");
            Ok(())
        }
        Err(error) => Err(PodError::io("oom_score_adj", &error)),
    }
}

fn new_spec(bundle: &Path, now: &Resources) -> io::Result<(PathBuf, serde_json::Value)> {
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    resources::note(&mut config, now);
    let new = bundle.join("config.json.new");
    fs::write(&new, serde_json::to_vec(&config)?)?;
    Ok((new, config["process"].take()))
}

impl Context {
    /// Refuses limits that this node's kind of cgroups does not have, before anything is made.
    pub(crate) fn check_limits(&self, asked: &Resources) -> Result<(), PodError> {
        if self.cgroups.is_v2() {
            return Ok(());
        }
        match limits::v1(&spec::resources(asked)) {
            Ok(_) => Ok(()),
            Err(error) => Err(PodError::of("config", &error)),
        }
    }
}
