//! Port-forward.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::client::{Socket, all, ask_websocket, spdy};
use super::world::{LONG, World, settings, soon};
use crate::streaming::Settings;
use crate::streaming::spdy::{Connection, Handle, Headers, Limits, Stream};
use crate::streaming::tunnel::Tunnel;

const PROTOCOL: &str = "portforward.k8s.io";

/// A server that sends everything back, then says goodbye.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.write_all(b"bye").await.unwrap();
            });
        }
    });
    port
}

/// A port where nobody listens, nor will while the socket is there.
fn nobody() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn open(handle: &Handle, kind: &str, port: u16, request: u32) -> Stream {
    let headers = Headers::new().with("streamType", kind).with("port", &port.to_string());
    handle.open(headers.with("requestID", &request.to_string()), false).unwrap()
}

async fn many(handle: &Handle, port: u16) {
    let mut tasks = Vec::new();
    for request in 0..20 {
        let (error, mut data) = (open(handle, "error", port, request), open(handle, "data", port, request));
        tasks.push(tokio::spawn(async move {
            let sent = request.to_le_bytes().repeat(50_000);
            let (mut read, mut write) = tokio::io::split(&mut data);
            let mut got = Vec::new();
            let send = async {
                write.write_all(&sent).await.unwrap();
                // Only this half: the answer is still to come.
                write.shutdown().await.unwrap();
            };
            tokio::join!(send, async { soon(read.read_to_end(&mut got)).await.unwrap() });
            assert!(got.strip_suffix(b"bye").unwrap() == sent);
            assert_eq!(all(error).await, b"");
        }));
    }
    for task in tasks {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn many_connections_at_once_each_with_both_halves() {
    let world = World::new();
    let handle = spdy(&world.ports(&[]), PROTOCOL).await;
    many(&handle, echo().await).await;
}

#[tokio::test]
async fn the_same_through_a_websocket() {
    let world = World::new();
    let answer = ask_websocket(&world.ports(&[]), "SPDY/3.1+portforward.k8s.io").await;
    assert_eq!((answer.code, answer.header("sec-websocket-protocol")), (101, Some("SPDY/3.1+portforward.k8s.io")));
    let socket = WebSocketStream::from_raw_socket(answer.socket, Role::Client, None).await;
    let handle = Connection::client(Tunnel::over(socket), Limits::default()).0;
    many(&handle, echo().await).await;
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_and_harms_no_other() {
    let world = World::new();
    let handle = spdy(&world.ports(&[]), PROTOCOL).await;
    let ((_held, nobody), port) = (nobody(), echo().await);
    let (mut data, error) = (open(&handle, "data", nobody, 1), open(&handle, "error", nobody, 1));
    let words = String::from_utf8(all(error).await).unwrap();
    assert!(words.contains(&nobody.to_string()) && words.contains("refused"), "{words}");
    soon(data.read(&mut [0; 1])).await.unwrap_err();
    many(&handle, port).await;
}

#[tokio::test]
async fn wrong_and_lonely_streams_are_ended() {
    let world = World::with(Settings { creation_timeout: std::time::Duration::from_millis(200), ..settings() });
    let handle = spdy(&world.ports(&[]), PROTOCOL).await;
    for (kind, port) in [("data", "0"), ("data", "x"), ("error", "70000"), ("stdin", "80")] {
        let headers = Headers::new().with("streamType", kind).with("port", port).with("requestID", "1");
        soon(handle.open(headers, false).unwrap().reply()).await.unwrap_err();
    }
    let lonely = open(&handle, "error", 80, 2);
    assert!(String::from_utf8(all(lonely).await).unwrap().contains("in time"));
    soon(open(&handle, "data", 80, 3).read(&mut [0; 1])).await.unwrap_err();
    // Clients without names for requests open the error stream, then the data stream.
    let port = echo().await;
    let open = |kind: &str| {
        let headers = Headers::new().with("streamType", kind).with("port", &port.to_string());
        handle.open(headers, false).unwrap()
    };
    let (_error, mut data) = (open("error"), open("data"));
    data.write_all(b"x").await.unwrap();
    assert_eq!(tokio::time::timeout(LONG, data.read_u8()).await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn channels_of_a_websocket() {
    let world = World::new();
    let (port, (_held, nobody)) = (echo().await, nobody());
    let mut socket = Socket::open(&world.ports(&[port, nobody]), "v4.channel.k8s.io").await;
    for (channel, port) in [(0, port), (1, port), (2, nobody), (3, nobody)] {
        assert_eq!(socket.next().await, (channel, port.to_le_bytes().to_vec().into()));
    }
    let (channel, words) = socket.next().await;
    assert!(channel == 3 && String::from_utf8_lossy(&words).contains("refused"), "{words:?}");
    socket.send(b"\0hello").await;
    assert_eq!(socket.next().await, (0, "hello".into()));
}
