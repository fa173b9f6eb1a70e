//! `podwright kubelet`: the pods of a watched folder, for ever.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::LogFormat;
use crate::kubelet::static_pods::{self, Options};
use crate::types::chain;

use super::logging;
use super::run::DriverArgs;

/// Keep the pods of a folder of manifests running
///
/// A new file starts its pods, a changed one replaces them, a removed one stops them. SIGTERM ends the driver but
/// not the pods: started again with the same folder, it takes them over.
#[derive(Debug, Args)]
pub struct KubeletArgs {
    /// Folder of manifests (.yaml, .yml, .json); each file may hold Pods, and ConfigMaps and Secrets for them
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// error, warn, info, debug, trace, or a filter
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// The runtime, and where files go
    #[command(flatten)]
    pub driver: DriverArgs,
}

/// Runs the command. Errors are printed here.
pub async fn run(args: KubeletArgs) -> ExitCode {
    match attempt(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("podwright: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn attempt(args: KubeletArgs) -> Result<(), String> {
    logging::start(&args.log_level, LogFormat::Auto).map_err(|error| chain(&*error))?;
    let cri = args.driver.client().map_err(|error| chain(&error))?;
    let options = Options { manifests: args.manifests, dirs: args.driver.dirs(), driver: args.driver.driver() };
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut incoming = signal(kind).map_err(|error| format!("signals: {error}"))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            incoming.recv().await;
            stop.cancel();
        });
    }
    static_pods::serve(cri, options, stop).await.map_err(|error| chain(&error))
}
