//! A container's standard streams: pipes or a terminal, read into its log.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tracing::warn;

use super::backend::Streams;
use super::console::Console;
use super::lines::{Lines, Stream};
use super::listeners::Listeners;
use super::logfile::LogFile;
use super::poll::{Poll, Source, Token};
use super::server::Monitor;
use super::{because, failure, socket};
use crate::types::{ContainerId, ErrorKind, now_ns, rfc3339_nano};
use crate::wire::{CreateSpec, Failure, StdioSpec};

/// Bytes read at once.
const READ: usize = 32 * 1024;

/// Capacity that is kept between reads.
const KEEP: usize = 16 * 1024;

/// Reads at most, when everything that is there is to be read: somebody may write faster than we read.
const MAX_READS: usize = 64;

/// What all streams share: buffers, and clients that want a copy.
#[derive(Debug, Default)]
pub struct Reader {
    input: Vec<u8>,
    log: Vec<u8>,
    /// Clients of all containers.
    pub listeners: Listeners,
}

/// One stream that is being read.
#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    /// `None` while a client holds reading up.
    token: Option<Token>,
    lines: Lines,
    stream: Stream,
}

/// The streams of a container.
#[derive(Debug)]
pub struct Stdio {
    container: ContainerId,
    outputs: Vec<Output>,
    log: Option<LogFile>,
    console: Option<Console>,
    input: Option<Input>,
    spec: StdioSpec,
}

/// Where clients that attach write to: a pipe, or the terminal, nonblocking. Kept open, so that the
/// container does not read an end of file.
#[derive(Debug)]
struct Input {
    fd: OwnedFd,
    /// While somebody waits for room.
    token: Option<Token>,
}

/// What reading came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Some,
    Nothing,
    End,
}

impl Stdio {
    /// Opens the log and makes the streams; `number` tells console sockets apart.
    pub fn open(spec: &CreateSpec, dir: &Path, number: u64, poll: &mut Poll) -> Result<(Self, Streams), Failure> {
        let root = spec.stdio.log_root.as_deref();
        let log = spec.stdio.log_path.as_deref().map(|path| open_log(root, path)).transpose()?;
        let container = spec.container.clone();
        let mut stdio =
            Self { container, outputs: Vec::new(), log, console: None, input: None, spec: spec.stdio.clone() };
        let what = format!("making the streams of container {}", spec.container);
        let streams = stdio.make(spec, dir, number, poll).map_err(because(&what));
        match streams {
            Ok(streams) => Ok((stdio, streams)),
            Err(failure) => {
                stdio.forget(poll);
                Err(failure)
            }
        }
    }

    fn make(&mut self, spec: &CreateSpec, dir: &Path, number: u64, poll: &mut Poll) -> std::io::Result<Streams> {
        if spec.stdio.tty {
            let console = Console::listen(dir, number, Source::Console(self.container.clone()), poll)?;
            let console_socket = console.path().to_owned();
            self.console = Some(console);
            return Ok(Streams::Terminal { console_socket });
        }
        let stdin = if spec.stdio.stdin {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            self.input = Some(Input { fd: ours, token: None });
            theirs
        } else {
            socket::null()?
        };
        let stdout = self.pipe(Stream::Stdout, poll)?;
        let stderr = self.pipe(Stream::Stderr, poll)?;
        Ok(Streams::Pipes { stdin, stdout, stderr })
    }

