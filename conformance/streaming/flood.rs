//! Much output, clients that do not read it, and many clients at once.

use futures_util::future::join_all;
use tokio::io::AsyncReadExt as _;

use super::client::{Socket, Spdy, code_of, exec_url, gone, peak, script_url, soon, there};
use super::{ALL, V4, V5};
use crate::harness::{Node, host};

/// Bytes that must neither be lost nor kept.
const MUCH: usize = 256 << 20;
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
    let node = Node::ready().await;
    let pod = node.up(node.pod("frozen")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let _ = Spdy::open(&script_url(&node, &ctr, "true").await, V4, &ALL).await.rest().await;
    let before = peaks(&node);
    let script =
        |number: u32| format!("yes 'a line of output' | head -c {MUCH}; [ {number} = 0 ] || exec sleep {number}");
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
    assert_eq!((count, wrong), (MUCH, false), "all of it, in order");
    assert_eq!(code_of(&client.rest().await[2]), None);
    there("head -c").await;
    let after = peaks(&node);
    println!("peaks in KiB, daemon and monitor: {before:?}, then {after:?}");
    assert!(after[0] < before[0] + BOUND && after[1] < before[1] + BOUND, "{before:?} {after:?}");
    drop((first, second));
    gone("head -c").await;
    gone("sleep 420").await;
    node.finish().await;
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
