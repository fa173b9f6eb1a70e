//! Making, signalling and reaping processes.

#![expect(unsafe_code, reason = "clone3, raw signal numbers and the seccomp load have no safe form anywhere")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

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
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks into new namespaces and, if given, straight into a cgroup v2 folder. The child runs `child`
/// and exits with what it returns; a panic there ends it with 255.
///
/// # Errors
/// EBUSY if this process has more than one thread, because then the child may find a lock held by a
/// thread that it has not got; and whatever clone3(2) says.
pub fn fork_into(
    namespaces: UnshareFlags,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> u8,
) -> io::Result<Child> {
    if !single_threaded()? {
        return Err(Errno::BUSY.into());
    }
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: u64::from(namespaces.bits()) | CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(folder) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(folder.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: without CLONE_VM the child owns a copy of all memory, and as this process has one
    // thread only, no lock in that copy is held by anyone else; `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => {
            // Nothing of the caller may go on in the child: neither its stack frames nor its exit handlers.
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(255);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(code)) }
        }
        pid => match i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // SAFETY: the kernel has just stored a descriptor there that nobody else knows.
            Some(pid) if pidfd >= 0 => Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Whether this process has one thread.
pub fn single_threaded() -> io::Result<bool> {
    // A folder has a link from its parent, one from itself, and one from each folder in it.
    Ok(std::fs::metadata("/proc/self/task")?.nlink() == 3)
}

/// A descriptor for a child that is not reaped yet.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends signal `number` (1 to 64). `Ok(false)`: the process is gone.
pub fn signal(pidfd: impl AsFd, number: i32) -> io::Result<bool> {
    if !(1..=64).contains(&number) {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: the number is in the kernel's range. Those the C library keeps for itself (32, 33) are
    // only ever sent to other programs here, never handled.
    let signal = unsafe { Signal::from_raw_unchecked(number) };
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub pid: i32,
    /// As wait(2) encodes it.
    pub status: i32,
}

impl Ended {
    /// The exit code, 128+n for signal n.
    pub fn code(self) -> i32 {
        exit_code(self.status)
    }
}

/// The exit code in a wait(2) status, 128+n for signal n.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Reaps one child that has ended, whichever; `None`: none has, or there are none.
pub fn reap() -> io::Result<Option<Ended>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(ended) => Ok(ended.map(|(pid, status)| Ended { pid: pid.as_raw_nonzero().get(), status: status.as_raw() })),
        Err(Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether `pid` is a child of this process that is not reaped.
pub fn is_child(pid: i32) -> bool {
    // SAFETY: siginfo_t is plain data, for which zeroes are valid; the call writes into it only.
    let answer = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_PID,
            pid.unsigned_abs(),
            &raw mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL,
        )
    };
    answer == 0
}

/// One instruction of a compiled filter, bytes.
const INSTRUCTION: usize = 8;

/// Installs a compiled seccomp filter (`struct sock_filter[]`) on this process; it needs
/// no_new_privs or CAP_SYS_ADMIN.
///
/// # Errors
/// EINVAL for bytes that are no filter.
pub fn install_filter(program: &[u8]) -> io::Result<()> {
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL.into());
    }
    let filter: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` describes `filter`, which outlives the call; the kernel copies and checks it.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor but the standard three. For the first line of a `main`: what the caller of
/// this program has left open by mistake must neither be held for years nor reach a container.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: a program that has not begun has no descriptor of its own, so that nobody's is closed.
    match unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives memory that was freed back to the kernel. The C library keeps what a burst of work needed, else.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: looks at free memory of the allocator's own only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Forks a test, whose other threads only wait for it; returns the child's pid.
#[cfg(test)]
pub fn fork_test(child: impl FnOnce() -> u8) -> i32 {
    // SAFETY: glibc's fork leaves its allocator usable; the child takes no other lock that the harness may hold.
    match unsafe { libc::fork() } {
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(255);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(i32::from(code)) }
        }
        pid => pid,
    }
}

/// Field 22 of /proc/PID/stat, clock ticks since boot: with the pid it names a process for good.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the process that started then is still running.
pub fn lives(pid: i32, started: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X')) && start_time(pid) == Some(started)
}

/// SIGKILLs a process, if the pid still is the one that started then.
pub fn kill_if_same(pid: i32, started: u64) {
    // The pidfd pins the process; only then is its start time compared.
    if let Ok(handle) = pidfd(pid)
        && start_time(pid) == Some(started)
    {
        let _ = signal(handle, 9);
    }
}

/// SIGKILLs, and waits for, every process whose command line holds `wanted`, argument after argument.
/// Returns their pids. Walks /proc: for emergencies. Blocks, for a second at most.
pub fn kill_by_arguments(wanted: &[&str]) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut killed = Vec::new();
    for pid in pids.filter(|pid| has_arguments(*pid, wanted)) {
        // The pidfd pins the process; then it is looked at again.
        if let Ok(handle) = pidfd(pid)
            && has_arguments(pid, wanted)
            && signal(&handle, 9).is_ok()
        {
            killed.push((pid, handle));
        }
    }
    for (_, handle) in &killed {
        let mut ended = [rustix::event::PollFd::new(handle, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        // One that does not end is met again by whoever looks at what it held.
        let _ = rustix::event::poll(&mut ended, Some(&limit));
    }
    killed.into_iter().map(|(pid, _)| pid).collect()
}

fn has_arguments(pid: i32, wanted: &[&str]) -> bool {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
    arguments.windows(wanted.len()).any(|some| some.iter().zip(wanted).all(|(a, b)| *a == b.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_shell() {
        assert_eq!(exit_code(7 << 8), 7);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(11 | 0x80), 139, "with a core dump");
    }

    #[test]
    fn rubbish_is_no_filter() {
        assert!(install_filter(&[]).is_err());
        assert!(install_filter(&[0; 12]).is_err());
    }

    #[test]
    fn a_threaded_process_is_not_forked() {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        let error = fork_into(UnshareFlags::empty(), None, || 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(send);
        let _ = thread.join();
    }

    #[test]
    fn strangers_are_no_children() {
        assert!(!is_child(1));
        assert!(signal(pidfd(i32::try_from(std::process::id()).unwrap()).unwrap(), 65).is_err());
    }

    #[test]
    fn a_process_is_found_by_its_arguments() {
        let mark = format!("mark-{}", std::process::id());
        let mut child =
            std::process::Command::new("sh").args(["-c", "sleep 100; true", "--pod", &mark]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        assert!(lives(pid, started) && !lives(pid, started + 1));
        assert!(kill_by_arguments(&["--pod", "another"]).is_empty());
        // Between fork and execve it looks like this test.
        while kill_by_arguments(&["--pod", &mark]).is_empty() {}
        assert!(!lives(pid, started), "a zombie does not live");
        assert_eq!(child.wait().unwrap().code(), None);
    }
}
