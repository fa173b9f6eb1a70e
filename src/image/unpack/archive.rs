//! Reading tar: headers, long names, PAX records and sparse maps, every one with a bound.
//!
//! Only the header layout comes from the `tar` crate; its own iterator reads long names and PAX records
//! of any length into memory and splits records at newlines, which binary attributes contain.
//! Where formats are vague, this reads as Go's archive/tar does, since that is what layers are tested with.

use std::io::{self, BufRead, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::Fault;
use super::pax::{Extensions, PaxSparse};

const BLOCK: usize = 512;
/// Largest long name or PAX header, bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Longest path and link target, bytes (PATH_MAX).
const MAX_PATH: usize = 4096;
/// Most pieces of a sparse file.
pub const MAX_PIECES: usize = 1 << 16;
/// Largest file, bytes, holes included.
const MAX_FILE: u64 = 1 << 42;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Folder.
    Folder,
    /// Symbolic link to `link`.
    Symlink,
    /// Hard link to `link`.
    Hardlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// One entry, as written: no path in here has been checked for where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path.
    pub path: Vec<u8>,
    /// Link target.
    pub link: Vec<u8>,
    /// Kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Length of the file, holes included.
    pub size: u64,
    /// Of a sparse file: offset and length of each piece that has data.
    pub pieces: Option<Vec<(u64, u64)>>,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, unfiltered.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive being read.
pub struct Archive<R> {
    input: R,
    /// Data of the current entry not read yet, and the padding after it.
    left: u64,
    padding: u64,
}

impl<R: BufRead> Archive<R> {
    /// Begins at the first header.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next entry; its data is read by [`Archive::data`], or skipped by the next call of this. `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Fault> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header.as_old().size).ok_or_else(|| malformed("size", &header))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    extensions = Extensions { path: extensions.path, link: extensions.link, ..Extensions::default() };
                    extensions.read_pax(&records)?;
                }
                // Global records hold comments such as a commit id; nothing else is ever made of them.
                EntryType::XGlobalHeader => self.begin_data(size)?,
                EntryType::GNULongName => extensions.path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.extension(size)?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// A piece of the current entry's data, as large as the input offers; empty at its end.
    pub fn data(&mut self) -> Result<&[u8], Fault> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf().map_err(Fault::Input)?;
        if available.is_empty() {
            return Err(cut_short());
        }
        let usable = usize::try_from(self.left).unwrap_or(usize::MAX).min(available.len());
        Ok(&available[..usable])
    }

    /// Marks `count` bytes of what [`Archive::data`] gave as done.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    /// The input, at wherever reading stopped.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, Fault> {
        let old = header.as_old();
        let field = |raw: &[u8], name: &'static str| number(raw).ok_or_else(|| malformed(name, header));
        let header_path = header.path_bytes();
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // Archives from before POSIX mark folders by a slash alone.
                let folder = old.linkflag[0] == 0 && header_path.ends_with(b"/");
                if folder { Kind::Folder } else { Kind::File }
            }
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hardlink,
            EntryType::Char => Kind::Char,
            EntryType::Block => Kind::Block,
            EntryType::Fifo => Kind::Fifo,
            other => {
                let path = String::from_utf8_lossy(&header_path).into_owned();
                return Err(Fault::Archive(format!("{path:?} is of unknown type {:#x}", other.as_byte())));
            }
        };
        // All ones means "nobody" to the kernel's calls, so it is no owner.
        let narrow = |value: u64, name| {
            u32::try_from(value).ok().filter(|v| *v != u32::MAX).ok_or_else(|| malformed(name, header))
        };
        let stored = match extensions.size {
            _ if kind != Kind::File => 0,
            Some(size) => size,
            None => field(&old.size, "size")?,
        };
        let device = match (kind, header.as_ustar(), header.as_gnu()) {
            (Kind::Char | Kind::Block, Some(h), _) => (field(&h.dev_major, "device")?, field(&h.dev_minor, "device")?),
            (Kind::Char | Kind::Block, _, Some(h)) => (field(&h.dev_major, "device")?, field(&h.dev_minor, "device")?),
            _ => (0, 0),
        };
        let mut entry = Entry {
            path: extensions.path.unwrap_or_else(|| header_path.into_owned()),
            link: extensions.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default(),
            kind,
            mode: (field(&old.mode, "mode")? & 0o7777) as u32,
            uid: narrow(extensions.uid.map_or_else(|| field(&old.uid, "uid"), Ok)?, "uid")?,
            gid: narrow(extensions.gid.map_or_else(|| field(&old.gid, "gid"), Ok)?, "gid")?,
            mtime: extensions.mtime.map_or_else(|| field(&old.mtime, "mtime").map(|s| (s.cast_signed(), 0)), Ok)?,
            size: stored,
            pieces: None,
            device: (narrow(device.0, "device")?, narrow(device.1, "device")?),
            xattrs: extensions.xattrs,
        };
        let sparse_name = extensions.sparse.name.clone();
        if header.entry_type() == EntryType::GNUSparse {
            let (size, pieces) = self.old_sparse(header)?;
            (entry.size, entry.pieces) = (size, Some(pieces));
        }
        self.begin_data(stored)?;
        if extensions.sparse.seen && kind == Kind::File {
            let (size, pieces) = self.pax_sparse(extensions.sparse)?;
            (entry.size, entry.pieces) = (size, Some(pieces));
        }
        entry.path = sparse_name.unwrap_or(entry.path);
        if let Some(pieces) = &entry.pieces {
            check_pieces(pieces, self.left, entry.size)?;
        }
        if entry.size > MAX_FILE {
            return Err(Fault::Archive(format!("{:?} is larger than {MAX_FILE} bytes", lossy(&entry.path))));
        }
        for path in [&entry.path, &entry.link] {
            if path.len() > MAX_PATH || path.contains(&0) {
                return Err(Fault::Archive(format!("a path is too long or holds a NUL: {:?}", lossy(path))));
            }
        }
        Ok(entry)
    }

    fn begin_data(&mut self, size: u64) -> Result<(), Fault> {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        if size > u64::MAX - BLOCK as u64 { Err(Fault::Archive("an entry has an absurd size".into())) } else { Ok(()) }
    }

    fn skip(&mut self) -> Result<(), Fault> {
        let mut rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        while rest > 0 {
            let available = self.input.fill_buf().map_err(Fault::Input)?.len();
            if available == 0 {
                return Err(cut_short());
            }
            let step = usize::try_from(rest).unwrap_or(usize::MAX).min(available);
            self.input.consume(step);
            rest -= step as u64;
        }
        Ok(())
    }

    /// The next header, checked; `None` at two blocks of zeros or the end of the input.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|b| *b == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|b| *b != 0) => {
                    Err(Fault::Archive("an empty block stands between entries".into()))
                }
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block);
        let (before, after) = (&block[..148], &block[156..]);
        let unsigned = before.iter().chain(after).map(|b| u64::from(*b)).sum::<u64>() + 8 * 32;
        let signed = before.iter().chain(after).map(|b| i64::from(b.cast_signed())).sum::<i64>() + 8 * 32;
        let written = number(&header.as_old().cksum);
        if written != Some(unsigned) && written.map(u64::cast_signed) != Some(signed) {
            return Err(Fault::Archive(
                "a header's checksum is wrong: this is no tar archive, or a damaged one".into(),
            ));
        }
        Ok(Some(header.clone()))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Fault> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(cut_short()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Input(error)),
            }
        }
        Ok(Some(block))
    }

    fn needed_block(&mut self) -> Result<[u8; BLOCK], Fault> {
        self.block()?.ok_or_else(cut_short)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > MAX_EXTENSION {
            return Err(Fault::Archive(format!("an extension header has {size} bytes, more than {MAX_EXTENSION}")));
        }
        self.begin_data(size)?;
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes).map_err(Fault::Input)?;
        self.left = size - bytes.len() as u64;
        if self.left > 0 { Err(cut_short()) } else { Ok(bytes) }
    }

    /// The map in a GNU header of type `S` and the blocks that continue it.
    fn old_sparse(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>), Fault> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("sparse map", header))?;
        let real = number(&gnu.realsize).ok_or_else(|| malformed("sparse map", header))?;
        let mut pieces = Vec::new();
        let mut add = |list: &[GnuSparseHeader]| -> Result<(), Fault> {
            for piece in list.iter().filter(|p| p.offset[0] != 0 && p.numbytes[0] != 0) {
                let both = number(&piece.offset).zip(number(&piece.numbytes));
                pieces.push(both.ok_or_else(|| malformed("sparse map", header))?);
            }
            if pieces.len() > MAX_PIECES { Err(malformed("sparse map", header)) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.isextended[0] != 0;
        while more {
            let block = self.needed_block()?;
            let mut extension = GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(&block);
            add(extension.sparse())?;
            more = extension.isextended[0] != 0;
        }
        Ok((real, pieces))
    }

    /// The map in PAX records, or (format 1.0) at the head of the data.
    fn pax_sparse(&mut self, sparse: PaxSparse) -> Result<(u64, Vec<(u64, u64)>), Fault> {
        let bad = || Fault::Archive("a sparse map is malformed".into());
        let real = sparse.real_size.ok_or_else(bad)?;
        let numbers = if sparse.version == (1, 0) { self.leading_map()? } else { sparse.numbers };
        if numbers.len() % 2 != 0 {
            return Err(bad());
        }
        Ok((real, numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
    }

    /// Decimal numbers, one a line: their count, then offsets and lengths, filled up to whole blocks.
    fn leading_map(&mut self) -> Result<Vec<u64>, Fault> {
        let bad = || Fault::Archive("a sparse map is malformed".into());
        let mut numbers: Vec<u64> = Vec::new();
        let mut current: Option<u64> = None;
        loop {
            if self.left < BLOCK as u64 {
                return Err(bad());
            }
            let block = self.needed_block()?;
            self.left -= BLOCK as u64;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let digit = u64::from(byte - b'0');
                        let next = current.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                        current = Some(next.ok_or_else(bad)?);
                    }
                    b'\n' => numbers.push(current.take().ok_or_else(bad)?),
                    _ => return Err(bad()),
                }
                let count = numbers.first().copied().unwrap_or(0);
                if count > MAX_PIECES as u64 {
                    return Err(bad());
                }
                if !numbers.is_empty() && numbers.len() as u64 == 1 + 2 * count {
                    numbers.remove(0);
                    return Ok(numbers);
                }
            }
        }
    }
}

