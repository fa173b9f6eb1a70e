//! Bytes of a log file to pieces of output. Pure.

/// The longest line of a log file, in bytes; a longer one is cut. Runtimes write 16 KiB of content at most.
const MAX_LINE: usize = 1 << 20;

/// Where a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output; a terminal's output, too.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it went.
    pub stream: Stream,
    /// Its bytes, without the newline.
    pub bytes: Vec<u8>,
    /// A newline follows; otherwise the line goes on in the next piece of this stream.
    pub ends_line: bool,
}

/// Takes a log file in any portions.
#[derive(Debug, Default)]
pub struct Parser {
    /// A line that has no newline yet.
    rest: Vec<u8>,
    /// The rest of an over-long line is being passed over.
    skipping: bool,
}

impl Parser {
    /// Takes the next portion; answers with the pieces that are now complete.
    pub fn feed(&mut self, mut data: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            if self.skipping {
                self.skipping = false;
            } else if self.rest.is_empty() {
                pieces.extend(line(&data[..end]));
            } else {
                self.rest.extend_from_slice(&data[..end]);
                pieces.extend(line(&self.rest));
            }
            self.rest.clear();
            data = &data[end + 1..];
        }
        if !self.skipping {
            self.rest.extend_from_slice(data);
            if self.rest.len() > MAX_LINE {
                pieces.extend(line(&self.rest));
                self.rest.clear();
                self.skipping = true;
            }
        }
        pieces
    }
}

/// `None` for a line that is not in the format (a file cut off by a full disk, for instance).
fn line(text: &[u8]) -> Option<Piece> {
    let mut parts = text.splitn(4, |b| *b == b' ');
    let (_time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is complete.
    let ends_line = match tags.split(|b| *b == b':').next() {
        Some(b"F") => true,
        Some(b"P") => false,
        _ => return None,
    };
    Some(Piece { stream, bytes: parts.next().unwrap_or_default().to_vec(), ends_line })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn show(pieces: &[Piece]) -> String {
        let one = |piece: &Piece| {
            let mark = if piece.ends_line { "$" } else { "" };
            format!(
                "{}{}{mark}",
                if piece.stream == Stream::Stderr { "!" } else { "" },
                String::from_utf8_lossy(&piece.bytes)
            )
        };
        pieces.iter().map(one).collect::<Vec<_>>().join("|")
    }

    const LOG: &[u8] = b"2026-01-01T00:00:00.000000000Z stdout P one \n2026-01-01T00:00:00Z stdout F two\n\
        2026-01-01T00:00:00+02:00 stderr F:x oh  no\nrubbish\n2026-01-01T00:00:00Z stdout F \n2026-01-01T00:00:00Z stdout F\n";

    #[test]
    fn lines_are_told_from_rubbish() {
        assert_eq!(show(&Parser::default().feed(LOG)), "one |two$|!oh  no$|$|$");
    }

    #[test]
    fn an_endless_line_is_cut_and_the_next_one_read() {
        let mut parser = Parser::default();
        let mut pieces = parser.feed(b"T stdout F ");
        for _ in 0..40 {
            pieces.extend(parser.feed(&[b'x'; 65536]));
            assert!(parser.rest.len() <= MAX_LINE);
        }
        pieces.extend(parser.feed(b"\nT stdout F next\n"));
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1].bytes, b"next");
    }

    proptest! {
        #[test]
        fn portions_do_not_matter(cuts in proptest::collection::vec(0usize..LOG.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.extend([0, LOG.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let pieces: Vec<Piece> = cuts.windows(2).flat_map(|cut| parser.feed(&LOG[cut[0]..cut[1]])).collect();
            prop_assert_eq!(pieces, Parser::default().feed(LOG));
        }

        #[test]
        fn rubbish_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Parser::default().feed(&data);
        }
    }
}
