//! Much output, clients that do not read it, and many clients at once.

use std::time::Instant;

use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Socket, Spdy, code_of, exec_url, gone, peak, script_url, soon, there};
use super::{ALL, V4, V5};
use crate::harness::{Node, host, volume};

/// Most memory that daemon and monitor may take for it, KiB above what they had before: some of it is the build's own
/// code, which is read in as it runs.
const BOUND: u64 = 24 << 10;

/// Peaks of the daemon and the one monitor, KiB.
fn peaks(node: &Node) -> [u64; 2] {
    let monitor = host::descendants().into_iter().find(|process| process.name.starts_with("podwright-monit"));
    [peak(node.daemon().pid()), peak(monitor.expect("a monitor").pid)]
}

#[tokio::test]
async fn a_frozen_client_costs_no_memory_and_holds_only_its_own() {
    let much = volume(256 << 20);
    let node = Node::ready().await;
    let pod = node.up(node.pod("frozen")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let _ = Spdy::open(&script_url(&node, &ctr, "true").await, V4, &ALL).await.rest().await;
    let (before, begun) = (peaks(&node), Instant::now());
    let script =
        |number: u32| format!("yes 'a line of output' | head -c {much}; [ {number} = 0 ] || exec sleep {number}");
    // One of each kind reads a little and then nothing.
    let mut first = Spdy::open(&script_url(&node, &ctr, &script(4201)).await, V4, &ALL).await;
    first.until("a line of output\n").await;
    let mut second = Socket::open(&script_url(&node, &ctr, &script(4202)).await, V5).await;
    second.until(Some("a line of output\n")).await;
    there("head -c").await;
    // Meanwhile another gets it all.
    let mut client = Spdy::open(&script_url(&node, &ctr, &script(0)).await, V4, &ALL).await;
    let mut stdout = client.take("stdout");
    let (mut buffer, mut count, mut wrong) = (vec![0; 1 << 16], 0, false);
    loop {
        let got = soon(stdout.read(&mut buffer)).await.unwrap();
        if got == 0 {
            break;
        }
        let place = count % 17;
        wrong |= !buffer[..got].iter().zip(b"a line of output\n".iter().cycle().skip(place)).all(|(a, b)| a == b);
        count += got;
    }
    assert_eq!((count, wrong), (much, false), "all of it, in order");
    assert_eq!(code_of(&client.rest().await[2]), None);
    there("head -c").await;
    bounded(&node, before, begun);
    drop((first, second));
    gone("head -c").await;
    gone("sleep 420").await;
    node.finish().await;
}

/// Bytes that differ from place to place: each block has its number at its front, and no two parts of a block are alike.
struct Pattern {
    block: Vec<u8>,
    at: usize,
}

impl Pattern {
    const BLOCK: usize = 4096;

    fn new() -> Self {
        let noise = |n: u64| n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).to_le_bytes();
        Self { block: (0..Self::BLOCK as u64 / 8).flat_map(noise).collect(), at: 0 }
    }

    /// The block at the present place, and how far into it that is.
    fn here(&mut self) -> (&[u8], usize) {
        self.block[..8].copy_from_slice(&(self.at / Self::BLOCK).to_le_bytes());
        (&self.block, self.at % Self::BLOCK)
    }

    /// The next bytes.
    fn take(&mut self, blocks: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(blocks * Self::BLOCK);
        for _ in 0..blocks {
            bytes.extend_from_slice(self.here().0);
            self.at += Self::BLOCK;
        }
        bytes
    }

    /// Compares with the next bytes.
    fn check(&mut self, mut got: &[u8]) {
        while !got.is_empty() {
            let place = self.at;
            let (block, from) = self.here();
            let count = got.len().min(block.len() - from);
            let (now, later) = got.split_at(count);
            assert!(now == &block[from..from + count], "other bytes at {place}");
            self.at += count;
            got = later;
        }
    }
}

/// Blocks of the pattern that are written at once.
const BLOCKS: usize = 16;
/// Their bytes.
const WRITTEN: usize = BLOCKS * Pattern::BLOCK;

