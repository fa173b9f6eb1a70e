//! Sessions in which nothing happens, however much is said.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use podwright::streaming::spdy::{Encoder, Frame, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::client::{Socket, Spdy, ask_spdy, ask_websocket, attach_url, forward_url, gone, script_url, soon};
use super::{ALL, Before, V4};
use crate::harness::config::Setup;
use crate::harness::{Node, secs, specs};

/// As the node of this test has it.
const IDLE: Duration = Duration::from_secs(6);

/// Sends this from time to time until the connection is cut; how long that took.
async fn mutter(mut socket: TcpStream, bytes: Vec<u8>) -> Duration {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let mut said = [0; 4096];
    loop {
        tokio::select! {
            _ = tick.tick() => if socket.write_all(&bytes).await.is_err() {
                break;
            },
            got = socket.read(&mut said) => if !matches!(got, Ok(1..)) {
                break;
            },
        }
    }
    begun.elapsed()
}

#[tokio::test]
async fn sessions_without_data_are_cut_whatever_else_is_sent() {
    let extra = format!("[streaming]\nidle_timeout = \"{}s\"\ncreation_timeout = \"30s\"\n", IDLE.as_secs());
    let mut node = Node::with(Setup { extra, ..Setup::default() }).await;
    node.pull(specs::BUSYBOX).await;
    let pod = node.up(node.pod("idle")).await;
    let mut config = node.sleeper("c");
    config.stdin = true;
    let ctr = node.launch(&pod, config).await;
    let before = Before::the_harm(&node, &ctr).await;
    let mut pings = Vec::new();
    Encoder::new(&Limits::default()).unwrap().control(&Frame::Ping(1), &mut pings).unwrap();
    let spdy = ask_spdy(&forward_url(&node, &pod, &[]).await, "portforward.k8s.io").await.socket;
    let open = ask_spdy(&script_url(&node, &ctr, "exec sleep 4901").await, V4).await.socket;
    let websocket = async |number| {
        ask_websocket(&script_url(&node, &ctr, &format!("exec sleep {number}")).await, "v5.channel.k8s.io").await.socket
    };
    let (pinging, fragments, empty) = (websocket(4902).await, websocket(4903).await, websocket(4904).await);
    let attached = ask_websocket(&attach_url(&node, &ctr, true, false).await, V4).await.socket;
    let ping = vec![0x89, 0x80, 0, 0, 0, 0];
    let mut begun_fragments = fragments;
    begun_fragments.write_all(&[2, 0x80, 0, 0, 0, 0]).await.unwrap();
    // Data once a while keeps a session.
    let busy = async {
        let mut client = Spdy::open(&script_url(&node, &ctr, "cat").await, V4, &ALL).await;
        let begun = Instant::now();
        while begun.elapsed() < 3 * IDLE {
            client.write("x\n").await;
            client.until("x\n").await;
            tokio::time::sleep(IDLE / 3).await;
        }
        client.end_input().await;
        assert!(client.rest().await[2].contains("Success"));
    };
    let quiet = async {
        let mut client = Socket::open(&script_url(&node, &ctr, "exec sleep 4905").await, V4).await;
        let [.., status] = client.until(None).await;
        assert!(status.contains("nothing was sent for too long"), "{status}");
    };
    let muttering = soon(join_all([
        mutter(spdy, pings.clone()),
        mutter(open, pings),
        mutter(pinging, ping.clone()),
        mutter(begun_fragments, vec![0, 0x80, 0, 0, 0, 0]),
        // Messages with nothing in them.
        mutter(empty, vec![0x82, 0x80, 0, 0, 0, 0]),
        mutter(attached, ping),
    ]));
    let (times, (), ()) = tokio::join!(muttering, busy, quiet);
    for (number, time) in times.into_iter().enumerate() {
        // A farewell that is not answered takes a while, too.
        assert!(time >= IDLE - Duration::from_secs(1) && time < IDLE + secs(25), "{number}: {time:?}");
    }
    gone("sleep 490").await;
    before.after(&node, &ctr).await;
    node.finish().await;
}
