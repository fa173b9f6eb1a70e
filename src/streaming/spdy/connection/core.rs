//! The state of a connection, and what a peer's frames do to it. No I/O: the driver brings frames in
//! (here) and takes them out (`output.rs`); streams read and write (`app.rs`).

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use super::super::error::End;
use super::super::frame::{Frame, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, ResetStatus};
use super::super::headers::Headers;
use super::super::limits::{INITIAL_WINDOW, Limits, MAX_WINDOW, Windows};

/// Control frames that may wait to be sent before the peer's frames are not read any more.
const CONTROL_QUEUE: usize = 128;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// How far one direction of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Open,
    /// The application wrote the end; it is not sent yet.
    Ending,
    Done,
}

/// Who opened a stream, and how far that is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// The peer; the application has not taken it yet.
    ByPeer(Headers),
    /// The peer; the application has it.
    Taken,
    /// This end; there is no reply yet.
    Asked,
    /// This end; the reply.
    Replied(Headers),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) opened: Opened,
    /// The application holds it.
    pub(super) held: bool,
    /// Received, and not read.
    pub(super) inbox: VecDeque<u8>,
    pub(super) remote: Half,
    /// What the peer may still send.
    pub(super) receive_window: i64,
    /// What was read and not granted again.
    pub(super) consumed: u32,
    /// Written, and not sent.
    pub(super) outbox: VecDeque<u8>,
    pub(super) local: Half,
    /// What may still be sent.
    pub(super) send_window: i64,
    /// Where in all that is sent the last of this stream stands.
    pub(super) sent_at: u64,
    /// Over, by a reset.
    pub(super) reset: Option<ResetStatus>,
    /// The reset is yet to be sent.
    pub(super) reset_due: bool,
    /// It is in `ready`, and in `flushing`.
    pub(super) queued: bool,
    pub(super) flushing: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) replied: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) role: Role,
    pub(super) limits: Limits,
    pub(super) streams: HashMap<u32, Entry>,
    /// Streams the peer opened and the application has not taken.
    pub(super) incoming: VecDeque<u32>,
    /// Nobody takes them any more.
    pub(super) no_incoming: bool,
    /// Streams that have something to send, in turn.
    pub(super) ready: VecDeque<u32>,
    pub(super) control: VecDeque<Frame>,
    last_of_peer: u32,
    pub(super) next_own: u32,
    /// How many streams of its own the peer has open, and how many it lets this end have.
    pub(super) peers: usize,
    pub(super) peer_allows: usize,
    /// The peer heeds windows.
    pub(super) windowed: bool,
    peer_initial: i64,
    pub(super) send_window: i64,
    receive_window: i64,
    pub(super) consumed: u32,
    /// All that is in inboxes, and in outboxes.
    pub(super) buffered: usize,
    pub(super) outgoing: usize,
    /// What was encoded, and of that what the transport took.
    pub(super) encoded: u64,
    pub(super) written: u64,
    /// Streams whose application waits for what was encoded to be taken.
    pub(super) flushing: Vec<u32>,
    pub(super) driver: Option<Waker>,
    pub(super) taker: Option<Waker>,
    /// The application wants it closed.
    pub(super) closing: bool,
    pub(super) peer_goes: bool,
    pub(super) ended: Option<End>,
}

