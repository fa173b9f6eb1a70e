//! Device rules for a cgroup of the v2 hierarchy, which has no file for them, only a hook for a program.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of parents and siblings stay in force.
const BPF_F_ALLOW_MULTI: u32 = 2;
const LICENSE: &CStr = c"Apache-2.0";

/// The part of `union bpf_attr` that loading needs.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part that attaching needs.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads `program` (eBPF, 8 bytes an instruction) and attaches it to a cgroup, in which from then on
/// devices can be opened and made only if it returns 1.
pub fn attach_device_program(cgroup: impl AsFd, program: &[u64]) -> io::Result<()> {
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes name `count` instructions and a C string, both of which outlive the call.
    let loaded = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let Some(fd) = i32::try_from(loaded).ok().filter(|fd| *fd >= 0) else { return Err(io::Error::last_os_error()) };
    // SAFETY: a descriptor that was just made for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let number = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attach = Attach {
        target: number(cgroup.as_fd().as_raw_fd())?,
        program: number(loaded.as_raw_fd())?,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes hold numbers only.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
