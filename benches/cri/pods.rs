//! The bench's pods: what they look like, their life in timed calls, and their sure removal.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use podwright::proto::security_profile::ProfileType;
use podwright::proto::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, DnsConfig, ExecSyncRequest, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxFilter, PodSandboxMetadata,
    PortMapping, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tokio::task::JoinSet;

use crate::client::{Client, answer, spec, timed};
use crate::error::BenchError;
use crate::options::Options;
use crate::samples::Samples;

const LABEL: &str = "podwright.bench";
const RUN: &str = "podwright.bench/run";
const SWEEPS: usize = 3;
const SWEEP_WIDTH: usize = 8;

/// The sum of RunPodSandbox, CreateContainer and StartContainer.
pub const UP: &str = "pod up";
/// The sum of StopContainer, StopPodSandbox, RemoveContainer and RemovePodSandbox, without grace.
pub const DOWN: &str = "pod down";

/// Makes and unmakes pods at one runtime.
pub struct Pods {
    client: Client,
    options: Arc<Options>,
    run: u32,
    made: AtomicU32,
    stopping: AtomicBool,
}

/// A pod with one container, both running.
pub struct Pod {
    /// The sandbox's id.
    pub sandbox: String,
    /// The container's id.
    pub container: String,
}

/// A pod's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Its own, by CNI.
    Cni,
    /// The host's.
    Host,
}

impl Pods {
    /// Pods that bear this run's own number.
    pub fn new(client: Client, options: Arc<Options>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = 100_000_000 + (now.subsec_nanos() ^ process::id().rotate_left(8)) % 900_000_000;
        Self { client, options, run, made: AtomicU32::new(0), stopping: AtomicBool::new(false) }
    }

    /// The workload's argument: as a process's argument it appears in no other process.
    pub fn token(&self) -> String {
        self.run.to_string()
    }

    /// Lets calls under way end and refuses new pods from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Fails once the bench was asked to stop.
    pub fn go_on(&self) -> Result<(), BenchError> {
        if self.stopping.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
    }

