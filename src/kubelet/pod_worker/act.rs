//! What a worker does: make sandboxes, start and stop containers.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tonic::Code;

use crate::proto;
use crate::types::now_ns;

use super::super::client::{Cri, CriError};
use super::super::manifest::Container;
use super::super::record::Record;
use super::super::{translate, volumes};
use super::state::{Life, Seen};
use super::{Halt, Report, Worker, WorkerError, beyond, images, pull_policy};

impl Worker {
    /// Volumes, images and the sandbox, all at once.
    pub(super) async fn run_sandbox(&mut self, attempt: u32) -> Result<(), WorkerError> {
        if let Some(old) = &self.world.sandbox {
            // What the old one holds (host ports above all) must be free first.
            let request = proto::StopPodSandboxRequest { pod_sandbox_id: old.id.clone() };
            self.tools.cri.stop_pod_sandbox(request).await?;
        }
        self.tell(Report::SandboxStarting).await;
        let (job, node, dirs) = (self.job.clone(), self.tools.node.clone(), self.tools.dirs.clone());
        let config = translate::sandbox(&job, &node, &dirs, attempt);
        let handler = self.handler();
        // Before the look: who closes it waits for all that are there by then.
        let asking = self.tools.asking.token();
        if self.tools.asking.is_closed() {
            drop(asking);
            // The driver ends.
            return std::future::pending().await;
        }
        // Should this process be killed before the answer comes, others must know that there may be a sandbox.
        self.note_asked(now_ns()).await?;
        let prepared = tokio::task::spawn_blocking(move || volumes::prepare(&job, &node, &dirs));
        let request = proto::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.clone() };
        let run = async {
            let sandbox = self.tools.cri.run_pod_sandbox(request).await;
            if !sandbox.as_ref().is_err_and(CriError::may_go_on) {
                self.note_asked(0).await?;
            }
            drop(asking);
            Ok::<_, WorkerError>(sandbox?)
        };
        let mut wanted: BTreeMap<&str, _> = BTreeMap::new();
        for container in self.job.pod.all_containers() {
            wanted.entry(&container.image).or_insert_with(|| pull_policy(container));
        }
        let pulls = join_all(wanted.iter().map(async |(image, policy)| {
            let found = images::ensure(&self.tools.cri, image, *policy, &handler, &config, &self.tools.reports).await;
            ((*image).to_owned(), found)
        }));
        let mut halt = self.tools.halt.clone();
        let pulls = async {
            tokio::select! {
                pulled = pulls => pulled,
                // The sandbox is waited for all the same, so that it is known and can be removed.
                () = beyond(&mut halt, Halt::No) => Vec::new(),
            }
        };
        let (prepared, sandbox, pulled) = tokio::join!(prepared, run, pulls);
        prepared??;
        sandbox?;
        for (image, found) in pulled {
            match found {
                Ok(found) => drop(self.images.insert(image, found)),
                // A stubborn worker tries again when the container's turn comes.
                Err(error) if self.stubborn => tracing::debug!(%image, %error, "early pull failed"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Notes in the pod's record since when the runtime has owed an answer about its sandbox; 0: it does not.
    async fn note_asked(&self, asked: i64) -> Result<(), WorkerError> {
        let (job, dirs) = (self.job.clone(), self.tools.dirs.clone());
        Ok(tokio::task::spawn_blocking(move || Record::write(&job, &dirs, asked)).await??)
    }

    /// Makes and starts a container.
    pub(super) async fn launch(&mut self, name: &str, attempt: u32) -> Result<(), WorkerError> {
        let Some(sandbox) = self.world.sandbox.clone() else { return Ok(()) };
        let job = self.job.clone();
        let Some(container) = job.pod.all_containers().find(|container| container.name == name) else { return Ok(()) };
        let (node, dirs) = (self.tools.node.clone(), self.tools.dirs.clone());
        let sandbox_config = translate::sandbox(&job, &node, &dirs, sandbox.attempt);
        let restart = self.world.containers.get(name).is_some_and(|seen| seen.here);
        let Some(image) = self.image(container, &sandbox_config, restart).await? else { return Ok(()) };
        let mounts = {
            let (job, container, node, dirs, ips) =
                (job.clone(), container.clone(), node.clone(), dirs.clone(), self.ips.clone());
            tokio::task::spawn_blocking(move || {
                volumes::container_mounts(&job, &container, attempt, &node, &dirs, &ips)
            })
            .await??
        };
        let input = translate::ContainerInput {
            attempt,
            image_ref: &image.reference,
            image_user: image.user,
            pod_ips: &self.ips,
            mounts,
        };
        let config = translate::container(&job, container, &node, &dirs, input)?;
        let log = dirs.log_file(&job, name, attempt);
        self.tell(Report::Starting { container: name.to_owned(), attempt, log }).await;
        if restart {
            self.backoffs.entry(name.to_owned()).or_default().restarted(now_ns());
        }
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox.id,
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.tools.cri.create_container(request).await;
        let id = created.map_err(|source| container_error(name, 0, source))?.container_id;
        self.start(name, &id).await?;
        self.forget_old(name, attempt).await;
        Ok(())
    }

    /// Starts a container that was made before, by a driver that died in between.
    pub(super) async fn start_existing(&mut self, name: &str) -> Result<(), WorkerError> {
        let Some(Seen { id, attempt, .. }) = self.world.containers.get(name).cloned() else { return Ok(()) };
        let log = self.tools.dirs.log_file(&self.job, name, attempt);
        self.tell(Report::Starting { container: name.to_owned(), attempt, log }).await;
        self.start(name, &id).await
    }

    async fn start(&mut self, name: &str, id: &str) -> Result<(), WorkerError> {
        let cri = &self.tools.cri;
        let Err(source) = cri.start_container(proto::StartContainerRequest { container_id: id.to_owned() }).await
        else {
            self.tell(Report::Started(name.to_owned())).await;
            return Ok(());
        };
        // Runtimes give such a container an exit code, which says whether the program was missing.
        let request = proto::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = cri.container_status(request).await.ok().and_then(|answer| answer.status);
        let exited = status.filter(|status| status.state() == proto::ContainerState::ContainerExited);
        let code = exited.map_or(0, |status| status.exit_code);
        Err(container_error(name, code, source))
    }

    /// `None`: halted meanwhile.
    async fn image(
        &mut self,
        container: &Container,
        sandbox: &proto::PodSandboxConfig,
        restart: bool,
    ) -> Result<Option<images::Image>, WorkerError> {
        if let Some(image) = self.images.get(&container.image).filter(|_| !restart) {
            return Ok(Some(image.clone()));
        }
        let (handler, policy) = (self.handler(), pull_policy(container));
        let mut halt = self.tools.halt.clone();
        let found = tokio::select! {
            found = images::ensure(&self.tools.cri, &container.image, policy, &handler, sandbox, &self.tools.reports) => found?,
            () = beyond(&mut halt, Halt::No) => return Ok(None),
        };
        self.images.insert(container.image.clone(), found.clone());
        Ok(Some(found))
    }

    /// Removes containers of a name but for the newest two, and their logs: a crash loop must not fill the disk.
    async fn forget_old(&mut self, name: &str, attempt: u32) {
        let Some(old) = attempt.checked_sub(2) else { return };
        let cri = &self.tools.cri;
        let labels = translate::identity(&self.job).into_iter();
        let name_label = (translate::labels::CONTAINER_NAME.to_owned(), name.to_owned());
        let Ok(all) = cri.containers(labels.chain([name_label]).collect()).await else { return };
        for container in all {
            let Some(metadata) = container.metadata.filter(|metadata| metadata.attempt <= old) else { continue };
            let request = proto::RemoveContainerRequest { container_id: container.id };
            if let Err(error) = cri.remove_container(request).await {
                tracing::debug!(container = name, %error, "cannot remove an old container");
                continue;
            }
            let log = self.tools.dirs.log_file(&self.job, name, metadata.attempt);
            let words = self.tools.dirs.termination_file(&self.job, name, metadata.attempt);
            for file in [log, words] {
                let _ = tokio::fs::remove_file(file).await;
            }
        }
    }

    /// Stops the containers side by side, then sidecars from the last to the first, then the sandbox.
    pub(super) async fn stop(&mut self) -> Result<(), WorkerError> {
        let Some(sandbox) = self.world.sandbox.clone() else { return Ok(()) };
        self.tell(Report::Stopping).await;
        let grace = self.job.pod.grace_seconds();
        let live = |name: &str| {
            let seen = self.world.containers.get(name)?;
            (!matches!(seen.life, Life::Exited { .. })).then(|| seen.id.clone())
        };
        let sidecars: Vec<String> =
            self.plan.init.iter().rev().filter(|step| step.sidecar).filter_map(|step| live(&step.name)).collect();
        let plain = self.plan.init.iter().filter(|step| !step.sidecar).map(|step| &step.name).chain(&self.plan.main);
        let mut groups: Vec<Vec<String>> = vec![plain.filter_map(|name| live(name)).collect()];
        groups.extend(sidecars.into_iter().map(|id| vec![id]));
        let mut failed = None;
        for group in groups {
            let stops = group.iter().map(|id| stop_one(&self.tools.cri, id, grace, self.tools.halt.clone()));
            for result in join_all(stops).await {
                failed = failed.or(result.err());
            }
        }
        // Whatever is left goes with the sandbox.
        let request = proto::StopPodSandboxRequest { pod_sandbox_id: sandbox.id };
        self.tools.cri.stop_pod_sandbox(request).await?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn handler(&self) -> String {
        self.job.pod.spec.runtime_class_name.clone().unwrap_or_default()
    }
}

fn container_error(name: &str, code: i32, source: CriError) -> WorkerError {
    WorkerError::Container { container: name.to_owned(), code, source }
}

async fn stop_one(
    cri: &Cri,
    id: &str,
    grace: u32,
    mut halt: tokio::sync::watch::Receiver<Halt>,
) -> Result<(), CriError> {
    let result = tokio::select! {
        biased;
        () = beyond(&mut halt, Halt::Gracefully) => cri.stop_container(id, 0).await,
        result = cri.stop_container(id, grace) => result,
    };
    match result {
        Err(error) if error.code() == Code::NotFound => Ok(()),
        result => result,
    }
}
