//! The record of a pod's attachments, and what keeps it true when the daemon dies at any moment.
//!
//! It is written before the first ADD and after each plugin, and removed after DEL. While a plugin runs, its
//! stdin is the file beside the record, which holds a shared lock for as long as the plugin lives: so a
//! later daemon can tell that an ADD of an earlier one is still under way, end it, and only then call DEL.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::cni::chain::{Journal, NoJournal};
use super::cni::config::NetworkConfig;
use super::cni::result::PluginResult;
use super::error::NetworkError;
use crate::store::{self, Durability};
use crate::sys::async_fd;
use crate::types::{ErrorKind, HasKind, PodId};

/// Time a killed plugin may take to die.
const DYING: Duration = Duration::from_secs(10);

/// Everything DEL and CHECK need, whatever becomes of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pod: PodId,
    pub(super) netns: PathBuf,
    pub(super) args: String,
    pub(super) capabilities: Map<String, Value>,
    pub(super) bin_dirs: Vec<PathBuf>,
    /// All ADDs succeeded; false: at most as far as the results tell.
    pub(super) added: bool,
    pub(super) networks: Vec<Attached>,
}

/// One network of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Attached {
    pub(super) interface: String,
    pub(super) config: NetworkConfig,
    pub(super) result: Option<PluginResult>,
}

impl store::Record for Record {
    const VERSION: u32 = 1;
}

/// A record and its file.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    record: Mutex<Record>,
}

impl Ledger {
    pub(super) fn new(path: &Path, record: Record) -> Self {
        Self { path: path.to_owned(), record: Mutex::new(record) }
    }

    /// The ledger at `path`, if there is one.
    pub(super) async fn open(path: &Path) -> Result<Option<Self>, NetworkError> {
        let path = path.to_owned();
        blocking(move || Ok(store::load(&path)?.map(|record| Self::new(&path, record)))).await
    }

    pub(super) fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the record and writes it.
    pub(super) async fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), NetworkError> {
        let record = {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut record);
            record.clone()
        };
        let path = self.path.clone();
        blocking(move || Ok(store::save(&path, &record, Durability::Process)?)).await
    }

    /// Removes the record: nothing is attached any more.
    pub(super) async fn close(&self) -> Result<(), NetworkError> {
        let files = [stdin_path(&self.path), self.path.clone()];
        blocking(move || {
            for path in files {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(NetworkError::Io { what: "cannot remove", path, source: error });
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    /// Makes sure that no plugin started for this record is running any more.
    pub(super) async fn settle(&self) -> Result<(), NetworkError> {
        for last in [false, true] {
            let path = stdin_path(&self.path);
            let running = blocking(move || {
                running(&path).map_err(|source| NetworkError::Io { what: "cannot lock", path, source })
            })
            .await?;
            let Some(running) = running else { return Ok(()) };
            if last {
                break;
            }
            for process in running {
                tracing::warn!(record = ?self.path, pid = process.pid.as_raw_pid(), "killing a cni plugin left over from an earlier daemon");
                process.kill().await;
            }
        }
        Err(NetworkError::Busy { record: self.path.clone() })
    }
}

/// The journal of one network of a ledger.
pub(super) struct Page<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) index: usize,
}

impl Journal for Page<'_> {
    async fn stdin(&self, content: Vec<u8>) -> Result<File, NetworkError> {
        let path = stdin_path(&self.ledger.path);
        let copy = content.clone();
        let written = blocking(move || {
            let file = || -> io::Result<File> {
                let mut file = open_stdin(&path)?;
                flock(&file, FlockOperation::NonBlockingLockShared)?;
                file.set_len(0)?;
                file.write_all(&content)?;
                file.rewind()?;
                Ok(file)
            };
            file().map_err(|source| NetworkError::Io { what: "cannot write", path, source })
        });
        match written.await {
            // A full disk must not keep an address from being given back.
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => NoJournal.stdin(copy).await,
            other => other,
        }
    }

    async fn progress(&self, result: &PluginResult) -> Result<(), NetworkError> {
        let result = result.clone();
        self.ledger
            .update(|record| {
                if let Some(network) = record.networks.get_mut(self.index) {
                    network.result = Some(result);
                }
            })
            .await
    }
}

/// Runs `work`, which blocks, beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => {
                let source = io::Error::other(error);
                Err(NetworkError::Io { what: "interrupted by the end of the daemon:", path: PathBuf::new(), source })
            }
        },
    }
}

fn stdin_path(record: &Path) -> PathBuf {
    let mut path = record.as_os_str().to_owned();
    path.push(".stdin");
    path.into()
}

fn open_stdin(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A process that has the file as its stdin.
struct Running {
    pid: Pid,
    exit: std::os::fd::OwnedFd,
}

/// The processes whose stdin is `path`; `None` if nobody has it open.
fn running(path: &Path) -> io::Result<Option<Vec<Running>>> {
    let file = open_stdin(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(None),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(error.into()),
    }
    let own = file.metadata()?;
    let is_stdin_of = |pid: Pid| {
        fs::metadata(format!("/proc/{}/fd/0", pid.as_raw_pid()))
            .is_ok_and(|stdin| (stdin.dev(), stdin.ino()) == (own.dev(), own.ino()))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw).filter(|pid| is_stdin_of(*pid)) else { continue };
        // Opened first, looked at again after: so the descriptor is that process's and no other's.
        if let Ok(exit) = pidfd_open(pid, PidfdFlags::NONBLOCK)
            && is_stdin_of(pid)
        {
            found.push(Running { pid, exit });
        }
    }
    Ok(Some(found))
}

impl Running {
    /// Kills it, and its process group if it leads one, and waits until it is dead.
    async fn kill(self) {
        // Already dead: fine, all the same.
        if getpgid(Some(self.pid)) == Ok(self.pid) {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        let _ = pidfd_send_signal(self.exit.as_fd(), Signal::KILL);
        if let Ok(exit) = async_fd::readable(self.exit) {
            let _ = tokio::time::timeout(DYING, exit.readable()).await;
        }
    }
}
