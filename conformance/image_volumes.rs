//! Images mounted as volumes.

use std::fs;

use podwright::proto::*;
use serde_json::json;
use tonic::Code;

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image as Made, Layer, Tar};
use crate::harness::{BUSYBOX, Node, eventually, secs, specs};

/// What a client can tell this failure by.
const TYPED: &str = "ImageVolumeMountFailed";

fn volume(reference: &str, path: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(specs::image(reference)),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

/// Two layers: the upper one hides a file of the lower one and adds links of all kinds.
fn made() -> Made {
    let lower = Tar::new()
        .dir("dir", 0o755)
        .file("dir/kept", "lower\n")
        .file("dir/hidden", "gone\n")
        .file("file", "a file\n")
        .gzip();
    let upper = Tar::new()
        .file("dir/.wh.hidden", "")
        .file("dir/added", "upper\n")
        .symlink("inside", "/dir")
        .symlink("outside", "../../../../../../etc")
        .symlink("proc", "/proc/self/root/etc")
        .gzip();
    Made::new(vec![lower, upper], json!({}))
}

async fn pushed(node: &Node, registry: &FakeRegistry, name: &str, image: &Made) -> String {
    let reference = registry.push(name, "1", image);
    node.try_pull(&reference, None).await.unwrap()
}

#[tokio::test]
async fn an_image_is_mounted_read_only_and_its_programs_run() {
    let mut node = Node::ready().await;
    let id = node.pull(BUSYBOX).await;
    let pod = node.up(node.pod("whole")).await;
    let mut config = node.sleeper("c");
    config.mounts = vec![volume(BUSYBOX, "/mnt/image", "")];
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exec(&ctr, &["/mnt/image/bin/echo", "it runs"]).await, "it runs\n");
    let answer = node.try_exec(&ctr, &["touch", "/mnt/image/x"], 30).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.stderr).contains("Read-only"), "{answer:?}");
    let told = node.status(&ctr).await.mounts;
    let told = told.iter().find(|mount| mount.container_path == "/mnt/image").unwrap();
    assert_eq!(told.image.as_ref().unwrap().image_ref, id, "what PullImage said");
    assert!(told.readonly && told.host_path.is_empty(), "{told:?}");
    let options = node.exec(&ctr, &["sh", "-c", "grep ' /mnt/image ' /proc/self/mountinfo"]).await;
    assert!(!options.contains("noexec"), "{options}");
    // Each option that is asked for holds.
    let mut config = node.sh("noexec", "/mnt/image/bin/echo run 2>&1");
    config.mounts = vec![Mount { mount_options: vec!["noexec".into()], ..volume(BUSYBOX, "/mnt/image", "") }];
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!(code, 126, "{out}");
    node.finish().await;
}

#[tokio::test]
async fn layers_are_merged_and_parts_are_found_inside_only() {
    let node = Node::ready().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let id = pushed(&node, &registry, "parts", &made()).await;
    let pod = node.up(node.pod("parts")).await;
    let mut config = node.sh("c", "cd /v; ls all/dir; cat dir/*; cat file; cat inside/added; ls -d */ file | wc -l");
    let parts = ["all", "dir", "file", "inside"].map(|name| match name {
        "all" => volume(&id, "/v/all", ""),
        name => volume(&id, &format!("/v/{name}"), name),
    });
    config.mounts = parts.to_vec();
    assert_eq!(node.outcome(&pod, config).await.1, "added\nkept\nupper\nlower\na file\nupper\n4\n");
    // A link out of the image leads to the image's own root, where there is no such thing.
    for part in ["missing", "dir/missing", "file/x", "outside", "proc"] {
        let mut config = node.sh("bad", "true");
        config.mounts = vec![volume(&id, "/v", part)];
        let status = node.try_create(&pod, config).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(TYPED) && status.message().contains(part), "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn wrong_requests() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("wrong")).await;
    let refused = async |mount: Mount| {
        let mut config = node.sh("c", "true");
        config.mounts = vec![mount];
        node.try_create(&pod, config).await.unwrap_err()
    };
    let status = refused(volume("registry.k8s.io/not/pulled:1", "/v", "")).await;
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(status.message().starts_with(TYPED) && status.message().contains("not/pulled:1"), "{status}");
    for (mount, field) in [
        (Mount { readonly: false, ..volume(BUSYBOX, "/v", "") }, "readonly"),
        (Mount { host_path: "/tmp".into(), ..volume(BUSYBOX, "/v", "") }, "host_path"),
        (Mount { propagation: 2, ..volume(BUSYBOX, "/v", "") }, "propagation"),
        (volume(BUSYBOX, "/v", "../etc"), "image_sub_path"),
        (volume(BUSYBOX, "/v", "/etc"), "image_sub_path"),
        (Mount { image: None, host_path: "/tmp".into(), ..volume(BUSYBOX, "/v", "etc") }, "image_sub_path"),
    ] {
        let status = refused(mount).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(&format!("config.mounts[0].{field}")), "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn layers_stay_as_long_as_the_container() {
    let mut node = Node::ready().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let layer = Tar::new().file("content", "still here\n").gzip();
    let id = pushed(&node, &registry, "held", &Made::new(vec![Layer::clone(&layer)], json!({}))).await;
    let folder = node.dir().join("root/layers/sha256").join(layer.diff_id.trim_start_matches("sha256:"));
    assert!(folder.exists(), "{folder:?}");
    let pod = node.up(node.pod("held")).await;
    let mut config = node.sleeper("c");
    config.mounts = vec![volume(&id, "/v", "")];
    let ctr = node.launch(&pod, config).await;
    node.remove_image(&id).await.unwrap();
    assert!(node.image(&id).await.is_none());
    assert_eq!(node.exec(&ctr, &["cat", "/v/content"]).await, "still here\n");
    node.restart().await;
    assert_eq!(node.exec(&ctr, &["cat", "/v/content"]).await, "still here\n");
    assert!(fs::read(folder.join("fs/content")).is_ok(), "the layer of a volume in use was deleted");
    let told = node.status(&ctr).await.mounts;
    assert_eq!(told[0].image.as_ref().unwrap().image_ref, id, "also when the image is gone");
    node.stop_container(&ctr.id, 0).await.unwrap();
    node.remove_container(&ctr.id).await.unwrap();
    eventually(
        secs(10),
        "the layer's end",
        async || if folder.exists() { Err("it is there".to_owned()) } else { Ok(()) },
    )
    .await;
    node.finish().await;
}