impl Core {
    pub(super) fn new(role: Role, mut limits: Limits) -> Core {
        limits.stream_window = limits.stream_window.clamp(INITIAL_WINDOW, MAX_WINDOW as u32);
        limits.buffer = limits.buffer.clamp(INITIAL_WINDOW, MAX_WINDOW as u32);
        let mut control = VecDeque::new();
        control.push_back(Frame::Settings {
            clear: false,
            entries: vec![
                (MAX_CONCURRENT_STREAMS, limits.streams.try_into().unwrap_or(u32::MAX)),
                (INITIAL_WINDOW_SIZE, limits.stream_window),
            ],
        });
        if limits.buffer > INITIAL_WINDOW {
            control.push_back(Frame::WindowUpdate { stream: 0, delta: limits.buffer - INITIAL_WINDOW });
        }
        Core {
            role,
            streams: HashMap::new(),
            incoming: VecDeque::new(),
            no_incoming: false,
            ready: VecDeque::new(),
            control,
            last_of_peer: 0,
            next_own: if role == Role::Client { 1 } else { 2 },
            peers: 0,
            peer_allows: usize::MAX,
            // What a client sends before the server's SETTINGS have come would be too much for one that heeds windows.
            windowed: role == Role::Client || limits.windows == Windows::Enforce,
            peer_initial: INITIAL_WINDOW.into(),
            send_window: INITIAL_WINDOW.into(),
            receive_window: limits.buffer.into(),
            consumed: 0,
            buffered: 0,
            outgoing: 0,
            encoded: 0,
            written: 0,
            flushing: Vec::new(),
            driver: None,
            taker: None,
            closing: false,
            peer_goes: false,
            ended: None,
            limits,
        }
    }

    /// Whether the peer's frames must wait: too much is unread, or too many answers are unsent.
    pub(super) fn paused(&self) -> bool {
        let full = !self.windowed && !self.closing && self.buffered > self.limits.buffer as usize;
        full || self.control.len() >= CONTROL_QUEUE
    }

