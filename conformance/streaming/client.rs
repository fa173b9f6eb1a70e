//! Clients of the streaming server as strangers write them: SPDY with the library's client role, WebSocket with tungstenite.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use podwright::proto::*;
use podwright::streaming::spdy::{Connection, Handle, Headers, Limits, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::harness::{Ctr, Node, Pod, eventually, host, secs, specs};

/// What should not take long.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(secs(60), future).await.expect("an answer in time")
}

/// The URL of an exec with standard input and all outputs.
pub async fn exec_url(node: &Node, ctr: &Ctr, command: &[&str], tty: bool) -> String {
    let (container_id, cmd) = (ctr.id.clone(), specs::args(command));
    let request = ExecRequest { container_id, cmd, tty, stdin: true, stdout: true, stderr: !tty };
    node.cri().runtime().exec(request).await.unwrap().into_inner().url
}

/// The URL of a shell script's exec.
pub async fn script_url(node: &Node, ctr: &Ctr, script: &str) -> String {
    exec_url(node, ctr, &["sh", "-c", script], false).await
}

/// The URL of an attach.
pub async fn attach_url(node: &Node, ctr: &Ctr, stdin: bool, tty: bool) -> String {
    let container_id = ctr.id.clone();
    let request = AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
    node.cri().runtime().attach(request).await.unwrap().into_inner().url
}

/// The URL of a port-forward.
pub async fn forward_url(node: &Node, pod: &Pod, port: &[u16]) -> String {
    let port = port.iter().map(|&port| i32::from(port)).collect();
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port };
    node.cri().runtime().port_forward(request).await.unwrap().into_inner().url
}

/// An answer to a request.
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub socket: TcpStream,
}

