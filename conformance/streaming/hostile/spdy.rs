//! SPDY out of bounds.

use std::time::{Duration, Instant};

use podwright::streaming::spdy::{
    Connection, Encoder, Frame, Headers, INITIAL_WINDOW, INITIAL_WINDOW_SIZE, Limits, MAX_BODY, ResetStatus,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::client::{ask_spdy, forward_url, gone, script_url, soon, there};
use super::super::forward::listen;
use super::{ALL, Before, V4, fine, target, until_cut};
use crate::harness::{Ctr, Node, secs};

/// Streams as [`begin`] opens them.
const STDIN: u32 = 3;
const STDOUT: u32 = 5;

fn syn(stream: u32, headers: Headers) -> Frame {
    Frame::SynStream { stream, associated: 0, priority: 0, fin: false, unidirectional: false, headers }
}

fn encoder(compress: bool) -> Encoder {
    Encoder::new(&Limits { compress, ..Limits::default() }).unwrap()
}

fn frames(encoder: &mut Encoder, frames: impl IntoIterator<Item = Frame>) -> Vec<u8> {
    let mut out = Vec::new();
    frames.into_iter().for_each(|frame| encoder.control(&frame, &mut out).unwrap());
    out
}

fn data(stream: u32, length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::data(stream, length, false, &mut out);
    out.resize(out.len() + length, b'x');
    out
}

/// A connection on which this script runs, and what goes on writing to it.
pub async fn begin(node: &Node, ctr: &Ctr, script: &str) -> (TcpStream, Encoder) {
    begin_with(node, ctr, script, None).await
}

/// The same, with a frame before any stream.
async fn begin_with(node: &Node, ctr: &Ctr, script: &str, first: Option<Frame>) -> (TcpStream, Encoder) {
    let answer = ask_spdy(&script_url(node, ctr, script).await, V4).await;
    assert_eq!(answer.code, 101);
    let (mut socket, mut encoder) = (answer.socket, encoder(true));
    let kinds = ALL.iter().zip([1, STDIN, STDOUT, 7]);
    let open = kinds.map(|(kind, id)| syn(id, Headers::new().with("streamtype", kind)));
    let open = frames(&mut encoder, first.into_iter().chain(open));
    socket.write_all(&open).await.unwrap();
    (socket, encoder)
}

/// That the client heeds windows.
fn heed() -> Option<Frame> {
    Some(Frame::Settings { clear: false, entries: vec![(INITIAL_WINDOW_SIZE, INITIAL_WINDOW)] })
}

/// A goodbye for a reason stands at the end.
fn is_goodbye(said: &[u8]) -> bool {
    said.len() >= 16
        && said[said.len() - 16..].starts_with(&[0x80, 3, 0, 7, 0, 0, 0, 8])
        && said.ends_with(&[0, 0, 0, 1])
}

#[tokio::test]
async fn frames_out_of_bounds_are_cut() {
    let (node, _, ctr, before) = target("frames").await;
    let update = |stream, delta| Frame::WindowUpdate { stream, delta };
    let names = ["giant frame", "zip bomb", "zip bomb later", "many headers", "garbage", "window overflow", "order"];
    for (number, name) in names.iter().chain(&["unknown stream", "initial window", "no zlib"]).enumerate() {
        let sleep = format!("sleep 43{number:02}");
        let (socket, mut encoder) = begin(&node, &ctr, &format!("exec {sleep}")).await;
        there(&sleep).await;
        let bomb = Headers::new().with("streamtype", &"0".repeat(8 << 20));
        let bytes = match *name {
            "giant frame" => vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
            // Some 8 KiB that would be 8 MiB.
            "zip bomb" => frames(&mut encoder, [syn(9, bomb)]),
            "zip bomb later" => frames(&mut encoder, [Frame::Headers { stream: 1, fin: false, headers: bomb }]),
            "many headers" => {
                let many = (0..500).fold(Headers::new(), |headers, n| headers.with(&format!("h{n}"), ""));
                frames(&mut encoder, [syn(9, many)])
            }
            "garbage" => b"\x80GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            "window overflow" => frames(&mut encoder, [update(0, 0x7fff_ffff), update(0, 0x7fff_ffff)]),
            "order" => frames(&mut encoder, [syn(9, Headers::new()), syn(9, Headers::new())]),
            "unknown stream" => data(4711, 1),
            "initial window" => {
                frames(&mut encoder, [Frame::Settings { clear: false, entries: vec![(INITIAL_WINDOW_SIZE, u32::MAX)] }])
            }
            _ => [&[0x80, 3, 0, 1, 0, 0, 0, 20][..], &[0, 0, 0, 9, 0, 0, 0, 0, 0, 0], &[0xff; 10]].concat(),
        };
        let said = until_cut(socket, bytes, Vec::new()).await;
        assert!(is_goodbye(&said), "{name}: {:?}", &said[said.len().saturating_sub(32)..]);
        gone(&sleep).await;
    }
    // Data beyond a stream's window costs the stream; the process reads none of it.
    let (mut socket, _) = begin_with(&node, &ctr, "exec sleep 4399", heed()).await;
    there("sleep 4399").await;
    socket.write_all(&data(STDIN, 4 << 20)).await.unwrap();
    let reset = [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 7];
    let mut said = Vec::new();
    while !said.windows(reset.len()).any(|frame| frame == reset) {
        assert!(soon(socket.read_buf(&mut said)).await.unwrap() > 0, "no reset: {said:?}");
    }
    drop(socket);
    gone("sleep 4399").await;
    before.after(&node, &ctr).await;
    node.finish().await;
}

#[tokio::test]
async fn floods_are_cut() {
    let (node, pod, ctr, before) = target("floods").await;
    let reset = |stream| Frame::RstStream { stream, status: ResetStatus::CANCEL };
    for (number, name) in ["pings", "settings", "resets", "updates", "unknown", "empty", "streams"].iter().enumerate() {
        let sleep = format!("sleep 44{number:02}");
        let (socket, mut encoder) = begin(&node, &ctr, &format!("exec {sleep}")).await;
        there(&sleep).await;
        let mut of = |frame: Frame| frames(&mut encoder, std::iter::repeat_n(frame, 100));
        let settings = Frame::Settings { clear: false, entries: vec![(4, 100), (INITIAL_WINDOW_SIZE, INITIAL_WINDOW)] };
        let (once, again) = match *name {
            "pings" => (Vec::new(), of(Frame::Ping(1))),
            "settings" => (Vec::new(), of(settings)),
            "resets" => (Vec::new(), of(reset(98))),
            "updates" => (Vec::new(), of(Frame::WindowUpdate { stream: 98, delta: 1 })),
            "unknown" => (Vec::new(), [0x80, 3, 0, 99, 0, 0, 0, 0].repeat(100)),
            "empty" => (Vec::new(), [0, 0, 0, 3, 0, 0, 0, 0].repeat(100)),
            // None of them is ended; all but a few are refused.
            _ => (frames(&mut encoder, (0..40_000).map(|n| syn(9 + 2 * n, Headers::new().with("a", "b")))), Vec::new()),
        };
        let said = until_cut(socket, once, again).await;
        assert!(said.windows(8).any(|frame| frame == [0x80, 3, 0, 7, 0, 0, 0, 8]), "{name}: no goodbye");
        gone(&sleep).await;
    }
    // Port-forward has room for more streams, which are held for a while if their other half never comes.
    let answer = ask_spdy(&forward_url(&node, &pod, &[]).await, "portforward.k8s.io").await;
    let mut encoder = encoder(true);
    let stream = |n: u32| {
        let headers = Headers::new().with("streamtype", "error").with("port", "80");
        syn(1 + 2 * n, headers.with("requestid", &n.to_string()))
    };
    let once = frames(&mut encoder, (0..40_000).map(stream));
    let said = until_cut(answer.socket, once, Vec::new()).await;
    assert!(said.windows(8).any(|frame| frame == [0x80, 3, 0, 7, 0, 0, 0, 8]), "port-forward: no goodbye");
    before.after(&node, &ctr).await;
    node.finish().await;
}

/// Pings whose answers are not taken stop the server's reading, and then nothing of it grows.
#[tokio::test]
async fn a_client_that_takes_and_grants_nothing_holds_only_its_own() {
    let (node, _, ctr, before) = target("windows").await;
    // It heeds windows, and never grants any more; the process writes without end.
    let (granting, _) = begin_with(&node, &ctr, "exec yes 4501", heed()).await;
    let (mut read, granting) = granting.into_split();
    let taker = tokio::spawn(async move {
        let mut taken = Vec::new();
        let _ = read.read_to_end(&mut taken).await;
        taken.len()
    });
    // It sends to a process that reads nothing, and heeds no window.
    let (mut pushing, _) = begin(&node, &ctr, "exec sleep 4502").await;
    there("sleep 4502").await;
    let bytes = data(STDIN, 1 << 20);
    let push = async {
        for _ in 0..256 {
            pushing.write_all(&bytes).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), push).await.is_err(), "256 MiB were taken");
    // It pings and does not read.
    let (mut pinging, mut encoder) = begin(&node, &ctr, "exec sleep 4503").await;
    there("sleep 4503").await;
    let pings = frames(&mut encoder, std::iter::repeat_n(Frame::Ping(1), 1000));
    let ping = async { while pinging.write_all(&pings).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(5), ping).await;
    fine(&node, &ctr).await;
    before.bounded(&node);
    drop((granting, pushing, pinging));
    for command in ["yes 4501", "sleep 4502", "sleep 4503"] {
        gone(command).await;
    }
    let taken = soon(taker).await.unwrap();
    assert!(taken >= INITIAL_WINDOW as usize && taken < 2 * INITIAL_WINDOW as usize, "{taken}");
    before.after(&node, &ctr).await;
    node.finish().await;
}

