//! Clients that vanish: their machine is gone, and no packet says so.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::client::{
    Socket, ask_spdy, ask_websocket, code_of, exec_url, forward_url, gone, script_url, soon, there,
};
use super::super::{V4, V5};
use super::spdy::begin;
use super::{Before, target};
use crate::harness::config::Setup;
use crate::harness::{Node, eventually, host, secs, specs};

/// As the node of these tests has it.
const LOST: Duration = Duration::from_secs(4);

async fn node() -> Node {
    let extra = format!("[streaming]\nclient_timeout = \"{}s\"\n", LOST.as_secs());
    let mut node = Node::with(Setup { extra, ..Setup::default() }).await;
    node.pull(specs::BUSYBOX).await;
    node
}

/// Nothing passes between this socket and the daemon any more.
fn vanish(socket: &TcpStream) {
    let port = socket.local_addr().unwrap().port().to_string();
    for side in ["--dport", "--sport"] {
        host::run("iptables", &["-I", "INPUT", "-i", "lo", "-p", "tcp", side, &port, "-j", "DROP"]);
    }
}

#[tokio::test]
async fn clients_that_vanish_are_lost() {
    let node = node().await;
    let pod = node.up(node.pod("vanish")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let before = Before::the_harm(&node, &ctr).await;
    // Nothing is on the way to it.
    let (silent, _) = begin(&node, &ctr, "exec sleep 5001").await;
    let websocket = ask_websocket(&script_url(&node, &ctr, "exec sleep 5002").await, V5).await.socket;
    // Something is: it is sent again and again.
    let (mut taking, _) = begin(&node, &ctr, "while true; do echo 5003; usleep 100000; done").await;
    soon(taking.read_exact(&mut [0; 200])).await.unwrap();
    // More than it has taken: it is asked whether it takes more.
    let (mut full, _) = begin(&node, &ctr, "exec yes 5004").await;
    soon(full.read_exact(&mut [0; 200])).await.unwrap();
    let mut full_socket = ask_websocket(&script_url(&node, &ctr, "exec yes 5005").await, V5).await.socket;
    soon(full_socket.read_exact(&mut [0; 200])).await.unwrap();
    // The server does not read it, as the process does not.
    let mut stuck = ask_websocket(&script_url(&node, &ctr, "exec sleep 5006").await, V5).await.socket;
    let message = [&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0][..], &vec![0; 1 << 20]].concat();
    let _ = tokio::time::timeout(Duration::from_secs(1), stuck.write_all(&message)).await;
    let terminal = exec_url(&node, &ctr, &["sh", "-c", "trap '' HUP; exec sleep 5007"], true).await;
    let terminal = ask_websocket(&terminal, V5).await.socket;
    let forward = ask_spdy(&forward_url(&node, &pod, &[]).await, "portforward.k8s.io").await.socket;
    for sleep in ["sleep 5001", "sleep 5002", "sleep 5006", "sleep 5007", "yes 5004", "yes 5005"] {
        there(sleep).await;
    }
    // One that is there, and takes its time.
    let slow = async {
        let mut client = Socket::open(&script_url(&node, &ctr, "yes a-line | head -c 50000000").await, V4).await;
        let mut count = client.next().await.map_or(0, |(_, data)| data.len());
        tokio::time::sleep(LOST * 5).await;
        let mut status = String::new();
        while let Some((channel, data)) = soon(client.next()).await {
            if channel == 3 {
                status = String::from_utf8(data).unwrap();
            } else {
                count += data.len();
            }
        }
        assert_eq!((count, code_of(&status)), (50_000_000, None), "a client that pauses gets everything");
    };
    let vanished = [silent, websocket, taking, full, full_socket, stuck, terminal, forward];
    vanished.iter().for_each(vanish);
    let begun = Instant::now();
    drop(vanished);
    let lost = async {
        for command in ["sleep 500", "sh -c while true; do echo 5003", "yes 500"] {
            gone(command).await;
        }
        begun.elapsed()
    };
    let (time, ()) = tokio::join!(lost, slow);
    println!("lost after {time:?}");
    assert!(time < secs(25), "{time:?}");
    eventually(secs(60), "the end of their connections", async || {
        let (now, then) = (super::files(&node), before.files);
        if now <= then { Ok(()) } else { Err(format!("{now} descriptors, {then} before")) }
    })
    .await;
    before.after(&node, &ctr).await;
    node.finish().await;
}

/// A client that resets its connection: no goodbye, and nothing that was on the way arrives.
#[tokio::test]
async fn clients_that_break_off_end_what_runs_for_them() {
    let (node, _, ctr, before) = target("break").await;
    let (first, _) = begin(&node, &ctr, "exec sleep 5101").await;
    let (second, _) = begin(&node, &ctr, "exec yes 5102").await;
    let third = ask_websocket(&script_url(&node, &ctr, "trap '' HUP PIPE TERM; yes 5103").await, V5).await.socket;
    let mut fourth = ask_websocket(&script_url(&node, &ctr, "exec sleep 5104").await, V5).await.socket;
    // In the middle of a message.
    fourth.write_all(&[0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 2]).await.unwrap();
    for command in ["sleep 5101", "yes 5102", "yes 5103", "sleep 5104"] {
        there(command).await;
    }
    for socket in [first, second, third, fourth] {
        rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    }
    for command in ["sleep 510", "yes 510"] {
        gone(command).await;
    }
    before.after(&node, &ctr).await;
    node.finish().await;
}
