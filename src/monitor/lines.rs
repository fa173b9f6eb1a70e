//! Bytes of a container's output to lines of a CRI log: `TIME STREAM TAG CONTENT\n`.
//!
//! Pure: no clock and no file. Tag `F` ends a line, `P` is a piece of a line that goes on, or that
//! the container never ended with a newline.

/// Most bytes of content in one log line.
pub const MAX_CONTENT: usize = 16 * 1024;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// stdout, or a terminal.
    Stdout,
    /// stderr.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Cuts one stream into log lines; holds the beginning of a line that has not ended yet.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    /// A terminal writes `\r\n` for a newline; the `\r` is no content then.
    terminal: bool,
    pending: Vec<u8>,
}

impl Lines {
    /// Nothing read yet.
    pub fn new(stream: Stream, terminal: bool) -> Self {
        Self { stream, terminal, pending: Vec::new() }
    }

    /// Appends to `log` the lines that `input`, read at `time` (RFC 3339), completes.
    pub fn push(&mut self, input: &[u8], time: &str, log: &mut Vec<u8>) {
        let mut rest = input;
        while !rest.is_empty() {
            let (part, ended) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let part = &rest[..end];
                    rest = &rest[end + 1..];
                    (part, true)
                }
                None => (std::mem::take(&mut rest), false),
            };
            self.part(part, ended, time, log);
        }
    }

    /// The stream ended at `time`: appends what was left without a newline.
    pub fn finish(&mut self, time: &str, log: &mut Vec<u8>) {
        while !self.pending.is_empty() {
            let cut = self.pending.len().min(MAX_CONTENT);
            let content: Vec<u8> = self.pending.drain(..cut).collect();
            self.emit(b'P', &content, &[], time, log);
        }
        self.pending = Vec::new();
    }

    /// One piece of a line; `ended`: a newline follows it.
    fn part(&mut self, mut part: &[u8], ended: bool, time: &str, log: &mut Vec<u8>) {
        // A line of exactly the limit is whole: it is cut only once there is more than the limit.
        while self.content(part) > MAX_CONTENT {
            let held = self.pending.len();
            let pending = std::mem::take(&mut self.pending);
            if held >= MAX_CONTENT {
                self.emit(b'P', &pending[..MAX_CONTENT], &[], time, log);
                self.pending.extend_from_slice(&pending[MAX_CONTENT..]);
            } else {
                let (now, later) = part.split_at(MAX_CONTENT - held);
                self.emit(b'P', &pending, now, time, log);
                part = later;
            }
        }
        if !ended {
            self.pending.extend_from_slice(part);
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let (mut head, mut tail) = (pending.as_slice(), part);
        if self.terminal {
            match tail.split_last() {
                Some((b'\r', before)) => tail = before,
                None => head = head.strip_suffix(b"\r").unwrap_or(head),
                Some(_) => {}
            }
        }
        self.emit(b'F', head, tail, time, log);
    }

    /// Bytes of content in what is pending and `part`: a last `\r` of a terminal may belong to a newline.
    fn content(&self, part: &[u8]) -> usize {
        let last = part.last().or(self.pending.last());
        self.pending.len() + part.len() - usize::from(self.terminal && last == Some(&b'\r'))
    }

    fn emit(&self, tag: u8, head: &[u8], tail: &[u8], time: &str, log: &mut Vec<u8>) {
        log.reserve(time.len() + head.len() + tail.len() + 11);
        log.extend_from_slice(time.as_bytes());
        log.push(b' ');
        log.extend_from_slice(self.stream.name());
        log.extend_from_slice(&[b' ', tag, b' ']);
        log.extend_from_slice(head);
        log.extend_from_slice(tail);
        log.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(terminal: bool, reads: &[&[u8]]) -> Vec<u8> {
        let (mut lines, mut log) = (Lines::new(Stream::Stdout, terminal), Vec::new());
        for read in reads {
            lines.push(read, "T", &mut log);
        }
        lines.finish("T", &mut log);
        log
    }

    #[test]
    fn lines_and_a_rest_without_newline() {
        assert_eq!(log(false, &[b"a\n\nb", b"c\nd"]), b"T stdout F a\nT stdout F \nT stdout F bc\nT stdout P d\n");
        assert_eq!(log(false, &[b""]), b"");
        assert_eq!(log(false, &[b"a\r\n"]), b"T stdout F a\r\n", "a program's own carriage return is content");
        assert_eq!(log(true, &[b"a\r", b"\nb\rc\r\n"]), b"T stdout F a\nT stdout F b\rc\n");
    }

    #[test]
    fn the_limit_is_inclusive() {
        for (length, terminal, want) in [
            (MAX_CONTENT, false, vec![('F', MAX_CONTENT)]),
            (MAX_CONTENT + 1, false, vec![('P', MAX_CONTENT), ('F', 1)]),
            (2 * MAX_CONTENT, false, vec![('P', MAX_CONTENT), ('F', MAX_CONTENT)]),
            (MAX_CONTENT, true, vec![('F', MAX_CONTENT)]),
        ] {
            let mut input = vec![b'x'; length];
            input.extend_from_slice(if terminal { b"\r\n" } else { b"\n" });
            let log = log(terminal, &[&input]);
            let found: Vec<(char, usize)> = log
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| (char::from(line[9]), line.len() - 11))
                .collect();
            assert_eq!(found, want, "{length} {terminal}");
        }
    }

    proptest! {
        #[test]
        fn how_reads_are_cut_does_not_matter(
            text in proptest::collection::vec(prop_oneof![
                Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"\r\n".to_vec()), Just(vec![b'y'; MAX_CONTENT]),
                (0..40_usize).prop_map(|n| vec![b'x'; n]),
            ], 0..12),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
            terminal in any::<bool>(),
        ) {
            let text = text.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.push(0);
            cuts.push(text.len());
            cuts.sort_unstable();
            let reads: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(log(terminal, &reads), log(terminal, &[&text]));
        }

        #[test]
        fn nothing_is_lost_and_no_line_is_too_long(
            text in proptest::collection::vec((0..2 * MAX_CONTENT, any::<bool>()), 0..8),
        ) {
            let text: Vec<u8> = text
                .into_iter()
                .flat_map(|(length, ended)| [vec![b'x'; length], vec![b'\n'; usize::from(ended)]].concat())
                .collect();
            let mut content = Vec::new();
            for line in log(false, &[&text]).split_inclusive(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\n").unwrap();
                prop_assert!(line.starts_with(b"T stdout "));
                prop_assert!(line.len() - 11 <= MAX_CONTENT);
                content.extend_from_slice(&line[11..]);
                if line[9] == b'F' {
                    content.push(b'\n');
                }
            }
            prop_assert_eq!(content, text);
        }
    }
}
