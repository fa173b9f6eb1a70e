//! From a stream of compressed bytes to a layer's folder.
//!
//! This is a security boundary: archives are hostile. `tree` keeps every path inside, `archive` keeps every
//! size bounded, `entries` decides what an entry may make, `stream` checks both digests.

mod archive;
mod entries;
mod fit;
mod lower;
mod pax;
mod stream;
mod tree;

pub use fit::{apply as apply_fit, plan as plan_fit};
pub use stream::{Piece, Wanted, unpack};

use std::io;

use rustix::io::Errno;

use super::record::PathBytes;

/// What a layer's folder holds after unpacking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes on disk, in blocks of 4 KiB.
    pub bytes: u64,
    /// Files, folders, links.
    pub inodes: u64,
    /// Folders used but not described.
    pub implied: Vec<PathBytes>,
    /// Hard links to what this layer does not have.
    pub links: Vec<(PathBytes, PathBytes)>,
}

/// Why a layer could not be unpacked.
#[derive(Debug)]
pub enum Fault {
    /// The archive is malformed or tries what it may not.
    Archive(String),
    /// The stream before it failed (compression).
    Input(io::Error),
    /// The file system failed.
    Disk {
        /// Path inside the layer.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl Fault {
    fn disk(path: &[u8], error: Errno) -> Self {
        // These are the archive's doing, not the disk's.
        match error {
            Errno::NAMETOOLONG => Self::archive(path, "has a name that is too long"),
            Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Self::archive(path, "leads through what is no folder"),
            Errno::NOENT => Self::archive(path, "needs something that is not there"),
            Errno::INVAL => Self::archive(path, "has properties that the file system does not take"),
            Errno::MLINK => Self::archive(path, "has too many hard links"),
            other => Self::Disk { path: String::from_utf8_lossy(path).into_owned(), source: other.into() },
        }
    }

    fn archive(path: &[u8], reason: &str) -> Self {
        Self::Archive(format!("{:?} {reason}", String::from_utf8_lossy(&path[..path.len().min(200)])))
    }
}
