//! Exec and attach over WebSocket.

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::client::{Socket, json};
use super::process::Process;
use super::world::{ALL, OUTPUT, World};
use crate::streaming::session::AtInputEnd;

#[tokio::test]
async fn every_protocol_has_outputs_and_an_end() {
    let world = World::new();
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", ""] {
        let socket = Socket::open(&world.exec("echo out; echo err >&2; exit 7", OUTPUT), protocol).await;
        let (got, close) = socket.rest().await;
        assert_eq!((&got[&1][..], &got[&2][..]), (&b"out\n"[..], &b"err\n"[..]), "{protocol}");
        let words = String::from_utf8(got[&3].clone()).unwrap();
        if protocol.starts_with('v') {
            assert_eq!(json(words.as_bytes())["details"]["causes"][0]["message"], "7", "{protocol}");
        } else {
            assert_eq!(words, "command terminated with non-zero exit code: 7");
        }
        assert_eq!(close.unwrap().code, CloseCode::Normal);
    }
}

#[tokio::test]
async fn v5_ends_the_input_alone() {
    let world = World::new();
    let mut socket = Socket::open(&world.exec("cat; echo over", ALL), "v5.channel.k8s.io").await;
    assert_eq!(socket.next().await, (1, Bytes::new()), "the sign that it is connected");
    let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
    for piece in sent.chunks(30_000) {
        socket.send(&[&[0], piece].concat()).await;
    }
    socket.send(&[255, 0]).await;
    let (got, _) = socket.rest().await;
    assert!(got[&1].strip_suffix(b"over\n").unwrap() == sent);
    assert_eq!(json(&got[&3])["status"], "Success");
}

#[tokio::test]
async fn base64_both_ways() {
    let world = World::new();
    let mut socket = Socket::open(&world.exec("read a; echo \"got $a\"", ALL), "base64.channel.k8s.io").await;
    socket.0.send(Message::text("0Zm9vCg==")).await.unwrap();
    let (got, _) = socket.rest().await;
    assert_eq!(got[&1], b"got foo\n");
}

#[tokio::test]
async fn wrong_and_huge_messages_are_told() {
    let world = World::new();
    let mut socket = Socket::open(&world.exec("exec sleep 1000", ALL), "v5.channel.k8s.io").await;
    socket.send(&[255]).await;
    assert_eq!(socket.rest().await.1.unwrap().code, CloseCode::Protocol);
    let mut socket = Socket::open(&world.exec("exec sleep 1000", ALL), "v4.channel.k8s.io").await;
    let _ = socket.0.send(Message::Binary(vec![0; 5 << 20].into())).await;
    assert_eq!(socket.rest().await.1.unwrap().code, CloseCode::Size);
}

#[tokio::test]
async fn what_a_client_sent_before_it_left_arrives() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("got");
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let process = Process::start(&format!("read a; echo \"$a\" > {}", file.display()), ALL);
    let mut socket = Socket::open(&world.attach(process, ALL, AtInputEnd::Detach), "v4.channel.k8s.io").await;
    socket.send(b"\0hello\n").await;
    socket.0.close(None).await.unwrap();
    drop(socket);
    let got = tokio::task::spawn_blocking(move || std::fs::read(file).unwrap());
    assert_eq!(super::world::soon(got).await.unwrap(), b"hello\n");
}
