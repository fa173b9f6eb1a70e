//! The bench's command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measure a CRI runtime over its socket.
#[derive(Clone, Debug, Parser)]
#[command(name = "cri", about = "Measure a CRI runtime over its socket")]
pub struct Options {
    /// Where the runtime listens, as unix:///path/to.sock
    #[arg(long, env = "ENDPOINT", value_parser = unix_endpoint)]
    pub endpoint: String,

    /// What to measure, in this order; all of it by default, pull only with --pull-image
    #[arg(long, value_enum, value_delimiter = ',')]
    pub scenario: Vec<Scenario>,

    /// The workload's image: needs `sleep` and `true`; pulled if it is not there
    #[arg(long, default_value = "registry.k8s.io/e2e-test-images/busybox:1.29-2")]
    pub image: String,

    /// The image of the pull scenario; it is removed before each pull
    #[arg(long)]
    pub pull_image: Option<String>,

    /// RuntimeClass handler of the pods; the runtime's default if empty
    #[arg(long, default_value = "")]
    pub runtime_handler: String,

    /// Parent cgroup of the pods, in the form of the runtime's cgroup driver; the runtime's choice if empty
    #[arg(long, default_value = "")]
    pub cgroup_parent: String,

    /// Pod lives in the serial scenarios; twice as many in the parallel one, four times as many execs
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub runs: u32,

    /// Pod lives before the serial scenarios that are not counted
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub warm_up: u32,

    /// Pods at once in the parallel and density scenarios
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub parallel: u32,

    /// Pods side by side in the density scenario
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pods: u32,

    /// The density scenario's pods use the host's network instead of CNI
    #[arg(long)]
    pub density_host_network: bool,

    /// Seconds that memory may settle before it is read
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub settle: u64,

    /// List calls in the density scenario, of each kind
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub lists: u32,

    /// Pulls in the pull scenario
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub pull_runs: u32,

    /// Seconds any one call may take
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,

    /// Pods on the CNI network also map a port of the host; the plugins then work more than at most pods' start
    #[arg(long)]
    pub map_ports: bool,

    /// The lowest host port that is mapped; one port per pod is used above it
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u16).range(1_024..=50_000))]
    pub first_host_port: u16,

    /// Also write everything, with each single time, to this file
    #[arg(long)]
    pub json: Option<PathBuf>,

    /// Put an earlier --json file beside this run in the summary (may be repeated)
    #[arg(long)]
    pub compare: Vec<PathBuf>,

    /// Cargo passes this to every bench.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Pod lives one after the other, on the CNI network
    Bridge,
    /// Pod lives one after the other, on the host's network
    Host,
    /// Pod lives, several at once, on the CNI network
    Parallel,
    /// ExecSync of `true` in one running container
    Exec,
    /// Memory and list times with many pods side by side
    Density,
    /// PullImage of an image that was removed before
    Pull,
}

impl Options {
    /// The scenarios asked for, in order.
    pub fn scenarios(&self) -> Vec<Scenario> {
        if !self.scenario.is_empty() {
            return self.scenario.clone();
        }
        Scenario::value_variants()
            .iter()
            .copied()
            .filter(|scenario| *scenario != Scenario::Pull || self.pull_image.is_some())
            .collect()
    }
}

fn unix_endpoint(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(text.to_owned()),
        _ if text.starts_with('/') => Ok(format!("unix://{text}")),
        _ => Err("must be unix:// and an absolute path".to_owned()),
    }
}