#[tokio::test]
async fn a_frame_of_16_mib_passes_and_one_that_trickles_in_is_cut() {
    let (node, _, ctr, before) = target("giant").await;
    let (slow, _) = begin(&node, &ctr, "exec sleep 4601").await;
    let (mut read, mut write) = slow.into_split();
    let trickle = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(300));
        for byte in [0x80, 3, 0, 1, 0, 0, 0x20, 0].into_iter().chain(std::iter::repeat(0)) {
            tick.tick().await;
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    // One that opens no streams at all, and one that opens some of them.
    let none = ask_spdy(&script_url(&node, &ctr, "true").await, V4).await.socket;
    let some = ask_spdy(&script_url(&node, &ctr, "true").await, V4).await.socket;
    let few = frames(&mut encoder(true), [syn(1, Headers::new().with("streamtype", "error"))]);

    let (mut socket, _) = begin(&node, &ctr, "exec wc -c").await;
    let mut giant = Vec::new();
    Encoder::data(STDIN, MAX_BODY, true, &mut giant);
    giant.resize(giant.len() + MAX_BODY, 7);
    socket.write_all(&giant).await.unwrap();
    let mut said = Vec::new();
    let _ = soon(socket.read_to_end(&mut said)).await;
    let length = MAX_BODY.to_string();
    assert!(said.windows(length.len()).any(|text| text == length.as_bytes()), "16 MiB in one frame are counted");

    let begun = Instant::now();
    let (mut goodbye, one, other) =
        (Vec::new(), until_cut(none, Vec::new(), Vec::new()), until_cut(some, few, Vec::new()));
    let cut = async { read.read_to_end(&mut goodbye).await };
    let (_, _, told) = tokio::join!(cut, one, other);
    assert!(begun.elapsed() < secs(45), "{:?}", begun.elapsed());
    assert!(is_goodbye(&goodbye), "{goodbye:?}");
    let words = b"not all streams were opened";
    assert!(told.windows(words.len()).any(|text| text == words), "it is told what it has not opened");
    gone("sleep 4601").await;
    trickle.abort();
    before.after(&node, &ctr).await;
    node.finish().await;
}

/// Connections for a port at which nobody takes any: the kernel has some wait, and the others wait for that.
#[tokio::test]
async fn forwards_that_are_never_taken_are_bounded() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("forwards")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let listener = listen(&node, &pod, "127.0.0.1");
    let port = listener.local_addr().unwrap().port().to_string();
    let before = Before::the_harm(&node, &ctr).await;
    let answer = ask_spdy(&forward_url(&node, &pod, &[]).await, "portforward.k8s.io").await;
    let (handle, _) = Connection::client(answer.socket, Limits::default());
    let mut streams = Vec::new();
    for request in 0..2000 {
        for kind in ["error", "data"] {
            let headers = Headers::new().with("streamType", kind).with("port", &port);
            match handle.open(headers.with("requestID", &request.to_string()), false) {
                Ok(stream) => streams.push(stream),
                Err(refused) => assert!(refused.to_string().contains("streams at a time"), "{refused}"),
            }
        }
        if request % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    fine(&node, &ctr).await;
    before.bounded(&node);
    drop((handle, streams, listener));
    before.after(&node, &ctr).await;
    node.finish().await;
}
