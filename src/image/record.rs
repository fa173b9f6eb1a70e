//! What is known of an image, and how it is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::store::Record;
use crate::types::Digest;

/// How an image wants to be run, as its author wrote it: nothing in here is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers; empty: root.
    #[serde(default)]
    pub user: String,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// First part of the command line.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Second part.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Empty: `/`.
    #[serde(default)]
    pub working_dir: String,
    /// Paths that want a volume.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A signal's name or number that `types::Signal` takes; empty: SIGTERM.
    #[serde(default)]
    pub stop_signal: String,
    /// `80/tcp`.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
}

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its config.
    pub id: Digest,
    /// `host/path:tag`.
    pub tags: Vec<String>,
    /// `host/path@sha256:…`, each the digest that the tag gave (an index's where there is one).
    pub digests: Vec<String>,
    /// Bytes of manifest, config and compressed layers.
    pub size: u64,
    /// Names of the layer folders, bottom first: each the layer's diff id, or for a layer that had to be
    /// fitted to those below it, a digest over diff id and what was fitted.
    pub layers: Vec<Digest>,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
    /// How to run it.
    pub config: ImageConfig,
    /// Never removed by garbage collection of the kubelet.
    #[serde(default)]
    pub pinned: bool,
    /// When it was built, RFC 3339 as its author wrote it; empty: not said.
    #[serde(default)]
    pub created: String,
}

/// The record of an image: the image, and whether power loss may have taken its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image.
    pub image: Image,
    /// Boot in which it was pulled.
    pub boot_id: String,
    /// Its layers are on the disk.
    pub synced: bool,
    /// When a tag last moved here, ns since the epoch: the later record wins a tag that two claim.
    pub tagged_ns: i64,
}

impl Record for ImageRecord {
    const VERSION: u32 = 1;
}

/// The record beside a layer's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Bytes on disk, counted in blocks of 4 KiB.
    pub bytes: u64,
    /// Files, folders, links.
    pub inodes: u64,
    /// Boot in which it was unpacked.
    pub boot_id: String,
    /// Folders that the archive uses without describing them. (`""` is the layer's root.)
    #[serde(default)]
    pub implied: Vec<PathBytes>,
    /// Hard links whose target is in a layer below: link and target.
    #[serde(default)]
    pub links: Vec<(PathBytes, PathBytes)>,
}

impl Record for LayerRecord {
    const VERSION: u32 = 1;
}

/// What a boot knows of layers that an earlier one unpacked: what may run from them outlives their image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The boot that it holds for.
    pub boot_id: String,
    /// Layers that were on the disk when it began.
    pub whole: BTreeSet<Digest>,
}

impl Record for BootRecord {
    const VERSION: u32 = 1;
}

/// A path inside a layer: clean, relative, any bytes. In JSON as text, with `%XX` for what is no UTF-8 (and for `%`).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct PathBytes(pub Vec<u8>);

impl From<PathBytes> for String {
    fn from(path: PathBytes) -> String {
        let mut text = String::with_capacity(path.0.len());
        for chunk in path.0.utf8_chunks() {
            text.push_str(&chunk.valid().replace('%', "%25"));
            chunk.invalid().iter().for_each(|byte| text.push_str(&format!("%{byte:02X}")));
        }
        text
    }
}

impl From<String> for PathBytes {
    fn from(text: String) -> Self {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let code = (*first == b'%')
                .then(|| std::str::from_utf8(after.get(..2)?).ok())
                .flatten()
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match code {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                None => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn paths_of_any_bytes_survive_json(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let path = PathBytes(bytes);
            let json = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<PathBytes>(&json).unwrap(), path);
        }
    }
}
