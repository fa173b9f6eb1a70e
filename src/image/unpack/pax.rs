//! PAX extended headers: `length key=value` records, whose values are any bytes.

use super::Fault;
use super::archive::MAX_PIECES;

/// What extension headers say about the entry that follows them.
#[derive(Default)]
pub struct Extensions {
    /// Path of the entry.
    pub path: Option<Vec<u8>>,
    /// Link target.
    pub link: Option<Vec<u8>>,
    /// Bytes of data in the archive.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<u64>,
    /// Group.
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where a sparse file has data.
    pub sparse: PaxSparse,
}

/// Sparse maps of GNU tar in PAX records: formats 0.0, 0.1 and 1.0.
#[derive(Default)]
pub struct PaxSparse {
    /// There was any of these records.
    pub seen: bool,
    /// Format, major and minor.
    pub version: (u64, u64),
    /// Length of the file, holes included.
    pub real_size: Option<u64>,
    /// Name of the file; the header's is made up.
    pub name: Option<Vec<u8>>,
    /// Flat list of offsets and lengths (formats 0.0 and 0.1).
    pub numbers: Vec<u64>,
}

impl Extensions {
    /// `length key=value\n` records; the length counts the whole record.
    pub fn read_pax(&mut self, mut rest: &[u8]) -> Result<(), Fault> {
        let bad = || Fault::Archive("a PAX record is malformed".into());
        while !rest.is_empty() && rest.iter().any(|b| *b != 0) {
            let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = decimal(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            self.pax(&record[..equals], &record[equals + 1..]).ok_or_else(bad)?;
        }
        Ok(())
    }

    fn pax(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let sparse = &mut self.sparse;
        sparse.seen |= key.starts_with(b"GNU.sparse.");
        match key {
            b"path" if !value.is_empty() => self.path = Some(value.to_vec()),
            b"linkpath" if !value.is_empty() => self.link = Some(value.to_vec()),
            b"size" if !value.is_empty() => self.size = Some(decimal(value)?),
            b"uid" if !value.is_empty() => self.uid = Some(decimal(value)?),
            b"gid" if !value.is_empty() => self.gid = Some(decimal(value)?),
            b"mtime" if !value.is_empty() => self.mtime = Some(pax_time(value)?),
            b"GNU.sparse.major" => sparse.version.0 = decimal(value)?,
            b"GNU.sparse.minor" => sparse.version.1 = decimal(value)?,
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse.real_size = Some(decimal(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => sparse.numbers.push(decimal(value)?),
            b"GNU.sparse.map" => {
                sparse.numbers = value.split(|b| *b == b',').map(decimal).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        (sparse.numbers.len() <= 2 * MAX_PIECES).then_some(())
    }
}

/// Digits only.
fn decimal(text: &[u8]) -> Option<u64> {
    let fine = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if fine { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// `[-]seconds[.fraction]`.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos = u32::try_from(decimal(digits.as_bytes())?).ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_have_signs_and_fractions() {
        for (text, want) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.1234567891", Some((1, 123_456_789))),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(pax_time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        let mut extensions = Extensions::default();
        extensions.read_pax(b"29 SCHILY.xattr.user.a=x\ny=z\n").unwrap();
        assert_eq!(extensions.xattrs, [(b"user.a".to_vec(), b"x\ny=z".to_vec())]);
        for bad in [&b"5 a=b\n"[..], b"x", b"99 a=b\n", b"6 abcd\n", b"0 a=b\n", b"99999999999999999999999 a=b\n"] {
            assert!(Extensions::default().read_pax(bad).is_err(), "{bad:?}");
        }
    }
}
