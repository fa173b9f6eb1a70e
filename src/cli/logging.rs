//! Where log lines go, and which.

use std::io::IsTerminal as _;
use std::os::fd::AsFd;

use tracing_subscriber::Registry;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Failure;
use crate::config::LogFormat;

/// Changes the filter of a running daemon.
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Takes a level or a filter, as in the configuration's `log.level`.
    pub fn set(&self, level: &str) -> Result<(), Failure> {
        self.0.reload(filter(level)?)?;
        Ok(())
    }
}

/// Starts logging to standard error.
pub fn start(level: &str, format: LogFormat) -> Result<LogLevel, Failure> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    let journal = match format {
        LogFormat::Journal => true,
        LogFormat::Text => false,
        LogFormat::Auto => is_journal(),
    };
    if journal {
        registry.with(lines.without_time()).try_init()?
    } else {
        registry.with(lines).try_init()?
    };
    Ok(LogLevel(handle))
}

/// A mere level is meant for this program: the libraries below it tell of each frame they send.
fn filter(level: &str) -> Result<EnvFilter, Failure> {
    let verbose = ["debug", "trace"].iter().any(|verbose| level.eq_ignore_ascii_case(verbose));
    if verbose {
        return Ok(EnvFilter::try_new(format!("info,podwright={level}"))?);
    }
    Ok(EnvFilter::try_new(level)?)
}

/// systemd names the journal's stream as DEVICE:INODE; standard error may since have been redirected.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
