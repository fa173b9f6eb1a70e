//! Versioned records on disk, one JSON file each, replaced as a whole.
//!
//! A record is written to a temporary file beside its place and renamed over it, so that a reader,
//! or a daemon killed at any moment, sees the old or the new one, never a part. Nothing is synced
//! by default: what must survive is the death of the *process*, and the page cache does. What must
//! survive power loss says so with [`Durability::Power`].
//!
//! Architecture Invariant: every record has exactly one owner task, which is its only writer; there
//! is no lock and no shared database, so that pods never wait for each other.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{ErrorKind, HasKind};

/// Largest record, bytes: none is written that would not be read back.
const MAX_RECORD: u64 = 16 << 20;
/// What a new record leaves of it, bytes: what is noted later must fit.
const ROOM: u64 = 1 << 20;

/// What a written record survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process, at any moment.
    Process,
    /// Power loss, too: file and folder are synced.
    Power,
}

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Version written; readers take this one and, by way of [`Record::migrate`], older ones.
    const VERSION: u32;

    /// Lifts a body written as `version` (older than [`Record::VERSION`]) to today's shape.
    fn migrate(version: u32, body: serde_json::Value) -> Option<serde_json::Value> {
        let _ = (version, body);
        None
    }
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("record {path:?}")]
    Io {
        /// The record's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content is not a record of this kind: truncated, or not ours.
    #[error("record {path:?} is damaged")]
    Damaged {
        /// The record's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It would not be read back.
    #[error("record {path:?} would have {bytes} bytes, want at most {most}; most of it is {part}")]
    TooLarge {
        /// The record's file.
        path: PathBuf,
        /// As it would be written.
        bytes: u64,
        /// The limit.
        most: u64,
        /// The field that makes it so.
        part: String,
    },
    /// Written by a version that this one cannot read.
    #[error("record {path:?} has version {found}, newer than {known} or no longer known")]
    Version {
        /// The record's file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl HasKind for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
            // Only what is written down of a request, or an image, has no smaller bound.
            Self::TooLarge { .. } => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        }
    }
}

#[derive(Serialize)]
struct Out<'a, T> {
    version: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct In {
    version: u32,
    body: serde_json::Value,
}

/// Writes `record` at `path`, whose folder must exist, replacing what is there in one step. One that would not be read
/// back is refused, and changes nothing.
pub fn save<T: Record>(path: &Path, record: &T, durability: Durability) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { path: path.to_owned(), source };
    let text = serde_json::to_vec(&Out { version: T::VERSION, body: record })
        .map_err(|source| StoreError::Damaged { path: path.to_owned(), source })?;
    let bytes = text.len() as u64;
    if bytes > MAX_RECORD - ROOM {
        let most = if path.exists() { MAX_RECORD } else { MAX_RECORD - ROOM };
        if bytes > most {
            return Err(StoreError::TooLarge { path: path.to_owned(), bytes, most, part: largest_part(&text) });
        }
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        if durability == Durability::Power {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)?;
        if durability == Durability::Power
            && let Some(folder) = path.parent()
        {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    })();
    written.map_err(|source| {
        // The half-written file is of no use to anyone; failing to remove it changes nothing.
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

/// Reads the record at `path`; `None` where there is none.
pub fn load<T: Record>(path: &Path) -> Result<Option<T>, StoreError> {
    let io = |source| StoreError::Io { path: path.to_owned(), source };
    let damaged = |source| StoreError::Damaged { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut text).map_err(io)?;
    let stored: In = serde_json::from_slice(&text).map_err(damaged)?;
    let unknown = || StoreError::Version { path: path.to_owned(), found: stored.version, known: T::VERSION };
    let body = match stored.version {
        version if version == T::VERSION => stored.body,
        version if version < T::VERSION => T::migrate(version, stored.body).ok_or_else(unknown)?,
        _ => return Err(unknown()),
    };
    serde_json::from_value(body).map(Some).map_err(damaged)
}

/// The path of the field that makes a record large.
fn largest_part(record: &[u8]) -> String {
    let (mut path, mut value) = (Vec::new(), record);
    while let Some((name, member)) = longest_member(value).filter(|(_, member)| member.len() > value.len() / 3) {
        path.push(String::from_utf8_lossy(name));
        value = member;
    }
    // Every record has it.
    path.retain(|name| name != "body");
    if path.is_empty() { "many fields".to_owned() } else { path.join(".") }
}

/// Name and value of the longest member of an object that [`save`] made JSON of: it is sound, and has no blanks.
fn longest_member(object: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut longest: Option<(&[u8], &[u8])> = None;
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    let (mut begin, mut colon) = (1, None);
    if object.first() != Some(&b'{') {
        return None;
    }
    for (at, byte) in object.iter().enumerate() {
        if quoted {
            quoted = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b':' if depth == 1 => colon = Some(at),
            b',' | b'}' if depth == 1 => {
                // The name without its quotes.
                let member = colon
                    .take()
                    .and_then(|colon| Some((object.get(begin + 1..colon - 1)?, object.get(colon + 1..at)?)));
                longest = longest.into_iter().chain(member).max_by_key(|(_, value)| value.len());
                begin = at + 1;
            }
            _ => {}
        }
        if matches!(byte, b'}' | b']') {
            depth = depth.saturating_sub(1);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Two {
        name: String,
    }
    impl Record for Two {
        const VERSION: u32 = 2;
        fn migrate(version: u32, body: serde_json::Value) -> Option<serde_json::Value> {
            (version == 1).then(|| serde_json::json!({ "name": body }))
        }
    }

    #[test]
    fn a_record_comes_back_and_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        assert!(load::<Two>(&path).unwrap().is_none());
        for name in ["a longer first content", "b"] {
            save(&path, &Two { name: name.into() }, Durability::Process).unwrap();
            assert_eq!(load::<Two>(&path).unwrap(), Some(Two { name: name.into() }));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn old_versions_are_lifted_and_strange_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        fs::write(&path, r#"{"version":1,"body":"old"}"#).unwrap();
        assert_eq!(load::<Two>(&path).unwrap(), Some(Two { name: "old".into() }));
        fs::write(&path, r#"{"version":3,"body":{}}"#).unwrap();
        assert!(matches!(load::<Two>(&path), Err(StoreError::Version { found: 3, .. })));
        fs::write(&path, "").unwrap();
        assert!(matches!(load::<Two>(&path), Err(StoreError::Damaged { .. })));
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Big {
        small: Vec<String>,
        config: std::collections::BTreeMap<String, String>,
    }
    impl Record for Big {
        const VERSION: u32 = 1;
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        let big = |bytes: u64| {
            let text = "\"".repeat((bytes / 2) as usize);
            let config = [("a".to_owned(), r#"}\":{"#.to_owned()), ("big".to_owned(), text)];
            Big { small: vec!["{".into(), r#"\",":"#.into()], config: config.into() }
        };
        let refused = |bytes| match save(&path, &big(bytes), Durability::Process) {
            Err(error @ StoreError::TooLarge { .. }) => {
                assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                assert!(error.to_string().ends_with("most of it is config.big"), "{error}");
            }
            other => panic!("{other:?}"),
        };
        refused(MAX_RECORD);
        refused(MAX_RECORD - ROOM);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        save(&path, &big(MAX_RECORD - ROOM - 1000), Durability::Process).unwrap();
        // What is there already may grow.
        save(&path, &big(MAX_RECORD - 1000), Durability::Process).unwrap();
        refused(MAX_RECORD);
        assert_eq!(load(&path).unwrap(), Some(big(MAX_RECORD - 1000)));
    }
}
