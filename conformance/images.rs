//! Images: pulling from a real registry, names and identity, layers.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use podwright::proto::*;
use serde_json::json;
use tonic::Code;

use crate::harness::cri::Cri;
use crate::harness::daemon::{command, program};
use crate::harness::fake_registry::{Access, FakeRegistry, Fault};
use crate::harness::image::{Image as Made, Layer, Tar, architecture};
use crate::harness::{BUSYBOX, Node, eventually, secs, specs};

const DIGEST_IMAGE: &str = "gcr.io/k8s-staging-cri-tools/test-image-digest";
const TAGS_IMAGE: &str = "gcr.io/k8s-staging-cri-tools/test-image-tags";

#[tokio::test]
async fn a_pulled_image_is_listed_under_all_its_names() {
    let mut node = Node::start().await;
    let id = node.pull(BUSYBOX).await;
    let image = node.image(BUSYBOX).await.expect("its status");
    assert_eq!(image.id, id, "PullImage's answer is the image's id");
    assert_eq!(image.repo_tags, [BUSYBOX]);
    assert!(image.repo_digests.iter().all(|name| name.starts_with("registry.k8s.io/e2e-test-images/busybox@sha256:")));
    assert!(image.size > 100_000, "{}", image.size);
    assert_eq!(node.images().await, std::slice::from_ref(&image));
    assert_eq!(node.image(&id).await.as_ref(), Some(&image));
    assert_eq!(node.image(&image.repo_digests[0]).await.as_ref(), Some(&image));
    let short = &id.trim_start_matches("sha256:")[..12];
    assert_eq!(node.image(short).await.map(|image| image.id), Some(id.clone()), "a prefix of the id names it, too");
    assert_eq!(node.pull(BUSYBOX).await, id, "a second pull finds the same");
    node.finish().await;
}

#[tokio::test]
async fn short_names_are_completed() {
    let mut node = Node::start().await;
    let id = node.pull("busybox").await;
    assert_eq!(
        node.image("docker.io/library/busybox:latest").await.unwrap().repo_tags,
        ["docker.io/library/busybox:latest"]
    );
    assert_eq!(node.pull("library/busybox:1.35").await, id, "the same manifest is the same image");
    let mut tags = node.image(&id).await.unwrap().repo_tags;
    tags.sort();
    assert_eq!(tags, ["docker.io/library/busybox:1.35", "docker.io/library/busybox:latest"]);
    node.finish().await;
}

#[tokio::test]
async fn by_digest() {
    let mut node = Node::start().await;
    node.pull(&format!("{DIGEST_IMAGE}:latest")).await;
    let image = node.image(&format!("{DIGEST_IMAGE}:latest")).await.unwrap();
    let [name] = &image.repo_digests[..] else { panic!("one digest: {:?}", image.repo_digests) };
    node.remove_image(&image.id).await.unwrap();
    assert_eq!(node.pull(name).await, image.id);
    let again = node.image(name).await.unwrap();
    assert_eq!((again.repo_tags.len(), &again.repo_digests), (0, &image.repo_digests));
    node.finish().await;
}

#[tokio::test]
async fn one_image_under_two_hosts_is_one_image() {
    let mut node = Node::start().await;
    let id = node.pull("registry.k8s.io/pause:3.9").await;
    assert_eq!(node.pull("k8s.gcr.io/pause:3.9").await, id);
    let images = node.images().await;
    assert_eq!((images.len(), images[0].repo_tags.len()), (1, 2), "{images:?}");
    assert_eq!(images[0].uid.as_ref().map(|uid| uid.value), Some(65535));
    node.finish().await;
}

#[tokio::test]
async fn removing_one_tag_removes_the_image() {
    let mut node = Node::start().await;
    for tag in 1..=3 {
        node.pull(&format!("{TAGS_IMAGE}:{tag}")).await;
    }
    let images = node.images().await;
    assert_eq!((images.len(), images[0].repo_tags.len()), (1, 3), "{images:?}");
    node.remove_image(&format!("{TAGS_IMAGE}:2")).await.unwrap();
    assert_eq!(node.images().await, []);
    node.remove_image(&format!("{TAGS_IMAGE}:2")).await.expect("removing what is not there succeeds");
    node.finish().await;
}

