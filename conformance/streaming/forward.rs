//! Port-forward: to servers on a pod's loopback addresses, of which the test has the other end.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream as Std};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use podwright::streaming::spdy::{Connection, Handle, Headers, Limits, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::client::{Socket, ask_websocket, forward_url, soon, spdy};
use crate::harness::{Node, Pod};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// A server in a pod's network that sends everything back and then says goodbye; its port.
fn echo(node: &Node, pod: &Pod, address: &str) -> u16 {
    let listener = listen(node, pod, address);
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(socket) = socket else { return };
            std::thread::spawn(move || serve(socket));
        }
    });
    port
}

fn serve(mut socket: Std) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        if socket.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = socket.write_all(b"bye");
    let _ = socket.shutdown(Shutdown::Write);
}

/// A socket that listens in a pod's network.
pub fn listen(node: &Node, pod: &Pod, address: &str) -> TcpListener {
    let file = format!("/proc/{}/ns/net", node.pid_in(&pod.id, "pause"));
    let network = std::fs::File::open(file).unwrap();
    let address = format!("{address}:0");
    let bind = move || {
        nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind(address).unwrap()
    };
    std::thread::spawn(bind).join().unwrap()
}

/// A port in a pod's network where nobody listens.
fn nobody(node: &Node, pod: &Pod) -> u16 {
    listen(node, pod, "127.0.0.1").local_addr().unwrap().port()
}

/// A connection to a port: its data and its error stream.
fn open(handle: &Handle, port: u16, request: u32) -> (Stream, Stream) {
    let open = |kind| {
        let headers = Headers::new().with("streamType", kind).with("port", &port.to_string());
        handle.open(headers.with("requestID", &request.to_string()), false).unwrap()
    };
    let error = open("error");
    (open("data"), error)
}

async fn rest(mut stream: Stream) -> Vec<u8> {
    let mut got = Vec::new();
    soon(stream.read_to_end(&mut got)).await.unwrap();
    got
}

/// Half-close: everything comes back after the client has said its last.
async fn talk(handle: &Handle, port: u16, request: u32, length: u32) {
    let (data, error) = open(handle, port, request);
    let sent: Vec<u8> = (0..length).map(|n| (n ^ (n >> 8) ^ request) as u8).collect();
    let (mut read, mut write) = tokio::io::split(data);
    let mut got = Vec::new();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    soon(async { tokio::join!(send, async { read.read_to_end(&mut got).await.unwrap() }) }).await;
    assert!(got.strip_suffix(b"bye").unwrap() == sent, "connection {request}");
    assert_eq!(rest(error).await, b"");
}

/// A client of the tunnel.
async fn tunnel(url: &str) -> Handle {
    let answer = ask_websocket(url, TUNNEL).await;
    assert_eq!(answer.code, 101, "{}", answer.head);
    let socket = WebSocketStream::from_raw_socket(answer.socket, Role::Client, None).await;
    Connection::client(Tunnel(socket, Bytes::new()), Limits::default()).0
}

async fn refused(handle: &Handle, port: u16, request: u32) {
    let (_data, error) = open(handle, port, request);
    let words = String::from_utf8(rest(error).await).unwrap();
    assert!(words.contains("refused") && words.contains(&port.to_string()), "{words:?}");
}

async fn whole(node: &Node, pod: &Pod, handle: Handle) {
    let handle = &handle;
    let (four, six) = (echo(node, pod, "127.0.0.1"), echo(node, pod, "[::1]"));
    talk(handle, four, 0, 100_000).await;
    talk(handle, six, 1, 100_000).await;
    refused(handle, nobody(node, pod), 2).await;
    // A refusal harms no other connection.
    futures_util::future::join_all((3..103).map(|request| talk(handle, four, request, 20_000))).await;
    talk(handle, four, 103, 8 << 20).await;
}

#[tokio::test]
async fn over_spdy() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("spdy")).await;
    let handle = spdy(&forward_url(&node, &pod, &[]).await, PROTOCOL).await;
    whole(&node, &pod, handle).await;
    node.finish().await;
}

#[tokio::test]
async fn over_spdy_in_a_websocket() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("tunnel")).await;
    let handle = tunnel(&forward_url(&node, &pod, &[]).await).await;
    whole(&node, &pod, handle).await;
    node.finish().await;
}

#[tokio::test]
async fn into_the_host_s_network() {
    let node = Node::ready().await;
    let pod = node.up(node.host_pod("host")).await;
    let handle = spdy(&forward_url(&node, &pod, &[]).await, PROTOCOL).await;
    whole(&node, &pod, handle).await;
    node.finish().await;
}

