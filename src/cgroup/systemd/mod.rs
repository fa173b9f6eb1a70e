//! Units of systemd, asked for over its own socket: a scope for pause, and the end of any scope.
//!
//! `/run/systemd/private` answers root without a D-Bus daemon, and tells every peer when a job ends.
//! A call opens its own connection: calls are rare, and systemd forgets a peer that is gone.

mod message;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub use message::Property;
use message::{FIXED, Incoming, Kind, Reader, Writer};

/// Where systemd listens for root.
const SOCKET: &str = "/run/systemd/private";
/// How long systemd may be silent. It answers within milliseconds, unless it reloads its units.
const LIMIT: Duration = Duration::from_secs(8);
/// Longest line of the authentication, bytes.
const MAX_LINE: u64 = 1024;
/// Messages of no interest that may come before the one that is awaited.
const MAX_STRAY: usize = 100_000;

pub use crate::wire::Scope;

impl Scope {
    /// Makes the scope with the calling process in it, and with the slices that it takes. Slices that
    /// did not exist go with the last unit in them.
    ///
    /// # Errors
    /// systemd cannot be reached, refuses, or put the process elsewhere than at `folder` below the
    /// cgroup root.
    pub fn enter(&self, folder: &Path) -> io::Result<()> {
        let aux: Vec<String> = slices(&self.slice).into_iter().filter(|slice| !there(slice)).collect();
        match self.start(&aux) {
            // Another pod's scope made the same slice just now.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !aux.is_empty() => self.start(&[])?,
            other => other?,
        }
        let found = fs::read_to_string("/proc/self/cgroup")?;
        let wanted = format!("0::{}", Path::new("/").join(folder).display());
        match found.lines().any(|line| line == wanted) {
            true => Ok(()),
            false => Err(io::Error::other(format!("systemd made {} at {found:?}, not at {folder:?}", self.unit))),
        }
    }

    fn start(&self, new_slices: &[String]) -> io::Result<()> {
        let mut body = Writer::default();
        body.string(&self.unit);
        // A slice may be on its way out just now; it stays then.
        body.string("replace");
        body.properties(&[
            ("Description", Property::Text(&format!("podwright sandbox {}", self.unit))),
            ("Slice", Property::Text(&self.slice)),
            // 0 stands for the caller, whose pid may be another one in its own namespace.
            ("PIDs", Property::Numbers(&[0])),
            ("Delegate", Property::Flag(true)),
            ("DefaultDependencies", Property::Flag(false)),
            ("MemoryAccounting", Property::Flag(true)),
            ("CPUAccounting", Property::Flag(true)),
            ("IOAccounting", Property::Flag(true)),
            ("TasksAccounting", Property::Flag(true)),
            ("CollectMode", Property::Text("inactive-or-failed")),
        ]);
        body.structures(new_slices, |body, slice| {
            body.string(slice);
            body.properties(&[("StopWhenUnneeded", Property::Flag(true))]);
        });
        Connection::open()?.job("StartTransientUnit", "ssa(sv)a(sa(sv))", &body.finish())
    }
}

