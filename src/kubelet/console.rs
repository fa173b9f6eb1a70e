//! What a person sees of a pod: its log on stdout and stderr, and one live status line on a terminal.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::logs::{Piece, Stream};

/// The longest line that is joined of pieces before it is shown in part, in bytes.
const MAX_JOINED: usize = 1 << 20;

/// One thing to show.
#[derive(Debug)]
pub enum Show {
    /// A piece of a container's output.
    Log(String, Piece),
    /// A line about the pod.
    Line(String),
    /// What the pod is doing now.
    Status(String),
}

/// Looks of the output.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Put the container's name before each line.
    pub prefix: bool,
    /// Colour those names.
    pub colour: bool,
    /// Show lines about the pod.
    pub lines: bool,
    /// Show the status line.
    pub status: bool,
    /// stdout and stderr go to the same place.
    pub shared: bool,
}

impl Style {
    /// What suits the terminal, or its absence. `many`: more than one container.
    pub fn detect(many: bool, quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            prefix: many,
            colour: io::stdout().is_terminal() && !plain,
            lines: !quiet,
            status: !quiet && io::stderr().is_terminal(),
            shared: same_file(),
        }
    }
}

/// Starts the thread that writes: a terminal or pipe that is slow must not hold up the driver's other work.
pub fn start(style: Style) -> (mpsc::Sender<Show>, JoinHandle<()>) {
    let (sender, mut receiver) = mpsc::channel(256);
    let task = tokio::task::spawn_blocking(move || {
        let mut screen = Screen::new(style, io::stdout(), io::stderr());
        while let Some(show) = receiver.blocking_recv() {
            // A reader that went away (`| head`) ends the output, not the pod.
            if screen.show(show).is_err() {
                break;
            }
        }
        let _ = screen.end();
        while receiver.blocking_recv().is_some() {}
    });
    (sender, task)
}

struct Screen<O, E> {
    style: Style,
    out: O,
    err: E,
    status: String,
    drawn: bool,
    /// stdout or stderr stands in the middle of a line.
    mid_line: bool,
    /// Lines that are not complete, by container and stream.
    open: HashMap<(String, bool), Vec<u8>>,
    colours: Vec<String>,
}

impl<O: Write, E: Write> Screen<O, E> {
    fn new(style: Style, out: O, err: E) -> Self {
        Self {
            style,
            out,
            err,
            status: String::new(),
            drawn: false,
            mid_line: false,
            open: HashMap::new(),
            colours: Vec::new(),
        }
    }

    fn show(&mut self, show: Show) -> io::Result<()> {
        match show {
            Show::Log(name, piece) => {
                self.erase()?;
                self.log(name, piece)?;
                self.draw()
            }
            Show::Line(text) if self.style.lines => {
                self.erase()?;
                self.break_line()?;
                writeln!(self.err, "{text}")?;
                self.draw()
            }
            Show::Line(_) => Ok(()),
            Show::Status(text) => {
                self.erase()?;
                self.status = text;
                self.draw()
            }
        }
    }

    fn log(&mut self, name: String, piece: Piece) -> io::Result<()> {
        let error = piece.stream == Stream::Stderr;
        if !self.style.prefix {
            self.mid_line = !piece.ends_line;
            return self.write(error, &piece.bytes, piece.ends_line);
        }
        let open = self.open.entry((name.clone(), error)).or_default();
        open.extend_from_slice(&piece.bytes);
        if !piece.ends_line && open.len() < MAX_JOINED {
            return Ok(());
        }
        let line = std::mem::take(open);
        self.prefixed(&name, error, &line)
    }

    fn prefixed(&mut self, name: &str, error: bool, line: &[u8]) -> io::Result<()> {
        let prefix = self.prefix(name);
        let line = [prefix.as_bytes(), line].concat();
        self.write(error, &line, true)
    }

    fn write(&mut self, error: bool, bytes: &[u8], newline: bool) -> io::Result<()> {
        let target: &mut dyn Write = if error { &mut self.err } else { &mut self.out };
        target.write_all(bytes)?;
        if newline {
            target.write_all(b"\n")?;
        }
        target.flush()
    }

