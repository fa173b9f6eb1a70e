//! TOML text to [`Config`]: defaults, `config.toml`, then `conf.d/*.toml` beside it in lexical order.
//!
//! Everything here is pure but [`load`]. A key nobody knows, a value of the wrong type and a value
//! that makes no sense are errors that name the file, the whole key and the reason.

pub mod duration;
mod merge;
mod schema;
mod validate;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use merge::{Source, parse};
pub use schema::{
    Cgroup, CgroupDriver, Config, Container, ExpediteRcu, Image, Log, LogFormat, Network, Paths, Runtime, Seccomp,
    Server, Streaming, UnsetProfile,
};

use crate::types::{ErrorKind, HasKind};

/// Where the configuration is looked for when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/podwright/config.toml";

/// Every key with its default and what it means; `podwright config default` prints it.
pub const DEFAULT_TEXT: &str = include_str!("../examples/config.toml");

/// Largest configuration file read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{file:?}")]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{file:?} is not TOML: {reason}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A key is unknown, or its value is wrong.
    #[error("{file:?}: {key}: {reason}")]
    Key {
        /// The file that sets it.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl HasKind for ConfigError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Io { .. } => ErrorKind::Internal,
            Self::Syntax { .. } | Self::Key { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// Reads the configuration. `file` must exist if it is given; [`DEFAULT_PATH`], which is taken
/// otherwise, need not. The folder `conf.d` beside the file need not exist.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let sources = read_sources(file)?;
    parse(&sources)
}

/// Reads the files that make up the configuration, in the order in which they are merged.
pub fn read_sources(file: Option<&Path>) -> Result<Vec<Source>, ConfigError> {
    let main = file.unwrap_or(Path::new(DEFAULT_PATH));
    let mut sources = Vec::new();
    match read(main) {
        Ok(source) => sources.push(source),
        Err(error) if file.is_none() && error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let folder = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    let failed = |source| ConfigError::Io { file: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sources),
        Err(error) => return Err(failed(error)),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            parts.push(path);
        }
    }
    parts.sort();
    for path in &parts {
        sources.push(read(path)?);
    }
    Ok(sources)
}

fn read(path: &Path) -> Result<Source, ConfigError> {
    let failed = |source| ConfigError::Io { file: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        let reason = format!("{length} bytes, over the limit of {MAX_FILE}");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    Ok(Source { file: path.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_lexical_order_and_only_toml() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("config.toml");
        fs::write(&main, "[log]\nlevel = \"debug\"\n").unwrap();
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        for (name, text) in [
            ("20-b.toml", "[log]\nlevel = \"warn\""),
            ("10-a.toml", "[log]\nlevel = \"error\"\n[cgroup]\ndriver = \"cgroupfs\""),
            ("30-ignored.txt", "not toml at all"),
        ] {
            fs::write(folder.path().join("conf.d").join(name), text).unwrap();
        }
        let config = load(Some(&main)).unwrap();
        assert_eq!(config.log.level, "warn");
        assert_eq!(config.cgroup.driver, CgroupDriver::Cgroupfs);
    }

    #[test]
    fn a_named_file_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let error = load(Some(&folder.path().join("none.toml"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(crate::types::chain(&error).contains("none.toml"), "{error}");
    }
}