    fn pipe(&mut self, stream: Stream, poll: &mut Poll) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = output_pipe()?;
        self.read_from(ours, stream, false, poll)?;
        Ok(theirs)
    }

    fn read_from(&mut self, fd: OwnedFd, stream: Stream, terminal: bool, poll: &mut Poll) -> std::io::Result<()> {
        let token = Some(poll.add(&fd, Source::Output(self.container.clone(), stream))?);
        self.outputs.push(Output { fd, token, lines: Lines::new(stream, terminal), stream });
        Ok(())
    }

    /// Takes the terminal that the runtime has sent, if it has and none is here yet.
    pub fn accept_terminal(&mut self, poll: &mut Poll) -> std::io::Result<()> {
        let Some(console) = &mut self.console else { return Ok(()) };
        let Some(master) = console.receive(poll)? else { return Ok(()) };
        let taken = self.use_terminal(master, poll);
        match &taken {
            Err(error) => self.console.iter_mut().for_each(|console| console.lose(error, poll)),
            Ok(()) => self.console.take().into_iter().for_each(|console| console.close(poll)),
        }
        taken
    }

    fn use_terminal(&mut self, master: OwnedFd, poll: &mut Poll) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        if self.spec.stdin {
            self.input = Some(Input { fd: rustix::io::fcntl_dupfd_cloexec(&master, 3)?, token: None });
        }
        self.read_from(master, Stream::Stdout, true, poll)
    }

    /// At the end of a creation: the terminal must have arrived, if one was asked for.
    pub fn take_terminal(&mut self, poll: &mut Poll) -> Result<(), Failure> {
        let accepted = self.accept_terminal(poll);
        let console = self.console.take();
        let missing = console.is_some();
        console.into_iter().for_each(|console| console.close(poll));
        accepted.map_err(because("receiving the terminal"))?;
        if missing { Err(failure(ErrorKind::Internal, "the runtime sent no terminal")) } else { Ok(()) }
    }

    /// Closes the log and opens its path anew.
    pub fn reopen_log(&mut self) -> Result<(), Failure> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.reopen()
            .map_err(|error| failure(ErrorKind::Internal, format!("reopening log {}: {error}", log.path().display())))
    }

    /// Reads a stream once.
    fn read(&mut self, stream: Stream, poll: &mut Poll, reader: &mut Reader) -> Read {
        let Some(index) = self.outputs.iter().position(|output| output.stream == stream) else { return Read::End };
        let output = &mut self.outputs[index];
        reader.input.clear();
        reader.input.reserve(READ);
        let read = match rustix::io::read(&output.fd, spare_capacity(&mut reader.input)) {
            Ok(0) => Read::End,
            Ok(_) => Read::Some,
            Err(Errno::AGAIN | Errno::INTR) => Read::Nothing,
            // A terminal whose other side is closed says EIO.
            Err(Errno::IO) => Read::End,
            Err(error) => {
                warn!(container = %self.container, ?stream, %error, "output can no longer be read");
                Read::End
            }
        };
        if let Some(log) = &mut self.log {
            let time = rfc3339_nano(now_ns());
            match read {
                Read::Some => output.lines.push(&reader.input, &time, &mut reader.log),
                Read::End => output.lines.finish(&time, &mut reader.log),
                Read::Nothing => {}
            }
            log.append(&reader.log);
            reader.log.clear();
            reader.log.shrink_to(KEEP);
        }
        match read {
            Read::Some => reader.listeners.copy(&self.container, stream, &reader.input, poll),
            Read::End => {
                self.outputs.swap_remove(index).unwatch(poll);
                reader.listeners.end(&self.container, stream, poll);
            }
            Read::Nothing => {}
        }
        read
    }

    /// Reads a stream once, unless a client holds that up; stops reading if one does now.
    fn read_once(&mut self, stream: Stream, poll: &mut Poll, reader: &mut Reader) {
        // An event may be older than the hold.
        if self.outputs.iter().any(|output| output.stream == stream && output.token.is_some())
            && self.read(stream, poll, reader) == Read::Some
            && reader.listeners.hold(&self.container, stream)
        {
            self.outputs.iter_mut().filter(|output| output.stream == stream).for_each(|output| output.unwatch(poll));
        }
    }

    /// Reads on what no client holds up any longer.
    pub fn read_on(&mut self, listeners: &Listeners, poll: &mut Poll) {
        for output in self.outputs.iter_mut().filter(|output| output.token.is_none()) {
            if listeners.hold(&self.container, output.stream) {
                continue;
            }
            match poll.add(&output.fd, Source::Output(self.container.clone(), output.stream)) {
                Ok(token) => output.token = Some(token),
                Err(error) => warn!(container = %self.container, %error, "output waits for the container's end"),
            }
        }
    }

    /// Whether a stream has not ended.
    pub fn reads(&self, stream: Stream) -> bool {
        self.outputs.iter().any(|output| output.stream == stream)
    }

    /// Whether the container was made with a terminal.
    pub fn is_terminal(&self) -> bool {
        self.spec.tty
    }

    /// The master side of its terminal.
    pub fn terminal(&self) -> Option<&OwnedFd> {
        self.outputs.first().filter(|_| self.spec.tty).map(|output| &output.fd)
    }

    /// Why nobody can write to the container, in words that follow its name.
    pub fn takes_input(&self) -> Result<(), &'static str> {
        match (&self.input, self.spec.stdin) {
            (Some(_), _) => Ok(()),
            (None, false) => Err("was created without stdin"),
            (None, true) => Err("has had its stdin closed"),
        }
    }

    /// Writes to the container. `PIPE`: it takes no more.
    pub fn write(&mut self, bytes: &[u8]) -> rustix::io::Result<usize> {
        self.input.as_ref().map_or(Err(Errno::PIPE), |input| rustix::io::write(&input.fd, bytes))
    }

    /// Has it told when there is room for input.
    pub fn want_room(&mut self, poll: &mut Poll) {
        if let Some(input) = self.input.as_mut().filter(|input| input.token.is_none()) {
            input.token = poll.add_write(&input.fd, Source::Input(self.container.clone())).ok();
        }
    }

    /// There is room: whoever waits for it says so again.
    pub fn had_room(&mut self, poll: &mut Poll) {
        if let Some(input) = &mut self.input
            && let Some(token) = input.token.take()
        {
            poll.remove(&input.fd, token);
        }
    }

    /// A client that wrote to the container has left. A terminal goes on, as all runtimes have it:
    /// who left can come back.
    pub fn client_left(&mut self, poll: &mut Poll) {
        if self.spec.stdin_once && !self.spec.tty {
            self.close_input(poll);
        }
    }

    /// The container reads the end of its input.
    pub fn close_input(&mut self, poll: &mut Poll) {
        self.had_room(poll);
        self.input = None;
    }

    /// Reads all that is there now.
    pub fn drain(&mut self, poll: &mut Poll, reader: &mut Reader) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..MAX_READS {
                if self.read(stream, poll, reader) != Read::Some {
                    break;
                }
            }
        }
    }

    /// Reads all that is there, ends unfinished lines, closes everything.
    pub fn close(mut self, poll: &mut Poll, reader: &mut Reader) {
        self.drain(poll, reader);
        if let Some(log) = &mut self.log {
            let time = rfc3339_nano(now_ns());
            for output in &mut self.outputs {
                output.lines.finish(&time, &mut reader.log);
            }
            log.append(&reader.log);
            reader.log.clear();
        }
        self.forget(poll);
    }

    fn forget(mut self, poll: &mut Poll) {
        self.outputs.iter_mut().for_each(|output| output.unwatch(poll));
        self.close_input(poll);
        if let Some(console) = self.console {
            console.close(poll);
        }
    }
}

impl Output {
    fn unwatch(&mut self, poll: &mut Poll) {
        if let Some(token) = self.token.take() {
            poll.remove(&self.fd, token);
        }
    }
}

impl Monitor {
    /// A container has written something, or closed a stream.
    pub(super) fn on_output(&mut self, id: &ContainerId, stream: Stream) {
        if let Some(container) = self.containers.get_mut(id) {
            container.stdio.read_once(stream, &mut self.poll, &mut self.reader);
        }
    }

    /// A runtime wants to hand over a terminal.
    pub(super) fn on_console(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Err(error) = container.stdio.accept_terminal(&mut self.poll) {
            // The creation ends with that.
            warn!(container = %id, %error, "receiving a terminal");
        }
    }
}

/// A pipe to read output from: our end, nonblocking, and theirs.
pub fn output_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn open_log(root: Option<&Path>, path: &Path) -> Result<LogFile, Failure> {
    LogFile::open(root, path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
            // A link on the way.
            _ if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EXDEV)) => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        failure(kind, format!("opening log {}: {error}", path.display()))
    })
}
