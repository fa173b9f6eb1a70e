//! Layers that mean something only above others: implied folders, links to lower layers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::archives::{Meta, PLAIN, Tar};
use super::is_root;
use super::registry::{OCI, Registry, census, store};
use crate::image::Images;
use crate::snapshot::Snapshots;
use crate::types::{ErrorKind, HasKind};

const ODD: Meta = Meta { mode: 0o1710, uid: 33, gid: 44, mtime: 1_234_567_890 };

async fn pull(registry: &Registry, root: &Path, images: &Images, name: &str, layers: &[Vec<u8>]) -> Vec<PathBuf> {
    registry.put(name, "1", OCI, layers, json!({}));
    let id = images.pull(&format!("{}/{name}:1", registry.address), None, None).await.unwrap();
    let image = images.find(&id.to_string()).unwrap();
    Snapshots::new(root).lower_dirs(&image.layers)
}

fn looks(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.mode() & 0o7777, stat.uid(), stat.gid())
}

#[tokio::test]
async fn implied_folders_look_as_below() {
    let Some(registry) = Registry::start().filter(|_| is_root()) else { return };
    let (root, images) = store();
    let odd = Tar::default()
        .folder_with("a", ODD)
        .folder_with("a/b", Meta { mode: 0o700, ..ODD })
        .file("a/b/old", b"")
        .finish();
    let usual = Tar::default().folder("a").folder("a/b").finish();
    let upper = Tar::default().file("a/b/file", b"x").file("c/new", b"y").finish();
    let over_odd = pull(&registry, root.path(), &images, "odd", &[odd.clone(), upper.clone()]).await;
    assert_eq!(looks(&over_odd[0].join("a")), (0o1710, 33, 44));
    assert_eq!(looks(&over_odd[0].join("a/b")), (0o700, 33, 44));
    assert_eq!(fs::metadata(over_odd[0].join("a")).unwrap().mtime(), 1_234_567_890);
    assert_eq!(looks(&over_odd[0].join("c")), (0o755, 0, 0));
    assert_eq!(fs::read(over_odd[0].join("a/b/file")).unwrap(), b"x");
    // The same layer over another base: another folder, and files that no container can see to be elsewhere, too.
    let over_usual = pull(&registry, root.path(), &images, "usual", &[usual.clone(), upper.clone()]).await;
    assert_eq!(looks(&over_usual[0].join("a/b")), (0o755, 0, 0));
    assert_ne!(over_odd[0], over_usual[0]);
    for lower in [&over_odd[0], &over_usual[0]] {
        assert_eq!(fs::metadata(lower.join("a/b/file")).unwrap().nlink(), 1);
    }
    // The same need elsewhere shares the fitted folder.
    let between = Tar::default().folder("z").finish();
    let again = pull(&registry, root.path(), &images, "again", &[odd, between, upper]).await;
    assert_eq!(again[0], over_odd[0]);
    for name in ["odd", "usual", "again"] {
        images.remove(&format!("{}/{name}:1", registry.address)).await.unwrap();
    }
    images.inner.layers.emptied().await;
    assert_eq!(census(root.path()), Vec::<String>::new());
}

#[tokio::test]
async fn hard_links_reach_into_lower_layers() {
    let Some(registry) = Registry::start().filter(|_| is_root()) else { return };
    let (root, images) = store();
    let tool = Tar::default()
        .folder("bin")
        .raw(tar::EntryType::Regular, b"bin/tool", b"", Meta { mode: 0o4755, uid: 7, ..PLAIN }, b"tool")
        .symlink("sbin", "bin");
    let lowest = tool.clone().file("bin/hidden", b"").finish();
    let middle = Tar::default().folder("bin").file("bin/.wh.hidden", b"").finish();
    let upper = Tar::default()
        .folder("bin")
        .hardlink("bin/one", "bin/tool")
        .hardlink("bin/two", "bin/one")
        .hardlink("three", "sbin/tool")
        .finish();
    let lower = pull(&registry, root.path(), &images, "app", &[lowest.clone(), middle.clone(), upper]).await;
    let tool = fs::metadata(lower[2].join("bin/tool")).unwrap();
    for name in ["bin/one", "bin/two", "three"] {
        let link = fs::metadata(lower[0].join(name)).unwrap();
        assert_eq!((link.ino(), link.mode(), link.uid()), (tool.ino(), tool.mode(), 7), "{name}");
    }
    // What a layer between deleted is no target, nor is what nobody has.
    for (name, target) in [("hidden", "bin/hidden"), ("missing", "bin/missing"), ("folder", "bin")] {
        let bad = Tar::default().hardlink("x", target).finish();
        registry.put(name, "1", OCI, &[lowest.clone(), middle.clone(), bad], json!({}));
        let error = images.pull(&format!("{}/{name}:1", registry.address), None, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("which no layer has"), "{error}");
    }
    images.remove(&format!("{}/app:1", registry.address)).await.unwrap();
    images.inner.layers.emptied().await;
    assert_eq!(census(root.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_symlink_below_is_not_buried_under_an_implied_folder() {
    let Some(registry) = Registry::start().filter(|_| is_root()) else { return };
    let (root, images) = store();
    let merged = Tar::default()
        .folder("usr")
        .folder_with("usr/bin", ODD)
        .symlink("bin", "usr/bin")
        .file("usr/bin/sh", b"")
        .finish();
    let upper = Tar::default()
        .file("bin/tool", b"tool")
        .file("bin/deep/er", b"x")
        .file("usr/bin/other", b"y")
        .hardlink("bin/sh2", "usr/bin/sh")
        .finish();
    let lower = pull(&registry, root.path(), &images, "app", &[merged.clone(), upper]).await;
    assert!(fs::symlink_metadata(lower[0].join("bin")).is_err(), "nothing hides the symlink");
    for (name, content) in [("tool", "tool"), ("deep/er", "x"), ("other", "y"), ("sh2", "")] {
        assert_eq!(fs::read(lower[0].join("usr/bin").join(name)).unwrap(), content.as_bytes(), "{name}");
    }
    assert_eq!(looks(&lower[0].join("usr/bin")), (0o1710, 33, 44));
    // A folder that the archive describes is meant, and replaces the symlink.
    let meant = Tar::default().folder("bin").file("bin/tool", b"").finish();
    let lower = pull(&registry, root.path(), &images, "meant", &[merged, meant]).await;
    assert!(fs::symlink_metadata(lower[0].join("bin")).unwrap().is_dir());
}

#[tokio::test]
async fn deleted_folders_have_no_looks_to_give() {
    let Some(registry) = Registry::start().filter(|_| is_root()) else { return };
    let (root, images) = store();
    let lowest = Tar::default().folder_with("a", ODD).folder_with("a/b", ODD).finish();
    let deletes = Tar::default().file(".wh.a", b"").finish();
    let upper = Tar::default().file("a/b/file", b"").finish();
    let lower = pull(&registry, root.path(), &images, "app", &[lowest.clone(), deletes, upper]).await;
    assert_eq!(looks(&lower[0].join("a/b")), (0o755, 0, 0));
    // Opaque from the root on: nothing below is mounted at all.
    let opaque = Tar::default().file(".wh..wh..opq", b"").file("a/new", b"").finish();
    let lower = pull(&registry, root.path(), &images, "opaque", &[lowest, opaque]).await;
    assert_eq!(lower.len(), 1);
}