    /// A control frame of the peer; whether it moves any stream.
    ///
    /// # Errors
    /// It ends the connection.
    pub(super) fn on_control(&mut self, frame: Frame) -> Result<bool, End> {
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers, .. } => {
                return self.on_syn(stream, fin, unidirectional, headers);
            }
            Frame::SynReply { stream, fin, headers } => {
                let Some(entry) = self.streams.get_mut(&stream) else { return Ok(false) };
                if entry.opened != Opened::Asked {
                    self.reset(stream, ResetStatus::PROTOCOL_ERROR);
                    return Ok(true);
                }
                entry.opened = Opened::Replied(headers);
                wake(&mut entry.replied);
                if fin {
                    self.on_fin(stream);
                }
                return Ok(true);
            }
            // Nothing here has a use for further headers.
            Frame::Headers { stream, fin, .. } => {
                if fin {
                    self.on_fin(stream);
                }
                return Ok(fin);
            }
            Frame::RstStream { stream, status } => return Ok(self.on_reset(stream, status)),
            Frame::Settings { entries, .. } => {
                // The last word counts, so that a frame full of them is no more work than one of them.
                let last = |wanted| entries.iter().rev().find(|(id, _)| *id == wanted).map(|(_, value)| *value);
                if let Some(most) = last(MAX_CONCURRENT_STREAMS) {
                    self.peer_allows = most as usize;
                }
                if let Some(window) = last(INITIAL_WINDOW_SIZE) {
                    self.on_initial_window(i64::from(window))?;
                }
            }
            Frame::Ping(id) => {
                // One that began here has come back.
                if self.of_peer(id) {
                    self.control.push_back(frame);
                }
            }
            Frame::GoAway { .. } => {
                self.peer_goes = true;
                wake(&mut self.taker);
            }
            Frame::WindowUpdate { stream, delta } => return self.on_window(stream, delta),
        }
        Ok(false)
    }

    /// Data of the peer.
    ///
    /// # Errors
    /// It ends the connection.
    pub(super) fn on_data(&mut self, stream: u32, data: &[u8], fin: bool) -> Result<(), End> {
        self.receive_window -= data.len() as i64;
        if self.windowed && self.receive_window < 0 {
            return Err(End::Protocol("more data than the connection's window".to_owned()));
        }
        let unread = self.take_in(stream, data)?;
        self.consumed += unread as u32;
        self.grant();
        if fin {
            self.on_fin(stream);
        }
        Ok(())
    }

    /// Puts data into its stream's inbox; how much of it nobody will read.
    fn take_in(&mut self, stream: u32, data: &[u8]) -> Result<usize, End> {
        let Some(entry) = self.streams.get_mut(&stream) else {
            let never = if self.of_peer(stream) { stream > self.last_of_peer } else { stream >= self.next_own };
            if never {
                return Err(End::Protocol(format!("data for stream {stream}, which was never opened")));
            }
            return Ok(data.len());
        };
        if entry.reset.is_some() || (entry.remote == Half::Open && (self.closing || !entry.wanted())) {
            return Ok(data.len());
        }
        if entry.remote != Half::Open {
            self.reset(stream, ResetStatus::STREAM_ALREADY_CLOSED);
            return Ok(data.len());
        }
        entry.receive_window -= data.len() as i64;
        if self.windowed && entry.receive_window < 0 {
            self.reset(stream, ResetStatus::FLOW_CONTROL_ERROR);
            return Ok(data.len());
        }
        entry.inbox.extend(data);
        self.buffered += data.len();
        wake(&mut entry.reader);
        Ok(0)
    }

    fn on_syn(&mut self, stream: u32, fin: bool, unidirectional: bool, headers: Headers) -> Result<bool, End> {
        if !self.of_peer(stream) || stream <= self.last_of_peer {
            return Err(End::Protocol(format!("stream {stream} opened after {}", self.last_of_peer)));
        }
        self.last_of_peer = stream;
        if self.closing || self.peer_goes || self.no_incoming || self.peers >= self.limits.streams {
            self.control.push_back(Frame::RstStream { stream, status: ResetStatus::REFUSED_STREAM });
            return Ok(false);
        }
        let mut entry = self.entry(Opened::ByPeer(headers));
        if fin {
            entry.remote = Half::Done;
        }
        if unidirectional {
            entry.local = Half::Done;
        }
        self.streams.insert(stream, entry);
        self.peers += 1;
        self.incoming.push_back(stream);
        wake(&mut self.taker);
        Ok(true)
    }

    /// A stream at its beginning.
    pub(super) fn entry(&self, opened: Opened) -> Entry {
        Entry {
            opened,
            held: false,
            inbox: VecDeque::new(),
            remote: Half::Open,
            receive_window: self.limits.stream_window.into(),
            consumed: 0,
            outbox: VecDeque::new(),
            local: Half::Open,
            send_window: self.peer_initial,
            sent_at: 0,
            reset: None,
            reset_due: false,
            queued: false,
            flushing: false,
            reader: None,
            writer: None,
            replied: None,
        }
    }

    fn on_fin(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.remote = Half::Done;
            wake(&mut entry.reader);
            self.forget_if_done(stream);
        }
    }

    fn on_reset(&mut self, stream: u32, status: ResetStatus) -> bool {
        let Some(entry) = self.streams.get_mut(&stream) else { return false };
        let first = entry.reset.is_none();
        self.outgoing -= entry.outbox.len();
        entry.outbox = VecDeque::new();
        // What was received before it can still be read.
        entry.reset.get_or_insert(status);
        entry.reset_due = false;
        entry.wake_all();
        if matches!(entry.opened, Opened::ByPeer(_)) {
            self.incoming.retain(|id| *id != stream);
        }
        self.forget_if_done(stream);
        first
    }

    fn on_initial_window(&mut self, window: i64) -> Result<(), End> {
        if window > MAX_WINDOW {
            return Err(End::Protocol(format!("an initial window of {window} bytes")));
        }
        self.windowed = true;
        let more = window - self.peer_initial;
        self.peer_initial = window;
        let mut over = Vec::new();
        for (id, entry) in &mut self.streams {
            entry.send_window += more;
            if entry.send_window > MAX_WINDOW {
                over.push(*id);
            }
        }
        over.into_iter().for_each(|id| self.reset(id, ResetStatus::FLOW_CONTROL_ERROR));
        self.queue_all();
        Ok(())
    }

    fn on_window(&mut self, stream: u32, delta: u32) -> Result<bool, End> {
        self.windowed = true;
        let moves = delta > 0 && (stream == 0 || self.streams.contains_key(&stream));
        if stream == 0 {
            let blocked = self.send_window <= 0;
            self.send_window += i64::from(delta);
            if self.send_window > MAX_WINDOW {
                return Err(End::Protocol("the connection's window overflows".to_owned()));
            }
            if blocked {
                self.queue_all();
            }
        } else if let Some(entry) = self.streams.get_mut(&stream) {
            entry.send_window += i64::from(delta);
            if entry.send_window > MAX_WINDOW {
                self.reset(stream, ResetStatus::FLOW_CONTROL_ERROR);
            } else {
                self.queue(stream);
            }
        }
        Ok(moves)
    }

    /// Grants the peer what was read of all streams, once it is worth a frame.
    pub(super) fn grant(&mut self) {
        if self.consumed >= self.limits.buffer / 2 {
            self.control.push_back(Frame::WindowUpdate { stream: 0, delta: self.consumed });
            self.receive_window += i64::from(self.consumed);
            self.consumed = 0;
        }
    }

    /// Ends a stream by a reset that is to be sent; what it was to send is dropped.
    pub(super) fn reset(&mut self, stream: u32, status: ResetStatus) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if entry.reset.is_none() {
            self.outgoing -= entry.outbox.len();
            entry.outbox = VecDeque::new();
            entry.reset = Some(status);
            entry.reset_due = true;
            entry.wake_all();
            self.incoming.retain(|id| *id != stream);
            self.queue(stream);
        }
    }

    /// Puts a stream into the turn of those that have something to send.
    pub(super) fn queue(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get_mut(&stream)
            && !entry.queued
        {
            entry.queued = true;
            self.ready.push_back(stream);
        }
    }

    fn queue_all(&mut self) {
        let waiting = |(_, entry): &(&u32, &Entry)| !entry.outbox.is_empty();
        let waiting: Vec<u32> = self.streams.iter().filter(waiting).map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| self.queue(id));
    }

    /// Drops a stream that is over both ways and that the application has let go.
    pub(super) fn forget_if_done(&mut self, stream: u32) {
        let Some(entry) = self.streams.get(&stream) else { return };
        let over = match entry.reset {
            Some(_) => !entry.reset_due,
            None => entry.remote == Half::Done && entry.local == Half::Done,
        };
        let untaken = matches!(entry.opened, Opened::ByPeer(_)) && entry.reset.is_none();
        if over && !entry.held && !untaken {
            if let Some(entry) = self.streams.remove(&stream) {
                self.drop_inbox(entry.inbox.len());
                self.outgoing -= entry.outbox.len();
            }
            if self.of_peer(stream) {
                self.peers -= 1;
            }
        }
    }

    /// Bytes of an inbox that nobody reads any more.
    pub(super) fn drop_inbox(&mut self, len: usize) {
        self.buffered -= len;
        self.consumed += len as u32;
        self.grant();
    }

    /// Ends all streams.
    pub(super) fn end(&mut self, end: End) {
        self.ended.get_or_insert(end);
        self.control.clear();
        self.ready.clear();
        for entry in self.streams.values_mut() {
            entry.queued = false;
            entry.wake_all();
        }
        self.incoming.clear();
        wake(&mut self.taker);
    }

    /// Whether the number of a stream or ping is one of the peer's: the client's are odd.
    pub(super) fn of_peer(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Server)
    }

    /// The peer's stream that was opened last, for a GOAWAY.
    pub(super) fn last_of_peer(&self) -> u32 {
        self.last_of_peer
    }
}

impl Entry {
    /// Whether anyone will read what is received.
    fn wanted(&self) -> bool {
        self.held || matches!(self.opened, Opened::ByPeer(_))
    }

    pub(super) fn wake_all(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
        wake(&mut self.replied);
    }
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
