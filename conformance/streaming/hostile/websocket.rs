//! WebSockets out of bounds.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::super::client::{ask_websocket, forward_url, gone, script_url, there};
use super::{fine, target, until_cut};
use crate::harness::{Ctr, Node};

const V5: &str = "v5.channel.k8s.io";

/// Opcodes, and what ends a message.
const CONTINUED: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;
const FIN: u8 = 0x80;

/// A connection on which this script runs.
async fn begin(node: &Node, ctr: &Ctr, script: &str) -> TcpStream {
    let answer = ask_websocket(&script_url(node, ctr, script).await, V5).await;
    assert_eq!(answer.code, 101);
    answer.socket
}

/// A frame as clients have to send it, masked by zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length @ ..65_536 => bytes.extend([&[0x80 | 126][..], &(length as u16).to_be_bytes()].concat()),
        length => bytes.extend([&[0x80 | 127][..], &(length as u64).to_be_bytes()].concat()),
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// The code by which the server closes.
fn code(mut said: &[u8]) -> Option<u16> {
    loop {
        let (&[first, length], rest) = said.split_first_chunk::<2>()?;
        let (length, rest) = match length {
            126 => rest.split_first_chunk::<2>().map(|(length, rest)| (u16::from_be_bytes(*length).into(), rest))?,
            length @ ..126 => (usize::from(length), rest),
            _ => return None,
        };
        if first & 15 == 8 {
            return Some(u16::from_be_bytes(*rest.first_chunk()?));
        }
        said = rest.get(length..)?;
    }
}

#[tokio::test]
async fn frames_out_of_bounds_are_cut() {
    let (node, pod, ctr, before) = target("frames").await;
    let giant = |length: u64| [&[FIN | BINARY, 0x80 | 127][..], &length.to_be_bytes(), &[0; 4]].concat();
    let fragment = |first: u8| frame(first, &vec![0; 32 << 10]);
    let (size, wrong, policy) = (Some(1009), Some(1002), Some(1008));
    let cases = [
        ("giant", giant(1 << 62), vec![], size),
        ("large", giant((4 << 20) + 1), vec![], size),
        ("fragments", fragment(BINARY), fragment(CONTINUED), size),
        ("empty fragments", frame(BINARY, b""), frame(CONTINUED, b"").repeat(1000), policy),
        ("pings", frame(FIN | PING, &[b'p'; 125]), frame(FIN | PING, &[b'p'; 125]).repeat(100), policy),
        ("unmasked", vec![FIN | BINARY, 2, 0, b'x'], vec![], wrong),
        ("not UTF-8", frame(FIN | TEXT, b"\0\xc3\x28"), vec![], wrong),
        ("not UTF-8 in fragments", [frame(TEXT, b"\0\xc3"), frame(FIN | CONTINUED, b"\x28")].concat(), vec![], wrong),
        ("reserved opcode", frame(FIN | 5, b"x"), vec![], wrong),
        ("reserved bits", frame(FIN | 0x40 | BINARY, b"\0x"), vec![], wrong),
        ("ping in fragments", frame(PING, b"x"), vec![], wrong),
        ("long ping", frame(FIN | PING, &[0; 126]), vec![], wrong),
        ("continued from nothing", frame(FIN | CONTINUED, b"x"), vec![], wrong),
        ("two at once", frame(BINARY, b"\0").repeat(2), vec![], wrong),
        ("nonsense to close", frame(FIN | BINARY, &[255, 1, 2]), vec![], wrong),
    ];
    for (number, (name, once, again, wanted)) in cases.into_iter().enumerate() {
        let sleep = format!("sleep 47{number:02}");
        let socket = begin(&node, &ctr, &format!("exec {sleep}")).await;
        there(&sleep).await;
        let floods = !again.is_empty();
        let told = code(&until_cut(socket, once, again).await);
        // What is still being sent may cost the last word.
        assert!(told == wanted || (floods && told.is_none()), "{name}: {told:?}");
        gone(&sleep).await;
    }
    // The same of port-forward, in the tunnel and in channels.
    for (protocol, ports) in [("SPDY/3.1+portforward.k8s.io", &[][..]), ("v4.channel.k8s.io", &[80, 81])] {
        for again in [frame(CONTINUED, b"").repeat(1000), fragment(CONTINUED), frame(FIN | PING, b"")] {
            let answer = ask_websocket(&forward_url(&node, &pod, ports).await, protocol).await;
            assert_eq!(answer.code, 101);
            until_cut(answer.socket, frame(BINARY, b"\0"), again).await;
        }
    }
    before.after(&node, &ctr).await;
    node.finish().await;
}

/// Answers to pings that nobody takes, and messages that are begun and never ended, are held within bounds.
#[tokio::test]
async fn a_client_that_takes_nothing_holds_only_its_own() {
    let (node, _, ctr, before) = target("takes").await;
    // Among the pings there are messages, which the process reads: so they are no flood.
    let mut pinging = begin(&node, &ctr, "cat >/dev/null; exec sleep 4801").await;
    let pings = [frame(FIN | PING, &[b'p'; 125]).repeat(1000), frame(FIN | BINARY, &[0; 100])].concat();
    let ping = async {
        for _ in 0..2000 {
            if pinging.write_all(&pings).await.is_err() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(20), ping).await;
    fine(&node, &ctr).await;
    before.bounded(&node);
    // It sends to a process that reads nothing.
    let mut pushing = begin(&node, &ctr, "exec sleep 4802").await;
    there("sleep 4802").await;
    let message = frame(FIN | BINARY, &vec![0; 1 << 20]);
    let push = async {
        for _ in 0..256 {
            pushing.write_all(&message).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(3), push).await.is_err(), "256 MiB were taken");
    fine(&node, &ctr).await;
    before.bounded(&node);
    drop((pinging, pushing));
    gone("sleep 480").await;
    gone("cat").await;
    before.after(&node, &ctr).await;
    node.finish().await;
}