/// Sends a request with these headers; reads the answer's head, and not a byte more.
pub async fn ask(method: &str, url: &str, headers: &str) -> Answer {
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(authority).await.unwrap();
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\n{headers}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(socket.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { code, head, socket }
}

/// Asks for SPDY.
pub async fn ask_spdy(url: &str, protocol: &str) -> Answer {
    ask("POST", url, &format!("Upgrade: SPDY/3.1\r\nContent-Length: 0\r\nX-Stream-Protocol-Version: {protocol}")).await
}

/// Asks for a WebSocket; an empty protocol is none.
pub async fn ask_websocket(url: &str, protocol: &str) -> Answer {
    let mut headers = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        .to_owned();
    if !protocol.is_empty() {
        headers += &format!("\r\nSec-WebSocket-Protocol: {protocol}");
    }
    ask("GET", url, &headers).await
}

/// A connection that speaks SPDY.
pub async fn spdy(url: &str, protocol: &str) -> Handle {
    let answer = ask_spdy(url, protocol).await;
    assert_eq!(answer.code, 101, "{}", answer.head);
    assert!(answer.head.to_lowercase().contains(&format!("x-stream-protocol-version: {protocol}\r\n")));
    Connection::client(answer.socket, Limits::default()).0
}

/// Exec or attach over SPDY; a stream is taken out by whoever uses it.
pub struct Spdy {
    pub handle: Handle,
    streams: HashMap<&'static str, Stream>,
}

impl Spdy {
    /// Opens the streams named, in that order.
    pub async fn open(url: &str, protocol: &str, kinds: &[&'static str]) -> Self {
        let handle = spdy(url, protocol).await;
        let open = |kind: &&'static str| (*kind, handle.open(Headers::new().with("streamType", kind), false).unwrap());
        let streams = kinds.iter().map(open).collect();
        Self { handle, streams }
    }

    pub fn take(&mut self, kind: &str) -> Stream {
        self.streams.remove(kind).unwrap()
    }

    pub async fn write(&mut self, text: &str) {
        soon(self.streams.get_mut("stdin").unwrap().write_all(text.as_bytes())).await.unwrap();
    }

    pub async fn end_input(&mut self) {
        soon(self.streams.get_mut("stdin").unwrap().shutdown()).await.unwrap();
    }

    pub async fn resize(&mut self, columns: u16, rows: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
        soon(self.streams.get_mut("resize").unwrap().write_all(size.as_bytes())).await.unwrap();
    }

    /// Reads output until it holds `text`.
    pub async fn until(&mut self, text: &str) -> String {
        let stream = self.streams.get_mut("stdout").unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            match tokio::time::timeout(secs(30), stream.read_u8()).await {
                Ok(Ok(byte)) => seen.push(byte),
                other => panic!("{other:?} before {text:?} in {:?}", String::from_utf8_lossy(&seen)),
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Everything to the end: output, error output, status.
    pub async fn rest(mut self) -> [String; 3] {
        let kinds = ["stdout", "stderr", "error"].map(|kind| self.streams.remove(kind));
        let [out, err, status] = kinds.map(|stream| async {
            let mut got = Vec::new();
            if let Some(mut stream) = stream {
                soon(stream.read_to_end(&mut got)).await.unwrap();
            }
            String::from_utf8_lossy(&got).into_owned()
        });
        let (out, err, status) = tokio::join!(out, err, status);
        [out, err, status]
    }
}

/// Exec or attach over WebSocket: the first byte of a message tells its channel.
pub struct Socket {
    socket: WebSocketStream<TcpStream>,
    base64: bool,
}

impl Socket {
    pub async fn open(url: &str, protocol: &str) -> Self {
        let answer = ask_websocket(url, protocol).await;
        assert_eq!(answer.code, 101, "{}", answer.head);
        let told = format!("sec-websocket-protocol: {protocol}\r\n");
        assert!(protocol.is_empty() || answer.head.to_lowercase().contains(&told.to_lowercase()), "{}", answer.head);
        let socket = WebSocketStream::from_raw_socket(answer.socket, Role::Client, None).await;
        Self { socket, base64: protocol.contains("base64") }
    }

    /// The WebSocket itself.
    pub fn into_inner(self) -> WebSocketStream<TcpStream> {
        self.socket
    }

    pub async fn send(&mut self, channel: u8, data: &[u8]) {
        let message = if self.base64 {
            Message::text(format!("{channel}{}", STANDARD.encode(data)))
        } else {
            Message::Binary([&[channel], data].concat().into())
        };
        soon(self.socket.send(message)).await.unwrap();
    }

    pub async fn write(&mut self, text: &str) {
        self.send(0, text.as_bytes()).await;
    }

    /// v5 only.
    pub async fn end_input(&mut self) {
        self.send(255, &[0]).await;
    }

    pub async fn resize(&mut self, columns: u16, rows: u16) {
        self.send(4, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes()).await;
    }

    /// The next message: channel and data.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            return match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => Some((bytes[0], bytes[1..].to_vec())),
                Some(Ok(Message::Text(text))) => {
                    let (channel, data) = text.as_bytes().split_first().unwrap();
                    Some((channel - b'0', STANDARD.decode(data).unwrap()))
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => None,
                Some(Ok(_)) => continue,
            };
        }
    }

    /// Reads until output holds `text`, or to the end: output, error output, status.
    pub async fn until(&mut self, text: Option<&str>) -> [String; 3] {
        let mut got = [Vec::new(), Vec::new(), Vec::new()];
        let text_of = |got: &[Vec<u8>; 3]| got.each_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        while !text.is_some_and(|text| text_of(&got)[0].contains(text)) {
            let next = tokio::time::timeout(secs(30), self.next()).await;
            match next.unwrap_or_else(|_| panic!("{text:?} in {:?}", text_of(&got))) {
                Some((channel @ 1..=3, data)) => got[usize::from(channel) - 1].extend_from_slice(&data),
                Some((channel, _)) => panic!("channel {channel}"),
                None => break,
            }
        }
        text_of(&got)
    }
}

/// The code in a status of v4 and later; `None`: success.
pub fn code_of(status: &str) -> Option<i32> {
    let status: serde_json::Value = serde_json::from_str(status).unwrap_or_else(|_| panic!("status {status:?}"));
    assert_eq!(status["metadata"], serde_json::json!({}), "{status}");
    if status["status"] == "Success" {
        return None;
    }
    assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()), "{status}");
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["reason"], "ExitCode", "{status}");
    Some(cause["message"].as_str().unwrap().parse().unwrap())
}

fn running(command: &str) -> Vec<host::Process> {
    host::descendants().into_iter().filter(|p| p.command.starts_with(command) && p.state != 'Z').collect()
}

/// Waits until a process with this command line runs.
pub async fn there(command: &str) {
    let one = async || if running(command).is_empty() { Err("none".to_owned()) } else { Ok(()) };
    eventually(secs(10), command, one).await;
}

/// Waits until no process with this command line runs any more.
pub async fn gone(command: &str) {
    let none = async || {
        let left = running(command);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    };
    eventually(secs(15), &format!("the end of {command:?}"), none).await;
}

/// Most memory that a process ever had, KiB.
pub fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