#[tokio::test]
async fn removed_five_times_at_once() {
    let mut node = Node::start().await;
    let id = node.pull(BUSYBOX).await;
    let calls = (0..5).map(|_| node.remove_image(&id));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn an_image_in_use_outlives_its_removal() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("inuse")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.remove_image(BUSYBOX).await.unwrap();
    assert_eq!(node.exec(&ctr, &["ls", "/bin/busybox"]).await, "/bin/busybox\n", "a running container keeps its files");
    node.pull(BUSYBOX).await;
    node.finish().await;
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// A registry with an image of many files.
async fn big(registry: &FakeRegistry) -> String {
    let many = (0..30_000).fold(Tar::new().dir("many/", 0o755), |tar, i| tar.file(&format!("many/{i}"), ""));
    registry.push("big", "1", &Made::new(vec![many.gzip()], json!({})))
}

/// Deleting many files takes seconds, for which no client waits longer than it has time; nor is it lost with the daemon.
#[tokio::test]
async fn a_removed_image_is_deleted_afterwards() {
    /// The daemon waits half of it.
    const HURRY: Duration = Duration::from_millis(100);
    let mut node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let big = big(&registry).await;
    let trash = node.dir().join("root/layers/trash");
    for killed in [false, true] {
        // On a busy machine an answer may be late, or be read when all is deleted: then nothing was seen.
        let mut seen = false;
        for _ in 0..10 {
            node.try_pull(&big, None).await.unwrap();
            node.pull(BUSYBOX).await;
            seen = node.remove_image_within(&big, HURRY).await.is_ok() && entries(&trash) != 0;
            node.remove_image_within(&big, HURRY).await.ok();
            if killed {
                node.restart().await;
            }
            // Another removal does not wait for it.
            seen &= node.remove_image_within(BUSYBOX, HURRY).await.is_ok() && (killed || entries(&trash) != 0);
            for name in [&big, BUSYBOX] {
                if !seen {
                    node.remove_image(name).await.unwrap();
                }
                assert_eq!(node.image(name).await, None);
            }
            eventually(secs(60), "an empty trash", async || match entries(&trash) {
                0 => Ok(()),
                some => Err(format!("{some} layers")),
            })
            .await;
            assert_eq!(entries(&node.dir().join("root/layers/sha256")), 0);
            if seen {
                break;
            }
        }
        assert!(seen, "30,000 files are deleted after the answer");
    }
    // What was just removed can be had again at once.
    node.try_pull(&big, None).await.unwrap();
    node.remove_image_within(&big, HURRY).await.ok();
    node.try_pull(&big, None).await.unwrap();
    node.finish().await;
}

/// A kubelet has minutes. Once its removals are answered it looks how much space there is, to learn whether pods must go.
#[tokio::test]
async fn who_has_time_is_answered_when_a_removed_image_is_deleted() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let big = big(&registry).await;
    let trash = node.dir().join("root/layers/trash");
    node.try_pull(&big, None).await.unwrap();
    node.remove_image_within(&big, secs(120)).await.unwrap();
    assert_eq!(entries(&trash), 0, "the removal waits for the space");
    node.try_pull(&big, None).await.unwrap();
    eventually(secs(10), "the removal", async || {
        // On a busy machine the time may be up before the removal begins.
        node.remove_image_within(&big, Duration::from_millis(20)).await.ok();
        match node.image(&big).await {
            None => Ok(()),
            Some(image) => Err(format!("{image:?}")),
        }
    })
    .await;
    let mut request = tonic::Request::new(ImageFsInfoRequest {});
    request.set_timeout(secs(120));
    let info = node.cri().images().image_fs_info(request).await.unwrap().into_inner();
    assert_eq!(entries(&trash), 0, "the question for the space waits for it");
    assert_eq!(info.image_filesystems[0].inodes_used.as_ref().unwrap().value, 0);
    node.finish().await;
}

/// `podwright image …` of this node: its exit code, output and complaints.
fn tool(node: &Node, words: &[&str]) -> (Option<i32>, String, String) {
    let socket = node.dir().join("cri.sock");
    let mut command = command(program());
    let Output { status, stdout, stderr } =
        command.arg("image").arg("--runtime-endpoint").arg(socket).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[tokio::test]
async fn the_tool_says_what_became_of_a_removal() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("inuse")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let (code, out, err) = tool(&node, &["rm", "no-such-image", BUSYBOX]);
    assert_eq!(err, "podwright: there is no image \"no-such-image\"\n");
    assert_eq!(out, format!("removed {BUSYBOX}; its files stay until the container that uses it is removed\n"));
    assert_eq!(code, Some(1), "one of them was unknown");
    assert_eq!(node.exec(&ctr, &["echo", "on"]).await, "on\n");
    assert_eq!(tool(&node, &["rm", BUSYBOX]).0, Some(1));
    node.finish().await;
}

