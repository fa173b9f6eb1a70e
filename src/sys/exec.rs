//! The last steps before a container's program runs: signals as a fresh program expects them, execve.
#![expect(unsafe_code, reason = "execve and rt_sigaction for all signals have no safe wrapper")]

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

/// Highest signal number.
const LAST_SIGNAL: libc::c_int = 64;

/// Every signal at its default, none blocked. Ignored signals and the mask survive execve, so what
/// this process chose for itself would otherwise become the container's.
pub fn reset_signals() -> io::Result<()> {
    // The kernel's struct sigaction: handler (0 is SIG_DFL), flags, restorer, mask.
    let default = [0u64; 4];
    for signal in (1..=LAST_SIGNAL).filter(|n| ![libc::SIGKILL, libc::SIGSTOP].contains(n)) {
        // SAFETY: `default` outlives the call and is as large as the kernel's struct with an 8-byte
        // mask; the system call is used because libc refuses the two signals it keeps for itself.
        let done =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<u64>(), 8usize) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let none = 0u64;
    // SAFETY: `none` is a mask of 8 bytes, as the size says.
    let done = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null::<u64>(), 8usize)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces this process; returns only to say why that failed.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer, and the strings they point to live in the caller.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}
