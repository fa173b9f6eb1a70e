//! CRI log files.

use std::fs;
use std::path::Path;

/// One line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `F`, or `P` if the line goes on in the next entry.
    pub tag: String,
    /// What was written.
    pub text: String,
}

/// Reads a log that nobody writes to any more and insists on its form. A file that is not there is empty.
pub fn read(path: &Path) -> Vec<Line> {
    let bytes = fs::read(path).unwrap_or_default();
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{}: the last entry has no end", path.display());
    lines(path, &bytes)
}

/// What a log holds that is being written: a last entry of which only a part is seen is left out.
pub fn so_far(path: &Path) -> Vec<Line> {
    let bytes = fs::read(path).unwrap_or_default();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    lines(path, &bytes[..whole])
}

fn lines(path: &Path, bytes: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .map(|line| parse(line).unwrap_or_else(|| panic!("{}: no CRI log line: {line:?}", path.display())))
        .collect()
}

fn parse(line: &str) -> Option<Line> {
    let mut parts = line.splitn(4, ' ');
    let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let fits = is_time(time) && ["stdout", "stderr"].contains(&stream) && ["F", "P"].contains(&tag);
    fits.then(|| Line { time: time.to_owned(), stream: stream.to_owned(), tag: tag.to_owned(), text: text.to_owned() })
}

/// Whether it looks like `2026-11-21T06:07:08.123456789Z`, or with an offset in place of Z.
fn is_time(text: &str) -> bool {
    let Some((seconds, rest)) = text.split_once('.') else { return false };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let zone = &rest[digits..];
    seconds.len() == 19 && seconds.as_bytes()[10] == b'T' && digits == 9 && (zone == "Z" || zone.len() == 6)
}

/// What one stream said, partial entries joined.
pub fn stream(lines: &[Line], name: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == name) {
        text.push_str(&line.text);
        if line.tag == "F" {
            text.push('\n');
        }
    }
    text
}
