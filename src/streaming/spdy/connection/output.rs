//! What a connection has to send, in turn.

use super::super::encode::{Encoder, MAX_BODY};
use super::super::error::FrameError;
use super::super::frame::{Frame, ResetStatus};
use super::core::{Core, Half, wake};

impl Core {
    /// Adds frames to `out` until it holds `enough` bytes or there is nothing to send: control frames first,
    /// then one frame of each stream in turn.
    ///
    /// # Errors
    /// Headers of the application that fit no frame.
    pub(super) fn fill(&mut self, encoder: &mut Encoder, out: &mut Vec<u8>, enough: usize) -> Result<(), FrameError> {
        let before = out.len();
        while out.len() < enough {
            if let Some(frame) = self.control.pop_front() {
                encoder.control(&frame, out)?;
            } else if let Some(stream) = self.ready.pop_front() {
                self.turn(stream, encoder, out, self.encoded + out.len() as u64 - before as u64)?;
            } else {
                break;
            }
        }
        self.encoded += (out.len() - before) as u64;
        Ok(())
    }

    /// Whether anything at all waits to be sent, in windows' time or now.
    pub(super) fn drained(&self) -> bool {
        let sending = |half| half == Half::Ending;
        self.control.is_empty()
            && self.ready.is_empty()
            && self.outgoing == 0
            && !self.streams.values().any(|entry| sending(entry.local) && entry.reset.is_none())
    }

    /// One stream's turn; `at` is where in all that is sent it begins.
    fn turn(&mut self, stream: u32, encoder: &mut Encoder, out: &mut Vec<u8>, at: u64) -> Result<(), FrameError> {
        let begin = out.len();
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        entry.queued = false;
        if let Some(status) = entry.reset {
            if entry.reset_due {
                entry.reset_due = false;
                encoder.control(&Frame::RstStream { stream, status }, out)?;
            }
            self.forget_if_done(stream);
            return Ok(());
        }
        if entry.consumed >= self.limits.stream_window / 2 && entry.remote == Half::Open {
            entry.receive_window += i64::from(entry.consumed);
            encoder.control(&Frame::WindowUpdate { stream, delta: entry.consumed }, out)?;
            entry.consumed = 0;
        }
        let mut len = entry.outbox.len().min(self.limits.data_frame.clamp(1, MAX_BODY));
        if self.windowed {
            let window = entry.send_window.min(self.send_window).max(0);
            len = len.min(usize::try_from(window).unwrap_or(usize::MAX));
        }
        let fin = entry.local == Half::Ending && len == entry.outbox.len();
        if len > 0 || fin {
            Encoder::data(stream, len, fin, out);
            let (front, back) = entry.outbox.as_slices();
            out.extend_from_slice(&front[..len.min(front.len())]);
            out.extend_from_slice(&back[..len.saturating_sub(front.len())]);
            entry.outbox.drain(..len);
            if entry.outbox.is_empty() && (fin || entry.outbox.capacity() > self.limits.send_buffer) {
                entry.outbox = Default::default();
            }
            entry.send_window -= len as i64;
            self.send_window -= len as i64;
            self.outgoing -= len;
            entry.sent_at = at + (out.len() - begin) as u64;
            wake(&mut entry.writer);
            if fin {
                entry.local = Half::Done;
            }
        }
        let blocked = self.windowed && entry.send_window.min(self.send_window) <= 0;
        let again = !entry.outbox.is_empty() && !blocked;
        let abandoned = !entry.held && entry.local == Half::Done && entry.remote == Half::Open;
        if again {
            self.queue(stream);
        } else if abandoned {
            self.reset(stream, ResetStatus::CANCEL);
        } else {
            self.forget_if_done(stream);
        }
        Ok(())
    }

    /// The transport took `len` bytes more.
    pub(super) fn on_written(&mut self, len: usize) {
        self.written += len as u64;
        for stream in std::mem::take(&mut self.flushing) {
            if let Some(entry) = self.streams.get_mut(&stream) {
                entry.flushing = false;
                wake(&mut entry.writer);
            }
        }
    }
}
