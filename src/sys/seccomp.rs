//! Loading a compiled seccomp filter.
#![expect(unsafe_code, reason = "seccomp(2) has no safe wrapper")]

use std::io;

/// Size of one `struct sock_filter`, bytes.
const INSTRUCTION: usize = 8;
/// The kernel's limit on the length of a filter, instructions (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// Largest filter file, bytes.
pub const MAX_FILTER: usize = INSTRUCTION * MAX_INSTRUCTIONS;

/// Loads `filter`, an array of `struct sock_filter`, for this process and all that it becomes.
/// Needs CAP_SYS_ADMIN or no_new_privs. An empty or ragged filter is refused.
pub fn load_filter(filter: &[u8]) -> io::Result<()> {
    let instructions = u16::try_from(filter.len() / INSTRUCTION).unwrap_or(u16::MAX);
    if filter.is_empty() || !filter.len().is_multiple_of(INSTRUCTION) || filter.len() > MAX_FILTER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a filter of {} bytes", filter.len())));
    }
    let program = libc::sock_fprog { len: instructions, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions of 8 bytes from `filter`, which is that long, and
    // needs no alignment for it.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
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
