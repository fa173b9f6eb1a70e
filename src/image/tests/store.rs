//! Records and layers over restarts and reboots.

use std::fs;

use serde_json::json;

use super::archives::Tar;
use super::registry::{OCI, Registry, census, store};
use crate::image::{Images, Settings};

fn layer(text: &str) -> Vec<u8> {
    Tar::default().folder("./").file("f", text.as_bytes()).finish()
}

#[tokio::test]
async fn a_reboot_takes_what_was_not_synced() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    registry.put("kept", "1", OCI, &[layer("shared"), layer("kept")], json!({}));
    registry.put("lost", "1", OCI, &[layer("shared"), layer("lost")], json!({}));
    let (kept, lost) = (format!("{}/kept:1", registry.address), format!("{}/lost:1", registry.address));
    let kept_id = images.pull(&kept, None, None).await.unwrap();
    let lost_id = images.pull(&lost, None, None).await.unwrap();
    // As if the power had gone before the second image was synced.
    let set = |id: crate::types::Digest, synced: bool| {
        let path = root.path().join(format!("images/{}.json", id.hex()));
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value["body"]["synced"] = synced.into();
        fs::write(&path, value.to_string()).unwrap();
    };
    // Whatever the background sync does meanwhile, it must not write after us.
    while !images.inner.index().images().all(|entry| entry.synced) {
        tokio::task::yield_now().await;
    }
    drop(images);
    set(kept_id, true);
    set(lost_id, false);
    let same_boot = Images::open(Settings::new(root.path())).unwrap();
    assert_eq!(same_boot.list().len(), 2);
    while !same_boot.inner.index().images().all(|entry| entry.synced) {
        tokio::task::yield_now().await;
    }
    drop(same_boot);
    set(lost_id, false);
    let rebooted = Images::open_in_boot(Settings::new(root.path()), "another boot".into()).unwrap();
    assert!(rebooted.find(&kept).is_some() && rebooted.find(&lost).is_none());
    assert_eq!(fs::read_dir(root.path().join("layers/sha256")).unwrap().count(), 2, "the lost layer is gone at once");
    rebooted.pull(&lost, None, None).await.unwrap();
    assert_eq!(rebooted.list().len(), 2);
}

#[tokio::test]
async fn damage_is_seen_at_start() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    let put = registry.put("app", "1", OCI, &[layer("below"), layer("above")], json!({}));
    registry.put("other", "1", OCI, &[layer("below")], json!({}));
    let (app, other) = (format!("{}/app:1", registry.address), format!("{}/other:1", registry.address));
    images.pull(&app, None, None).await.unwrap();
    let other_id = images.pull(&other, None, None).await.unwrap();
    while !images.inner.index().images().all(|entry| entry.synced) {
        tokio::task::yield_now().await;
    }
    drop(images);
    let hex = put.diff_ids[1].hex();
    fs::remove_dir_all(root.path().join("layers/sha256").join(&hex).join("fs")).unwrap();
    fs::create_dir_all(root.path().join("layers/tmp.7/fs/half")).unwrap();
    fs::create_dir_all(root.path().join("layers/trash/old")).unwrap();
    fs::create_dir_all(root.path().join("layers/sha256/not-a-digest")).unwrap();
    let images = Images::open(Settings::new(root.path())).unwrap();
    assert!(images.find(&app).is_none() && images.find(&other).is_some());
    images.collect_garbage();
    images.inner.layers.emptied().await;
    let record = format!("images/{}.json", other_id.hex());
    let below = format!("layers/sha256/{}", put.diff_ids[0].hex());
    assert_eq!(census(root.path()), [record.clone(), below]);
    drop(images);
    fs::write(root.path().join(&record), "{").unwrap();
    let images = Images::open(Settings::new(root.path())).unwrap();
    assert_eq!(images.list().len(), 0);
    assert!(root.path().join(record.replace(".json", ".damaged")).exists());
}

#[tokio::test]
async fn containers_from_before_keep_their_layers() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    let put = registry.put("app", "1", OCI, &[layer("below"), layer("above")], json!({}));
    let name = format!("{}/app:1", registry.address);
    images.pull(&name, None, None).await.unwrap();
    let held = images.find(&name).unwrap().layers.clone();
    let hold = images.hold_layers(&held);
    images.remove(&name).await.unwrap();
    // The daemon ends, and its holds with it; the folders stay.
    drop(hold);
    drop(images);
    let images = Images::open(Settings::new(root.path())).unwrap();
    let hold = images.hold_layers(&held);
    images.collect_garbage();
    images.inner.layers.emptied().await;
    assert_eq!(census(root.path()).len(), 2);
    assert_eq!(hold.keys(), put.diff_ids);
    hold.release();
    images.inner.layers.emptied().await;
    assert_eq!(census(root.path()), Vec::<String>::new());
}
