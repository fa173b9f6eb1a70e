//! Listens in on libcontainer's log: its errors say only "failed syscall" while the reason, with
//! names and paths, goes to `tracing`, in whichever of its three processes it happened.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};

use rustix::fs::MemfdFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Most bytes of one event, and of all that is read back.
const MAX_EVENT: usize = 1024;
const MAX_TEXT: u64 = 16 << 10;

/// Collects error events in an anonymous file that forked children share.
pub(super) struct Capture {
    file: File,
}

/// The subscriber half.
pub(super) struct Sink {
    file: File,
}

impl Capture {
    /// A capture and the subscriber that feeds it.
    pub(super) fn new() -> io::Result<(Self, Sink)> {
        let file = File::from(rustix::fs::memfd_create("errors", MemfdFlags::CLOEXEC)?);
        Ok((Self { file: file.try_clone()? }, Sink { file }))
    }

    /// The first error, which is the one nearest to its cause; later ones repeat it on the way up.
    pub(super) fn cause(mut self) -> Option<String> {
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(0)).ok()?;
        self.file.take(MAX_TEXT).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        text.split('\0').map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

impl Subscriber for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut text = line.message;
        if !line.fields.is_empty() {
            let _ = write!(text, " ({})", line.fields);
        }
        super::job::cut(&mut text, MAX_EVENT);
        text.push('\0');
        // Shared offset: events of all processes line up. Nothing can be done about a failure here.
        let _ = (&self.file).write_all(text.as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let comma = if self.fields.is_empty() { "" } else { ", " };
            let _ = write!(self.fields, "{comma}{}: {value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_cause() {
        let (capture, sink) = Capture::new().unwrap();
        tracing::subscriber::with_default(sink, || {
            tracing::warn!("not an error");
            tracing::error!(path = ?"/x", "failed to mount");
            tracing::error!("failed to run");
        });
        assert_eq!(capture.cause().as_deref(), Some("failed to mount (path: \"/x\")"));
    }
}
