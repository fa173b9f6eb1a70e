//! Pause: the process that holds a pod's namespaces. It waits for SIGTERM or SIGINT, and as process
//! 1 of a PID namespace lets the kernel reap what is left to it.
//!
//! A program of its own without any library, compiled by build/pause.rs and embedded in
//! podwright-monitor, which executes it from a sealed memfd inside an empty root.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: usize = 17;
const SIG_BLOCK: usize = 0;
const SIG_IGN: usize = 1;
/// Bytes of the kernel's sigset_t.
const SET: usize = 8;
const PR_SET_NAME: usize = 15;
const EINTR: isize = -4;
const EAGAIN: isize = -11;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const RT_SIGACTION: usize = 13;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const PPOLL: usize = 271;
    pub(crate) const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const RT_SIGACTION: usize = 134;
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const PRCTL: usize = 167;
    pub(crate) const PPOLL: usize = 73;
    pub(crate) const EXIT_GROUP: usize = 94;
}

// The kernel enters with an aligned stack; the function never returns.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {main}", "ud2", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {main}", "brk 1", main = sym main);

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: every call below passes pointers to live data of the right size, or none.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}
#[cfg(target_arch = "aarch64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: every call below passes pointers to live data of the right size, or none.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, options(nostack));
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        call(number::EXIT_GROUP, code, 0, 0, 0, 0);
    }
}

extern "C" fn main() -> ! {
    let ends: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1);
    // struct sigaction: handler, flags, restorer, mask. Children of a process that ignores SIGCHLD
    // leave no zombies.
    let ignore: [usize; 4] = [SIG_IGN, 0, 0, 0];
    call(number::PRCTL, PR_SET_NAME, c"pause".as_ptr() as usize, 0, 0, 0);
    call(number::RT_SIGPROCMASK, SIG_BLOCK, (&raw const ends) as usize, 0, SET, 0);
    call(number::RT_SIGACTION, SIGCHLD, ignore.as_ptr() as usize, 0, SET, 0);
    loop {
        match call(number::RT_SIGTIMEDWAIT, (&raw const ends) as usize, 0, 0, SET, 0) {
            EINTR | EAGAIN => {}
            refused if refused < 0 => break,
            _ => exit(0),
        }
    }
    // A seccomp profile that forbids sigtimedwait: wait for SIGKILL by another call, never spin.
    while call(number::PPOLL, 0, 0, 0, 0, SET) == EINTR {}
    exit(1)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(2)
}
