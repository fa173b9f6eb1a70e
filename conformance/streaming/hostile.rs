//! Clients that mean harm: what each does is cut by a limit, the process that ran for it is killed, and the daemon serves
//! others meanwhile, with its memory and descriptors back to what they were.

mod half_open;
mod heads;
mod idle;
mod spdy;
mod websocket;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Spdy, peak, script_url, soon};
use super::{ALL, V4};
use crate::harness::{Ctr, Node, Pod, eventually, secs};

/// Most memory that any of this may take at a time, KiB.
const BOUND: u64 = 24 << 10;
/// Most that may stay of it, KiB: the allocator keeps some of what was there at once.
const REST: u64 = 16 << 10;
/// The same after thousands of connections. How much it keeps of them differs; more of the same adds nothing, see
/// `heads::thousands_of_idle_connections_keep_nobody_out`.
const REST_OF_A_CROWD: u64 = 24 << 10;
/// Most that a repetition may add, KiB.
const AGAIN: u64 = 8 << 10;

/// What the daemon has before anything happens.
struct Before {
    files: usize,
    memory: u64,
}

impl Before {
    /// Has had each path taken once, so that what is read in only then does not count. Call it before the harm.
    async fn the_harm(node: &Node, ctr: &Ctr) -> Self {
        fine(node, ctr).await;
        let pid = node.daemon().pid();
        // Peaks count from here on.
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        Self { files: files(node), memory: memory(node) }
    }

    /// Daemon and others are well, and all that was taken is given back.
    async fn after(&self, node: &Node, ctr: &Ctr) {
        self.gives_back(node, ctr, REST).await;
    }

    /// The same after thousands of connections.
    async fn after_a_crowd(&self, node: &Node, ctr: &Ctr) {
        self.gives_back(node, ctr, REST_OF_A_CROWD).await;
    }

    async fn gives_back(&self, node: &Node, ctr: &Ctr, rest: u64) {
        fine(node, ctr).await;
        self.bounded(node);
        eventually(secs(30), "descriptors and memory given back", async || {
            let (files, memory) = (files(node), memory(node));
            let back = files <= self.files && memory < self.memory + rest;
            if back { Ok(()) } else { Err(format!("{files} of {} files, {memory} of {} KiB", self.files, self.memory)) }
        })
        .await;
    }

    /// Its memory never was beyond the bound.
    fn bounded(&self, node: &Node) {
        let most = peak(node.daemon().pid());
        println!("{} KiB before, {} KiB now, {most} KiB at most", self.memory, memory(node));
        assert!(most < self.memory + BOUND, "{most} KiB, {} before", self.memory);
    }
}

/// A node with a pod of one container, as they are before the harm.
async fn target(name: &str) -> (Node, Pod, Ctr, Before) {
    let node = Node::ready().await;
    let pod = node.up(node.pod(name)).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let before = Before::the_harm(&node, &ctr).await;
    (node, pod, ctr, before)
}

/// Others are served: a call of the CRI, and an exec.
async fn fine(node: &Node, ctr: &Ctr) {
    soon(async {
        assert_eq!(node.exec(ctr, &["echo", "sync"]).await, "sync\n");
        let [out, _, status] = Spdy::open(&script_url(node, ctr, "echo fine").await, V4, &ALL).await.rest().await;
        assert!(out == "fine\n" && status.contains("Success"), "{out:?} {status:?}");
    })
    .await;
}

/// Open files of the daemon.
fn files(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.daemon().pid())).unwrap().count()
}

/// Memory of the daemon, KiB.
fn memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon().pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends `once`, then `again` and again, until the server cuts the connection; all that it said.
async fn until_cut(socket: TcpStream, once: Vec<u8>, again: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = socket.into_split();
    let flood = tokio::spawn(async move {
        let _ = write.write_all(&once).await;
        while !again.is_empty() && write.write_all(&again).await.is_ok() {}
        // Nor does it say goodbye.
        std::future::pending::<()>().await;
    });
    let mut said = Vec::new();
    // A connection may be reset for what it still sends.
    let _ = soon(read.read_to_end(&mut said)).await;
    flood.abort();
    said
}
