//! The module against itself, and against peers that do as they are told.

mod abuse;
mod codec;
mod flow;
mod streams;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

/// A peer frame by frame.
struct Raw {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    input: Vec<u8>,
}

/// What a [`Raw`] peer gets.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Frame(Frame),
    Data { stream: u32, data: Vec<u8>, fin: bool },
    End,
}

impl Raw {
    fn new(io: DuplexStream) -> Raw {
        let limits = Limits { compress: true, ..Limits::default() };
        Raw { io, encoder: Encoder::new(&limits).unwrap(), decoder: Decoder::new(&limits), input: Vec::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut out = Vec::new();
        self.encoder.control(&frame, &mut out).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    async fn syn(&mut self, stream: u32) {
        let headers = Headers::new().with("streamtype", "data");
        self.send(Frame::SynStream { stream, associated: 0, priority: 0, fin: false, unidirectional: false, headers })
            .await;
    }

    async fn data(&mut self, stream: u32, data: &[u8], fin: bool) {
        self.try_data(stream, data, fin).await.unwrap();
    }

    async fn try_data(&mut self, stream: u32, data: &[u8], fin: bool) -> std::io::Result<()> {
        let mut out = Vec::new();
        Encoder::data(stream, data.len(), fin, &mut out);
        out.extend_from_slice(data);
        self.io.write_all(&out).await
    }

    /// Says that it heeds windows.
    async fn heed(&mut self) {
        self.send(Frame::Settings { clear: false, entries: vec![(INITIAL_WINDOW_SIZE, INITIAL_WINDOW)] }).await;
    }

    /// The next frame, whatever it is.
    async fn any(&mut self) -> Got {
        loop {
            if let Some((used, input)) = self.decoder.decode(&self.input).unwrap() {
                let got = match input {
                    Input::Control(frame) => Got::Frame(frame),
                    Input::Data { stream, data, fin } => Got::Data { stream, data: data.to_vec(), fin },
                    Input::Unknown => panic!("unknown frame"),
                };
                self.input.drain(..used);
                return got;
            }
            if self.io.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return Got::End;
            }
        }
    }

    /// The next frame that is no announcement of windows and no ping.
    async fn next(&mut self) -> Got {
        loop {
            match self.any().await {
                Got::Frame(Frame::Settings { .. } | Frame::WindowUpdate { .. } | Frame::Ping(_)) => {}
                got => return got,
            }
        }
    }
}

/// A server and the peer it speaks with.
fn server(limits: Limits) -> (Handle, Incoming, Raw) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (handle, incoming) = Connection::server(near, limits);
    (handle, incoming, Raw::new(far))
}

/// A server, and a client to it.
fn pair(limits: Limits) -> ((Handle, Incoming), (Handle, Incoming)) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = Limits { compress: true, ..limits.clone() };
    (Connection::server(near, limits), Connection::client(far, client))
}

async fn soon<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}
