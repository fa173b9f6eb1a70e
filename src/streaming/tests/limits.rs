//! Tokens, limits, and the way down.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::client::{Socket, all, ask, ask_spdy, ask_websocket, json, open, spdy};
use super::world::{ALL, OUTPUT, World, settings, soon};
use crate::streaming::{Settings, lobby};

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn a_token_opens_one_session_of_its_kind() {
    let world = World::new();
    let url = world.exec("true", OUTPUT);
    for wrong in [url.replace("/exec/", "/attach/"), format!("{url}x"), url.replace("/exec/", "/")] {
        assert_eq!(ask_spdy(&wrong, &[V4]).await.code, 404, "{wrong}");
    }
    assert_eq!(ask("GET", &url, &[]).await.code, 400);
    assert_eq!(ask("DELETE", &url, &[]).await.code, 405);
    let refused = ask_spdy(&url, &["v9.channel.k8s.io"]).await;
    assert_eq!((refused.code, refused.header("connection")), (403, Some("close")));
    assert_eq!(ask_websocket(&url, "chat").await.code, 403);
    // None of these was a session.
    assert_eq!(ask_spdy(&url, &["v9.channel.k8s.io", V4]).await.code, 101);
    assert_eq!(ask_spdy(&url, &[V4]).await.code, 404);
    assert_eq!(ask("GET", &url, &[]).await.code, 404);
    let ports = world.ports(&[]);
    assert_eq!(ask_websocket(&format!("{ports}?port=x"), V4).await.code, 400);
    assert_eq!(ask_websocket(&ports, V4).await.code, 400, "no port is named");
}

#[tokio::test]
async fn a_client_that_opens_too_little_is_told() {
    let world = World::with(Settings { creation_timeout: Duration::from_millis(200), ..settings() });
    let handle = spdy(&world.exec("true", OUTPUT), V4).await;
    let status = json(&all(open(&handle, "error")).await);
    assert!(status["message"].as_str().unwrap().contains("stdout"), "{status}");
    soon(handle.closed()).await;
}

#[tokio::test]
async fn silence_ends_a_session() {
    let world = World::with(Settings { idle_timeout: Duration::from_millis(300), ..settings() });
    let socket = Socket::open(&world.exec("exec sleep 1000", ALL), V4).await;
    let (got, _) = socket.rest().await;
    assert!(json(&got[&3])["message"].as_str().unwrap().contains("too long"));
}

#[tokio::test]
async fn sessions_are_counted() {
    let world = World::with(Settings { max_sessions: 1, ..settings() });
    let first = Socket::open(&world.exec("exec sleep 1000", ALL), V4).await;
    let url = world.exec("true", OUTPUT);
    assert_eq!(ask_spdy(&url, &[V4]).await.code, 503);
    drop(first);
}

#[tokio::test]
async fn a_flood_of_idle_connections_keeps_nobody_out() {
    let world = World::new();
    let url = world.exec("echo here", OUTPUT);
    let host = url.strip_prefix("http://").unwrap().split_once('/').unwrap().0.to_owned();
    let mut idle = Vec::new();
    for _ in 0..lobby::MOST + 50 {
        idle.push(TcpStream::connect(&host).await.unwrap());
    }
    let (got, _) = Socket::open(&url, V4).await.rest().await;
    assert_eq!(got[&1], b"here\n");
    // The first ones were cut.
    assert_eq!(soon(idle[0].read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let world = World::new();
    let long = "a".repeat(40_000);
    let answer = ask("GET", &world.exec("true", OUTPUT), &[("X-Long", &long)]).await;
    assert_eq!(answer.code, 431);
}

#[tokio::test]
async fn a_stop_ends_sessions_in_order() {
    let mut world = World::new();
    let socket = Socket::open(&world.exec("exec sleep 1000", ALL), V4).await;
    let forward = spdy(&world.ports(&[]), "portforward.k8s.io").await;
    world.stop.take().unwrap().send(()).unwrap();
    let (got, _) = socket.rest().await;
    assert!(json(&got[&3])["message"].as_str().unwrap().contains("stopping"));
    soon(forward.closed()).await;
    soon(world.server).await.unwrap();
}
