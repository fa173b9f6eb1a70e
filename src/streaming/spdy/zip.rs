//! Header blocks into and out of the one zlib stream that each direction of a connection has.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, DICTIONARY_ID};
use super::error::FrameError;

/// Most bytes of a stored block of deflate.
const STORED_MOST: usize = 0xffff;

/// One direction's sender.
#[derive(Debug)]
pub(super) enum Deflater {
    /// Blocks are stored as they are, in a valid zlib stream. That needs no memory, and the answers of a
    /// server have no headers anyway.
    Store {
        /// Whether the stream's head was sent.
        begun: bool,
    },
    /// Blocks are compressed.
    Squeeze(Box<Compress>),
}

impl Deflater {
    /// # Errors
    /// zlib does not take the dictionary, which it does.
    pub(super) fn new(compress: bool) -> Result<Deflater, FrameError> {
        if !compress {
            return Ok(Deflater::Store { begun: false });
        }
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&DICTIONARY).map_err(|error| FrameError::Zlib(error.to_string()))?;
        Ok(Deflater::Squeeze(Box::new(zlib)))
    }

    /// Adds `block` to `out`, up to where the peer can read all of it.
    pub(super) fn deflate(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Deflater::Store { begun } => {
                if !*begun {
                    // Deflate, 32 KiB window, a dictionary, and the check bits that make it divisible by 31.
                    out.extend_from_slice(&[0x78, 0xbb]);
                    out.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
                    *begun = true;
                }
                for part in block.chunks(STORED_MOST) {
                    let len = part.len() as u16;
                    out.push(0);
                    out.extend_from_slice(&len.to_le_bytes());
                    out.extend_from_slice(&(!len).to_le_bytes());
                    out.extend_from_slice(part);
                }
                // The empty block of a flush: Go's reader gives out a block only once it has seen it.
                out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
                Ok(())
            }
            Deflater::Squeeze(zlib) => squeeze(zlib, block, out),
        }
    }
}

fn squeeze(zlib: &mut Compress, mut block: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut space = [0; 4096];
    loop {
        let (read, made) = (zlib.total_in(), zlib.total_out());
        zlib.compress(block, &mut space, FlushCompress::Sync).map_err(|error| FrameError::Zlib(error.to_string()))?;
        block = &block[(zlib.total_in() - read) as usize..];
        let made = (zlib.total_out() - made) as usize;
        out.extend_from_slice(&space[..made]);
        // Room left over means that all is out.
        if block.is_empty() && made < space.len() {
            return Ok(());
        }
    }
}

/// One direction's receiver.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// What `block` holds, at most `most` bytes.
    ///
    /// # Errors
    /// It is no continuation of the stream, or larger.
    pub(super) fn inflate(&mut self, mut block: &[u8], most: usize) -> Result<Vec<u8>, FrameError> {
        let zlib = &mut self.0;
        let mut text = Vec::new();
        let mut space = [0; 4096];
        loop {
            let (read, made) = (zlib.total_in(), zlib.total_out());
            let result = zlib.decompress(block, &mut space, FlushDecompress::Sync);
            block = &block[(zlib.total_in() - read) as usize..];
            let made = (zlib.total_out() - made) as usize;
            if text.len() + made > most {
                return Err(FrameError::HeadersTooLong(most));
            }
            text.extend_from_slice(&space[..made]);
            match result {
                Ok(Status::StreamEnd) => return Err(FrameError::Zlib("the stream ends".to_owned())),
                Ok(_) if made == space.len() => {}
                Ok(_) if block.is_empty() => return Ok(text),
                Ok(_) => return Err(FrameError::Zlib("it stops half way".to_owned())),
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    zlib.set_dictionary(&DICTIONARY).map_err(|error| FrameError::Zlib(error.to_string()))?;
                }
                Err(error) => return Err(FrameError::Zlib(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_and_each_ends_in_a_flush() {
        for compress in [false, true] {
            let (mut near, mut far) = (Deflater::new(compress).unwrap(), Inflater::new());
            for len in [0, 4, 4096, 5000, 70_000, 131_072, 1] {
                let block: Vec<u8> = (0..len as u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
                let mut out = Vec::new();
                near.deflate(&block, &mut out).unwrap();
                assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
                assert_eq!(far.inflate(&out, len).unwrap(), block);
            }
        }
    }
}
