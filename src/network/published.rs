//! The networks in use: read from the configuration folder, replaced as a whole when it changes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::cni::chain::{Chain, NoJournal};
use super::cni::config::{self, NetworkConfig};
use super::cni::exec::{Parameters, Runner};
use super::cni::version::Version;
use super::error::NetworkError;
use crate::types::chain;

/// Age at which an answer to STATUS is asked for anew, at the next question.
const STATUS_AGE: Duration = Duration::from_secs(10);
/// Most refused files that are named in one message.
const NAMED: usize = 8;

/// One configuration in use.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: PathBuf,
    config: NetworkConfig,
    version: OnceCell<Version>,
}

impl Entry {
    /// The configuration with the version that its plugins have in common.
    pub(super) async fn config(&self, runner: &Runner) -> NetworkConfig {
        let version = self.version.get_or_init(async || {
            let (parameters, capabilities) = (Parameters::default(), serde_json::Map::new());
            let (parameters, capabilities) = (&parameters, &capabilities);
            Chain { config: &self.config, runner, parameters, capabilities }.negotiate().await
        });
        NetworkConfig { version: *version.await, ..self.config.clone() }
    }
}

/// What a configuration folder held when it was read.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) entries: Vec<Entry>,
    /// Why files were refused, each naming its file.
    pub(super) refused: Vec<String>,
    folder: PathBuf,
    status: Mutex<Status>,
}

#[derive(Debug, Default)]
struct Status {
    /// `Err`: what the plugin said.
    answer: Option<(Instant, Result<(), String>)>,
    asking: bool,
}

impl Published {
    /// Reads the folder. Blocks.
    pub(super) fn read(folder: &Path, limit: usize) -> Self {
        let (networks, refused) = match config::load(folder, limit) {
            Ok(loaded) => (loaded.networks, loaded.refused),
            Err(error) => (Vec::new(), vec![(folder.to_owned(), error.into())]),
        };
        let entries =
            networks.into_iter().map(|(file, config)| Entry { file, config, version: OnceCell::new() }).collect();
        let refused = refused.iter().map(|(file, error)| format!("{}: {}", file.display(), chain(error))).collect();
        Self { entries, refused, folder: folder.to_owned(), status: Mutex::default() }
    }

    /// Whether the same was read.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let parts = |published: &Self| -> Vec<(PathBuf, NetworkConfig)> {
            published.entries.iter().map(|entry| (entry.file.clone(), entry.config.clone())).collect()
        };
        self.refused == other.refused && parts(self) == parts(other)
    }

    /// The configurations, or why there is none.
    pub(super) fn usable(&self) -> Result<&[Entry], NetworkError> {
        if !self.entries.is_empty() {
            return Ok(&self.entries);
        }
        let mut reason = format!("no usable configuration (*.conflist, *.conf, *.json) in {}", self.folder.display());
        for refused in self.refused.iter().take(NAMED) {
            reason.push_str("; ");
            reason.push_str(refused);
        }
        Err(NetworkError::NoConfig { reason })
    }

    /// The last answer to STATUS, and whether the caller is to ask anew, by [`Published::ask`].
    pub(super) fn status(&self) -> (Result<(), NetworkError>, bool) {
        if let Err(error) = self.usable() {
            return (Err(error), false);
        }
        if self.entries.iter().all(|entry| entry.config.versions.last() < Some(&Version::V1_1_0)) {
            return (Ok(()), false);
        }
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = status.answer.as_ref().is_some_and(|(when, _)| when.elapsed() < STATUS_AGE);
        let ask = !fresh && !status.asking;
        status.asking |= ask;
        let answer = match &status.answer {
            Some((_, answer)) => answer.clone(),
            None => Err("the plugins have not answered STATUS yet".into()),
        };
        (answer.map_err(|reason| NetworkError::NotReady { reason }), ask)
    }

    /// Asks all plugins for their STATUS and keeps the answer.
    pub(super) async fn ask(&self, runner: &Runner) {
        let mut answer = Ok(());
        for entry in &self.entries {
            let (config, parameters) = (entry.config(runner).await, Parameters::default());
            let chain_ =
                Chain { config: &config, runner, parameters: &parameters, capabilities: &serde_json::Map::new() };
            if let Err(error) = chain_.status(&NoJournal).await {
                answer = Err(chain(&error));
                break;
            }
        }
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = Status { answer: Some((Instant::now(), answer)), asking: false };
    }
}
