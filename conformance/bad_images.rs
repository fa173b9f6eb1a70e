//! Images and registries that are wrong: a clear error, the host untouched, nothing left behind.

use std::fs;

use serde_json::json;
use tar::EntryType;
use tonic::Code;

use crate::bad_input::refused;
use crate::harness::fake_registry::{Access, FakeRegistry, Fault};
use crate::harness::image::{Image as Made, Layer, Tar, digest};
use crate::harness::{BUSYBOX, Node, Setup};

#[tokio::test]
async fn image_references_that_do_not_parse() {
    let node = Node::start().await;
    let long = format!("docker.io/library/{}:1", "a".repeat(300));
    for reference in [
        "",
        ":",
        "UPPER/case",
        "UPPER/case:latest",
        "a//b",
        "a:b:c",
        "x@sha256:short",
        "x@md5:d41d8cd98f00b204e9800998ecf8427e",
        "-x",
        "../etc/passwd",
        "x y",
        "x:",
        "host:99999999/x",
        "http://host/x",
        &long,
    ] {
        refused(node.try_pull(reference, None).await, Code::InvalidArgument, &[]);
    }
    node.finish().await;
}

#[tokio::test]
async fn images_that_are_not_there() {
    let mut node = Node::start().await;
    node.serve_images().await;
    refused(node.try_pull("registry.k8s.io/no/such/image:1", None).await, Code::NotFound, &["no/such/image"]);
    refused(node.try_pull("registry.k8s.io/pause:no-such-tag", None).await, Code::NotFound, &["no-such-tag"]);
    assert_eq!(
        node.image("registry.k8s.io/no/such/image:1").await,
        None,
        "ImageStatus of an unknown image is empty, not an error"
    );
    node.stop_images();
    let status = node.try_pull(BUSYBOX, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("RegistryUnavailable"), "the word that clients look for: {status}");
    node.finish().await;
}

/// A node and a registry that serves nothing yet.
async fn beside() -> (Node, FakeRegistry) {
    (Node::start().await, FakeRegistry::start(Access::Anonymous).await)
}

/// A registry that serves one small image, and a node.
async fn served() -> (Node, FakeRegistry, Made, String) {
    let (node, registry) = beside().await;
    let layers = vec![Tar::new().file("a", &"1".repeat(100_000)).gzip(), Tar::new().file("b", "2").gzip()];
    let image = Made::new(layers, json!({}));
    let reference = registry.push("x", "1", &image);
    (node, registry, image, reference)
}

