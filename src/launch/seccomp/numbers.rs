//! Numbers of system calls that are younger than the libseccomp we link. From 424 on a call has the
//! same number on every architecture that we build for (the kernel's scripts/syscall.tbl).

/// One `struct sock_filter`: code, jump if true, jump if false, operand.
type Instruction = (u16, usize, usize, u32);
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The architecture that this is built for (AUDIT_ARCH_*, linux/audit.h).
pub(super) const NATIVE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else if cfg!(target_arch = "riscv64") {
    0xc000_00f3
} else {
    0
};

/// The highest number that this table or libseccomp knows. What lies above did not exist when the
/// profile was written, and is answered with ENOSYS, so that programs fall back.
const LAST: u32 = 469;

/// Where the table begins.
const FIRST: u32 = 451;
const YOUNG: [(&str, u32); 19] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The number of a young system call by its name.
pub(super) fn young(name: &str) -> Option<u32> {
    YOUNG.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Instructions to put before a filter, for the calls that libseccomp does not know: `rules`
/// (number and what the filter returns), on `architectures` and the native one; and if `refuses`,
/// ENOSYS for what is younger still, on which programs try an older call, where EPERM would be final.
pub(super) fn prologue(rules: &[(u32, u32)], architectures: &[u32], refuses: bool) -> Vec<u8> {
    const ENOSYS: u32 = 0x0005_0000 | 38;
    // The x32 calls have numbers of their own from here on.
    const X32: u32 = 0x4000_0000;
    if rules.is_empty() && !refuses {
        return Vec::new();
    }
    let mut known: Vec<u32> = architectures.iter().copied().chain([NATIVE]).collect();
    known.sort_unstable();
    known.dedup();
    // From the back to the front, so that the way to the end is always the length of what is there.
    let mut program: Vec<Instruction> = vec![(LOAD, 0, 0, NUMBER)];
    for (number, result) in rules {
        program.extend([(EQUAL, 0, 1, *number), (RETURN, 0, 0, *result)]);
    }
    for (after, architecture) in known.iter().enumerate() {
        let otherwise = if after == 0 { program.len() } else { 0 };
        program.insert(0, (EQUAL, after, otherwise, *architecture));
    }
    program.insert(0, (LOAD, 0, 0, ARCHITECTURE));
    program.insert(0, (AT_LEAST, 0, program.len(), FIRST));
    if refuses {
        program.splice(0..0, [(GREATER, 0, 1, LAST), (RETURN, 0, 0, ENOSYS)]);
    }
    program.insert(0, (AT_LEAST, program.len(), 0, X32));
    program.insert(0, (LOAD, 0, 0, NUMBER));
    program.iter().flat_map(encode).collect()
}

/// Instructions that answer `socketcall` with `result` on those of `architectures` that have it.
/// libseccomp adds that call to rules for `socket` and its like, and drops their conditions, as
/// the arguments are in memory: what a profile refuses to `socket` would be had by `socketcall`.
pub(super) fn no_socketcall(architectures: &[u32], result: u32) -> Vec<u8> {
    const SOCKETCALL: u32 = 102;
    const X86: u32 = 0x4000_0003;
    const S390X: u32 = 0x8000_0016;
    const PPC64LE: u32 = 0xc000_0015;
    let having: Vec<u32> =
        [X86, S390X, PPC64LE].into_iter().filter(|arch| architectures.contains(arch) || *arch == NATIVE).collect();
    if having.is_empty() {
        return Vec::new();
    }
    let mut program =
        vec![(LOAD, 0, 0, NUMBER), (EQUAL, 0, 1 + 2 * having.len(), SOCKETCALL), (LOAD, 0, 0, ARCHITECTURE)];
    for architecture in having {
        program.extend([(EQUAL, 0, 1, architecture), (RETURN, 0, 0, result)]);
    }
    program.iter().flat_map(encode).collect()
}

/// Distances fit into a byte: the table has 19 entries, of two instructions each.
fn encode((code, if_true, if_false, operand): &Instruction) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&code.to_ne_bytes());
    bytes[2] = u8::try_from(*if_true).unwrap_or(u8::MAX);
    bytes[3] = u8::try_from(*if_false).unwrap_or(u8::MAX);
    bytes[4..].copy_from_slice(&operand.to_ne_bytes());
    bytes
}
