//! Compressed bytes in, a layer's folder out: both digests on the way, two threads a layer, nothing held twice.
//!
//! One thread takes pieces as the network gives them, digests and inflates; the other digests the archive and
//! writes the folder. Between them go a few large buffers, which come back empty.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::archive::Archive;
use super::{Fault, Summary, entries};
use crate::image::error::ImageError;
use crate::types::Digest;

/// Size of a buffer between the threads, bytes.
const BUFFER: usize = 256 << 10;
/// Buffers between the threads.
const BUFFERS: usize = 4;
/// Largest unpacked archive, bytes.
const MAX_ARCHIVE: u64 = 1 << 40;
/// Largest zstd window, as a power of two: 128 MiB, what the format's own tools allow by default.
const MAX_WINDOW: u32 = 27;

/// What the network half sends.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of the blob, in order.
    Data(Bytes),
    /// That was all. (A channel closed without this means that the download was given up.)
    End,
}

/// What the bytes must be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Of the compressed bytes.
    pub blob: Digest,
    /// Compressed length.
    pub size: u64,
    /// Of the archive.
    pub diff_id: Digest,
}

/// Unpacks a layer into the empty folder `into`; blocks until all is there and verified. On failure the folder's
/// content is of no use.
pub fn unpack(pieces: mpsc::Receiver<Piece>, wanted: Wanted, into: &Path) -> Result<Summary, ImageError> {
    let root = File::open(into).map_err(ImageError::io("open", into))?;
    let (full_tx, full_rx) = sync_channel::<Vec<u8>>(BUFFERS);
    let (empty_tx, empty_rx) = channel::<Vec<u8>>();
    let (inflated, unpacked) = std::thread::scope(|scope| {
        let inflate = scope.spawn(move || inflate(pieces, wanted, &full_tx, &empty_rx));
        let source =
            Source { full: full_rx, empty: empty_tx, buffer: Vec::new(), at: 0, digest: Sha256::new(), length: 0 };
        let unpacked = write(source, wanted, root);
        (inflate.join(), unpacked)
    });
    let inflated = inflated.unwrap_or_else(|_| Err(Broken::Stream("the decompressor panicked".into())));
    let layer = wanted.diff_id;
    let blob = || format!("layer blob {}", wanted.blob);
    match (inflated, unpacked) {
        (Err(Broken::GivenUp), _) => Err(ImageError::Aborted { what: format!("layer {layer}") }),
        // The archive's own fault made the writer stop listening, or it never came to it.
        (Err(Broken::NobodyListens) | Ok(()), Err(fault)) => Err(fault.of(layer, into)),
        (Err(Broken::Stream(reason)), _) => Err(ImageError::Corrupt { what: blob(), reason }),
        (Err(Broken::NobodyListens), Ok(_)) => Err(ImageError::Aborted { what: format!("layer {layer}") }),
        (Ok(()), Ok((_, found))) if found != layer => Err(ImageError::Corrupt {
            what: blob(),
            reason: format!("the config promises diff id {layer}, the archive has {found}"),
        }),
        (Ok(()), Ok((summary, _))) => Ok(summary),
    }
}

enum Broken {
    GivenUp,
    NobodyListens,
    Stream(String),
}

impl Fault {
    /// As the error of the layer that was being made in `into`.
    pub(super) fn of(self, layer: Digest, into: &Path) -> ImageError {
        match self {
            Self::Archive(reason) => ImageError::Layer { layer, reason },
            Self::Input(error) => ImageError::Layer { layer, reason: error.to_string() },
            Self::Disk { path, source } => ImageError::io("unpack", &into.join(path))(source),
        }
    }
}