#[tokio::test]
async fn a_layer_with_the_wrong_digest() {
    let (node, registry, image, reference) = served().await;
    let layer = digest(&image.layers[1].blob);
    let mut flipped = image.layers[1].blob.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (body, word) in [(flipped, "digest"), (Tar::new().file("evil", &"x".repeat(1000)).gzip().blob, "longer than")] {
        registry.fail(&layer, Fault::Body(body));
        refused(node.try_pull(&reference, None).await, Code::FailedPrecondition, &[word]);
    }
    assert_eq!(node.images().await, []);
    registry.heal();
    node.try_pull(&reference, None).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_layer_that_is_cut_short() {
    let (node, registry, image, reference) = served().await;
    let layer = digest(&image.layers[0].blob);
    registry.fail(&layer, Fault::CutAfter(50));
    refused(node.try_pull(&reference, None).await, Code::Unavailable, &["RegistryUnavailable"]);
    assert_eq!(node.images().await, []);
    registry.heal();
    registry.fail(&layer, Fault::CutOnce(50));
    // Whether the client tries again by itself or leaves that to its caller, nothing stands in the way of the next pull.
    if node.try_pull(&reference, None).await.is_err() {
        node.try_pull(&reference, None).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn a_layer_with_the_wrong_diff_id() {
    let (node, registry) = beside().await;
    let mut layer = Tar::new().file("a", "1").gzip();
    layer.diff_id = digest(b"something else");
    let reference = registry.push("x", "1", &Made::new(vec![layer], json!({})));
    refused(node.try_pull(&reference, None).await, Code::FailedPrecondition, &["diff id"]);
    node.finish().await;
}

#[tokio::test]
async fn a_manifest_and_a_configuration_with_the_wrong_digest() {
    let (node, registry, image, reference) = served().await;
    registry.fail(&digest(&image.config), Fault::Body(b"{}".to_vec()));
    refused(node.try_pull(&reference, None).await, Code::FailedPrecondition, &["digest"]);
    registry.heal();
    let by_digest = registry.reference(&format!("x@{}", image.digest()));
    registry.fail(&image.digest(), Fault::Body(json!({"schemaVersion": 2}).to_string().into_bytes()));
    refused(node.try_pull(&by_digest, None).await, Code::FailedPrecondition, &["digest"]);
    assert_eq!(node.images().await, []);
    node.finish().await;
}

#[tokio::test]
async fn manifests_that_are_wrong() {
    let (node, registry) = beside().await;
    let image = Made::new(vec![Tar::new().file("a", "1").gzip()], json!({}));
    registry.push_blobs(&image);
    let good = &image.manifest;
    let without = |key: &str| {
        let mut manifest = good.clone();
        manifest.as_object_mut().unwrap().remove(key);
        manifest
    };
    let with = |key: &str, value: serde_json::Value| {
        let mut manifest = good.clone();
        manifest[key] = value;
        manifest
    };
    let mut both = good.clone();
    both["manifests"] = json!([{ "mediaType": good["mediaType"], "digest": image.digest(), "size": 1 }]);
    let mut climbing = good.clone();
    climbing["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd");
    let mut negative = good.clone();
    negative["layers"][0]["size"] = json!(-1);
    let mut more = good.clone();
    let extra = more["layers"][0].clone();
    more["layers"].as_array_mut().unwrap().push(extra);
    for (name, manifest) in [
        ("no-config", without("config")),
        ("no-layers", without("layers")),
        ("bad-version", with("schemaVersion", json!(1))),
        ("bad-type", with("mediaType", json!("text/html"))),
        ("layers-no-list", with("layers", json!("all"))),
        ("both", both),
        ("climbing", climbing),
        ("negative", negative),
        ("more-layers-than-diff-ids", more),
    ] {
        registry.push_manifest("wrong", name, &manifest);
        let status = node.try_pull(&registry.reference(&format!("wrong:{name}")), None).await.expect_err(name);
        assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {status}");
    }
    assert_eq!(node.images().await, []);
    node.finish().await;
}

#[tokio::test]
async fn a_manifest_without_end() {
    let (node, registry) = beside().await;
    registry.push_manifest("big", "1", &json!({ "schemaVersion": 2, "padding": "x".repeat(20 << 20) }));
    node.try_pull(&registry.reference("big:1"), None).await.expect_err("a manifest of 20 MiB");
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_is_busy_or_hangs() {
    let mut node = Node::prepare(&Setup { extra: "[image]\nprogress_timeout = \"1s\"\n".into(), ..Setup::default() });
    node.start_daemon().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let image = Made::new(vec![Tar::new().file("a", "1").gzip()], json!({}));
    let reference = registry.push("x", "1", &image);
    let layer = digest(&image.layers[0].blob);
    registry.fail("/manifests/1", Fault::StatusTimes(429, 2));
    node.try_pull(&reference, None).await.expect("429 with Retry-After is waited for");
    node.remove_image(&reference).await.unwrap();
    registry.fail(&layer, Fault::Hang);
    let status = node.try_pull(&reference, None).await.unwrap_err();
    assert!([Code::Unavailable, Code::DeadlineExceeded].contains(&status.code()), "{status}");
    registry.fail(&layer, Fault::Status(500));
    refused(node.try_pull(&reference, None).await, Code::Unavailable, &["500"]);
    assert_eq!(node.images().await, []);
    node.finish().await;
}

/// Entries that climb out: either the pull fails or the entry lands inside; the host's files are what they were.
#[tokio::test]
async fn hostile_layers() {
    let (node, registry) = beside().await;
    let target = node.dir().join("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("file"), "precious").unwrap();
    let outside = target.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(20), &outside[1..]);
    let file = |path: &str| Tar::new().file(path, "evil");
    let cases = [
        ("dotdot", file(&format!("{up}/new"))),
        ("inner-dotdot", file(&format!("a/{up}/new"))),
        ("absolute", file(&format!("{outside}/new"))),
        ("through-link", Tar::new().symlink("link", outside).file("link/new", "evil")),
        ("through-relative-link", Tar::new().symlink("link", &up).file("link/new", "evil")),
        ("through-two-links", Tar::new().symlink("a", "b").symlink("b", outside).file("a/new", "evil")),
        ("link-overwrite", Tar::new().symlink("link", &format!("{outside}/file")).file("link", "evil")),
        ("hard-link-out", Tar::new().hardlink("stolen", &format!("{outside}/file")).file("stolen", "evil")),
        ("hard-link-dotdot", Tar::new().hardlink("stolen", &format!("{up}/file")).file("stolen", "evil")),
        (
            "hard-link-through-link",
            Tar::new().symlink("link", outside).hardlink("stolen", "link/file").file("stolen", "evil"),
        ),
        ("whiteout-out", Tar::new().symlink("link", outside).file("link/.wh.file", "")),
        ("whiteout-dotdot", file("a/.wh...")),
        ("opaque-out", Tar::new().symlink("link", outside).file("link/.wh..wh..opq", "")),
        ("chmod-through-link", Tar::new().symlink("link", outside).dir("link", 0o777)),
        ("device-through-link", Tar::new().symlink("link", outside).device("link/null", EntryType::Char, 1, 3)),
        ("nothing", file("..")),
    ];
    for (name, tar) in cases {
        let image = Made::new(vec![Layer::busybox(), tar.gzip()], json!({}));
        let reference = registry.push("hostile", name, &image);
        if let Err(status) = node.try_pull(&reference, None).await {
            assert!(!status.message().is_empty(), "{name}");
        } else {
            node.remove_image(&reference).await.unwrap();
        }
        let there: Vec<_> = fs::read_dir(&target).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(there, ["file"], "{name}");
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "precious", "{name}");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755, "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn archives_that_are_no_archives() {
    let (node, registry) = beside().await;
    let tar = Tar::new().file("a", "1").finish();
    let mut half = Layer::gzip(&Tar::new().file("a", &"x".repeat(5000)).finish());
    half.blob.truncate(half.blob.len() / 2);
    for (name, layer) in [
        ("no-tar", Layer::gzip(&b"this is no archive at all".repeat(100))),
        ("cut-tar", Layer::gzip(&tar[..700])),
        ("half-gzip", half),
        ("huge-entry", Layer::gzip(&huge())),
    ] {
        let reference = registry.push("broken", name, &Made::new(vec![layer], json!({})));
        node.try_pull(&reference, None).await.expect_err(name);
        assert_eq!(node.images().await, [], "{name}");
    }
    // What a layer is packed with is seen from its bytes, whatever its media type says.
    let mut lying = Layer::gzip(&tar);
    lying.blob = tar.clone();
    let reference = registry.push("broken", "not-gzip", &Made::new(vec![lying], json!({})));
    node.try_pull(&reference, None).await.unwrap();
    node.finish().await;
}

/// An entry that says that it holds 8 GiB, and ends at once.
fn huge() -> Vec<u8> {
    let mut tar = Tar::new().file("a", "").finish();
    let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
    header.set_size(8 << 30);
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    tar
}
