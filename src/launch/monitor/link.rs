//! One connection: frames out, answers back to whoever asked, events to whoever listens.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::warn;

use super::{LaunchError, MonitorEvent};
use crate::sys::rights;
use crate::types::{ErrorKind, PodId};
use crate::wire::codec::{self, MAX_CALL};
use crate::wire::{Call, Failure, Message, Reply, Request};

/// Frames that wait to be written before callers have to.
const BACKLOG: usize = 64;

/// Buffer that is kept between messages, bytes.
const KEEP: usize = 16 * 1024;

type Answer = oneshot::Sender<Result<Reply, Failure>>;

/// A connection.
#[derive(Debug)]
pub struct Link {
    pod: PodId,
    frames: mpsc::Sender<Frame>,
    calls: Arc<Calls>,
    reader: JoinHandle<()>,
}

/// A call as it is written. The descriptors are closed once they are sent.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// Calls that wait for their answers; `None` once the connection is gone.
#[derive(Debug)]
struct Calls {
    waiting: Mutex<Option<Waiting>>,
    /// How often something was read.
    heard: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, Answer>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Option<Waiting>> {
        // Nobody can leave the map half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The writer ends with its queue; the reader must be told.
        self.reader.abort();
    }
}

impl Link {
    /// Serves `stream` with two tasks; events go to `tell`.
    pub fn new(pod: PodId, stream: UnixStream, tell: mpsc::UnboundedSender<MonitorEvent>) -> Self {
        let (input, output) = stream.into_split();
        let (frames, queue) = mpsc::channel(BACKLOG);
        let calls = Arc::new(Calls { waiting: Mutex::new(Some(Waiting::default())), heard: AtomicU64::new(0) });
        tokio::spawn(write(output, queue));
        let reader = tokio::spawn(serve(pod.clone(), input, Arc::clone(&calls), tell));
        Self { pod, frames, calls, reader }
    }

    /// Which pod's.
    pub fn pod(&self) -> &PodId {
        &self.pod
    }

    /// Another number than before: something has been heard since.
    pub fn heard(&self) -> u64 {
        self.calls.heard.load(Ordering::Relaxed)
    }

    /// Asks and waits for the answer.
    pub async fn call(&self, mut request: Request) -> Result<Reply, LaunchError> {
        let descriptors = request.descriptors().map(std::mem::take).unwrap_or_default();
        let gone = || LaunchError::Gone(self.pod.clone());
        let (answer, wait) = oneshot::channel();
        let id = {
            let mut calls = self.calls.lock();
            let waiting = calls.as_mut().ok_or_else(gone)?;
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, answer);
            id
        };
        if let Err(error) = self.send(&Call { id, request, descriptors: descriptors.len() }, descriptors).await {
            if let Some(waiting) = self.calls.lock().as_mut() {
                waiting.answers.remove(&id);
            }
            return Err(error);
        }
        // A caller that gives up leaves its place in the map, which the answer clears.
        Ok(wait.await.map_err(|_| gone())??)
    }

    async fn send(&self, call: &Call, descriptors: Vec<OwnedFd>) -> Result<(), LaunchError> {
        let bytes = codec::encode(call).map_err(|error| {
            LaunchError::Refused(Failure { kind: ErrorKind::InvalidArgument, message: error.to_string() })
        })?;
        let length = bytes.len() - 4;
        if length > MAX_CALL {
            return Err(LaunchError::TooLong { pod: self.pod.clone(), length, limit: MAX_CALL });
        }
        self.frames.send(Frame { bytes, descriptors }).await.map_err(|_| LaunchError::Gone(self.pod.clone()))
    }
}

async fn write(mut output: OwnedWriteHalf, mut queue: mpsc::Receiver<Frame>) {
    while let Some(frame) = queue.recv().await {
        // The reader sees the end, too, and tells those who wait.
        if write_frame(&mut output, &frame).await.is_err() {
            return;
        }
    }
}

async fn write_frame(output: &mut OwnedWriteHalf, frame: &Frame) -> io::Result<()> {
    let mut sent = 0;
    if !frame.descriptors.is_empty() {
        let socket = output.as_ref();
        let descriptors: Vec<_> = frame.descriptors.iter().map(|fd| fd.as_fd()).collect();
        let send = || rights::send(socket, &frame.bytes, &descriptors);
        sent = socket.async_io(Interest::WRITABLE, send).await?;
    }
    output.write_all(&frame.bytes[sent..]).await
}

async fn serve(pod: PodId, input: OwnedReadHalf, calls: Arc<Calls>, tell: mpsc::UnboundedSender<MonitorEvent>) {
    if let Err(error) = read(input, &calls, &tell).await
        && error.kind() != io::ErrorKind::ConnectionReset
    {
        warn!(%pod, %error, "connection to monitor lost");
    }
    // Dropping the senders tells those who wait.
    drop(calls.lock().take());
    // Nobody may be listening.
    let _ = tell.send(MonitorEvent::Gone);
}

async fn read(mut input: OwnedReadHalf, calls: &Calls, tell: &mpsc::UnboundedSender<MonitorEvent>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        buffer.reserve(4096);
        if input.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        calls.heard.fetch_add(1, Ordering::Relaxed);
        let mut used = 0;
        while let Some((message, length)) = codec::decode::<Message>(&buffer[used..]).map_err(io::Error::other)? {
            used += length;
            deliver(message, calls, tell);
        }
        buffer.drain(..used);
        if buffer.is_empty() {
            buffer.shrink_to(KEEP);
        }
    }
}

fn deliver(message: Message, calls: &Calls, tell: &mpsc::UnboundedSender<MonitorEvent>) {
    match message {
        Message::Answer { id, result } => {
            let answer = calls.lock().as_mut().and_then(|waiting| waiting.answers.remove(&id));
            if let Some(answer) = answer {
                // The caller may have given up.
                let _ = answer.send(result);
            }
        }
        Message::Event(event) => {
            // Nobody may be listening.
            let _ = tell.send(event.into());
        }
    }
}
