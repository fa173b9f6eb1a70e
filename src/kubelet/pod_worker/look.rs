//! What is there: asks the runtime for the pod's sandboxes and containers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::proto::{self, ContainerState, PodSandboxState};
use crate::types::now_ns;

use super::super::logs;
use super::super::manifest::TerminationMessagePolicy;
use super::super::record::Record;
use super::super::translate::{identity, labels};
use super::super::volumes;
use super::state::{Life, Sandbox, Seen};
use super::{Halt, Report, Worker, WorkerError};

/// The longest last words that are read, in bytes, as kubelet.
const MAX_MESSAGE: u64 = 4096;

/// How a container ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    code: i32,
    at: i64,
}

impl Worker {
    /// Brings `self.world` up to date.
    pub(super) async fn look(&mut self) -> Result<(), WorkerError> {
        let mut labels: std::collections::HashMap<String, String> = identity(&self.job).into_iter().collect();
        labels.retain(|key, _| key == labels::POD_UID || key == labels::OWNER);
        let cri = &self.tools.cri;
        let (sandboxes, containers) = tokio::try_join!(cri.sandboxes(labels.clone()), cri.containers(labels))?;
        self.world.halted = *self.tools.halt.borrow() != Halt::No;
        self.world.now = now_ns();
        self.world.started_at = sandboxes.iter().map(|sandbox| sandbox.created_at).min().unwrap_or_default();
        let attempt = |sandbox: &proto::PodSandbox| sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
        let newest = sandboxes.iter().max_by_key(|sandbox| (attempt(sandbox), sandbox.created_at));
        self.world.sandbox = newest.map(|sandbox| Sandbox {
            id: sandbox.id.clone(),
            attempt: attempt(sandbox),
            ready: sandbox.state() == PodSandboxState::SandboxReady,
        });
        let before = self.world.containers.clone();
        self.world.containers = self.seen(containers).await?;
        if before != self.world.containers {
            self.tools.listener.changed();
        }
        let ready = newest.filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady);
        if let Some(id) = ready.map(|sandbox| sandbox.id.clone()).filter(|id| *id != self.settled) {
            self.settle(id).await?;
        }
        Ok(())
    }

    /// The newest container of each name.
    async fn seen(&mut self, all: Vec<proto::Container>) -> Result<BTreeMap<String, Seen>, WorkerError> {
        let mut newest: BTreeMap<String, proto::Container> = BTreeMap::new();
        for container in all {
            let Some(metadata) = &container.metadata else { continue };
            let (name, attempt) = (metadata.name.clone(), metadata.attempt);
            let known = newest.get(&name).and_then(|known| known.metadata.as_ref()).map(|known| known.attempt);
            if known.is_none_or(|known| attempt >= known) {
                newest.insert(name, container);
            }
        }
        let current = self.world.sandbox.as_ref().map(|sandbox| sandbox.id.clone()).unwrap_or_default();
        let mut seen = BTreeMap::new();
        for (name, container) in newest {
            let attempt = container.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
            let life = match container.state() {
                ContainerState::ContainerCreated => Life::Created,
                ContainerState::ContainerRunning => Life::Running,
                // The runtime lost track of an "unknown" one: as good as gone, like kubelet has it.
                ContainerState::ContainerExited | ContainerState::ContainerUnknown => {
                    let exit = self.exit(&name, attempt, &container.id).await?;
                    Life::Exited { code: exit.code, at: exit.at }
                }
            };
            let ready_at = match life {
                Life::Exited { at, .. } => self.backoffs.get(&name).map_or(at, |backoff| backoff.ready_at(at)),
                _ => 0,
            };
            let here = container.pod_sandbox_id == current;
            // What is not in the newest sandbox was stopped with its own, whatever the list says.
            let life =
                if here || matches!(life, Life::Exited { .. }) { life } else { Life::Exited { code: 137, at: 0 } };
            seen.insert(name, Seen { id: container.id, attempt, here, life, ready_at });
        }
        Ok(seen)
    }

    async fn exit(&mut self, name: &str, attempt: u32, id: &str) -> Result<Exit, WorkerError> {
        if let Some(exit) = self.exits.get(id) {
            return Ok(*exit);
        }
        let request = proto::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.tools.cri.container_status(request).await?.status.unwrap_or_default();
        let code = match status.state() {
            ContainerState::ContainerUnknown if status.exit_code == 0 => 255,
            _ => status.exit_code,
        };
        let exit = Exit { code, at: status.finished_at };
        self.exits.insert(id.to_owned(), exit);
        let message = self.last_words(name, attempt, code).await;
        let message = if message.is_empty() { status.message } else { message };
        self.tell(Report::Exited { container: name.to_owned(), attempt, code, reason: status.reason, message }).await;
        Ok(exit)
    }

    async fn last_words(&self, name: &str, attempt: u32, code: i32) -> String {
        let (job, dirs) = (&self.job, &self.tools.dirs);
        let text = read_bounded(&dirs.termination_file(job, name, attempt));
        let fallback = job.pod.all_containers().any(|container| {
            container.name == name
                && container.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError
        });
        if text.is_empty() && code != 0 && fallback {
            return logs::tail(&dirs.log_file(job, name, attempt), 80, 2048).await;
        }
        text
    }

    /// A sandbox that is new to this worker: learns its addresses and makes sure that its files are there.
    async fn settle(&mut self, id: String) -> Result<(), WorkerError> {
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let status = self.tools.cri.pod_sandbox_status(request).await?.status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let further = network.additional_ips.into_iter().map(|ip| ip.ip);
        self.ips = std::iter::once(network.ip).chain(further).filter(|ip| !ip.is_empty()).collect();
        let (job, node, dirs, ips) =
            (self.job.clone(), self.tools.node.clone(), self.tools.dirs.clone(), self.ips.clone());
        tokio::task::spawn_blocking(move || {
            Record::write(&job, &dirs, 0)?;
            volumes::prepare(&job, &node, &dirs)?;
            volumes::write_hosts(&job, &node, &dirs, &ips)
        })
        .await??;
        self.settled = id;
        self.tell(Report::SandboxReady(self.ips.clone())).await;
        Ok(())
    }
}

fn read_bounded(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What can be read is better than nothing.
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}
