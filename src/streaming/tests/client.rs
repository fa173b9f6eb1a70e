//! Our own clients, small and strict.

use std::collections::HashMap;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};

use super::world::soon;
use crate::streaming::spdy::{Connection, Handle, Headers, Limits, Stream};

/// An answer to a request.
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub socket: TcpStream,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let fits = |line: &&str| line.split_once(':').is_some_and(|(have, _)| have.eq_ignore_ascii_case(name));
        Some(self.head.lines().find(fits)?.split_once(':')?.1.trim())
    }
}

/// Sends a request with these headers; reads the answer's head, and not a byte more.
pub async fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let mut request = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    socket.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(socket.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { code, head, socket }
}

pub async fn ask_spdy(url: &str, protocols: &[&str]) -> Answer {
    let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("Content-Length", "0")];
    headers.extend(protocols.iter().map(|protocol| ("X-Stream-Protocol-Version", *protocol)));
    ask("POST", url, &headers).await
}

pub async fn ask_websocket(url: &str, protocols: &str) -> Answer {
    let key = base64::engine::general_purpose::STANDARD.encode([7; 16]);
    let mut headers = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key.as_str()),
    ];
    if !protocols.is_empty() {
        headers.push(("Sec-WebSocket-Protocol", protocols));
    }
    ask("GET", url, &headers).await
}

/// An SPDY client.
pub async fn spdy(url: &str, protocol: &str) -> Handle {
    let answer = ask_spdy(url, &[protocol]).await;
    assert_eq!((answer.code, answer.header("x-stream-protocol-version")), (101, Some(protocol)), "{}", answer.head);
    Connection::client(answer.socket, Limits::default()).0
}

/// Opens a stream of that type.
pub fn open(handle: &Handle, kind: &str) -> Stream {
    handle.open(Headers::new().with("streamType", kind), false).unwrap()
}

/// All that comes on a stream.
pub async fn all(mut stream: Stream) -> Vec<u8> {
    let mut got = Vec::new();
    soon(stream.read_to_end(&mut got)).await.unwrap();
    got
}

/// A WebSocket client.
pub struct Socket(pub WebSocketStream<TcpStream>);

impl Socket {
    pub async fn open(url: &str, protocol: &str) -> Self {
        let answer = ask_websocket(url, protocol).await;
        let told = answer.header("sec-websocket-protocol").unwrap_or_default();
        assert_eq!((answer.code, told), (101, protocol), "{}", answer.head);
        Self(WebSocketStream::from_raw_socket(answer.socket, Role::Client, None).await)
    }

    pub async fn send(&mut self, payload: &[u8]) {
        self.0.send(Message::Binary(Bytes::copy_from_slice(payload))).await.unwrap();
    }

    /// The next message's channel and data.
    pub async fn next(&mut self) -> (u8, Bytes) {
        loop {
            match soon(self.0.next()).await.unwrap().unwrap() {
                Message::Binary(mut bytes) => {
                    let channel = bytes.split_to(1)[0];
                    return (channel, bytes);
                }
                Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// All that comes, by channel, up to the close frame.
    pub async fn rest(mut self) -> (HashMap<u8, Vec<u8>>, Option<CloseFrame>) {
        let mut got: HashMap<u8, Vec<u8>> = HashMap::new();
        loop {
            match soon(self.0.next()).await {
                Some(Ok(Message::Binary(bytes))) => got.entry(bytes[0]).or_default().extend(&bytes[1..]),
                Some(Ok(Message::Text(text))) => {
                    let (channel, data) = text.as_bytes().split_first().unwrap();
                    let data = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
                    got.entry(channel - b'0').or_default().extend(data);
                }
                Some(Ok(Message::Close(frame))) => return (got, frame),
                Some(Ok(_)) => {}
                other => panic!("no close frame: {other:?}; {got:?}"),
            }
        }
    }
}

/// A status as JSON.
pub fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}