#[tokio::test]
async fn a_gibibyte_there_and_back_over_spdy() {
    let length = volume(1 << 30) / WRITTEN * WRITTEN;
    let node = Node::ready().await;
    let pod = node.up(node.pod("gibibyte")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let _ = Spdy::open(&script_url(&node, &ctr, "true").await, V4, &ALL).await.rest().await;
    let before = peaks(&node);
    let mut client = Spdy::open(&exec_url(&node, &ctr, &["cat"], false).await, V4, &ALL).await;
    let (mut stdin, mut stdout) = (client.take("stdin"), client.take("stdout"));
    let begun = Instant::now();
    let writer = tokio::spawn(async move {
        let mut pattern = Pattern::new();
        while pattern.at < length {
            soon(stdin.write_all(&pattern.take(BLOCKS))).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
    });
    let (mut pattern, mut buffer) = (Pattern::new(), vec![0; 1 << 17]);
    loop {
        match soon(stdout.read(&mut buffer)).await.unwrap() {
            0 => break,
            count => pattern.check(&buffer[..count]),
        }
    }
    soon(writer).await.unwrap();
    assert_eq!(pattern.at, length);
    assert_eq!(code_of(&client.rest().await[2]), None);
    bounded(&node, before, begun);
    node.finish().await;
}

#[tokio::test]
async fn a_quarter_of_that_over_a_websocket() {
    let length = volume(256 << 20) / WRITTEN * WRITTEN;
    let node = Node::ready().await;
    let pod = node.up(node.pod("quarter")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let _ = Spdy::open(&script_url(&node, &ctr, "true").await, V4, &ALL).await.rest().await;
    let before = peaks(&node);
    let client = Socket::open(&exec_url(&node, &ctr, &["cat"], false).await, V5).await;
    let (mut sink, mut messages) = client.into_inner().split();
    let begun = Instant::now();
    let writer = tokio::spawn(async move {
        let mut pattern = Pattern::new();
        while pattern.at < length {
            let message = [&[0], pattern.take(BLOCKS).as_slice()].concat();
            soon(sink.send(Message::Binary(message.into()))).await.unwrap();
        }
        sink.send(Message::Binary(vec![255, 0].into())).await.unwrap();
        sink
    });
    let (mut pattern, mut status) = (Pattern::new(), Vec::new());
    while let Some(Ok(message)) = soon(messages.next()).await {
        match (&message, message.clone().into_data().split_first()) {
            (Message::Binary(_), Some((1, data))) => pattern.check(data),
            (Message::Binary(_), Some((3, data))) => status.extend_from_slice(data),
            _ => {}
        }
    }
    drop(soon(writer).await.unwrap());
    assert_eq!(pattern.at, length);
    assert_eq!(code_of(std::str::from_utf8(&status).unwrap()), None);
    bounded(&node, before, begun);
    node.finish().await;
}

/// Neither daemon nor monitor took much memory.
fn bounded(node: &Node, before: [u64; 2], begun: Instant) {
    let after = peaks(node);
    println!("{:?}; peaks in KiB, daemon and monitor: {before:?}, then {after:?}", begun.elapsed());
    assert!(after[0] < before[0] + BOUND && after[1] < before[1] + BOUND, "{before:?} {after:?}");
}

#[tokio::test]
async fn two_hundred_at_once() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("many")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let begin = |n: u32| {
        let (node, ctr) = (&node, &ctr);
        async move {
            let url = exec_url(node, ctr, &["cat"], false).await;
            let mut client = Spdy::open(&url, V4, &ALL).await;
            client.write(&format!("{n}\n")).await;
            assert_eq!(client.until("\n").await, format!("{n}\n"));
            client
        }
    };
    let clients = join_all((0..200).map(begin)).await;
    let alive = host::descendants().iter().filter(|process| process.command.starts_with("cat")).count();
    assert_eq!(alive, 200);
    let end = clients.into_iter().enumerate().map(|(n, mut client)| async move {
        // Every third goes without a word.
        if n % 3 > 0 {
            client.end_input().await;
            assert_eq!(client.rest().await.map(|text| text.len())[..2], [0, 0]);
        }
    });
    join_all(end).await;
    gone("cat").await;
    node.finish().await;
}
