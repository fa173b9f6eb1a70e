//! Forking from a single-threaded process, and what a child does to itself first.
#![expect(unsafe_code, reason = "fork, clone3, close_range, unshare, setns and keyctl have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// Exit code of a child whose body panicked.
const PANICKED: i32 = 101;

/// A child process that was just made.
#[derive(Debug)]
pub struct Child {
    /// Its pid, as this process sees it; it stays taken until the child is reaped.
    pub pid: Pid,
    /// Refers to it for ever.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of clone3(2), as far as it goes since Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks. The child runs `body` and ends with the code it returns, without running destructors or
/// exit handlers of the parent's; the parent gets the child's pid.
///
/// # Errors
/// EBUSY in a process with more than one thread: a lock that another thread held at that moment
/// would stay locked in the child for ever.
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<i32> {
    if !single_threaded()? {
        return Err(Errno::BUSY.into());
    }
    fork_unchecked(body)
}

/// As [`fork_child`], also from a test harness, whose other threads only wait. The C library's fork
/// leaves its allocator usable even so.
pub(crate) fn fork_unchecked(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child either runs in a process that had one thread, or in a test whose other
    // threads are parked in a wait; it never returns into the caller's frames.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => end_with(body),
        pid => Ok(pid),
    }
}

/// As [`fork_child`], into new namespaces and, if given, straight into a cgroup v2 folder.
///
/// # Errors
/// As [`fork_child`]'s; and whatever clone3(2) says.
pub fn fork_into(
    namespaces: UnshareFlags,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> io::Result<Child> {
    if !single_threaded()? {
        return Err(Errno::BUSY.into());
    }
    clone3(u64::from(namespaces.bits()), libc::SIGCHLD as u64, cgroup, body)
}

/// This process has joined another's namespaces, and can fork there.
#[derive(Debug)]
pub struct Inside(());

/// Joins `namespaces` of the process that `pidfd` refers to, all or none. Root and working directory
/// are those of the joined mount namespace then. A joined PID namespace is for children only.
///
/// # Errors
/// EBUSY in a process with more than one thread, and whatever setns(2) says.
pub fn enter(pidfd: BorrowedFd<'_>, namespaces: ThreadNameSpaceType) -> io::Result<Inside> {
    // Later there may be no /proc to tell.
    if !single_threaded()? {
        return Err(Errno::BUSY.into());
    }
    rustix::thread::move_into_thread_name_spaces(pidfd, namespaces)?;
    Ok(Inside(()))
}

impl Inside {
    /// Joins more namespaces, in the child.
    pub fn enter(&self, pidfd: BorrowedFd<'_>, namespaces: ThreadNameSpaceType) -> io::Result<()> {
        Ok(rustix::thread::move_into_thread_name_spaces(pidfd, namespaces)?)
    }

    /// As [`fork_into`], but the child is this process's sibling: its parent reaps it. The pid is as
    /// this process sees it.
    pub fn fork_sibling(&self, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<Child> {
        // The signal at its end is the one that this process itself will send.
        clone3(CLONE_PARENT, 0, cgroup, body)
    }
}

fn clone3(
    flags: u64,
    exit_signal: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> io::Result<Child> {
    let mut pidfd: i32 = -1;
    let mut args =
        CloneArgs { flags: flags | CLONE_PIDFD, pidfd: (&raw mut pidfd) as u64, exit_signal, ..CloneArgs::default() };
    if let Some(folder) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(folder.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: without CLONE_VM the child owns a copy of all memory, and as this process has one
    // thread only (all callers have looked), no lock in that copy is held by anyone else; `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => end_with(body),
        pid => match i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) {
            // SAFETY: the kernel has just stored a descriptor there that nobody else knows.
            Some(pid) if pidfd >= 0 => Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Nothing of the caller may go on in a child: neither its stack frames nor its exit handlers.
fn end_with(body: impl FnOnce() -> i32) -> ! {
    exit_now(catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED))
}

/// Whether this process has one thread: its task folder has a link from its parent, one from itself,
/// and one from each thread.
fn single_threaded() -> io::Result<bool> {
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3)
}

/// Closes every descriptor but the standard three. For the first line of a `main`: what the caller of
/// this program has left open by mistake must neither be held for years nor reach a container.
pub fn close_inherited() -> io::Result<()> {
    close_range(3, u32::MAX, 0)
}

/// Every descriptor but the standard three is closed by execve, whoever made it.
pub fn close_others_on_exec() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every file descriptor except `keep`, also those that live Rust values own: only for a
/// freshly forked child that never drops them (it ends with `_exit` or execve).
pub fn close_all_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// A descriptor of its own for the open file behind a number.
pub fn borrow(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: makes a copy of whatever stands behind the number, or fails.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a descriptor that was just made for us.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
    }
}

/// Closes one descriptor by its number, under the same condition.
pub fn close(fd: RawFd) {
    // SAFETY: closes a descriptor only; the caller promises that nobody uses it any more.
    unsafe { libc::close(fd) };
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: closes descriptors only; the caller promises that nobody uses them any more.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this single-threaded process into new namespaces.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: FILES, the one flag that is unsafe, is masked out.
    unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }.map_err(Into::into)
}

/// Leaves the inherited session keyring for a fresh, empty one. Kernels without keyrings are fine.
pub fn fresh_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    match unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) } {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// The command's process is killed when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
    }
}

/// Ends this process now.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends this process at once.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_is_not_forked() {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        let own = super::super::process::pidfd(i32::try_from(std::process::id()).unwrap()).unwrap();
        for error in [
            fork_into(UnshareFlags::empty(), None, || 0).unwrap_err(),
            enter(std::os::fd::AsFd::as_fd(&own), ThreadNameSpaceType::NETWORK).unwrap_err(),
            fork_child(|| 0).unwrap_err(),
        ] {
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        }
        drop(send);
        let _ = thread.join();
    }
}
