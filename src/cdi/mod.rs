//! Container Device Interface: devices that vendors describe in files, named `vendor/class=name`.
//!
//! Nothing is read before a container asks for such a device, and then only files that are new or
//! have changed: each look-up lists the folders and compares inode, size and times. So a node without
//! such devices pays nothing, and there is no watch that could miss a change. Parsing and checking of
//! one file is the container-device-interface crate's; its own cache is not used, since one bad file
//! would hide all good ones, and it keeps devices that two files define alike.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use container_device_interface::annotations::parse_annotations;
use container_device_interface::spec::{Spec, read_spec};
use serde_json::Value;

use crate::types::{ErrorKind, HasKind};

/// Prefix of annotations whose values name devices, separated by commas.
pub const ANNOTATION: &str = "cdi.k8s.io/";
/// Largest file, bytes: a node with many partitioned GPUs has a few hundred KiB.
const MAX_FILE: u64 = 4 << 20;
/// Most files of a folder.
const MAX_FILES: usize = 1024;
/// Bad files that an error names.
const MAX_NAMED: usize = 3;

/// Devices cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// Switched off.
    #[error("cdi device {device:?}: cdi is disabled in this node's configuration (cdi.enabled)")]
    Disabled {
        /// Asked for.
        device: String,
    },
    /// No file defines it.
    #[error("cdi device {device:?} is not defined in {folders}{bad}")]
    Unknown {
        /// Asked for.
        device: String,
        /// Where it was looked for.
        folders: String,
        /// Files that could not be used, and why.
        bad: String,
    },
    /// Two files of one folder define it.
    #[error("cdi device {device:?} is defined by both {first:?} and {second:?}")]
    Conflict {
        /// Asked for.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

impl HasKind for CdiError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Disabled { .. } | Self::Conflict { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

/// What is known of the folders' files.
#[derive(Debug)]
pub struct Registry {
    enabled: bool,
    /// Later ones override earlier ones.
    folders: Vec<PathBuf>,
    files: Mutex<BTreeMap<PathBuf, File>>,
}

#[derive(Debug, Clone)]
struct File {
    stamp: Stamp,
    /// Index of its folder.
    priority: usize,
    spec: Result<Arc<Spec>, String>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Registry {
    /// Reads nothing yet.
    pub fn new(enabled: bool, folders: Vec<PathBuf>) -> Self {
        Self { enabled, folders, files: Mutex::default() }
    }

    /// The `containerEdits` (CDI specification) of these devices, in the order in which they are to be
    /// made: each file's own once, before those of its first device. Blocks.
    pub fn edits(&self, devices: &[String]) -> Result<Vec<Value>, CdiError> {
        match devices.first() {
            None => return Ok(Vec::new()),
            Some(device) if !self.enabled => return Err(CdiError::Disabled { device: device.clone() }),
            Some(_) => {}
        }
        // Every change of the map is whole.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut files);
        let mut edits = Vec::new();
        let mut used: Vec<&Path> = Vec::new();
        for name in devices {
            let (path, spec, device) = self.find(&files, name)?;
            if !used.contains(&path) {
                used.push(path);
                edits.extend(spec.cdi_spec.container_edits.as_ref().map(json));
            }
            edits.push(device);
        }
        Ok(edits)
    }

    fn find<'a>(
        &self,
        files: &'a BTreeMap<PathBuf, File>,
        name: &str,
    ) -> Result<(&'a Path, &'a Spec, Value), CdiError> {
        let (kind, device) = name.split_once('=').unwrap_or((name, ""));
        let defines = |file: &'a File| {
            let spec = file.spec.as_ref().ok()?;
            let same = format!("{}/{}", spec.get_vendor(), spec.get_class()) == kind;
            let found = spec.get_device(device).filter(|_| same)?;
            Some((file.priority, spec.as_ref(), json(&found.edits().container_edits)))
        };
        let mut found: Vec<_> = files.iter().filter_map(|(path, file)| Some((path, defines(file)?))).collect();
        let highest = found.iter().map(|(_, (priority, ..))| *priority).max();
        found.retain(|(_, (priority, ..))| Some(*priority) == highest);
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some((path, (_, spec, edits))), None) => Ok((path, spec, edits)),
            (Some((first, _)), Some((second, _))) => {
                let (first, second) = (first.clone(), second.clone());
                Err(CdiError::Conflict { device: name.to_owned(), first, second })
            }
            (None, _) => Err(CdiError::Unknown {
                device: name.to_owned(),
                folders: self.folders.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
                bad: bad(files),
            }),
        }
    }

    /// Reads what is new or has changed, forgets what is gone.
    fn refresh(&self, files: &mut BTreeMap<PathBuf, File>) {
        let mut present = BTreeMap::new();
        for (priority, folder) in self.folders.iter().enumerate() {
            // A folder that does not exist has no files.
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            for path in entries.filter(|path| is_spec(path)).take(MAX_FILES) {
                let Ok(found) = fs::metadata(&path) else { continue };
                let stamp = Stamp::of(&found);
                let known = files.remove(&path).filter(|file| file.stamp == stamp && file.priority == priority);
                let file = known.unwrap_or_else(|| File { stamp, priority, spec: read(&path, &found, priority) });
                present.insert(path, file);
            }
        }
        *files = present;
    }
}

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            place: (found.dev(), found.ino()),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// The devices that annotations ask for.
///
/// # Errors
/// The annotation that names something else, and what it names.
pub fn annotated(annotations: &BTreeMap<String, String>) -> Result<Vec<String>, (String, String)> {
    let mut devices = Vec::new();
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        match parse_annotations(&[(key.clone(), value.clone())].into()) {
            Ok((_, named)) => devices.extend(named),
            Err(_) => return Err((key.clone(), value.chars().take(300).collect())),
        }
    }
    Ok(devices)
}

fn is_spec(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json") || ending.eq_ignore_ascii_case("yaml"))
}

fn read(path: &Path, found: &fs::Metadata, priority: usize) -> Result<Arc<Spec>, String> {
    let spec = if !found.is_file() {
        Err("is no file".to_owned())
    } else if found.len() > MAX_FILE {
        Err(format!("has {} bytes, want at most {MAX_FILE}", found.len()))
    } else {
        let priority = i32::try_from(priority).unwrap_or(i32::MAX);
        read_spec(&path.to_owned(), priority).map(Arc::new).map_err(|error| format!("{error:#}"))
    };
    if let Err(reason) = &spec {
        // Once for each change of the file.
        tracing::warn!(path = %path.display(), reason = %cut(reason), "cdi file cannot be used");
    }
    spec
}

fn bad(files: &BTreeMap<PathBuf, File>) -> String {
    let named = files.iter().filter_map(|(path, file)| Some((path, file.spec.as_ref().err()?)));
    named
        .take(MAX_NAMED)
        .map(|(path, reason)| format!("; {} cannot be used: {}", path.display(), cut(reason)))
        .collect()
}

fn cut(text: &str) -> String {
    text.chars().take(500).collect()
}

/// The crate keeps most fields of its types to itself, but they are what was in the file.
fn json<T: serde::Serialize>(edits: &T) -> Value {
    serde_json::to_value(edits).unwrap_or_default()
}

#[cfg(test)]
mod tests;
