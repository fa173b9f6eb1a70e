//! Container Device Interface: devices that vendors describe in files, named `vendor/class=name`.
//!
//! The folders are watched, so that a file is read when it comes, and one that cannot be used is told
//! then and not when somebody waits for its device. No answer depends on the watch: each look-up lists
//! the folders and reads what is new or has changed, by inode, size and times. Parsing and checking of
//! one file is the container-device-interface crate's; its own cache is not used, since one bad file
//! would hide all good ones, and it keeps devices that two files define alike.

mod bounded;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use container_device_interface::annotations::parse_annotations;
use container_device_interface::spec::new_spec;
use container_device_interface::specs::config;
use serde::Deserialize as _;
use serde_json::Value;

use crate::sys::watch::Watch;
use crate::types::{ErrorKind, HasKind};

/// Prefix of annotations whose values name devices, separated by commas.
pub const ANNOTATION: &str = "cdi.k8s.io/";
/// Largest file, bytes: a node with many partitioned GPUs has a few hundred KiB.
const MAX_FILE: u64 = 4 << 20;
/// Most files of a folder.
const MAX_FILES: usize = 1024;
/// Age, seconds, from which on a file's times tell whether it changed since it was read.
const SETTLED: u64 = 2;
/// Devices of a file that are checked at once: the crate keeps a copy of all of them with each.
const TOGETHER: usize = 16;
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

/// What is known of the folders' files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    enabled: bool,
    /// Later ones override earlier ones.
    folders: Vec<PathBuf>,
    files: Mutex<BTreeMap<PathBuf, File>>,
}

/// What the folders hold, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// Where files are looked for; none if CDI is disabled.
    pub dirs: Vec<PathBuf>,
    /// Files that define devices.
    pub files: Vec<PathBuf>,
    /// Files that cannot be used, and why.
    pub problems: BTreeMap<PathBuf, String>,
}

#[derive(Debug, Clone)]
struct File {
    stamp: Stamp,
    /// It had not changed for so long when it was read that another change would show in its times.
    settled: bool,
    /// Index of its folder.
    priority: usize,
    spec: Result<Arc<Spec>, String>,
}

/// What a file says, checked.
#[derive(Debug, Default)]
struct Spec {
    /// `vendor/class`.
    kind: String,
    /// `containerEdits` of the file itself.
    edits: Option<Value>,
    /// Those of each device.
    devices: BTreeMap<String, Value>,
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
        Self(Arc::new(Shared { enabled, folders, files: Mutex::default() }))
    }

    /// From now on files are read as they come, for as long as the registry is there. Must be called in a
    /// tokio runtime.
    pub fn watch(&self) {
        for folder in self.0.folders.iter().filter(|_| self.0.enabled) {
            match Watch::new(folder) {
                Ok(watch) => drop(tokio::spawn(follow(watch, Arc::downgrade(&self.0)))),
                Err(error) => unwatched(folder, &error),
            }
        }
    }

    /// What is there now. Blocks.
    pub fn inspect(&self) -> Inspection {
        if !self.0.enabled {
            return Inspection::default();
        }
        let files = self.0.current();
        let problem = |(path, file): (&PathBuf, &File)| Some((path.clone(), cut(file.spec.as_ref().err()?)));
        Inspection {
            dirs: self.0.folders.clone(),
            files: files.iter().filter(|(_, file)| file.spec.is_ok()).map(|(path, _)| path.clone()).collect(),
            problems: files.iter().filter_map(problem).collect(),
        }
    }

    /// The `containerEdits` (CDI specification) of these devices, in the order in which they are to be
    /// made: each file's own once, before those of its first device. Blocks.
    pub fn edits(&self, devices: &[String]) -> Result<Vec<Value>, CdiError> {
        match devices.first() {
            None => return Ok(Vec::new()),
            Some(device) if !self.0.enabled => return Err(CdiError::Disabled { device: device.clone() }),
            Some(_) => {}
        }
        let files = self.0.current();
        let mut edits = Vec::new();
        let mut used: Vec<&Path> = Vec::new();
        for name in devices {
            let (path, spec, device) = self.0.find(&files, name)?;
            if !used.contains(&path) {
                used.push(path);
                edits.extend(spec.edits.clone());
            }
            edits.push(device);
        }
        Ok(edits)
    }
}