#[tokio::test]
async fn the_tool_removes_all_that_it_can() {
    let mut node = Node::start().await;
    for tag in 1..=2 {
        node.pull(&format!("{TAGS_IMAGE}:{tag}")).await;
    }
    let names = [1, 2].map(|tag| format!("{TAGS_IMAGE}:{tag}"));
    let (code, out, err) = tool(&node, &["rm", &names[0], &names[1]]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "both are names of one image");
    assert_eq!(out, format!("removed {}, {}\n", names[0], names[1]));
    node.pull(BUSYBOX).await;
    let (code, out, err) = tool(&node, &["rm", "", "none", BUSYBOX]);
    assert!(err.starts_with("podwright: cannot remove image \"\": "), "{err}");
    assert!(err.ends_with("podwright: there is no image \"none\"\n"), "{err}");
    assert_eq!((code, out), (Some(1), format!("removed {BUSYBOX}\n")));
    // The complaint cannot be written.
    node.pull(BUSYBOX).await;
    let socket = node.dir().join("cri.sock");
    let script = format!("{} image rm none {BUSYBOX} 2>/dev/full; echo $?", program().display());
    let told = command("sh").args(["-c", &script]).env("CONTAINER_RUNTIME_ENDPOINT", socket).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), format!("removed {BUSYBOX}\n1\n"));
    node.finish().await;
}

#[tokio::test]
async fn the_tool_names_a_daemon_that_went_away() {
    let mut node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let image = Made::new(vec![Tar::new().file("a", "1").gzip()], json!({}));
    let reference = registry.push("x", "1", &image);
    registry.fail(&crate::harness::image::digest(&image.layers[0].blob), Fault::Hang);
    let socket = node.dir().join("cri.sock");
    let words = ["image", "pull", &reference, "--runtime-endpoint", socket.to_str().unwrap()].map(str::to_owned);
    let pull = tokio::task::spawn_blocking(move || command(program()).args(words).output().unwrap());
    eventually(secs(10), "the layer's request", async || match registry.requests() {
        requests if requests.iter().any(|path| path.contains("/blobs/")) => Ok(()),
        requests => Err(format!("{requests:?}")),
    })
    .await;
    node.kill9();
    let told = pull.await.unwrap();
    let text = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("the daemon at {socket:?} went away")), "{text}");
    node.start_daemon().await;
    node.finish().await;
}

#[tokio::test]
async fn users_of_the_image_are_told() {
    let mut node = Node::start().await;
    let prefix = "gcr.io/k8s-staging-cri-tools/test-image-user";
    for (name, uid, username) in [
        ("uid", Some(1002), ""),
        ("uid-group", Some(1003), ""),
        ("username", None, "www-data"),
        ("username-group", None, "www-data"),
    ] {
        let reference = format!("{prefix}-{name}:latest");
        node.pull(&reference).await;
        let image = node.image(&reference).await.unwrap();
        assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, username), "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn one_name_in_all_answers() {
    let node = Node::ready().await;
    let id = node.image(BUSYBOX).await.unwrap().id;
    let pod = node.up(node.pod("identity")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let status = node.status(&ctr).await;
    assert_eq!(status.image_id, id);
    let listed = &node.containers(ContainerFilter::default()).await[0];
    assert_eq!(listed.image_id, id);
    node.finish().await;
}

#[tokio::test]
async fn the_file_system_s_use_is_told() {
    let mut node = Node::start().await;
    let usage = async |node: &Node| {
        let answer = node.cri().images().image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        let usage = answer.image_filesystems[0].clone();
        let mountpoint = usage.fs_id.unwrap().mountpoint;
        assert!(mountpoint.starts_with(node.dir().to_str().unwrap()), "{mountpoint}");
        assert!(usage.timestamp > 0);
        usage.used_bytes.unwrap().value
    };
    let before = usage(&node).await;
    node.pull(BUSYBOX).await;
    let after = usage(&node).await;
    assert!(after > before, "{before} -> {after}");
    node.finish().await;
}

#[tokio::test]
async fn a_deadline_of_a_millisecond_is_kept() {
    let mut node = Node::start().await;
    node.serve_images().await;
    let hasty = Cri::with_timeout(&node.dir().join("cri.sock"), Duration::from_millis(1));
    let mut request =
        tonic::Request::new(PullImageRequest { image: Some(specs::image(BUSYBOX)), ..Default::default() });
    request.set_timeout(Duration::from_millis(1));
    let status = hasty.images().pull_image(request).await.unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status}");
    // Its connection counts as an open file of the daemon.
    drop(hasty);
    node.pull(BUSYBOX).await;
    node.finish().await;
}

#[tokio::test]
async fn basic_authentication() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Basic("user", "secret")).await;
    let reference = registry.push("private/x", "1", &small());
    authentication(&node, &reference).await;
    node.finish().await;
}

#[tokio::test]
async fn token_authentication() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Bearer("user", "secret")).await;
    let reference = registry.push("private/x", "1", &small());
    authentication(&node, &reference).await;
    node.finish().await;
}

