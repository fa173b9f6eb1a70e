//! The process's ends of its streams: whose they are, and how they become descriptors 0 to 2.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Uid, makedev};
use rustix::mount::MountAttrFlags;
use rustix::pty::OpenptFlags;

use super::Streams;
use crate::sys::{mounts, rights};

/// Major and minor number of the null device.
const NULL: (u32, u32) = (1, 3);

/// What a devpts file system calls itself.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// The descriptors that a helper must keep open for them.
pub(super) fn descriptors(streams: &Streams) -> Vec<RawFd> {
    match streams {
        Streams::Pipes { stdin, stdout, stderr } => vec![stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
        Streams::Terminal { .. } => Vec::new(),
    }
}

/// Gives the pipes to the user (as the host numbers him) that the program will run as: a program that
/// opens /dev/stdout or /proc/self/fd/1 anew needs to be their owner. Other files, such as /dev/null,
/// stay whose they are.
pub(super) fn give(streams: &Streams, owner: u32) -> io::Result<()> {
    let Streams::Pipes { stdin, stdout, stderr } = streams else { return Ok(()) };
    for pipe in [stdin, stdout, stderr] {
        let meta = rustix::fs::fstat(pipe)?;
        if FileType::from_raw_mode(meta.st_mode) == FileType::Fifo && meta.st_uid != owner {
            rustix::fs::fchown(pipe, Some(Uid::from_raw(owner)), None)?;
        }
    }
    Ok(())
}

/// Null devices by `null` in place of the host's: root inside may be its owner, and some runtimes give whatever their
/// streams are to the user inside. He could then close the host's to everybody.
pub(super) fn shelter(streams: Streams, null: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Streams> {
    let Streams::Pipes { stdin, stdout, stderr } = streams else { return Ok(streams) };
    let one = |stream: OwnedFd| if is_null(&stream)? { null() } else { Ok(stream) };
    Ok(Streams::Pipes { stdin: one(stdin)?, stdout: one(stdout)?, stderr: one(stderr)? })
}

fn is_null(file: &OwnedFd) -> io::Result<bool> {
    let meta = rustix::fs::fstat(file)?;
    let device = FileType::from_raw_mode(meta.st_mode) == FileType::CharacterDevice;
    Ok(device && meta.st_rdev == makedev(NULL.0, NULL.1))
}

/// The null device of a container whose init is `pid`, looked up on the host, which costs far less than one of its own.
/// Whatever else stands there is not opened.
pub(super) fn null_of(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let node = rustix::fs::openat2(&root, "dev/null", flags | OFlags::NOFOLLOW, Mode::empty(), resolve)?;
    if !is_null(&node)? {
        return Err(io::Error::other("the container has no null device"));
    }
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// A null device on a file system that nobody else sees.
pub(super) fn own_null() -> io::Result<OwnedFd> {
    // Labels count as inodes, too.
    let limits = [("size", "4k"), ("nr_inodes", "16")];
    let place = mounts::tmpfs(&limits, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    let mode = Mode::from_raw_mode(0o666);
    // By that name it is known to whoever asks for its path.
    const NAME: &str = "dev/null";
    rustix::fs::mkdirat(&place, "dev", Mode::from_raw_mode(0o755))?;
    rustix::fs::mknodat(&place, NAME, FileType::CharacterDevice, mode, makedev(NULL.0, NULL.1))?;
    rustix::fs::chmodat(&place, NAME, mode, AtFlags::empty())?;
    Ok(rustix::fs::openat(&place, NAME, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// The host's number for a user of a container, by lines of `inside outside length`; `None`: it has none.
pub(super) fn on_host(uid: u32, maps: impl IntoIterator<Item = (u32, u32, u32)>) -> Option<u32> {
    maps.into_iter().find_map(|(inside, outside, length)| {
        let offset = uid.checked_sub(inside)?;
        (offset < length).then(|| outside.checked_add(offset)).flatten()
    })
}

/// The mappings of a user namespace as the kernel writes them.
pub(super) fn parse_map(text: &str) -> Vec<(u32, u32, u32)> {
    let line = |line: &str| -> Option<(u32, u32, u32)> {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    text.lines().filter_map(line).collect()
}

/// Where the streams of a process that joins a container come from.
#[derive(Debug)]
pub(super) enum Source {
    /// As given.
    Pipes([OwnedFd; 3]),
    /// A terminal to be made inside, and who gets its master side.
    Terminal(UnixStream),
}

impl Source {
    /// On the host, where the console socket can be reached.
    pub(super) fn open(streams: Streams) -> io::Result<Self> {
        match streams {
            Streams::Pipes { stdin, stdout, stderr } => Ok(Self::Pipes([stdin, stdout, stderr])),
            Streams::Terminal { console_socket } => {
                // By a descriptor of the folder, as a socket's path has room for 107 bytes.
                let folder = console_socket.parent().unwrap_or(&console_socket);
                let name = console_socket.file_name().unwrap_or_default();
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let folder = rustix::fs::open(folder, flags, Mode::empty())?;
                let path = std::path::Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
                UnixStream::connect(path).map(Self::Terminal)
            }
        }
    }

    /// Makes them this process's own, inside the container; it leads a session already. `owner` is
    /// the user inside.
    pub(super) fn take(&self, owner: u32) -> io::Result<()> {
        match self {
            Self::Pipes([stdin, stdout, stderr]) => become_stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()),
            Self::Terminal(receiver) => {
                let (master, terminal) = open_terminal()?;
                rustix::fs::fchown(&terminal, Some(Uid::from_raw(owner)), None)?;
                rights::send(receiver, b"terminal", &[master.as_fd()])?;
                rustix::process::ioctl_tiocsctty(&terminal)?;
                become_stdio(terminal.as_fd(), terminal.as_fd(), terminal.as_fd())
            }
        }
    }
}

fn become_stdio(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    Ok(())
}

/// A terminal of the container's own. What stands at /dev/pts may be the container's making: only a
/// real devpts is opened, and its other side by the kernel, not by name.
fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let multiplexer = rustix::fs::openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve)?;
    let meta = rustix::fs::fstat(&multiplexer)?;
    let number = rustix::fs::makedev(5, 2);
    let real = FileType::from_raw_mode(meta.st_mode) == FileType::CharacterDevice
        && meta.st_rdev == number
        && rustix::fs::fstatfs(&multiplexer)?.f_type == DEVPTS_MAGIC;
    if !real {
        return Err(io::Error::other("the container's /dev/pts has no terminals"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve)?;
    let opened = rustix::fs::fstat(&master)?;
    if (opened.st_dev, opened.st_ino) != (meta.st_dev, meta.st_ino) {
        return Err(io::Error::other("the container's /dev/pts changes"));
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, terminal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_in_maps() {
        let maps = parse_map("         0     100000      65536\n  70000 5 1\nrubbish\n1 2\n");
        assert_eq!(maps, [(0, 100_000, 65_536), (70_000, 5, 1)]);
        for (uid, want) in [(0, Some(100_000)), (65_535, Some(165_535)), (65_536, None), (70_000, Some(5))] {
            assert_eq!(on_host(uid, maps.clone()), want, "{uid}");
        }
        assert_eq!(on_host(7, parse_map("0 0 4294967295")), Some(7));
    }
}