/// Pieces are in order, apart from each other, inside the file, and as long together as the data.
fn check_pieces(pieces: &[(u64, u64)], stored: u64, size: u64) -> Result<(), Fault> {
    let mut end = 0u64;
    let mut sum = 0u64;
    let fine = pieces.iter().all(|(offset, length)| {
        let fits = *offset >= end && offset.checked_add(*length).is_some_and(|e| e <= size);
        end = offset.saturating_add(*length);
        sum = sum.saturating_add(*length);
        fits
    });
    if fine && sum == stored { Ok(()) } else { Err(Fault::Archive("a sparse map does not fit its file".into())) }
}

/// A number field: octal text, or big-endian binary if the first bit is set. Blank counts as 0.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        // Negative numbers (the second bit is their sign) come out right once they are cast to i64.
        let tail = &field[field.len().saturating_sub(8)..];
        let mut value = tail.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        if field.len() <= 8 {
            value = value & (u64::MAX >> 1) | (value << 1 & 1 << 63);
        }
        return Some(value);
    }
    let digits = field.split(|b| *b == 0).next()?.trim_ascii();
    digits.iter().try_fold(0u64, |value, b| {
        let digit = matches!(b, b'0'..=b'7').then(|| u64::from(b - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned()
}

fn malformed(field: &'static str, header: &Header) -> Fault {
    Fault::Archive(format!("{:?} has a malformed {field}", lossy(&header.path_bytes())))
}

fn cut_short() -> Fault {
    Fault::Archive("the archive is cut short".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"     12 ", Some(0o12)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000008\0", None),
            (b"\x80\0\0\0\0\x0f\x42\x40", Some(1_000_000)),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\x01", Some(1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some((-2i64).cast_unsigned())),
        ] {
            assert_eq!(number(field), want, "{field:?}");
        }
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe").map(u64::cast_signed), Some(-2));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next_entry() {}
        }

        /// Random damage to a good archive: an answer, whichever, and no panic.
        #[test]
        fn damaged_archives_end(at in 0usize..2048, byte: u8, fix: bool) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(5);
            header.set_mode(0o644);
            builder.append_data(&mut header, "x".repeat(120), &b"hello"[..]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if fix {
                for start in (0..bytes.len() - 511).step_by(512) {
                    let mut header = Header::from_byte_slice(&bytes[start..start + 512]).clone();
                    header.set_cksum();
                    bytes[start..start + 512].copy_from_slice(header.as_bytes());
                }
            }
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next_entry() {}
        }
    }
}
