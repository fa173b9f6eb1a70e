//! What a URL is good for, and for how long.

use std::time::{Duration, Instant};

use super::client::{Spdy, ask_spdy, ask_websocket, attach_url, exec_url, forward_url, script_url};
use super::{ALL, V4, V5};
use crate::harness::Node;

#[tokio::test]
async fn a_url_is_good_once_for_its_verb_and_for_a_minute() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("tokens")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let begun = Instant::now();
    let old = [exec_url(&node, &ctr, &["true"], false).await, attach_url(&node, &ctr, false, false).await];

    let url = script_url(&node, &ctr, "echo a-secret-word").await;
    let (base, token) = url.rsplit_once('/').unwrap();
    assert!(token.len() >= 22, "128 bits or more: {token}");
    let base = base.strip_suffix("/exec").unwrap();
    for verb in ["attach", "portforward", "exec/x", "x"] {
        assert_eq!(ask_spdy(&format!("{base}/{verb}/{token}"), V4).await.code, 404, "{verb}");
        assert_eq!(ask_websocket(&format!("{base}/{verb}/{token}"), V5).await.code, 404, "{verb}");
    }
    let unknown: String = token.chars().rev().collect();
    for token in [unknown.as_str(), "", "x", &"A".repeat(4000), &token[1..]] {
        assert_eq!(ask_spdy(&format!("{base}/exec/{token}"), V4).await.code, 404, "{token}");
    }
    // A protocol that is not spoken uses nothing up.
    assert_eq!(ask_spdy(&url, "v9.channel.k8s.io").await.code, 403);
    let rest = Spdy::open(&url, V4, &ALL).await.rest().await;
    assert_eq!(rest[0], "a-secret-word\n");
    assert_eq!(ask_spdy(&url, V4).await.code, 404, "used");
    assert_eq!(ask_websocket(&url, V5).await.code, 404, "used");

    let forward = forward_url(&node, &pod, &[]).await;
    let token = forward.rsplit_once('/').unwrap().1;
    assert_eq!(ask_spdy(&format!("{base}/exec/{token}"), V4).await.code, 404);

    let age = Duration::from_secs(61).saturating_sub(begun.elapsed());
    tokio::time::sleep(age).await;
    for url in old {
        assert_eq!(ask_spdy(&url, V4).await.code, 404, "expired");
    }
    let log = node.daemon_log();
    assert!(!log.contains(token) && !log.contains("a-secret-word"), "secrets in the log");
    node.finish().await;
}
