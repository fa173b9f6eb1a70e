//! Network configurations: text in, one checked chain of plugins out.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::Version;

/// Largest configuration file read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most plugins in one chain.
const MAX_PLUGINS: usize = 64;
/// Most files looked at in one folder.
const MAX_FILES: usize = 1024;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Longer than is taken.
    #[error("is longer than {MAX_FILE} bytes")]
    TooLong,
    /// Not JSON.
    #[error("is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but not a configuration.
    #[error("{key}: {reason}")]
    Bad {
        /// The key at fault.
        key: &'static str,
        /// What is wanted.
        reason: String,
    },
}

fn bad(key: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Bad { key, reason: reason.into() }
}

/// One plugin of a chain, with its whole configuration as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// Name of the executable: one plain file name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The plugin's configuration object.
    pub config: Map<String, Value>,
}

impl Plugin {
    fn from_value(value: Value) -> Result<Self, ConfigError> {
        let Value::Object(config) = value else { return Err(bad("plugins", "each must be an object")) };
        let kind = match config.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            _ => return Err(bad("type", "a plugin must name its executable")),
        };
        let plain = !kind.is_empty()
            && kind.len() <= 255
            && kind != "."
            && kind != ".."
            && !kind.chars().any(|c| matches!(c, '/' | '\\') || c.is_control());
        if !plain {
            return Err(bad("type", format!("{kind:?} is not a plain file name")));
        }
        if let Some(capabilities) = config.get("capabilities")
            && !capabilities.is_null()
            && !capabilities.as_object().is_some_and(|map| map.values().all(Value::is_boolean))
        {
            return Err(bad("capabilities", format!("of plugin {kind:?} must map names to true or false")));
        }
        Ok(Self { kind, config })
    }

    /// The runtime arguments this plugin asks for.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        let map = self.config.get("capabilities").and_then(Value::as_object);
        map.into_iter().flatten().filter(|(_, wanted)| **wanted == Value::Bool(true)).map(|(name, _)| name.as_str())
    }
}

/// A network: a chain of plugins and how to call them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Network name.
    pub name: String,
    /// Version the plugins are spoken to in.
    pub version: Version,
    /// All versions the configuration allows, oldest first.
    pub versions: Vec<Version>,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// Plugins are taken from this configuration only, not from the folder named like the network, too.
    pub only_inlined: bool,
    /// The chain, in order of ADD.
    pub plugins: Vec<Plugin>,
}

impl NetworkConfig {
    /// Parses a list (`plugins`) or a single plugin's configuration (`type`, the format before lists).
    /// The chain can be empty if it is allowed to come from the network's folder.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(text)?;
        let Value::Object(mut map) = value else { return Err(bad("configuration", "must be an object")) };
        let name = match map.get("name") {
            Some(Value::String(name)) => name.clone(),
            Some(_) => return Err(bad("name", "must be a string")),
            None => return Err(bad("name", "is missing")),
        };
        if !is_name(&name) {
            return Err(bad(
                "name",
                format!("{name:?} must start with a letter or digit and go on with those, _ . or -"),
            ));
        }
        let versions = versions(&map)?;
        let version = *versions.last().ok_or_else(|| bad("cniVersion", "none is known"))?;
        let single = !map.contains_key("plugins") && map.contains_key("type");
        let only_inlined = single || flag(&map, "loadOnlyInlinedPlugins")?;
        let (disable_check, disable_gc) = (flag(&map, "disableCheck")?, flag(&map, "disableGC")?);
        let plugins = match map.remove("plugins") {
            _ if single => vec![Plugin::from_value(Value::Object(map))?],
            Some(Value::Array(list)) if list.is_empty() => return Err(bad("plugins", "must not be empty")),
            Some(Value::Array(list)) if list.len() > MAX_PLUGINS => {
                return Err(bad("plugins", format!("has more than {MAX_PLUGINS} entries")));
            }
            Some(Value::Array(list)) => list.into_iter().map(Plugin::from_value).collect::<Result<_, _>>()?,
            Some(_) => return Err(bad("plugins", "must be a list")),
            None if only_inlined => return Err(bad("plugins", "is missing, and loadOnlyInlinedPlugins is set")),
            None => Vec::new(),
        };
        Ok(Self { name, version, versions, disable_check, disable_gc, only_inlined, plugins })
    }

    /// Reads the configuration at `path` and, unless it says not to, the plugins in the folder beside it
    /// that is named like the network.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::parse(&read_file(path)?)?;
        if !config.only_inlined
            && let Some(folder) = path.parent()
        {
            for file in files(&folder.join(&config.name), &["conf"])? {
                if config.plugins.len() == MAX_PLUGINS {
                    return Err(bad("plugins", format!("has more than {MAX_PLUGINS} entries")));
                }
                config.plugins.push(Plugin::from_value(serde_json::from_slice(&read_file(&file)?)?)?);
            }
        }
        if config.plugins.is_empty() {
            return Err(bad("plugins", "there is none"));
        }
        Ok(config)
    }
}

/// What a folder of configurations holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The networks in use, in the order of their file names.
    pub networks: Vec<(PathBuf, NetworkConfig)>,
    /// Files that were refused.
    pub refused: Vec<(PathBuf, ConfigError)>,
}

/// Reads the first `limit` valid configurations of `folder`, by file name; files after them are not looked
/// at. A folder that is missing is empty.
pub fn load(folder: &Path, limit: usize) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    for file in files(folder, &["conf", "conflist", "json"])? {
        if loaded.networks.len() >= limit {
            break;
        }
        match NetworkConfig::read(&file) {
            Ok(config) => loaded.networks.push((file, config)),
            Err(error) => loaded.refused.push((file, error)),
        }
    }
    Ok(loaded)
}

/// Files of `folder` with one of these extensions, sorted by name.
fn files(folder: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let known = path.extension().is_some_and(|extension| extensions.iter().any(|one| extension == *one));
        if known && !path.is_dir() {
            found.push(path);
        }
        if found.len() > MAX_FILES {
            return Err(io::Error::other(format!("{} holds more than {MAX_FILES} files", folder.display())));
        }
    }
    found.sort();
    Ok(found)
}

fn read_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    // A FIFO or device in the folder would block or never end.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file").into());
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(ConfigError::TooLong) } else { Ok(text) }
}

/// Letters, digits, `_`, `.`, `-`, the first a letter or digit: also safe as a file name.
fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The known versions among `cniVersion` and `cniVersions`, oldest first; at least one.
fn versions(map: &Map<String, Value>) -> Result<Vec<Version>, ConfigError> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(bad("cniVersion", "must be a string such as \"1.0.0\"")),
    };
    let mut written = Vec::new();
    match map.get("cniVersions") {
        Some(Value::Array(list)) => written = list.iter().map(text).collect::<Result<_, _>>()?,
        Some(_) => return Err(bad("cniVersions", "must be a list of strings")),
        None => {}
    }
    match map.get("cniVersion") {
        Some(value) => written.push(text(value)?),
        None if written.is_empty() => written.push(String::new()),
        None => {}
    }
    let mut known: Vec<_> = written.iter().filter_map(|text| Version::parse(text)).collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        return Err(bad("cniVersion", format!("{written:?} is not known here; the newest is {}", Version::V1_1_0)));
    }
    Ok(known)
}

/// A boolean that may also be written as a string.
fn flag(map: &Map<String, Value>, key: &'static str) -> Result<bool, ConfigError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(bad(key, "must be true or false")),
    }
}

#[cfg(test)]
mod tests;
