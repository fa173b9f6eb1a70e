//! `podwright config default|check|dump`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::{Outcome, print};
use crate::config;

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print every key with its default and what it means.
    Default,
    /// Say whether the daemon would take this configuration.
    Check(File),
    /// Print the configuration as the daemon would use it: defaults, file and conf.d merged.
    Dump(File),
}

/// Which configuration: said as `podwright serve` takes it, or the file alone.
#[derive(Debug, clap::Args)]
pub struct File {
    /// Configuration file; conf.d/*.toml beside it is read, too [default: /etc/podwright/config.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The same.
    #[arg(value_name = "FILE", conflicts_with = "config", hide = true)]
    file: Option<PathBuf>,
}

impl File {
    fn path(&self) -> Option<&Path> {
        self.config.as_deref().or(self.file.as_deref())
    }
}

/// Does it.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Default => print(config::DEFAULT_TEXT)?,
        Command::Check(file) => {
            let sources = config::read_sources(file.path())?;
            config::parse(&sources)?;
            if sources.is_empty() {
                print(&format!("{}: not there, the defaults apply\n", config::DEFAULT_PATH))?;
            }
            for source in &sources {
                print(&format!("{}: ok\n", source.file.display()))?;
            }
        }
        Command::Dump(file) => print(&toml::to_string_pretty(&config::load(file.path())?)?)?,
    }
    Ok(ExitCode::SUCCESS)
}
