//! AppArmor: the built-in profile that RuntimeDefault stands for, and how it gets into the kernel.
//!
//! The kernel takes compiled policy only, and apparmor_parser, which every system with AppArmor has, is what compiles
//! it. It runs once per boot, or when the text has changed.

mod profile;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::sys::lsm;
use crate::types::{ErrorKind, HasKind};

/// Name of the built-in profile.
pub const DEFAULT_PROFILE: &str = "podwright-default";

/// Longest run of the compiler.
const LIMIT: Duration = Duration::from_secs(30);
/// Most bytes kept of its complaints.
const MAX_COMPLAINT: u64 = 4096;

/// The built-in profile cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// Nothing to compile it with.
    #[error("apparmor_parser is not installed")]
    NoParser,
    /// The compiler said no.
    #[error("{program:?} failed: {complaint}")]
    Parser {
        /// Its path.
        program: PathBuf,
        /// What it wrote, or its exit status.
        complaint: String,
    },
    /// It could not be run.
    #[error("running {program:?}")]
    Run {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said yes, but the kernel does not list the profile.
    #[error("the kernel does not list {0:?} after it was loaded")]
    Lost(&'static str),
}

impl HasKind for AppArmorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoParser => ErrorKind::FailedPrecondition,
            _ => ErrorKind::Internal,
        }
    }
}

/// The compiler's path, if it is installed.
pub fn find_parser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let mut folders = own.into_iter().chain(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
    folders.find_map(|folder| Some(folder.join("apparmor_parser")).filter(|path| path.is_file()))
}

/// Loads the built-in profile, unless this very text was loaded in this boot already. `state` is a folder that no boot
/// survives; a note is kept there.
pub async fn load_default(state: &Path) -> Result<(), AppArmorError> {
    let abi = Path::new(profile::POLICY).join(profile::ABI).exists();
    let text = profile::text(DEFAULT_PROFILE, lsm::apparmor_current().as_deref(), abi);
    let note = state.join("apparmor-profile");
    let listed = || lsm::apparmor_loaded(DEFAULT_PROFILE).unwrap_or(false);
    if fs::read_to_string(&note).is_ok_and(|known| known == text) && listed() {
        return Ok(());
    }
    compile(&find_parser().ok_or(AppArmorError::NoParser)?, &text).await?;
    if !listed() {
        return Err(AppArmorError::Lost(DEFAULT_PROFILE));
    }
    if let Err(error) = keep(&note, &text) {
        tracing::warn!(path = %note.display(), %error, "cannot note that the apparmor profile is loaded; it will be loaded again");
    }
    Ok(())
}

/// Replaces the profile in the kernel; past the machine's cache of compiled policy.
async fn compile(program: &Path, text: &str) -> Result<(), AppArmorError> {
    let run = |source| AppArmorError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(["--skip-cache", "--replace"]).env_clear().current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(run)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let mut complaint = Vec::new();
    let ended = async {
        if let Some(mut pipe) = stdin {
            // A compiler that does not read it all says why itself.
            let _ = pipe.write_all(text.as_bytes()).await;
        }
        if let Some(mut pipe) = stderr {
            (&mut pipe).take(MAX_COMPLAINT).read_to_end(&mut complaint).await?;
            // What is over must not stop it.
            tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(LIMIT, ended).await {
        Ok(status) => status.map_err(run)?,
        Err(_) => {
            let complaint = format!("it took longer than {LIMIT:?}");
            return Err(AppArmorError::Parser { program: program.to_owned(), complaint });
        }
    };
    if status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&complaint).trim().replace('\n', "; ");
    let complaint = if complaint.is_empty() { status.to_string() } else { complaint };
    Err(AppArmorError::Parser { program: program.to_owned(), complaint })
}

fn keep(note: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(note)?.write_all(text.as_bytes())
}
