//! What is measured, scenario by scenario.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use podwright::proto::{ContainerStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxStatusRequest};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::client::{Client, RuntimeIdentity, timed};
use crate::error::BenchError;
use crate::options::{Options, Scenario};
use crate::pods::{Network, Pod, Pods};
use crate::processes::{self, Usage};
use crate::samples::{Samples, Summary};

/// Everything a scenario needs.
pub struct Bench {
    /// The command line.
    pub options: Arc<Options>,
    /// The runtime that is measured.
    pub identity: RuntimeIdentity,
    /// Its pods.
    pub pods: Arc<Pods>,
    client: Client,
}

/// What a scenario found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    /// The scenario's name on the command line; `idle` for the state before all.
    pub name: String,
    /// What was done, in words.
    pub title: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Pods per second, up and (in the parallel scenario) down again.
    pub pods_per_second: Option<f64>,
    /// Pods there were.
    pub pods: Option<u32>,
    /// Memory before the pods.
    pub before: Option<Usage>,
    /// Memory with the pods.
    pub with_pods: Option<Usage>,
    /// Memory after the pods.
    pub after: Option<Usage>,
    /// Times.
    pub times: Vec<Summary>,
    /// Why it ended early.
    pub error: Option<String>,
}

impl Findings {
    fn new(title: String, samples: &Samples) -> Self {
        Self { title, times: samples.summaries(), ..Self::default() }
    }

    /// PSS of the runtime's own processes that each pod adds, in KiB.
    pub fn pss_per_pod_kib(&self) -> Option<f64> {
        let (before, with) = (self.before?.own_pss_kib(), self.with_pods?.own_pss_kib());
        Some((with as f64 - before as f64) / f64::from(self.pods?))
    }
}

impl Bench {
    /// Connects to the runtime that the options name.
    pub async fn connect(options: Options) -> Result<Self, BenchError> {
        let options = Arc::new(options);
        let client = Client::connect(&options.endpoint, Duration::from_secs(options.timeout)).await?;
        let identity = client.identity(&options.endpoint).await?;
        let pods = Arc::new(Pods::new(client.clone(), Arc::clone(&options)));
        Ok(Self { options, identity, pods, client })
    }

    /// Runs all scenarios; one that fails is reported and the next one runs. The last failure comes back.
    pub async fn run(&self) -> (Vec<Findings>, Option<BenchError>) {
        let mut failed = None;
        let mut all = vec![self.idle().await];
        for scenario in self.options.scenarios() {
            let name = scenario.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            eprintln!("cri bench: {name} ...");
            let begun = Instant::now();
            let mut findings = match self.scenario(scenario).await {
                Ok(findings) => findings,
                Err(error) => {
                    let findings =
                        Findings { title: "failed".to_owned(), error: Some(error.to_string()), ..Findings::default() };
                    failed = Some(error);
                    findings
                }
            };
            findings.name = name;
            findings.seconds = begun.elapsed().as_secs_f64();
            let broken = findings.error.is_some();
            all.push(findings);
            // The next scenario starts from an empty runtime, too.
            if matches!(failed, Some(BenchError::Interrupted)) || broken && self.pods.sweep().await.is_err() {
                break;
            }
        }
        (all, failed)
    }

    async fn scenario(&self, scenario: Scenario) -> Result<Findings, BenchError> {
        if scenario != Scenario::Pull && !self.client.has_image(&self.options.image).await? {
            self.client.pull(&mut Samples::default(), &self.options.image, &self.options.runtime_handler).await?;
        }
        match scenario {
            Scenario::Bridge => self.serial(Network::Cni).await,
            Scenario::Host => self.serial(Network::Host).await,
            Scenario::Parallel => self.parallel().await,
            Scenario::Exec => self.exec().await,
            Scenario::Density => self.density().await,
            Scenario::Pull => self.pull().await,
        }
    }

    async fn idle(&self) -> Findings {
        let list = self.client.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await;
        let pods = list.ok().and_then(|list| u32::try_from(list.into_inner().items.len()).ok());
        Findings {
            name: "idle".to_owned(),
            title: "the runtime as found".to_owned(),
            pods,
            before: self.usage(&HashSet::new()),
            ..Findings::default()
        }
    }

    async fn serial(&self, network: Network) -> Result<Findings, BenchError> {
        for _ in 0..self.options.warm_up {
            let mut uncounted = Samples::default();
            let pod = self.pods.up(&mut uncounted, network).await?;
            self.pods.down(&mut uncounted, pod).await?;
        }
        let mut samples = Samples::default();
        for _ in 0..self.options.runs {
            let pod = self.pods.up(&mut samples, network).await?;
            self.pods.down(&mut samples, pod).await?;
        }
        let network = self.network(network);
        Ok(Findings::new(format!("{} pod lives, one after the other, {network}", self.options.runs), &samples))
    }

    async fn parallel(&self) -> Result<Findings, BenchError> {
        let (wanted, at_once) = (self.options.runs * 2, self.options.parallel);
        let begun = Instant::now();
        let (samples, _) = self
            .at_once(wanted, |pods, mut samples| async move {
                let pod = pods.up(&mut samples, Network::Cni).await?;
                pods.down(&mut samples, pod).await?;
                Ok((samples, None))
            })
            .await?;
        let rate = f64::from(wanted) / begun.elapsed().as_secs_f64();
        let findings =
            Findings::new(format!("{wanted} pod lives, {at_once} at once, {}", self.network(Network::Cni)), &samples);
        Ok(Findings { pods_per_second: Some(rate), ..findings })
    }