fn inflate(
    pieces: mpsc::Receiver<Piece>,
    wanted: Wanted,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(), Broken> {
    let mut compressed =
        Compressed { pieces, current: Bytes::new(), digest: Sha256::new(), length: 0, state: State::Open };
    let result = decode(&mut compressed, full, empty);
    if matches!(compressed.state, State::GivenUp) {
        return Err(Broken::GivenUp);
    }
    if let Err(Broken::NobodyListens) = result {
        return result;
    }
    // Whatever follows the compressed stream belongs to the blob. After an error of the decoder, the digest tells
    // whether the blob was damaged on its way.
    compressed.drain();
    if matches!(compressed.state, State::GivenUp) {
        return Err(Broken::GivenUp);
    }
    let found = Digest::from_bytes(compressed.digest.finalize().into());
    if compressed.length != wanted.size || found != wanted.blob {
        let (length, size, blob) = (compressed.length, wanted.size, wanted.blob);
        return Err(Broken::Stream(format!(
            "wanted {size} bytes with digest {blob}, got {length} bytes with digest {found}"
        )));
    }
    result
}

fn decode(compressed: &mut Compressed, full: &SyncSender<Vec<u8>>, empty: &Receiver<Vec<u8>>) -> Result<(), Broken> {
    let broken = |error: io::Error| Broken::Stream(error.to_string());
    let magic = compressed.head();
    match magic.as_ref() {
        [0x1f, 0x8b, ..] => pass(&mut MultiGzDecoder::new(compressed), "gzip", full, empty),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(broken)?;
            decoder.window_log_max(MAX_WINDOW).map_err(broken)?;
            pass(&mut decoder, "zstd", full, empty)
        }
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Err(Broken::Stream("layers are packed with gzip, zstd or not at all; this one is bzip2 or xz".into()))
        }
        _ => pass(compressed, "", full, empty),
    }
}

/// Moves all of `reader` to the writer in whole buffers.
fn pass(
    reader: &mut dyn Read,
    name: &str,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(), Broken> {
    let mut made = 0;
    let mut length = 0u64;
    loop {
        let mut buffer = if made < BUFFERS {
            made += 1;
            vec![0; BUFFER]
        } else {
            empty.recv().map_err(|_| Broken::NobodyListens)?
        };
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        while filled < BUFFER {
            match reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::Stream(format!("the {name} stream is damaged: {error}"))),
            }
        }
        length += filled as u64;
        if length > MAX_ARCHIVE {
            return Err(Broken::Stream(format!("it unpacks to more than {MAX_ARCHIVE} bytes")));
        }
        if filled == 0 {
            return Ok(());
        }
        buffer.truncate(filled);
        full.send(buffer).map_err(|_| Broken::NobodyListens)?;
    }
}

fn write(source: Source, wanted: Wanted, root: File) -> Result<(Summary, Digest), Fault> {
    let mut archive = Archive::new(source);
    let summary = entries::unpack(&mut archive, root.into())?;
    let mut source = archive.into_inner();
    // Padding after the archive's end counts for the digest.
    while !source.fill_buf().map_err(Fault::Input)?.is_empty() {
        source.consume(usize::MAX);
    }
    let found = Digest::from_bytes(source.digest.finalize().into());
    tracing::debug!(layer = ?wanted.diff_id, bytes = source.length, "layer unpacked");
    Ok((summary, found))
}

enum State {
    Open,
    Ended,
    GivenUp,
}

/// The blob's bytes, digested as they arrive.
struct Compressed {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    digest: Sha256,
    length: u64,
    state: State,
}

impl Compressed {
    /// At least the first six bytes, if there are as many, without consuming them.
    fn head(&mut self) -> Bytes {
        let mut head = Vec::new();
        while head.len() < 6 && self.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
            head.extend_from_slice(&std::mem::take(&mut self.current));
        }
        self.current = head.into();
        self.current.clone()
    }

    fn drain(&mut self) {
        while let Ok(true) = self.fill_buf().map(|bytes| !bytes.is_empty()) {
            self.current.clear();
        }
    }
}

impl BufRead for Compressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && matches!(self.state, State::Open) {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => {
                    self.digest.update(&bytes);
                    self.length += bytes.len() as u64;
                    self.current = bytes;
                }
                Some(Piece::End) => self.state = State::Ended,
                None => self.state = State::GivenUp,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count.min(self.current.len()));
    }
}

impl Read for Compressed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

/// The archive's bytes, digested as they arrive.
struct Source {
    full: Receiver<Vec<u8>>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    digest: Sha256,
    length: u64,
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len()
            && let Ok(next) = self.full.recv()
        {
            self.digest.update(&next);
            self.length += next.len() as u64;
            self.at = 0;
            let done = std::mem::replace(&mut self.buffer, next);
            if done.capacity() > 0 {
                // The other thread may have read all there is and gone.
                let _ = self.empty.send(done);
            }
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.buffer.len());
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}
