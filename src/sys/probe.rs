//! Which system calls the running kernel has. Nothing is changed by asking.
#![expect(unsafe_code, reason = "system calls made with arguments that cannot succeed have no safe form")]

use std::io;

/// Whether the kernel has clone3 and lets this process call it.
pub fn has_clone3() -> bool {
    // SAFETY: an argument block of size 0 is refused before it is read, so no process is made.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0usize) };
    is_known(answer)
}

/// Whether the kernel has mount_setattr and lets this process call it.
pub fn has_mount_setattr() -> bool {
    // SAFETY: the descriptor is none and the attributes have size 0, which is refused before they are read.
    let answer =
        unsafe { libc::syscall(libc::SYS_mount_setattr, -1i32, c"".as_ptr(), 0u32, std::ptr::null::<u8>(), 0usize) };
    is_known(answer)
}

fn is_known(answer: libc::c_long) -> bool {
    answer >= 0 || !matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_has_them() {
        assert!(super::has_clone3() && super::has_mount_setattr());
    }
}
