//! `podwright run`: one pod from its manifest to its exit code.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::duration;
use crate::kubelet::client::Cri;
use crate::kubelet::console::{self, Style};
use crate::kubelet::manifest::{MAX_BYTES, Manifest, parse};
use crate::kubelet::one_shot::{self, FAILED, Options, StopRequest};
use crate::kubelet::pod_worker::WorkerError;
use crate::kubelet::qos::CgroupDriver;
use crate::kubelet::translate::Dirs;
use crate::types::chain;

/// Where the driver keeps its files, unless told otherwise.
const ROOT: &str = "/var/lib/podwright-kubelet";

/// Run a pod from a manifest and exit with its code
///
/// The exit code is that of the first container that failed, else 0; 124 when the time limit or
/// activeDeadlineSeconds passed, 125 when the driver or the runtime failed, 128 and the signal's number when
/// stopped by a signal. The first Ctrl-C stops the pod with its grace period, the second kills it.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Manifest (YAML or JSON) with one Pod, and ConfigMaps and Secrets beside it; - for stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Remove the pod, its volumes and its logs at the end
    #[arg(long)]
    pub rm: bool,
    /// Stop the pod after this time, such as 90, 30s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Do not show the containers' output
    #[arg(long)]
    pub no_logs: bool,
    /// Show nothing but the containers' output and errors
    #[arg(long, short)]
    pub quiet: bool,
    /// The runtime, and where files go
    #[command(flatten)]
    pub driver: DriverArgs,
}

/// What both driver commands take.
#[derive(Debug, Args)]
pub struct DriverArgs {
    /// CRI socket of the runtime
    #[arg(long, env = "CONTAINER_RUNTIME_ENDPOINT", default_value = "unix:///run/podwright/podwright.sock")]
    pub runtime_endpoint: String,
    /// CRI socket for images; the runtime's own if absent
    #[arg(long, env = "IMAGE_SERVICE_ENDPOINT")]
    pub image_endpoint: Option<String>,
    /// How cgroup parents are written; auto asks the runtime
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub cgroup_driver: DriverChoice,
    /// Folder for volumes (and then for logs, too, which otherwise go to /var/log/pods)
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `--cgroup-driver`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    /// What the runtime says.
    Auto,
    /// Paths.
    Cgroupfs,
    /// Slices.
    Systemd,
}

impl DriverArgs {
    /// The client; nothing is connected yet.
    ///
    /// # Errors
    /// An endpoint is none.
    pub fn client(&self) -> Result<Cri, crate::kubelet::client::CriError> {
        Cri::new(&self.runtime_endpoint, self.image_endpoint.as_deref().unwrap_or(&self.runtime_endpoint))
    }

    /// Where files go.
    pub fn dirs(&self) -> Dirs {
        dirs(self.root.as_deref())
    }

    /// The driver the user insists on.
    pub fn driver(&self) -> Option<CgroupDriver> {
        match self.cgroup_driver {
            DriverChoice::Auto => None,
            DriverChoice::Cgroupfs => Some(CgroupDriver::Cgroupfs),
            DriverChoice::Systemd => Some(CgroupDriver::Systemd),
        }
    }
}

/// Where files go, by `--root`.
pub fn dirs(root: Option<&Path>) -> Dirs {
    // Relative paths would mean something else to the runtime.
    let root = root.map(|root| std::path::absolute(root).unwrap_or_else(|_| root.to_owned()));
    let logs = root.as_ref().map_or_else(|| PathBuf::from("/var/log/pods"), |root| root.join("logs"));
    let root = root.unwrap_or_else(|| PathBuf::from(ROOT));
    Dirs { pods: root.join("pods"), logs, seccomp: root.join("seccomp") }
}

/// Runs the command. Errors are printed here, so that each has its exit code.
pub async fn run(args: RunArgs) -> ExitCode {
    let code = match attempt(args).await {
        Ok(code) => code,
        Err(Failure { code, text }) => {
            eprintln!("podwright: {text}");
            code
        }
    };
    ExitCode::from(code)
}

struct Failure {
    code: u8,
    text: String,
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: FAILED, text: chain(&error) }
    }
}

async fn attempt(args: RunArgs) -> Result<u8, Failure> {
    let manifest = read(&args.file).map_err(|text| Failure { code: FAILED, text })?;
    let many = manifest.pods.first().is_some_and(|document| document.pod.all_containers().count() > 1);
    let cri = args.driver.client()?;
    let options = Options {
        endpoint: args.driver.runtime_endpoint.clone(),
        dirs: args.driver.dirs(),
        driver: args.driver.driver(),
        timeout: args.timeout,
        remove: args.rm,
        logs: !args.no_logs,
    };
    let stops = signals()?;
    let (show, screen) = console::start(Style::detect(many, args.quiet));
    let result = one_shot::run(cri, manifest, options, stops, show).await;
    // All that was sent is shown before an error is.
    screen.await?;
    result.map_err(|error| {
        let code = match &error {
            one_shot::OneShotError::Worker(error) => WorkerError::exit_code(error),
            _ => 0,
        };
        let code = u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(FAILED);
        Failure { code, text: chain(&error) }
    })
}

/// Reads a manifest; `-` is standard input.
pub(super) fn read(file: &Path) -> Result<Manifest, String> {
    let mut text = String::new();
    // One byte more than allowed, so that the parser sees what is too large.
    let limit = MAX_BYTES as u64 + 1;
    let (name, result) = if file == Path::new("-") {
        ("stdin".to_owned(), std::io::stdin().take(limit).read_to_string(&mut text))
    } else {
        let opened = std::fs::File::open(file);
        (file.display().to_string(), opened.and_then(|file| file.take(limit).read_to_string(&mut text)))
    };
    result.map_err(|error| format!("{name}: {error}"))?;
    parse(&text, &name).map_err(|error| chain(&error))
}

/// Each signal to stop, from now on.
fn signals() -> std::io::Result<mpsc::Receiver<StopRequest>> {
    let (sender, receiver) = mpsc::channel(4);
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut incoming = signal(kind)?;
        let sender = sender.clone();
        let code = u8::try_from(128 + kind.as_raw_value()).unwrap_or(FAILED);
        tokio::spawn(async move {
            while incoming.recv().await.is_some() {
                if sender.send(StopRequest { code }).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// `90`, `30s`, `5m`, `1h30m`, `500ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let limit = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => duration::parse(text)?,
    };
    if limit.is_zero() { Err(format!("{text:?}: want a time above zero")) } else { Ok(limit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [("90", 90_000), ("30s", 30_000), ("1h30m", 5_400_000), ("500ms", 500)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "s", "5x", "-1", "1.5s", "5m3", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
