//! Loading a compiled seccomp filter.
#![expect(unsafe_code, reason = "seccomp(2) has no safe wrapper")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Size of one `struct sock_filter`, bytes.
const INSTRUCTION: usize = 8;
/// The kernel's limit on the length of a filter, instructions (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// Largest filter file, bytes.
pub const MAX_FILTER: usize = INSTRUCTION * MAX_INSTRUCTIONS;

/// Loads `filter`, an array of `struct sock_filter`, for this process and all that it becomes.
/// Needs CAP_SYS_ADMIN or no_new_privs. An empty or ragged filter is refused.
pub fn load_filter(filter: &[u8]) -> io::Result<()> {
    load(filter, 0).map(drop)
}

/// The same for a filter that asks; the descriptor by which it does, close-on-exec.
pub fn load_asking_filter(filter: &[u8]) -> io::Result<OwnedFd> {
    let fd = load(filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn load(filter: &[u8], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let instructions = u16::try_from(filter.len() / INSTRUCTION).unwrap_or(u16::MAX);
    if filter.is_empty() || !filter.len().is_multiple_of(INSTRUCTION) || filter.len() > MAX_FILTER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a filter of {} bytes", filter.len())));
    }
    let program = libc::sock_fprog { len: instructions, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions of 8 bytes from `filter`, which is that long, and
    // needs no alignment for it.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) } {
        result @ 0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_no_filter() {
        assert!(load_filter(&[]).is_err());
        assert!(load_filter(&[0; 12]).is_err());
        assert!(load_filter(&[0; MAX_FILTER + INSTRUCTION]).is_err());
    }
}
