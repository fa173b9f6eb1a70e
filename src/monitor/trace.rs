//! A `tracing` subscriber that writes lines to stderr and needs next to no memory.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::types::{now_ns, rfc3339_nano};

/// Bytes after which this process says no more: nobody rotates its log.
const MAX_LOG: usize = 1 << 20;

/// Sends the events of this program, from `info` up, to stderr.
pub fn install() {
    // Fails only where a subscriber is installed already, as in tests.
    let _ = tracing::subscriber::set_global_default(Stderr { written: AtomicUsize::new(0) });
}

struct Stderr {
    written: AtomicUsize,
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{} {} ", rfc3339_nano(now_ns()), event.metadata().level()));
        event.record(&mut line);
        line.0.push('\n');
        if self.written.fetch_add(line.0.len(), Ordering::Relaxed) < MAX_LOG {
            // There is nowhere left to report that stderr is gone.
            let _ = std::io::stderr().write_all(line.0.as_bytes());
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}