    /// Brings a pod up: three calls, each timed, and their sum.
    pub async fn up(&self, samples: &mut Samples, network: Network) -> Result<Pod, BenchError> {
        self.go_on()?;
        let config = self.sandbox_config(network)?;
        let mut runtime = self.client.runtime.clone();
        let begun = Instant::now();
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.options.runtime_handler.clone(),
        };
        let sandbox = timed(samples, "RunPodSandbox", runtime.run_pod_sandbox(run)).await?.pod_sandbox_id;
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(self.container_config(network)),
            sandbox_config: Some(config),
        };
        let container = timed(samples, "CreateContainer", runtime.create_container(create)).await?.container_id;
        let start = StartContainerRequest { container_id: container.clone() };
        timed(samples, "StartContainer", runtime.start_container(start)).await?;
        samples.add(UP, begun.elapsed());
        Ok(Pod { sandbox, container })
    }

    /// Takes a pod down as kubelet does, without grace: four calls, each timed, and their sum.
    pub async fn down(&self, samples: &mut Samples, pod: Pod) -> Result<(), BenchError> {
        let mut runtime = self.client.runtime.clone();
        let begun = Instant::now();
        let stop = StopContainerRequest { container_id: pod.container.clone(), timeout: 0 };
        timed(samples, "StopContainer", runtime.stop_container(stop)).await?;
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        timed(samples, "StopPodSandbox", runtime.stop_pod_sandbox(stop)).await?;
        let remove = RemoveContainerRequest { container_id: pod.container };
        timed(samples, "RemoveContainer", runtime.remove_container(remove)).await?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox };
        timed(samples, "RemovePodSandbox", runtime.remove_pod_sandbox(remove)).await?;
        samples.add(DOWN, begun.elapsed());
        Ok(())
    }

    /// Runs `true` in the pod's container.
    pub async fn exec(&self, samples: &mut Samples, pod: &Pod) -> Result<(), BenchError> {
        let request =
            ExecSyncRequest { container_id: pod.container.clone(), cmd: vec!["true".to_owned()], timeout: 60 };
        let done = timed(samples, "ExecSync", self.client.runtime.clone().exec_sync(request)).await?;
        if done.exit_code == 0 {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        Err(BenchError::Exec { container: pod.container.clone(), exit_code: done.exit_code, stderr })
    }

    /// Removes every pod that bears the bench's label and its logs, also those of an earlier run that was killed.
    pub async fn sweep(&self) -> Result<(), BenchError> {
        let mut runs = HashSet::from([self.run]);
        let swept = self.sweep_pods(&mut runs).await;
        runs.into_iter().for_each(remove_logs);
        swept
    }

    async fn sweep_pods(&self, runs: &mut HashSet<u32>) -> Result<(), BenchError> {
        let mut last = None;
        for _ in 0..SWEEPS {
            let left = self.labelled().await?;
            if left.is_empty() {
                return Ok(());
            }
            let mut removals = JoinSet::new();
            for (id, run) in left {
                runs.extend(run);
                if removals.len() >= SWEEP_WIDTH {
                    last = removals.join_next().await.and_then(failure).or(last);
                }
                removals.spawn(remove(self.client.clone(), id));
            }
            while let Some(done) = removals.join_next().await {
                last = failure(done).or(last);
            }
        }
        match self.labelled().await?.len() {
            0 => Ok(()),
            left => Err(last.unwrap_or(BenchError::Leftover(left))),
        }
    }

    /// Ids of the pods with our label, and the runs they are of. The label is looked at here too: a runtime
    /// whose filter fails must not cost anybody their pods.
    async fn labelled(&self) -> Result<Vec<(String, Option<u32>)>, BenchError> {
        let label_selector = HashMap::from([(LABEL.to_owned(), "true".to_owned())]);
        let filter = PodSandboxFilter { label_selector, ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let list = answer("ListPodSandbox", self.client.runtime.clone().list_pod_sandbox(request).await)?;
        let ours = list.items.into_iter().filter(|pod| pod.labels.contains_key(LABEL));
        Ok(ours.map(|pod| (pod.id, pod.annotations.get(RUN).and_then(|run| run.parse().ok()))).collect())
    }

    fn sandbox_config(&self, network: Network) -> Result<PodSandboxConfig, BenchError> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{}-{number}", self.run);
        let logs = log_folder(self.run).join(&name);
        std::fs::create_dir_all(&logs).map_err(|source| BenchError::File { path: logs.clone(), source })?;
        let ports = i32::from(u16::MAX - self.options.first_host_port);
        let host_port = i32::from(self.options.first_host_port) + (number % ports.unsigned_abs()).cast_signed();
        let mapping = PortMapping { container_port: 80, host_port, ..Default::default() };
        Ok(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: name.clone(),
                namespace: "podwright-bench".to_owned(),
                name: name.clone(),
                attempt: 0,
            }),
            hostname: if network == Network::Cni { name } else { String::new() },
            log_directory: logs.to_string_lossy().into_owned(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".to_owned()],
                searches: vec!["svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            port_mappings: if network == Network::Cni && self.options.map_ports { vec![mapping] } else { Vec::new() },
            labels: HashMap::from([(LABEL.to_owned(), "true".to_owned())]),
            annotations: HashMap::from([(RUN.to_owned(), self.run.to_string())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.options.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(network)),
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn container_config(&self, network: Network) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(spec(&self.options.image)),
            command: vec!["sleep".to_owned(), self.token()],
            labels: HashMap::from([(LABEL.to_owned(), "true".to_owned())]),
            log_path: "main.log".to_owned(),
            linux: Some(LinuxContainerConfig {
                // What kubelet gives a best-effort container.
                resources: Some(LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, ..Default::default() }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(network)),
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }
}

fn namespaces(network: Network) -> NamespaceOption {
    let network = match network {
        Network::Cni => NamespaceMode::Pod,
        Network::Host => NamespaceMode::Node,
    };
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }
}

fn log_folder(run: u32) -> PathBuf {
    std::env::temp_dir().join(format!("podwright-bench-{run}"))
}

fn remove_logs(run: u32) {
    let folder = log_folder(run);
    if let Err(error) = std::fs::remove_dir_all(&folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("cri bench: {}: {error}", folder.display());
    }
}

async fn remove(client: Client, id: String) -> Result<(), BenchError> {
    let mut runtime = client.runtime;
    let stopped = runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await;
    answer("RemovePodSandbox", runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await)?;
    answer("StopPodSandbox", stopped).map(drop)
}

fn failure(done: Result<Result<(), BenchError>, tokio::task::JoinError>) -> Option<BenchError> {
    match done {
        Ok(removed) => removed.err(),
        Err(error) => Some(error.into()),
    }
}