    fn prefix(&mut self, name: &str) -> String {
        if !self.style.colour {
            return format!("{name} | ");
        }
        let index = match self.colours.iter().position(|known| known == name) {
            Some(index) => index,
            None => {
                self.colours.push(name.to_owned());
                self.colours.len() - 1
            }
        };
        // Cyan, yellow, green, magenta, blue, red.
        let colour = [36, 33, 32, 35, 34, 31][index % 6];
        format!("\x1b[{colour}m{name} |\x1b[0m ")
    }

    fn erase(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.drawn) {
            self.err.write_all(b"\r\x1b[2K")?;
            self.err.flush()?;
        }
        Ok(())
    }

    fn draw(&mut self) -> io::Result<()> {
        if !self.style.status || self.status.is_empty() || self.mid_line {
            return Ok(());
        }
        // A line that wraps could not be erased; a terminal has 80 columns at least.
        let text: String = self.status.chars().take(78).collect();
        write!(self.err, "\x1b[2m{text}\x1b[0m")?;
        self.err.flush()?;
        self.drawn = true;
        Ok(())
    }

    fn break_line(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.mid_line) && self.style.shared {
            self.err.write_all(b"\n")?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.erase()?;
        let mut open: Vec<_> = self.open.drain().filter(|(_, line)| !line.is_empty()).collect();
        open.sort();
        for ((name, error), line) in open {
            self.prefixed(&name, error, &line)?;
        }
        Ok(())
    }
}

fn same_file() -> bool {
    let stat = |result: Result<rustix::fs::Stat, _>| result.ok().map(|stat| (stat.st_dev, stat.st_ino, stat.st_rdev));
    stat(rustix::fs::fstat(io::stdout())) == stat(rustix::fs::fstat(io::stderr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: Stream, text: &str, ends_line: bool) -> Piece {
        Piece { stream, bytes: text.as_bytes().to_vec(), ends_line }
    }

    fn shown(style: Style, all: Vec<Show>) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut screen = Screen::new(style, &mut out, &mut err);
        for show in all {
            screen.show(show).unwrap();
        }
        screen.end().unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    const PLAIN: Style = Style { prefix: false, colour: false, lines: true, status: false, shared: false };

    #[test]
    fn one_container_passes_through() {
        let log = |stream, text: &str, ends| Show::Log("a".to_owned(), piece(stream, text, ends));
        let (out, err) = shown(
            PLAIN,
            vec![
                log(Stream::Stdout, "on", false),
                log(Stream::Stdout, "e", true),
                log(Stream::Stderr, "two", true),
                Show::Line("about".to_owned()),
                Show::Status("running".to_owned()),
                log(Stream::Stdout, "no newline", false),
            ],
        );
        assert_eq!(out, "one\nno newline");
        assert_eq!(err, "two\nabout\n");
    }

    #[test]
    fn many_containers_have_whole_lines_with_names() {
        let log = |name: &str, text: &str, ends| Show::Log(name.to_owned(), piece(Stream::Stdout, text, ends));
        let style = Style { prefix: true, ..PLAIN };
        let (out, _) =
            shown(style, vec![log("a", "x", false), log("b", "y", true), log("a", "z", true), log("b", "end", false)]);
        assert_eq!(out, "b | y\na | xz\nb | end\n");
        let style = Style { colour: true, ..style };
        let (out, _) = shown(style, vec![log("a", "x", true), log("b", "y", true), log("a", "z", true)]);
        assert_eq!(out, "\x1b[36ma |\x1b[0m x\n\x1b[33mb |\x1b[0m y\n\x1b[36ma |\x1b[0m z\n");
    }

    #[test]
    fn the_status_line_makes_room_for_all_else() {
        let style = Style { status: true, ..PLAIN };
        let (_, err) = shown(style, vec![Show::Status("pulling".to_owned()), Show::Line("x".to_owned())]);
        assert_eq!(err, "\x1b[2mpulling\x1b[0m\r\x1b[2Kx\n\x1b[2mpulling\x1b[0m\r\x1b[2K");
    }
}
