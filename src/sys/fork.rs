//! Forking a short-lived helper from a single-threaded process, and what such a helper does to itself first.
#![expect(unsafe_code, reason = "fork, close_range, unshare and keyctl have no safe wrapper")]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::thread::UnshareFlags;

/// Exit code of a child whose body panicked.
const PANICKED: i32 = 101;

/// Forks. The child runs `body` and ends with the code it returns, without running destructors or
/// exit handlers of the parent's; the parent gets the child's pid.
///
/// Refused in a process with more than one thread: a lock that another thread held at that moment
/// would stay locked in the child for ever.
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<i32> {
    if threads()? != 1 {
        return Err(io::Error::other("fork in a process with several threads"));
    }
    fork_unchecked(body)
}

/// How many threads this process has: the links of its task folder, less `.` and `..`.
fn threads() -> io::Result<u64> {
    Ok(rustix::fs::stat("/proc/self/task")?.st_nlink.saturating_sub(2))
}

/// As [`fork_child`], also from a test harness, whose other threads only wait.
pub(crate) fn fork_unchecked(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child either runs in a process that had one thread, or in a test whose other
    // threads are parked in a wait; it never returns into the caller's frames.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// Closes every file descriptor except `keep`, also those that live Rust values own: only for a
/// freshly forked child that never drops them (it ends with `_exit` or execve).
pub fn close_all_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

/// Closes one descriptor by its number, under the same condition.
pub fn close(fd: RawFd) {
    // SAFETY: closes a descriptor only; the caller promises that nobody uses it any more.
    unsafe { libc::close(fd) };
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closes descriptors only; the caller promises that nobody uses them any more.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
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
