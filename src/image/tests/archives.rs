//! Archives made by hand, also such as no tool would make, and a way to unpack them.

use std::io::Write;

use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::image::error::ImageError;
use crate::image::unpack::{Piece, Summary, Wanted, unpack};
use crate::types::Digest;

/// An archive under construction.
#[derive(Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// One entry's header fields.
#[derive(Clone, Copy)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

pub const PLAIN: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000 };

impl Tar {
    /// Any entry, with path and link as raw as they come (up to 100 bytes).
    pub fn raw(self, kind: EntryType, path: &[u8], link: &[u8], meta: Meta, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.block(header.as_bytes(), data)
    }

    pub fn block(mut self, header: &[u8; 512], data: &[u8]) -> Self {
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, path.as_bytes(), b"", PLAIN, data)
    }

    pub fn folder(self, path: &str) -> Self {
        self.folder_with(path, Meta { mode: 0o755, ..PLAIN })
    }

    pub fn folder_with(self, path: &str, meta: Meta) -> Self {
        self.raw(EntryType::Directory, path.as_bytes(), b"", meta, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path.as_bytes(), target.as_bytes(), PLAIN, b"")
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path.as_bytes(), target.as_bytes(), PLAIN, b"")
    }

    /// A PAX header for the entry after it.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(EntryType::XHeader, b"pax", b"", PLAIN, &data)
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// Without the blocks that end an archive.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Unpacks an archive into a fresh folder `fs` inside another one, whose other content shows what leaked out.
pub fn unpack_tar(tar: &[u8]) -> (TempDir, Result<Summary, ImageError>) {
    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir(outer.path().join("fs")).unwrap();
    let wanted = Wanted { blob: digest(tar), size: tar.len() as u64, diff_id: digest(tar) };
    let result = feed(tar, 7001, wanted, &outer.path().join("fs"));
    (outer, result)
}

/// Unpacks a blob given in pieces of `size` bytes.
pub fn feed(blob: &[u8], size: usize, wanted: Wanted, into: &std::path::Path) -> Result<Summary, ImageError> {
    let (tx, rx) = mpsc::channel(4);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in blob.chunks(size) {
                if tx.blocking_send(Piece::Data(bytes::Bytes::copy_from_slice(piece))).is_err() {
                    return;
                }
            }
            let _ = tx.blocking_send(Piece::End);
        });
        unpack(rx, wanted, into)
    })
}
