//! How pulls deal with hosts that redirect, break off, dawdle, want tokens or turn us away.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::archives::{Tar, digest, gzip};
use super::closed;
use super::registry::census;
use super::scripted::{Answer, Request, Scripted, ok, status};
use crate::image::{Auth, Images, Settings};
use crate::types::{ErrorKind, HasKind};

/// An image with one layer, as the three documents that hosts serve.
#[derive(Clone)]
struct Small {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

fn small() -> Small {
    let noise: Vec<u8> = (0u32..100_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let tar = Tar::default().file("noise", &noise).finish();
    let layer = gzip(&tar);
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest(&tar)]}})
        .to_string()
        .into_bytes();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": digest(&config), "size": config.len()},
        "layers": [{"digest": digest(&layer), "size": layer.len()}]});
    Small { manifest: manifest.to_string().into_bytes(), config, layer }
}

impl Small {
    /// A well-behaved registry's answer, ranges included.
    fn serve(&self, request: &Request) -> Answer {
        let path = request.target.split('?').next().unwrap();
        if path == "/v2/app/manifests/1" {
            return ok(&self.manifest).with("content-type", "application/vnd.oci.image.manifest.v1+json");
        }
        if path.ends_with(&digest(&self.config).to_string()) {
            return ok(&self.config);
        }
        if !path.ends_with(&digest(&self.layer).to_string()) {
            return status(404);
        }
        match request.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()) {
            Some(from) => Answer { status: 206, body: self.layer[from..].to_vec(), ..Answer::default() }
                .with("content-range", format!("bytes {from}-{}/{}", self.layer.len() - 1, self.layer.len())),
            None => ok(&self.layer),
        }
    }

    fn is_layer(&self, request: &Request) -> bool {
        request.target.contains(&digest(&self.layer).to_string())
    }
}

fn store_with(hosts: &[(&str, String)]) -> (TempDir, Images) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("certs.d");
    for (registry, text) in hosts {
        let folder = folder.join(registry);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts.toml"), text).unwrap();
    }
    let settings = Settings {
        registry_config_dir: Some(folder),
        pull_progress_timeout: Duration::from_millis(600),
        ..Settings::new(&root.path().join("root"))
    };
    let images = Images::open(settings).unwrap();
    images.collect_garbage();
    (root, images)
}

