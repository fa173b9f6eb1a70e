//! Signalling and reaping processes, and what is known of them. How they are made: [`super::fork`].
#![expect(unsafe_code, reason = "raw signal numbers, waitid and malloc_trim have no safe form anywhere")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

/// A descriptor for a child that is not reaped yet.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Takes these ids for this thread, as its user namespace numbers them: real, effective and saved. Capabilities go when
/// root goes, unless they are kept.
pub fn take_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// Sets oom_score_adj (-1000 to 1000) of a process, which is a pid or `self`. `Ok(false)`: it may not go so low, which
/// takes CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(process: &str, value: i64) -> io::Result<bool> {
    match fs::write(format!("/proc/{process}/oom_score_adj"), value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        written => written.map(|()| true),
    }
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

/// Gives memory that was freed back to the kernel. The C library keeps what a burst of work needed, else.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: looks at free memory of the allocator's own only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Field 22 of /proc/PID/stat, clock ticks since boot: with the pid it names a process for good.
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, start_time)| start_time)
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

/// State letter and start time of a process, from /proc/PID/stat.
pub fn stat(pid: i32) -> Option<(u8, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// A process's parent, as far as this process can see it.
pub fn parent(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 0)
}

/// A thread of a process that has not begun to end: the first, if that has not. `None`: all have, or the process is
/// gone. The first thread may end before others, and then stays until they have.
pub fn living_thread(pid: i32) -> Option<i32> {
    if !is_ending(pid)? {
        return Some(pid);
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    threads.find(|thread| is_ending(*thread) == Some(false))
}

/// Whether a thread has begun to end; `None`: it is gone.
fn is_ending(thread: i32) -> Option<bool> {
    /// Of the flags, field 9 of /proc/PID/stat.
    const EXITING: u64 = 0x4;
    let text = fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    let flags: u64 = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().nth(6)?.parse().ok()?;
    Some(flags & EXITING != 0)
}

/// The program's name, in parentheses, may hold anything, parentheses and spaces too.
fn parse_stat(text: &str) -> Option<(u8, u64)> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether the process that started then is still running.
pub fn lives(pid: i32, started: u64) -> bool {
    stat(pid).is_some_and(|(state, start)| !matches!(state, b'Z' | b'X') && start == started)
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
    use std::process::Stdio;

    #[test]
    fn codes_follow_the_shell() {
        assert_eq!(exit_code(7 << 8), 7);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(11 | 0x80), 139, "with a core dump");
    }

    #[test]
    fn strangers_are_no_children() {
        assert!(!is_child(1));
        assert!(signal(pidfd(i32::try_from(std::process::id()).unwrap()).unwrap(), 65).is_err());
    }

    #[test]
    fn stat_survives_hostile_names() {
        let text = "42 (a) Z (b) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 10";
        assert_eq!(parse_stat(text), Some((b'S', 987_654)));
        assert_eq!(parse_stat("42 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(stat(own).is_some_and(|(state, _)| b"RS".contains(&state)));
        assert_eq!(living_thread(own), Some(own));
        assert_eq!(parent(own), i32::try_from(std::os::unix::process::parent_id()).ok());
    }

    #[test]
    fn a_process_is_found_by_its_arguments() {
        let mark = format!("mark-{}", std::process::id());
        let mut command = std::process::Command::new("sh");
        // It has no children that would be left over.
        let mut child = command.args(["-c", "read line", "--pod", &mark]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        assert!(lives(pid, started) && !lives(pid, started + 1));
        assert!(kill_by_arguments(&["--pod", "another"]).is_empty());
        // Between fork and execve it looks like this test.
        while kill_by_arguments(&["--pod", &mark]).is_empty() {}
        assert!(!lives(pid, started), "a zombie does not live");
        assert_eq!(living_thread(pid), None, "nor has it threads that do");
        assert_eq!(child.wait().unwrap().code(), None);
        assert_eq!(living_thread(pid), None);
    }

    #[test]
    fn a_process_may_outlive_its_first_thread() {
        let pid = crate::sys::fork::fork_unchecked(|| {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
            // SAFETY: ends this thread only, which holds nothing that anybody waits for.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            1
        })
        .unwrap();
        // Until the thread has ended, it is the one that lives.
        let second = loop {
            match living_thread(pid) {
                Some(thread) if thread == pid => {}
                thread => break thread,
            }
        };
        assert!(second.is_some_and(|thread| thread != pid), "{second:?}");
        assert_eq!(is_ending(pid), Some(true));
        signal(pidfd(pid).unwrap(), 9).unwrap();
        rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
        assert_eq!(living_thread(pid), None);
    }
}
