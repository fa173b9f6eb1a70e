//! `podwright config default|check|dump`.

use std::path::PathBuf;
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
    Check {
        /// The file; conf.d/*.toml beside it is read, too. Without it the default one, if it is there.
        file: Option<PathBuf>,
    },
    /// Print the configuration as the daemon would use it: defaults, file and conf.d merged.
    Dump {
        /// The file; without it the default one, if it is there.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Does it.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Default => print(config::DEFAULT_TEXT)?,
        Command::Check { file } => {
            let sources = config::read_sources(file.as_deref())?;
            config::parse(&sources)?;
            if sources.is_empty() {
                print(&format!("{}: not there, the defaults apply\n", config::DEFAULT_PATH))?;
            }
            for source in &sources {
                print(&format!("{}: ok\n", source.file.display()))?;
            }
        }
        Command::Dump { config } => print(&toml::to_string_pretty(&config::load(config.as_deref())?)?)?,
    }
    Ok(ExitCode::SUCCESS)
}