impl Shared {
    /// The files as they are now.
    fn current(&self) -> MutexGuard<'_, BTreeMap<PathBuf, File>> {
        // Every change of the map is whole.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut files);
        files
    }

    fn find<'a>(
        &self,
        files: &'a BTreeMap<PathBuf, File>,
        name: &str,
    ) -> Result<(&'a Path, &'a Spec, Value), CdiError> {
        let (kind, device) = name.split_once('=').unwrap_or((name, ""));
        let defines = |file: &'a File| {
            let spec = file.spec.as_ref().ok()?;
            let found = spec.devices.get(device).filter(|_| spec.kind == kind)?;
            Some((file.priority, spec.as_ref(), found.clone()))
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
                let known = files.remove(&path);
                let file = match known {
                    Some(file) if file.settled && file.stamp == stamp && file.priority == priority => file,
                    known => {
                        let settled = stamp.is_old();
                        let spec = read(&path, &found);
                        // A file that is read again for its age alone has been told of.
                        let told = known.is_some_and(|known| known.stamp == stamp && known.spec.is_err());
                        if let (Err(reason), false) = (&spec, told) {
                            tracing::warn!(path = %path.display(), reason = %cut(reason), "cdi file cannot be used");
                        }
                        File { stamp, settled, priority, spec }
                    }
                };
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

    /// The file's last change is longer ago than the clock of its file system is coarse.
    fn is_old(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        changed.saturating_add(SETTLED) < now.as_secs()
    }
}

async fn follow(mut watch: Watch, registry: Weak<Shared>) {
    loop {
        // The first time for what is there already.
        let Some(shared) = registry.upgrade() else { return };
        let reading = tokio::task::spawn_blocking(move || drop(shared.current()));
        if reading.await.is_err() {
            return;
        }
        if let Err(error) = watch.changed().await {
            return unwatched(watch.folder(), &error);
        }
    }
}

fn unwatched(folder: &Path, error: &std::io::Error) {
    let folder = folder.display();
    tracing::warn!(%folder, %error, "cdi folder is not watched: its files are read when a device is asked for");
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

fn read(path: &Path, found: &fs::Metadata) -> Result<Arc<Spec>, String> {
    if !found.is_file() {
        return Err("is no file".to_owned());
    }
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text));
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("has {} bytes or more, want at most {MAX_FILE}", text.len()));
    }
    parse(path, &text).map(Arc::new)
}

fn parse(path: &Path, text: &[u8]) -> Result<Spec, String> {
    let mut whole = bounded::parse(text)?;
    let devices = whole.get_mut("devices").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    let mut rest = devices.into_iter().peekable();
    let mut spec = Spec::default();
    loop {
        if let Some(some) = whole.get_mut("devices").and_then(Value::as_array_mut) {
            *some = rest.by_ref().take(TOGETHER).collect();
        }
        let raw = config::Spec::deserialize(&whole).map_err(|error| format!("cannot be parsed: {error}"))?;
        let checked = new_spec(&raw, &path.to_owned(), 0).map_err(|error| format!("{error:#}"))?;
        for (name, device) in checked.get_devices() {
            if spec.devices.contains_key(&name) {
                return Err(format!("invalid spec, multiple device {name}"));
            }
            spec.devices.insert(name, json(&device.edits().container_edits));
        }
        if rest.peek().is_none() {
            spec.kind = format!("{}/{}", checked.get_vendor(), checked.get_class());
            spec.edits = checked.cdi_spec.container_edits.as_ref().map(json);
            return Ok(spec);
        }
    }
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