fn clean(root: &TempDir) {
    assert_eq!(census(&root.path().join("root")), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_is_fetched_and_used_for_everything() {
    let image = small();
    for auth in [
        None,
        Some(Auth { username: "u".into(), password: "p".into(), ..Auth::default() }),
        Some(Auth { identity_token: "refresh".into(), ..Auth::default() }),
        Some(Auth { registry_token: "good".into(), ..Auth::default() }),
    ] {
        let tokens = Scripted::start(|request, _| match (request.method.as_str(), request.header("authorization")) {
            ("POST", None) if request.body.contains("refresh_token=refresh") => ok(br#"{"access_token": "good"}"#),
            ("GET", None | Some("Basic dTpw")) => ok(br#"{"token": "good"}"#),
            _ => status(401),
        })
        .await;
        let (realm, content) = (tokens.address.clone(), image.clone());
        let registry = Scripted::start(move |request, _| match request.header("authorization") {
            Some("Bearer good") => content.serve(request),
            _ => status(401).with("www-authenticate", format!("Bearer realm=\"http://{realm}/token\",service=\"s v\"")),
        })
        .await;
        let (_root, images) = store_with(&[]);
        images.pull(&format!("{}/app:1", registry.address), auth.clone(), None).await.unwrap();
        let asked = tokens.seen();
        assert_eq!(asked.len(), usize::from(auth.as_ref().is_none_or(|auth| auth.registry_token.is_empty())));
        if let Some(first) = asked.first().filter(|request| request.method == "GET") {
            assert!(first.target.contains("service=s+v") && first.target.contains("scope=repository%3Aapp%3Apull"));
        }
    }
}

#[tokio::test]
async fn a_token_that_expires_is_fetched_again() {
    let image = small();
    let tokens = Scripted::start(|_, count| ok(format!("{{\"token\": \"t{count}\"}}").as_bytes())).await;
    let (realm, content) = (tokens.address.clone(), image.clone());
    let registry = Scripted::start(move |request, _| {
        let want = if content.is_layer(request) { "Bearer t1" } else { "Bearer t0" };
        if request.header("authorization") == Some(want) {
            return content.serve(request);
        }
        status(401).with("www-authenticate", format!("Bearer realm=\"http://{realm}/token\""))
    })
    .await;
    let (_root, images) = store_with(&[]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
    assert_eq!(tokens.seen().len(), 2);
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let image = small();
    let content = image.clone();
    let storage = Scripted::start(move |request, _| content.serve(request)).await;
    let content = image.clone();
    let mirror =
        Scripted::start(move |request, _| if content.is_layer(request) { status(404) } else { content.serve(request) })
            .await;
    let (content, elsewhere) = (image.clone(), storage.address.clone());
    let registry = Scripted::start(move |request, _| {
        if request.header("authorization") != Some("Basic dTpw") {
            return status(401).with("www-authenticate", "Basic realm=x");
        }
        if content.is_layer(request) {
            status(307).with("location", format!("http://{elsewhere}{}", request.target))
        } else {
            content.serve(request)
        }
    })
    .await;
    let hosts = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\".header]\nx-mirror = \"secret\"\n",
        mirror.address, mirror.address
    );
    let (_root, images) = store_with(&[(&registry.address, hosts)]);
    let auth = Auth { username: "u".into(), password: "p".into(), ..Auth::default() };
    images.pull(&format!("{}/app:1", registry.address), Some(auth), None).await.unwrap();
    assert!(!mirror.seen().is_empty() && !storage.seen().is_empty());
    for request in mirror.seen().iter().chain(&storage.seen()) {
        assert_eq!(request.header("authorization"), None, "{}", request.target);
    }
    assert!(mirror.seen().iter().all(|request| request.header("x-mirror") == Some("secret")));
    assert!(mirror.seen().iter().all(|request| request.target.contains("ns=127.0.0.1")));
    for request in registry.seen().iter().chain(&storage.seen()) {
        assert_eq!(request.header("x-mirror"), None);
    }
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let image = small();
    let content = image.clone();
    let registry = Scripted::start(move |request, _| match request.header("range") {
        None if content.is_layer(request) => Answer { cut: Some(100_000), ..content.serve(request) },
        Some("bytes=100000-") => Answer { cut: Some(50_000), ..content.serve(request) },
        _ => content.serve(request),
    })
    .await;
    let (_root, images) = store_with(&[]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
    let ranges: Vec<_> = registry.seen().iter().filter_map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=100000-", "bytes=150000-"]);
}

#[tokio::test]
async fn a_host_without_ranges_is_read_again_from_the_start() {
    let image = small();
    let content = image.clone();
    let registry = Scripted::start(move |request, _| {
        let whole = Request { headers: Vec::new(), ..request.clone() };
        match request.header("range") {
            None if content.is_layer(request) => Answer { cut: Some(100_000), ..content.serve(&whole) },
            _ => content.serve(&whole),
        }
    })
    .await;
    let (_root, images) = store_with(&[]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
}

#[tokio::test]
async fn a_silent_mirror_is_left_for_the_next_host() {
    let image = small();
    let content = image.clone();
    let mirror = Scripted::start(move |request, _| {
        let answer = content.serve(request);
        if content.is_layer(request) { Answer { cut: Some(70_000), hang: true, ..answer } } else { answer }
    })
    .await;
    let content = image.clone();
    let registry = Scripted::start(move |request, _| content.serve(request)).await;
    let (_root, images) = store_with(&[(&registry.address, format!("[host.\"http://{}\"]", mirror.address))]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
    let seen = registry.seen();
    assert_eq!(seen.len(), 1, "only the rest of the layer");
    assert_eq!(seen[0].header("range"), Some("bytes=70000-"));
}

#[tokio::test]
async fn a_lying_mirror_does_not_harm() {
    let image = small();
    let content = image.clone();
    let mirror = Scripted::start(move |request, _| {
        let mut answer = content.serve(request);
        if let Some(byte) = answer.body.get_mut(50).filter(|_| content.is_layer(request)) {
            *byte ^= 1;
        }
        answer
    })
    .await;
    let content = image.clone();
    let registry = Scripted::start(move |request, _| content.serve(request)).await;
    let (_root, images) = store_with(&[(&registry.address, format!("[host.\"http://{}\"]", mirror.address))]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
    assert_eq!(registry.seen().len(), 1);
    // The same when it is the registry itself: refused, and nothing stays.
    let (root, images) = store_with(&[]);
    let error = images.pull(&format!("{}/app:1", mirror.address), None, None).await.unwrap_err();
    assert!(error.kind() == ErrorKind::FailedPrecondition && error.to_string().contains("corrupt"), "{error}");
    clean(&root);
}

#[tokio::test]
async fn dead_mirrors_cost_no_image() {
    let image = small();
    let content = image.clone();
    let registry = Scripted::start(move |request, _| content.serve(request)).await;
    let broken = Scripted::start(|_, _| status(500)).await;
    let angry = Scripted::start(|_, _| status(403)).await;
    let (_held, closed) = closed();
    let hosts = [closed.to_string(), broken.address.clone(), angry.address.clone()]
        .map(|host| format!("[host.\"http://{host}\"]\n"))
        .concat();
    let (_root, images) = store_with(&[(&registry.address, hosts)]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
}

#[tokio::test]
async fn too_many_requests_are_answered_with_patience() {
    let image = small();
    let content = image.clone();
    let registry = Scripted::start(move |request, count| match count {
        0 | 2 => status(429).with("retry-after", "0"),
        3 => status(503),
        _ => content.serve(request),
    })
    .await;
    let (_root, images) = store_with(&[]);
    images.pull(&format!("{}/app:1", registry.address), None, None).await.unwrap();
    let stubborn = Scripted::start(|_, _| {
        Answer {
            body: br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#.to_vec(),
            ..status(429)
        }
        .with("retry-after", "7200")
    })
    .await;
    let error = images.pull(&format!("{}/app:1", stubborn.address), None, None).await.unwrap_err();
    assert_eq!((error.kind(), stubborn.seen().len()), (ErrorKind::Unavailable, 1));
    assert!(
        error.to_string().starts_with("RegistryUnavailable:") && error.to_string().contains("pull rate limit"),
        "{error}"
    );
}

#[tokio::test]
async fn answers_without_end_or_sense_are_refused() {
    let image = small();
    for (script, kind, want) in [
        (ok(&vec![b' '; 5 << 20]), ErrorKind::FailedPrecondition, "longer than 4194304"),
        (ok(b"<html>"), ErrorKind::FailedPrecondition, "not JSON"),
        (
            ok(&image.manifest).with("docker-content-digest", digest(b"x").to_string()),
            ErrorKind::FailedPrecondition,
            "wanted the manifest",
        ),
        (status(302).with("location", "/v2/app/manifests/1"), ErrorKind::FailedPrecondition, "redirects more than"),
        (status(302).with("location", "file:///etc/passwd"), ErrorKind::FailedPrecondition, "insecure"),
        (status(302), ErrorKind::FailedPrecondition, "redirects to nowhere"),
        (status(401), ErrorKind::Unauthenticated, "without saying"),
        (status(401).with("www-authenticate", "Basic x"), ErrorKind::Unauthenticated, "user name"),
        (
            status(401).with("www-authenticate", "Bearer realm=\"file:///x\""),
            ErrorKind::FailedPrecondition,
            "token service",
        ),
        (status(403), ErrorKind::PermissionDenied, "forbids"),
        (Answer { cut: Some(0), hang: true, ..ok(b"x") }, ErrorKind::Unavailable, "did not end"),
        (status(418), ErrorKind::FailedPrecondition, "418"),
    ] {
        let host = Scripted::start(move |_, _| script.clone()).await;
        let (root, images) = store_with(&[]);
        let error = images.pull(&format!("{}/app:1", host.address), None, None).await.expect_err(want);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(want), "{want}: {error}");
        clean(&root);
    }
}

#[tokio::test]
async fn bad_configuration_names_its_file() {
    let (_root, images) = store_with(&[
        ("bad.io", "[host.\"https://x\"]\ncapabilities = [\"fly\"]".into()),
        ("ca.io", "ca = \"missing.pem\"".into()),
    ]);
    for (name, want) in [("bad.io/x", "fly"), ("ca.io/x", "missing.pem")] {
        let error = images.pull(name, None, None).await.unwrap_err();
        assert!(error.to_string().contains(want) && error.to_string().contains("certs.d"), "{error}");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }
}