/// A server that says goodbye at once and goes on listening, as those do that tell the end by it.
#[tokio::test]
async fn the_pod_s_end_is_told_before_the_client_ends() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("end")).await;
    for kind in ["spdy", "tunnel"] {
        let url = forward_url(&node, &pod, &[]).await;
        let handle = if kind == "spdy" { spdy(&url, PROTOCOL).await } else { tunnel(&url).await };
        let listener = listen(&node, &pod, "127.0.0.1");
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            socket.write_all(b"bye").unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            let mut heard = String::new();
            socket.read_to_string(&mut heard).unwrap();
            heard
        });
        let (data, error) = open(&handle, port, 1);
        let (mut read, mut write) = tokio::io::split(data);
        let mut got = Vec::new();
        soon(read.read_to_end(&mut got)).await.unwrap();
        assert_eq!((got.as_slice(), rest(error).await.as_slice()), (&b"bye"[..], &b""[..]), "{kind}");
        // The other half goes on.
        write.write_all(b"later").await.unwrap();
        write.shutdown().await.unwrap();
        assert_eq!(soon(tokio::task::spawn_blocking(|| server.join().unwrap())).await.unwrap(), "later", "{kind}");
    }
    node.finish().await;
}

#[tokio::test]
async fn over_channels_of_a_websocket() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("channels")).await;
    let (four, six, nobody) = (echo(&node, &pod, "127.0.0.1"), echo(&node, &pod, "[::1]"), nobody(&node, &pod));
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
        let mut socket = Socket::open(&forward_url(&node, &pod, &[four, six, nobody]).await, protocol).await;
        let mut heads = Vec::new();
        let mut words = String::new();
        while heads.len() < 6 || words.is_empty() {
            match soon(socket.next()).await.unwrap() {
                (channel, data) if data.len() == 2 => heads.push((channel, u16::from_le_bytes([data[0], data[1]]))),
                (5, data) => words = String::from_utf8(data).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(heads, [(0, four), (1, four), (2, six), (3, six), (4, nobody), (5, nobody)]);
        assert!(words.contains("refused"), "{words:?}");
        socket.send(0, b"four").await;
        assert_eq!(soon(socket.next()).await, Some((0, b"four".to_vec())));
        socket.send(2, b"six").await;
        assert_eq!(soon(socket.next()).await, Some((2, b"six".to_vec())));
    }
    node.finish().await;
}

#[tokio::test]
async fn a_pod_that_is_stopped_meanwhile() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("stopped")).await;
    let ctr = node.launch(&pod, node.sh("c", "echo up; nc -l -p 8080; sleep 1000")).await;
    node.logged(&ctr, "up").await;
    let handle = spdy(&forward_url(&node, &pod, &[]).await, PROTOCOL).await;
    crate::harness::eventually(crate::harness::secs(10), "a server in the pod", async || {
        // Port 8080, state LISTEN.
        let table = node.exec(&ctr, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]).await;
        if table.lines().any(|line| line.contains(":1F90 ") && line.contains(" 0A ")) { Ok(()) } else { Err(table) }
    })
    .await;
    let (mut data, _error) = open(&handle, 8080, 0);
    soon(data.write_all(b"a line\n")).await.unwrap();
    node.logged(&ctr, "a line").await;
    let unused = forward_url(&node, &pod, &[]).await;
    node.stop_pod(&pod.id).await.unwrap();
    let mut byte = [0];
    let end = soon(data.read(&mut byte)).await;
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    let (_again, reason) = open(&handle, 8080, 1);
    let words = String::from_utf8(rest(reason).await).unwrap();
    assert!(!words.is_empty());
    println!("a new connection: {words}");
    let late = spdy(&unused, PROTOCOL).await;
    let (_late, reason) = open(&late, 8080, 0);
    let words = String::from_utf8(rest(reason).await).unwrap();
    assert!(!words.is_empty());
    println!("a new client: {words}");
    drop((handle, late, data, _error, _again, _late));
    node.finish().await;
}

/// SPDY in the messages of a WebSocket.
struct Tunnel(WebSocketStream<TcpStream>, Bytes);

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        while self.1.is_empty() {
            match std::task::ready!(Pin::new(&mut self.0).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.1 = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(std::io::Error::other(error))),
            }
        }
        let count = self.1.len().min(buf.remaining());
        buf.put_slice(&self.1.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        std::task::ready!(Pin::new(&mut self.0).poll_ready(cx)).map_err(std::io::Error::other)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.0).start_send(message).map_err(std::io::Error::other)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx).map_err(std::io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx).map_err(std::io::Error::other)
    }
}
