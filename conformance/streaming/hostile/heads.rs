//! Connections that never ask for anything, or take for ever to.

use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use podwright::streaming::spdy::{Connection, Headers, Limits};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::super::client::{script_url, soon};
use super::{AGAIN, Before, files, fine, memory, target};
use crate::harness::config::{Setup, write};
use crate::harness::{Ctr, Node, host, secs, specs};

/// Connections at once, far more than are let wait.
const MANY: usize = 3000;
/// Times that somebody else wants something while there is such a crowd.
const TRIES: u32 = 12;
/// Connections that the server lets wait, and descriptors for each: the socket, twice.
const WAITING: usize = 256 * 2;

/// Sends a byte from time to time; how long that was taken.
async fn trickle(address: &str, bytes: &'static [u8]) -> Duration {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    let (mut read, mut write) = socket.split();
    let send = async {
        for byte in bytes.iter().cycle() {
            tick.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = send => {}
        _ = read.read_to_end(&mut answer) => {}
    }
    begun.elapsed()
}

fn authority(url: &str) -> &str {
    url.split_once("://").unwrap().1.split_once('/').unwrap().0
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut() {
    let (node, _, ctr, before) = target("slow").await;
    let url = script_url(&node, &ctr, "true").await;
    let heads: [&[u8]; 3] = [b"G", b"GET /exec/x HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nA: b\r\n"];
    let slow = join_all((0..60).map(|n| trickle(authority(&url), heads[n % 3])));
    let (cut, ()) = tokio::join!(slow, fine(&node, &ctr));
    for time in cut {
        assert!(time >= Duration::from_secs(9) && time < secs(20), "{time:?}");
    }
    before.after(&node, &ctr).await;
    node.finish().await;
}

#[tokio::test]
async fn thousands_of_idle_connections_keep_nobody_out() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let (node, _, ctr, before) = target("idle").await;
    let url = script_url(&node, &ctr, "true").await;
    let (mut left, mut cut) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        cut.push(crowd(&node, &ctr, authority(&url), &before).await);
        before.after_a_crowd(&node, &ctr).await;
        left.push(memory(&node));
    }
    println!("{cut:?} of {TRIES} were cut, {left:?} KiB");
    // Each new connection costs the oldest that has not said what it wants: on a busy machine that is a good one at
    // times, whose client tries again. A third of all is far more than come to that.
    assert!(cut.iter().sum::<u32>() <= TRIES, "{cut:?} of {TRIES} were cut each time");
    assert!(left[2] < left[0] + AGAIN, "{left:?} KiB");
    node.finish().await;
}

/// Thousands of connections that ask for nothing, and more of them all the time, until the server has cut them all; how
/// many good ones were cut.
async fn crowd(node: &Node, ctr: &Ctr, address: &str, before: &Before) -> u32 {
    let mut idle = Vec::new();
    let begun = Instant::now();
    for n in 0..MANY {
        let mut socket = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            // The server may be faster.
            let _ = socket.write_all(b"GET /exec/ HTTP/1.1\r\nHost").await;
        }
        idle.push(socket);
    }
    println!("{MANY} connections in {:?}", begun.elapsed());
    let more = address.to_owned();
    let flood = tokio::spawn(async move {
        loop {
            let _ = TcpStream::connect(&more).await;
        }
    });
    let mut cut = 0;
    for _ in 0..TRIES {
        cut += u32::from(AssertUnwindSafe(fine(node, ctr)).catch_unwind().await.is_err());
        let now = files(node);
        assert!(now < before.files + WAITING + 50, "{now} descriptors, {} before", before.files);
    }
    flood.abort();
    before.bounded(node);
    // All but the last were cut at once, and those are after a while.
    let begun = Instant::now();
    let mut byte = [0];
    for socket in &mut idle {
        while matches!(soon(socket.read(&mut byte)).await, Ok(1)) {}
    }
    assert!(begun.elapsed() < secs(20), "{:?}", begun.elapsed());
    cut
}

/// A node whose streaming server has a certificate; `None` without openssl.
async fn with_tls() -> Option<(Node, TlsConnector)> {
    let mut node = Node::prepare(&Setup::default());
    let dir = node.dir().to_owned();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=podwright", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(&dir)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("SKIP: no openssl that makes a certificate");
        return None;
    }
    let shown = dir.display();
    let files = format!("[streaming]\ntls_cert_file = \"{shown}/cert.pem\"\ntls_key_file = \"{shown}/key.pem\"\n");
    write(&dir, "conf.d/50-tls.toml", &files);
    node.start_daemon().await;
    node.pull(specs::BUSYBOX).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some((node, TlsConnector::from(Arc::new(config))))
}

/// An exec through TLS; what it writes.
async fn through(connector: &TlsConnector, url: &str) -> String {
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let socket = TcpStream::connect(address).await.unwrap();
    let mut tls = connector.connect(ServerName::try_from("127.0.0.1").unwrap(), socket).await.unwrap();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
         X-Stream-Protocol-Version: {}\r\n\r\n",
        super::V4
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tls.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    let (handle, _) = Connection::client(tls, Limits::default());
    let mut streams: Vec<_> =
        super::ALL.iter().map(|kind| handle.open(Headers::new().with("streamType", kind), false).unwrap()).collect();
    let mut out = String::new();
    streams[2].read_to_string(&mut out).await.unwrap();
    out
}

#[tokio::test]
async fn hellos_that_trickle_in_are_cut() {
    let Some((node, connector)) = with_tls().await else { return };
    let pod = node.up(node.pod("hello")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    assert_eq!(through(&connector, &script_url(&node, &ctr, "echo fine").await).await, "fine\n");
    let before = files(&node);
    let url = script_url(&node, &ctr, "echo fine").await;
    // The head of a record with a hello of 512 bytes, whose bytes are zeros then.
    let hello: &'static [u8] =
        Box::leak([&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[0; 500]].concat().into_boxed_slice());
    let slow = join_all((0..60).map(|n| trickle(authority(&url), &hello[..if n % 2 == 0 { hello.len() } else { 1 }])));
    let (cut, good) = tokio::join!(slow, soon(through(&connector, &url)));
    assert_eq!(good, "fine\n");
    for time in cut {
        assert!(time < secs(40), "{time:?}");
    }
    crate::harness::eventually(secs(10), "descriptors given back", async || {
        let now = files(&node);
        if now <= before { Ok(()) } else { Err(format!("{now}, {before} before")) }
    })
    .await;
    assert!(host::process(node.daemon().pid()).is_some());
    node.finish().await;
}
