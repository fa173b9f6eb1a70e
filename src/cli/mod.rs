//! One file per subcommand: each has its arguments and a function that does it.

pub mod check;
mod config;
mod image;
pub mod kubelet;
mod lock;
mod logging;
mod remove;
pub mod run;
mod serve;
mod socket;

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::types::chain;

/// Why a command failed; printed with all its sources.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What main does with the outcome of a command.
pub type Outcome = Result<ExitCode, Failure>;

/// A container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "podwright", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve(serve::Args),
    /// Run a pod from its manifest, on any CRI runtime, and exit with its code.
    Run(run::RunArgs),
    /// Stop and remove pods that `run` left, with their volumes and logs.
    Rm(remove::Args),
    /// Keep the pods of a folder of manifests running, on any CRI runtime.
    Kubelet(kubelet::KubeletArgs),
    /// Print or check the configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// Tell what this machine lacks for running pods, each with its cure.
    Check(Check),
    /// List, pull and remove images of a running daemon.
    Image(image::Args),
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Run(args) => driver(run::run(args)),
        Command::Rm(args) => driver(remove::run(args)),
        Command::Kubelet(args) => driver(kubelet::run(args)),
        Command::Config(command) => config::run(command),
        Command::Check(args) => preflight(&args),
        Command::Image(args) => image::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nowhere is left to complain if standard error is closed.
            let _ = writeln!(std::io::stderr(), "podwright: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// The node driver is a client among others: one thread is enough for it.
fn driver(work: impl Future<Output = ExitCode>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(work);
    // A reader of standard input that never ends must not keep the process.
    runtime.shutdown_background();
    Ok(code)
}

/// What to check, and with which configuration.
#[derive(Debug, clap::Args)]
struct Check {
    /// Configuration file [default: /etc/podwright/config.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    form: check::Args,
}

fn preflight(args: &Check) -> Outcome {
    let config = crate::config::load(args.config.as_deref())?;
    let subject = check::Subject {
        devices: crate::app::cdi_registry(&config),
        network: crate::app::network_settings(&config),
        handlers: (config.runtime.handlers_dir, config.runtime.default_handler),
        monitor: Some(config.paths.monitor).filter(|path| !path.as_os_str().is_empty()),
        root: config.paths.root,
        state: config.paths.state,
        apparmor: config.apparmor.enabled,
        apparmor_profile: config.apparmor.default_profile.clone(),
        selinux: config.selinux.enabled,
    };
    Ok(check::run(&args.form, &subject, &mut std::io::stdout())?)
}

/// Prints to standard output; a reader that left (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Tells of what failed in part; its exit code. Nothing can be done about a stderr that is closed.
fn complain(complaint: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "podwright: {complaint}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
