//! Layer folders by name, and the mount list of a container's root file system.
//!
//! Architecture Invariant: this module only reads what `image` wrote, by the layout that ARCHITECTURE.md fixes:
//! `ROOT/layers/sha256/KEY/fs`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::types::Digest;

/// Finds layer folders.
#[derive(Debug, Clone)]
pub struct Snapshots {
    layers: PathBuf,
}

impl Snapshots {
    /// In the daemon's root folder.
    pub fn new(root: &Path) -> Self {
        Self { layers: root.join("layers/sha256") }
    }

    /// Folders for overlayfs, topmost first, from an image's layers (bottom first).
    pub fn lower_dirs(&self, layers: &[Digest]) -> Vec<PathBuf> {
        layers.iter().rev().map(|key| self.layers.join(key.hex()).join("fs")).collect()
    }

    /// Makes the folder for a container's own changes. In an overlay the root's mode and owner come from the topmost
    /// folder, so it gets those of the image's; `shift` gives the host's uid and gid for those in the layer.
    pub fn create_upper(
        &self,
        layers: &[Digest],
        upper: &Path,
        shift: impl FnOnce(u32, u32) -> (u32, u32),
    ) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(upper)?;
        let (mode, uid, gid) = match self.lower_dirs(layers).first() {
            Some(top) => {
                let top = fs::metadata(top)?;
                (top.mode() & 0o7777, top.uid(), top.gid())
            }
            None => (0o755, 0, 0),
        };
        let (uid, gid) = shift(uid, gid);
        std::os::unix::fs::chown(upper, Some(uid), Some(gid))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_is_first_and_gives_the_root_its_looks() {
        let root = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(root.path());
        let keys = [Digest::from_bytes([1; 32]), Digest::from_bytes([2; 32])];
        let lower = snapshots.lower_dirs(&keys);
        assert!(lower[0].ends_with(format!("layers/sha256/{}/fs", "02".repeat(32))));
        for (i, path) in lower.iter().enumerate() {
            fs::create_dir_all(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o751 + i as u32)).unwrap();
        }
        let upper = root.path().join("upper");
        snapshots.create_upper(&keys, &upper, |uid, gid| (uid, gid)).unwrap();
        assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o751);
        assert!(
            snapshots.create_upper(&keys, &upper, |uid, gid| (uid, gid)).is_err(),
            "an old one is never taken over"
        );
    }
}