fn small() -> Made {
    Made::new(vec![Tar::new().file("a", "1").gzip()], json!({}))
}

async fn authentication(node: &Node, reference: &str) {
    use base64::Engine;
    let login = |username: &str, password: &str| {
        Some(AuthConfig { username: username.into(), password: password.into(), ..Default::default() })
    };
    for wrong in [None, login("user", "wrong"), login("", "")] {
        let status = node.try_pull(reference, wrong).await.unwrap_err();
        assert!([Code::Unauthenticated, Code::PermissionDenied].contains(&status.code()), "{status}");
    }
    assert_eq!(node.images().await, []);
    node.try_pull(reference, login("user", "secret")).await.unwrap();
    node.remove_image(reference).await.unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode("user:secret");
    node.try_pull(reference, Some(AuthConfig { auth, ..Default::default() })).await.unwrap();
}

#[tokio::test]
async fn callers_share_one_pull() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let image = Made::new(vec![Layer::busybox()], json!({}));
    let reference = registry.push("shared", "1", &image);
    let pulls = (0..8).map(|_| node.try_pull(&reference, None));
    let mut ids: Vec<_> = futures_util::future::join_all(pulls).await.into_iter().map(Result::unwrap).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let blob = crate::harness::image::digest(&image.layers[0].blob);
    let fetched = registry.requests().iter().filter(|line| line.starts_with("GET") && line.ends_with(&blob)).count();
    assert_eq!(fetched, 1, "{:?}", registry.requests());
    // A layer that is there is not fetched for another image.
    let other = Made::new(vec![Layer::busybox(), Tar::new().file("other", "").gzip()], json!({}));
    node.try_pull(&registry.push("other", "1", &other), None).await.unwrap();
    let fetched = registry.requests().iter().filter(|line| line.starts_with("GET") && line.ends_with(&blob)).count();
    assert_eq!(fetched, 1, "{:?}", registry.requests());
    node.finish().await;
}

#[tokio::test]
async fn the_index_entry_of_this_machine_is_taken() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let (here, there) = (small(), Made::new(vec![Tar::new().file("wrong", "").gzip()], json!({})));
    let entry = |image: &Made, architecture: &str, variant: Option<&str>, os: &str| {
        let mut platform = json!({ "architecture": architecture, "os": os });
        if let Some(variant) = variant {
            platform["variant"] = json!(variant);
        }
        let size = image.manifest.to_string().len();
        json!({ "mediaType": image.manifest["mediaType"], "digest": image.digest(), "size": size, "platform": platform })
    };
    for image in [&here, &there] {
        registry.push("multi", "untagged", image);
    }
    let index = |manifests: Vec<serde_json::Value>| json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
    let others = vec![
        entry(&there, "s390x", None, "linux"),
        entry(&there, architecture(), None, "windows"),
        entry(&there, "arm", Some("v7"), "linux"),
    ];
    let mut all = others.clone();
    all.push(entry(&here, architecture(), None, "linux"));
    registry.push_manifest("multi", "1", &index(all));
    let id = node.try_pull(&registry.reference("multi:1"), None).await.unwrap();
    assert_eq!(node.try_pull(&registry.reference(&format!("multi@{}", here.digest())), None).await.unwrap(), id);
    registry.push_manifest("multi", "2", &index(others));
    let status = node.try_pull(&registry.reference("multi:2"), None).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(status.message().contains(architecture()), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn a_dead_mirror_is_passed_over() {
    let mut node = Node::start().await;
    node.serve_images().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    registry.fail("", crate::harness::fake_registry::Fault::Status(503));
    let text = format!(
        "[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"http://{}\"]\n[host.\"http://127.0.0.1:5000\"]\n",
        registry.address()
    );
    crate::harness::config::write(node.dir(), "certs.d/registry.k8s.io/hosts.toml", &text);
    node.pull(BUSYBOX).await;
    node.finish().await;
}

#[tokio::test]
async fn plain_http_only_on_loopback() {
    let node = Node::start().await;
    // Reached through the loopback device, and all the same no loopback address.
    crate::harness::host::run("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    let listener = tokio::net::TcpListener::bind("192.0.2.1:5000").await.unwrap();
    let seen = tokio::spawn(async move {
        use tokio::io::AsyncReadExt;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.unwrap();
        first[0]
    });
    node.try_pull("192.0.2.1:5000/x:1", None).await.unwrap_err();
    let first = tokio::time::timeout(secs(5), seen).await.unwrap().unwrap();
    assert_eq!(first, 0x16, "the first byte to a far registry begins a TLS handshake");
    crate::harness::host::run("ip", &["addr", "del", "192.0.2.1/32", "dev", "lo"]);
    node.finish().await;
}
