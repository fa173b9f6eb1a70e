//! Records and layers over restarts and reboots.

use std::fs;

use serde_json::json;

use super::archives::Tar;
use super::is_root;
use super::pulls::{Stalled, on_a_small_disk};
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

#[tokio::test]
async fn layers_of_an_earlier_boot_stay_under_containers_of_this_one() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    let put = registry.put("app", "1", OCI, &[layer("below"), layer("above")], json!({}));
    let name = format!("{}/app:1", registry.address);
    let id = images.pull(&name, None, None).await.unwrap();
    while !images.inner.index().images().all(|entry| entry.synced) {
        tokio::task::yield_now().await;
    }
    drop(images);
    let start = |boot: &str| Images::open_in_boot(Settings::new(root.path()), boot.into()).unwrap();
    for how in ["removed", "damaged"] {
        let record = root.path().join(format!("images/{}.json", id.hex()));
        let images = start(how);
        assert!(images.find(&name).is_some());
        let hold = images.hold_layers(&put.diff_ids);
        images.collect_garbage();
        let text = fs::read(&record).unwrap();
        match how {
            "removed" => images.remove(&name).await.unwrap(),
            _ => fs::write(&record, "{").unwrap(),
        }
        // The daemon ends, and its holds with it; containers run on.
        drop((hold, images));
        for _ in 0..2 {
            let images = start(how);
            assert!(images.find(&name).is_none());
            assert_eq!(images.hold_layers(&put.diff_ids).keys(), put.diff_ids, "{how}");
        }
        fs::write(&record, text).unwrap();
    }
    // In the next boot nothing runs from them, and the note is what power loss left of it.
    fs::remove_file(root.path().join(format!("images/{}.json", id.hex()))).unwrap();
    fs::write(root.path().join("layers/boot.json"), "").unwrap();
    assert_eq!(start("next").hold_layers(&put.diff_ids).keys(), []);
}

#[tokio::test]
async fn layers_that_cannot_be_looked_at_stay() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    let put = registry.put("app", "1", OCI, &[layer("below")], json!({}));
    let name = format!("{}/app:1", registry.address);
    images.pull(&name, None, None).await.unwrap();
    drop(images);
    let record = root.path().join("layers/sha256").join(put.diff_ids[0].hex()).join("layer.json");
    let aside = root.path().join("aside");
    fs::rename(&record, &aside).unwrap();
    fs::create_dir(&record).unwrap();
    assert!(Images::open(Settings::new(root.path())).is_err());
    fs::remove_dir(&record).unwrap();
    fs::rename(&aside, &record).unwrap();
    assert!(Images::open(Settings::new(root.path())).unwrap().find(&name).is_some());
}

#[tokio::test]
async fn what_is_kept_for_somebody_who_cannot_be_asked_stays() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    registry.put("old", "1", OCI, &[layer("old")], json!({}));
    registry.put("new", "1", OCI, &[layer("new")], json!({}));
    let (old, new) = (format!("{}/old:1", registry.address), format!("{}/new:1", registry.address));
    images.pull(&old, None, None).await.unwrap();
    drop(images);
    let images = Images::open(Settings::new(root.path())).unwrap();
    images.keep_present();
    images.collect_garbage();
    images.pull(&new, None, None).await.unwrap();
    assert_eq!(census(root.path()).len(), 4);
    images.remove(&old).await.unwrap();
    images.remove(&new).await.unwrap();
    images.inner.layers.emptied().await;
    assert_eq!(census(root.path()).len(), 1, "the layer that was there before");
    images.pull(&old, None, None).await.unwrap();
    assert_eq!(images.list().len(), 1);
}

#[tokio::test]
async fn what_could_not_be_listed_is_deleted_later() {
    let Some(registry) = Registry::start() else { return };
    let (root, images) = store();
    registry.put("app", "1", OCI, &[layer("below"), layer("above")], json!({}));
    let name = format!("{}/app:1", registry.address);
    images.pull(&name, None, None).await.unwrap();
    let (trash, aside) = (root.path().join("layers/trash"), root.path().join("aside"));
    let stalled = Stalled::new(&images);
    images.remove(&name).await.unwrap();
    fs::rename(&trash, &aside).unwrap();
    fs::write(&trash, "").unwrap();
    drop(stalled);
    images.inner.layers.emptied().await;
    fs::remove_file(&trash).unwrap();
    fs::rename(&aside, &trash).unwrap();
    assert_eq!(census(root.path()).len(), 2);
    images.inner.layers.emptied().await;
    assert_eq!(census(root.path()), Vec::<String>::new());
}

#[test]
fn what_cannot_be_deleted_counts_until_somebody_does_it() {
    use nix::mount::{MsFlags, mount, umount};
    let Some(registry) = Registry::start().filter(|_| is_root()) else { return };
    registry.put("app", "1", OCI, &[layer("below"), layer("above")], json!({}));
    let name = format!("{}/app:1", registry.address);
    on_a_small_disk("size=16m", async move |root, images| {
        images.pull(&name, None, None).await.unwrap();
        while !images.inner.index().images().all(|entry| entry.synced) {
            tokio::task::yield_now().await;
        }
        let usage = images.inner.layers.usage();
        drop(images);
        // An earlier daemon came as far as the trash with one of them; the other is of an image that is damaged.
        let [first, second] =
            [0, 1].map(|i| fs::read_dir(root.join("layers/sha256")).unwrap().nth(i).unwrap().unwrap());
        for layer in [&first, &second] {
            let none: Option<&str> = None;
            mount(Some("tmpfs"), &layer.path().join("fs"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
        fs::rename(first.path(), root.join("layers/trash/old")).unwrap();
        for record in fs::read_dir(root.join("images")).unwrap() {
            fs::remove_file(record.unwrap().path()).unwrap();
        }
        let images = Images::open_in_boot(Settings::new(root), "another boot".into()).unwrap();
        images.inner.layers.emptied().await;
        assert_eq!((images.inner.layers.usage(), usage.1 > 0), (usage, true));
        for layer in fs::read_dir(root.join("layers/trash")).unwrap() {
            let layer = layer.unwrap().path();
            umount(&layer.join("fs")).unwrap();
            fs::remove_dir_all(layer).unwrap();
        }
        assert_eq!(images.inner.layers.usage(), (0, 0));
    });
}