/// Stops a unit and forgets how it ended; one that is not there is fine. Its processes should have
/// ended, or this takes as long as systemd gives them.
///
/// # Errors
/// systemd cannot be reached or refuses.
pub fn stop(unit: &str) -> io::Result<()> {
    let mut connection = Connection::open()?;
    let mut body = Writer::default();
    body.string(unit);
    body.string("replace");
    match connection.job("StopUnit", "ss", &body.finish()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut body = Writer::default();
    body.string(unit);
    match connection.call("ResetFailedUnit", "s", &body.finish()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Changes properties of a unit until the next boot.
///
/// # Errors
/// systemd cannot be reached or refuses.
pub fn set(unit: &str, properties: &[(&str, Property<'_>)]) -> io::Result<()> {
    let mut body = Writer::default();
    body.string(unit);
    body.flag(true);
    body.properties(properties);
    Connection::open()?.call("SetUnitProperties", "sba(sv)", &body.finish()).map(drop)
}

/// Whether systemd is in charge of this machine.
pub fn booted() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Whether a slice is active, for then it has its folder.
fn there(slice: &str) -> bool {
    super::expand_slice(slice).is_some_and(|path| Path::new(super::MOUNT).join(path).exists())
}

/// A slice and those above it, but for the root, which is always there.
fn slices(name: &str) -> Vec<String> {
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    if stem == "-" {
        return Vec::new();
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("{}.slice", &stem[..end])).collect()
}

struct Connection {
    stream: BufReader<UnixStream>,
    serial: u32,
    /// Jobs that ended while an answer was awaited: path and result.
    ended: Vec<(String, String)>,
}

impl Connection {
    fn open() -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("systemd at {SOCKET}: {error}"));
        let stream = UnixStream::connect(SOCKET).map_err(named)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut connection = Self { stream: BufReader::new(stream), serial: 0, ended: Vec::new() };
        // As uid 0, in hex: the socket is root's alone. geteuid would not say so in a user namespace, where pause
        // may call from.
        connection.send(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
        let mut line = String::new();
        (&mut connection.stream).take(MAX_LINE).read_line(&mut line)?;
        if line.starts_with("OK ") {
            Ok(connection)
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("systemd at {SOCKET}: said {line:?}")))
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_ref().write_all(bytes)
    }

    fn receive(&mut self) -> io::Result<Incoming> {
        let rubbish = || io::Error::new(io::ErrorKind::InvalidData, "systemd sent something that is no message");
        let mut fixed = [0; FIXED];
        self.stream.read_exact(&mut fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(FIXED + message::remaining(&fixed).ok_or_else(rubbish)?, 0);
        self.stream.read_exact(&mut bytes[FIXED..])?;
        message::parse(&bytes).ok_or_else(rubbish)
    }

    /// Calls a method of systemd's manager; the answer's body.
    fn call(&mut self, member: &str, signature: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let late = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, format!("systemd does not answer {member}"))
            }
            _ => error,
        };
        self.serial += 1;
        self.send(&message::call(self.serial, member, signature, body)).map_err(late)?;
        for _ in 0..MAX_STRAY {
            let incoming = self.receive().map_err(late)?;
            match incoming.kind {
                Kind::Return if incoming.answers == self.serial => return Ok(incoming.body),
                Kind::Error if incoming.answers == self.serial => return Err(refusal(member, &incoming)),
                _ => self.note(&incoming),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("systemd does not answer {member}")))
    }

    /// The same for a method that begins a job; returns once the job is done.
    fn job(&mut self, member: &str, signature: &str, body: &[u8]) -> io::Result<()> {
        let answer = self.call(member, signature, body)?;
        let job = Reader { bytes: &answer, at: 0 }.string().unwrap_or_default();
        for _ in 0..MAX_STRAY {
            if let Some((_, result)) = self.ended.iter().find(|(path, _)| *path == job) {
                return match result.as_str() {
                    "done" | "skipped" => Ok(()),
                    other => Err(io::Error::other(format!("systemd's job for {member}: {other}"))),
                };
            }
            let incoming = self.receive()?;
            self.note(&incoming);
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("systemd's job for {member} does not end")))
    }

    /// Keeps what a `JobRemoved` (id, path, unit, result) tells.
    fn note(&mut self, incoming: &Incoming) {
        if incoming.kind != Kind::Signal || incoming.member != "JobRemoved" {
            return;
        }
        let mut reader = Reader { bytes: &incoming.body, at: 0 };
        let told = (|| {
            reader.u32()?;
            let path = reader.string()?;
            reader.string()?;
            Some((path, reader.string()?))
        })();
        self.ended.extend(told);
    }
}

fn refusal(member: &str, incoming: &Incoming) -> io::Error {
    let text = Reader { bytes: &incoming.body, at: 0 }.string().unwrap_or_default();
    let kind = match incoming.error.as_str() {
        "org.freedesktop.systemd1.NoSuchUnit" => io::ErrorKind::NotFound,
        "org.freedesktop.systemd1.UnitExists" => io::ErrorKind::AlreadyExists,
        "org.freedesktop.DBus.Error.AccessDenied" => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("systemd refuses {member}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_takes_those_above_it() {
        assert_eq!(slices("a-b-c.slice"), ["a.slice", "a-b.slice", "a-b-c.slice"]);
        assert_eq!(slices("a.slice"), ["a.slice"]);
        assert!(slices("-.slice").is_empty());
    }

    #[test]
    fn refusals_are_told_apart() {
        let mut body = Writer::default();
        body.string("Unit x.scope not loaded.");
        let mut incoming = Incoming {
            kind: Kind::Error,
            answers: 1,
            member: String::new(),
            error: "org.freedesktop.systemd1.NoSuchUnit".into(),
            body: body.finish(),
        };
        let error = refusal("StopUnit", &incoming);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(error.to_string(), "systemd refuses StopUnit: Unit x.scope not loaded.");
        incoming.error = "x".into();
        incoming.body = Vec::new();
        assert_eq!(refusal("StopUnit", &incoming).kind(), io::ErrorKind::Other);
    }
}
