//! The task that moves a connection's bytes. It never waits for a stream: what cannot go on waits in the
//! core, within its limits.

use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::super::decode::{Decoder, Input};
use super::super::encode::Encoder;
use super::super::error::End;
use super::super::frame::Frame;
use super::super::limits::Limits;
use super::Shared;
use super::core::Core;
use super::pace::Pace;

/// What is encoded before it is written: bytes, and one frame.
const OUT: usize = 64 * 1024;
/// What is read at once: bytes, if no control frame needs more.
const IN: usize = 64 * 1024;
/// The size of a PING: bytes.
const PING: usize = 12;
/// The timer's period when there is nothing to wait for.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// How far a connection is.
#[derive(Debug)]
enum Phase {
    Open,
    /// The application closed it; what was written is on its way.
    Closing,
    /// The goodbye is on its way, and the end of the transport after it.
    Farewell(End),
    /// The peer is waited for. A socket closed before the peer's last bytes were read would reset the
    /// connection, and the peer might lose what it has not read of ours.
    Linger(End),
}

pub(super) struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    limits: Limits,
    decoder: Decoder,
    encoder: Option<Encoder>,
    input: Vec<u8>,
    /// The part of `input` that is to be decoded.
    filled: std::ops::Range<usize>,
    out: Vec<u8>,
    taken: usize,
    flush_due: bool,
    read_ended: bool,
    phase: Phase,
    /// When a frame came or went last, and when anything went.
    active: Instant,
    sent: Instant,
    /// When the phase began.
    since: Instant,
    pace: Pace,
    /// Since when the beginning of a control frame waits for its rest.
    partial: Option<Instant>,
    /// All there is to send is a ping of this end.
    pinging: bool,
    timer: Pin<Box<Sleep>>,
    ended: watch::Sender<Option<End>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(io: T, shared: Arc<Shared>, limits: &Limits, ended: watch::Sender<Option<End>>) -> Driver<T> {
        let now = Instant::now();
        let decoder = Decoder::new(limits);
        Driver {
            io,
            shared,
            input: vec![0; decoder.most().max(IN)],
            decoder,
            encoder: Encoder::new(limits).ok(),
            limits: limits.clone(),
            filled: 0..0,
            out: Vec::new(),
            taken: 0,
            flush_due: false,
            read_ended: false,
            phase: Phase::Open,
            active: now,
            sent: now,
            since: now,
            pace: Pace::new(limits.idle_frames, now),
            partial: None,
            pinging: false,
            timer: Box::pin(tokio::time::sleep(NEVER)),
            ended,
        }
    }

    /// Does what can be done now; ready when the connection is over.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        {
            let mut core = self.shared.lock();
            if !core.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                core.driver = Some(cx.waker().clone());
            }
        }
        loop {
            match self.round(cx) {
                Ok(true) => {}
                Ok(false) if self.wait(cx).is_pending() => return Poll::Pending,
                Ok(false) => {
                    if let Some(end) = self.expire() {
                        return Poll::Ready(end);
                    }
                }
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// Writes once, decodes what there is, reads once, and goes on to the next phase if it is time; whether anything moved.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let wrote = self.write(cx)?;
        let read = self.read(cx)?;
        let advanced = self.advance(cx)?;
        Ok(wrote || read || advanced)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.taken == self.out.len() {
            self.out.clear();
            self.taken = 0;
            let mut core = self.shared.lock();
            let Some(encoder) = &mut self.encoder else { return Err(End::Io("zlib does not start".to_owned())) };
            core.fill(encoder, &mut self.out, OUT).map_err(|error| End::Io(error.to_string()))?;
        }
        if self.out.is_empty() {
            self.out = Vec::new();
            if self.flush_due && io(Pin::new(&mut self.io).poll_flush(cx))?.is_some() {
                self.flush_due = false;
            }
            return Ok(false);
        }
        let rest = &self.out[self.taken..];
        let Some(len) = io(Pin::new(&mut self.io).poll_write(cx, rest))? else { return Ok(false) };
        if len == 0 {
            return Err(End::Io("the transport takes nothing".to_owned()));
        }
        self.sent = Instant::now();
        if !(self.pinging && self.out.len() == PING) {
            self.active = self.sent;
        }
        self.taken += len;
        self.flush_due = true;
        self.pinging = false;
        self.shared.lock().on_written(len);
        Ok(true)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.read_ended {
            return Ok(false);
        }
        let before = self.filled.start;
        let open = !matches!(self.phase, Phase::Farewell(_) | Phase::Linger(_));
        if !open {
            self.filled = 0..0;
        } else if !self.decode() {
            return Ok(self.filled.start > before);
        }
        // What was decoded may have answers, which are to be written; so has what could not be decoded.
        let decoded = self.filled.start > before || (open && matches!(self.phase, Phase::Farewell(_)));
        self.input.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        let mut space = ReadBuf::new(&mut self.input[self.filled.end..]);
        if io(Pin::new(&mut self.io).poll_read(cx, &mut space))?.is_none() {
            return Ok(decoded);
        }
        let len = space.filled().len();
        self.filled.end += len;
        self.read_ended = len == 0;
        Ok(true)
    }

    /// Hands the frames that have come to the core; false if no more may be read for now.
    fn decode(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut core = shared.lock();
        loop {
            if core.paused() {
                self.partial = None;
                return false;
            }
            let bytes = &self.input[self.filled.clone()];
            let result = match self.decoder.decode(bytes) {
                Ok(None) => {
                    let partial = self.decoder.partial(bytes);
                    self.partial = if partial { self.partial.or_else(|| Some(Instant::now())) } else { None };
                    return true;
                }
                Ok(Some((used, input))) => {
                    self.filled.start += used;
                    self.partial = None;
                    let answer = matches!(input, Input::Control(Frame::Ping(id)) if !core.of_peer(id));
                    if !answer && matches!(self.phase, Phase::Open) {
                        self.active = Instant::now();
                    }
                    let moves = match input {
                        Input::Control(frame) => core.on_control(frame),
                        Input::Data { stream, data, fin } => {
                            core.on_data(stream, data, fin).map(|()| fin || !data.is_empty())
                        }
                        Input::Unknown => Ok(false),
                    };
                    moves.and_then(|moves| if moves { Ok(()) } else { self.pace.idle_frame(Instant::now()) })
                }
                Err(error) => Err(error.into()),
            };
            if let Err(end) = result {
                self.farewell(&mut core, end, 1);
                return true;
            }
        }
    }

    /// Goes to the next phase if this one is over.
    fn advance(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let shared = self.shared.clone();
        let mut core = shared.lock();
        let unsent = self.taken < self.out.len() || self.flush_due;
        match &self.phase {
            Phase::Open if core.closing => {
                self.phase = Phase::Closing;
                self.active = Instant::now();
            }
            Phase::Open if self.read_ended => return Err(if core.peer_goes { End::GoAway } else { End::Hangup }),
            Phase::Open if core.peer_goes && core.streams.is_empty() => self.farewell(&mut core, End::GoAway, 0),
            Phase::Closing if core.drained() && !unsent => self.farewell(&mut core, End::Closed, 0),
            Phase::Farewell(end) if core.control.is_empty() && !unsent => {
                let end = end.clone();
                drop(core);
                if io(Pin::new(&mut self.io).poll_shutdown(cx))?.is_none() {
                    return Ok(false);
                }
                self.phase = Phase::Linger(end);
                self.since = Instant::now();
            }
            Phase::Linger(end) if self.read_ended => return Err(end.clone()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Ends all streams and says goodbye to the peer.
    fn farewell(&mut self, core: &mut Core, end: End, status: u32) {
        let last = core.last_of_peer();
        core.end(end.clone());
        core.control.push_back(Frame::GoAway { last, status });
        self.phase = Phase::Farewell(end);
        self.since = Instant::now();
    }

    /// Waits for the next moment at which something is late.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let next = match &self.phase {
            Phase::Open => {
                let late = [
                    self.limits.idle.map(|time| self.active + time),
                    self.partial.map(|since| since + self.limits.frame_time),
                    self.limits.ping.map(|time| self.sent + time),
                ];
                late.into_iter().flatten().min()
            }
            Phase::Closing => Some(self.active + self.limits.drain),
            Phase::Farewell(_) | Phase::Linger(_) => Some(self.since + self.limits.linger),
        };
        // A moment that moves away is looked at when the timer fires, so that the timer is seldom set.
        if let Some(next) = next
            && (next < self.timer.deadline() || self.timer.is_elapsed())
        {
            self.timer.as_mut().reset(next);
        } else if self.timer.is_elapsed() {
            self.timer.as_mut().reset(Instant::now() + NEVER);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Does what is to be done when the timer fired; why the connection is over, if that ends it.
    fn expire(&mut self) -> Option<End> {
        let now = Instant::now();
        let late = |since: Instant, time: Duration| now >= since + time;
        let shared = self.shared.clone();
        let mut core = shared.lock();
        match &self.phase {
            Phase::Open => {
                if self.limits.idle.is_some_and(|time| late(self.active, time)) {
                    self.farewell(&mut core, End::Idle, 0);
                } else if self.partial.is_some_and(|since| late(since, self.limits.frame_time)) {
                    self.farewell(&mut core, End::SlowFrame, 1);
                } else if self.limits.ping.is_some_and(|time| late(self.sent, time)) {
                    self.sent = now;
                    // A peer that has not taken what was sent before shall not get pings on top.
                    if self.out.is_empty() && core.control.is_empty() {
                        core.ping();
                        self.pinging = true;
                    }
                }
                None
            }
            Phase::Closing => late(self.active, self.limits.drain).then_some(End::NotTaken),
            Phase::Farewell(end) | Phase::Linger(end) => late(self.since, self.limits.linger).then(|| end.clone()),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let end = ready!(self.drive(cx));
        self.over(end);
        Poll::Ready(())
    }
}

impl<T> Driver<T> {
    fn over(&mut self, end: End) {
        let end = {
            let mut core = self.shared.lock();
            core.end(end.clone());
            // What ended the streams is what the application is told, even if the goodbye failed later.
            core.ended.clone().unwrap_or(end)
        };
        self.ended.send_if_modified(|over| {
            let first = over.is_none();
            over.get_or_insert(end);
            first
        });
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        // With the runtime; otherwise it is over already.
        self.over(End::Hangup);
    }
}

/// The value, `None` if there is none yet, or the failure of the transport.
fn io<V>(poll: Poll<std::io::Result<V>>) -> Result<Option<V>, End> {
    match poll {
        Poll::Ready(Ok(value)) => Ok(Some(value)),
        Poll::Ready(Err(error)) => Err(match error.kind() {
            ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::UnexpectedEof => End::Hangup,
            _ => End::Io(error.to_string()),
        }),
        Poll::Pending => Ok(None),
    }
}