    async fn exec(&self) -> Result<Findings, BenchError> {
        let mut uncounted = Samples::default();
        let pod = self.pods.up(&mut uncounted, Network::Host).await?;
        for _ in 0..self.options.warm_up {
            self.pods.exec(&mut uncounted, &pod).await?;
        }
        let mut samples = Samples::default();
        let runs = self.options.runs * 4;
        for _ in 0..runs {
            self.pods.exec(&mut samples, &pod).await?;
        }
        self.pods.down(&mut uncounted, pod).await?;
        Ok(Findings::new(format!("{runs} times `true` in one container"), &samples))
    }

    async fn density(&self) -> Result<Findings, BenchError> {
        let (wanted, at_once) = (self.options.pods, self.options.parallel);
        let network = if self.options.density_host_network { Network::Host } else { Network::Cni };
        let before = self.usage(&HashSet::new());
        let begun = Instant::now();
        let (mut samples, pods) = self
            .at_once(wanted, move |pods, mut samples| async move {
                let pod = pods.up(&mut samples, network).await?;
                Ok((samples, Some(pod)))
            })
            .await?;
        let rate = f64::from(wanted) / begun.elapsed().as_secs_f64();
        self.settle().await;
        let ids: HashSet<String> = pods.iter().flat_map(|pod| [pod.sandbox.clone(), pod.container.clone()]).collect();
        let with_pods = self.usage(&ids);
        self.lists(&mut samples, &pods).await?;
        let rest = std::cell::RefCell::new(pods);
        let (down, _) = self
            .at_once(wanted, |pods, mut samples| {
                let pod = rest.borrow_mut().pop();
                async move {
                    if let Some(pod) = pod {
                        pods.down(&mut samples, pod).await?;
                    }
                    Ok((samples, None))
                }
            })
            .await?;
        samples.merge(down);
        self.settle().await;
        let network = self.network(network);
        Ok(Findings {
            pods_per_second: Some(rate),
            pods: Some(wanted),
            before,
            with_pods,
            after: self.usage(&HashSet::new()),
            ..Findings::new(format!("{wanted} pods side by side, {network}, {at_once} at once up and down"), &samples)
        })
    }

    /// The calls that kubelet makes every second or ten, with all the pods there.
    async fn lists(&self, samples: &mut Samples, pods: &[Pod]) -> Result<(), BenchError> {
        let mut runtime = self.client.runtime.clone();
        for pod in pods.iter().cycle().take(self.options.lists as usize) {
            self.pods.go_on()?;
            timed(samples, "ListPodSandbox", runtime.list_pod_sandbox(ListPodSandboxRequest::default())).await?;
            timed(samples, "ListContainers", runtime.list_containers(ListContainersRequest::default())).await?;
            let status = PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox.clone(), ..Default::default() };
            timed(samples, "PodSandboxStatus", runtime.pod_sandbox_status(status)).await?;
            let status = ContainerStatusRequest { container_id: pod.container.clone(), ..Default::default() };
            timed(samples, "ContainerStatus", runtime.container_status(status)).await?;
        }
        Ok(())
    }

    async fn pull(&self) -> Result<Findings, BenchError> {
        let image = self.options.pull_image.as_deref().unwrap_or(&self.options.image);
        let mut samples = Samples::default();
        for _ in 0..self.options.pull_runs {
            self.pods.go_on()?;
            if self.client.has_image(image).await? {
                self.client.remove_image(&mut samples, image).await?;
            }
            // What the removal left for the runtime and the disk to do is not the pull's.
            self.client.deleted().await?;
            tokio::task::spawn_blocking(rustix::fs::sync).await?;
            self.client.pull(&mut samples, image, &self.options.runtime_handler).await?;
        }
        self.client.remove_image(&mut samples, image).await?;
        Ok(Findings::new(format!("{} pulls of {image}", self.options.pull_runs), &samples))
    }

    /// Does something `times` times, as many at once as the options say, and gathers times and pods.
    async fn at_once<F, Fut>(&self, times: u32, work: F) -> Result<(Samples, Vec<Pod>), BenchError>
    where
        F: Fn(Arc<Pods>, Samples) -> Fut,
        Fut: Future<Output = Result<(Samples, Option<Pod>), BenchError>> + Send + 'static,
    {
        let (mut samples, mut pods) = (Samples::default(), Vec::new());
        let (mut begun, mut failed) = (0, None);
        let mut under_way = JoinSet::new();
        loop {
            while failed.is_none() && begun < times && under_way.len() < self.options.parallel as usize {
                under_way.spawn(work(Arc::clone(&self.pods), Samples::default()));
                begun += 1;
            }
            match under_way.join_next().await {
                Some(Ok(Ok((more, pod)))) => {
                    samples.merge(more);
                    pods.extend(pod);
                }
                // The others may end what they began: a call given up would go on in the runtime.
                Some(Ok(Err(error))) => failed = failed.or(Some(error)),
                Some(Err(error)) => failed = failed.or(Some(error.into())),
                None => break,
            }
        }
        failed.map_or(Ok((samples, pods)), Err)
    }

    fn network(&self, network: Network) -> &'static str {
        match network {
            Network::Host => "host network",
            Network::Cni if self.options.map_ports => "CNI network, a port mapped",
            Network::Cni => "CNI network",
        }
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(self.options.settle)).await;
    }

    /// None where the daemon's process is not known, or another user's.
    fn usage(&self, ids: &HashSet<String>) -> Option<Usage> {
        let usage = processes::usage(self.identity.pid?, ids, &self.pods.token());
        (usage.daemon.processes == 1).then_some(usage)
    }
}
