//! D-Bus messages (D-Bus Specification, "Message Protocol"): as much as calls to systemd take. Pure.

/// Largest message that is read, bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of a message that tell how long the rest is.
pub(super) const FIXED: usize = 16;

const METHOD_CALL: u8 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The answer to a call.
    Return,
    /// A call failed.
    Error,
    /// Something happened.
    Signal,
    /// What is of no interest here.
    Other,
}

/// A message that came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) kind: Kind,
    /// The serial of the call that this answers; 0: none.
    pub(super) answers: u32,
    /// Name of the signal; empty: none.
    pub(super) member: String,
    /// Name of the error; empty: none.
    pub(super) error: String,
    pub(super) body: Vec<u8>,
}

/// Builds a message or its body; each value brings its own padding.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: usize) {
        self.align(4);
        // Nothing here comes near 4 GiB.
        self.0.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    /// `s`, and `o`, which looks the same.
    pub(super) fn string(&mut self, text: &str) {
        self.u32(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array of structures.
    pub(super) fn structures<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(8);
        let start = self.0.len();
        for item in items {
            self.align(8);
            each(self, item);
        }
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `b`
    pub(super) fn flag(&mut self, flag: bool) {
        self.u32(usize::from(flag));
    }

    /// `(sv)`s: properties of a unit.
    pub(super) fn properties(&mut self, list: &[(&str, Property<'_>)]) {
        self.structures(list, |out, (name, value)| {
            out.string(name);
            match value {
                Property::Text(text) => {
                    out.signature("s");
                    out.string(text);
                }
                Property::Flag(flag) => {
                    out.signature("b");
                    out.flag(*flag);
                }
                Property::Number(number) => {
                    out.signature("t");
                    out.align(8);
                    out.0.extend(number.to_le_bytes());
                }
                Property::Bytes(bytes) => {
                    out.signature("ay");
                    out.u32(bytes.len());
                    out.0.extend(*bytes);
                }
                Property::Numbers(numbers) => {
                    out.signature("au");
                    out.u32(numbers.len() * 4);
                    for number in *numbers {
                        out.u32(*number as usize);
                    }
                }
            }
        });
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The value of a unit's property.
#[derive(Debug, Clone, Copy)]
pub enum Property<'a> {
    /// `t`
    Number(u64),
    /// `ay`
    Bytes(&'a [u8]),
    /// `s`
    Text(&'a str),
    /// `b`
    Flag(bool),
    /// `au`
    Numbers(&'a [u32]),
}

/// A call of a method of systemd's manager. `signature` is that of `body`.
pub(super) fn call(serial: u32, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    out.u32(body.len());
    out.u32(serial as usize);
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (6, "s", "org.freedesktop.systemd1"),
        (2, "s", "org.freedesktop.systemd1.Manager"),
        (3, "s", member),
        (8, "g", signature),
    ];
    out.structures(&fields, |out, (code, kind, value)| {
        out.0.push(*code);
        out.signature(kind);
        match *kind {
            "g" => out.signature(value),
            _ => out.string(value),
        }
    });
    out.align(8);
    out.0.extend(body);
    out.finish()
}

/// How many bytes follow the first [`FIXED`]; `None`: this is no message that could be read.
pub(super) fn remaining(fixed: &[u8; FIXED]) -> Option<usize> {
    let mut reader = Reader { bytes: fixed, at: 4 };
    let body = reader.u32()?;
    reader.u32()?;
    let header = reader.u32()?.checked_next_multiple_of(8)?;
    let rest = body.checked_add(header)?;
    (fixed[0] == b'l' && rest <= MAX_MESSAGE).then_some(rest)
}

/// Reads a whole message.
pub(super) fn parse(bytes: &[u8]) -> Option<Incoming> {
    let kind = match bytes.get(1)? {
        2 => Kind::Return,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => Kind::Other,
    };
    let mut found = Incoming { kind, answers: 0, member: String::new(), error: String::new(), body: Vec::new() };
    let mut reader = Reader { bytes, at: 12 };
    let end = reader.u32()?.checked_add(FIXED)?;
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => found.member = reader.string()?,
            (4, "s") => found.error = reader.string()?,
            (5, "u") => found.answers = u32::try_from(reader.u32()?).ok()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            // A field of a later protocol, whose length nobody here can know.
            _ => return None,
        }
    }
    found.body = bytes.get(end.next_multiple_of(8)..)?.to_vec();
    Some(found)
}

/// Reads values one after the other; `None` at the end and for what is malformed.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    pub(super) fn u32(&mut self) -> Option<usize> {
        self.align(4);
        let bytes = self.bytes.get(self.at..self.at.checked_add(4)?)?;
        self.at += 4;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let end = self.at.checked_add(length)?;
        let text = String::from_utf8(self.bytes.get(self.at..end)?.to_vec()).ok()?;
        self.at = end.checked_add(1)?;
        Some(text)
    }

    /// `s` or `o`.
    pub(super) fn string(&mut self) -> Option<String> {
        let length = self.u32()?;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_what_the_specification_says() {
        let mut body = Writer::default();
        body.string("a.scope");
        let bytes = call(7, "GetUnit", "s", &body.finish());
        let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(remaining(&fixed), Some(bytes.len() - FIXED));
        assert_eq!(bytes[8..12], [7, 0, 0, 0], "serial");
        assert!(bytes.ends_with(b"\x07\0\0\0a.scope\0"));
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.kind, parsed.member.as_str()), (Kind::Other, "GetUnit"));
        assert_eq!(parsed.body.len(), 12);
    }

    #[test]
    fn structures_are_aligned_and_counted() {
        let mut out = Writer::default();
        out.properties(&[("P", Property::Flag(true)), ("N", Property::Numbers(&[0]))]);
        let bytes = out.finish();
        let wanted: &[u8] = &[
            36, 0, 0, 0, 0, 0, 0, 0, // length, padding that does not count
            1, 0, 0, 0, b'P', 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0, // P, true
            1, 0, 0, 0, b'N', 0, 2, b'a', b'u', 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, // N, [0]
        ];
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn what_is_cut_short_or_mad_is_no_message() {
        let bytes = call(1, "Subscribe", "s", b"");
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
        assert_eq!(remaining(&[0xff; FIXED]), None);
        let mut huge: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        huge[4..8].copy_from_slice(&[0xff; 4]);
        assert_eq!(remaining(&huge), None);
    }
}
