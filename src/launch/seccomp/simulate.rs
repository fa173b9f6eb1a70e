//! Runs compiled filters on made-up system calls, without a kernel.

use super::compile::{SeccompCompiler, compile};
use super::default::default_profile;
use super::parse::parse_profile;
use crate::sys::caps;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// What classic BPF makes of a system call (the kernel's seccomp_check_filter allows no more).
fn run(filter: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_ne_bytes());
    data.extend_from_slice(&arch.to_ne_bytes());
    data.extend_from_slice(&0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend_from_slice(&arg.to_ne_bytes()));
    let (mut at, mut a, mut steps) = (0usize, 0u32, 0);
    loop {
        let instruction = &filter[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let k = u32::from_ne_bytes(instruction[4..8].try_into().unwrap());
        let jump = |yes: bool| at + 1 + usize::from(if yes { instruction[2] } else { instruction[3] });
        at = match code {
            0x20 => {
                a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap());
                at + 1
            }
            0x54 => {
                a &= k;
                at + 1
            }
            0x05 => at + 1 + k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x} at {at}"),
        };
        steps += 1;
        assert!(steps < 4096);
    }
}

fn with(first: u64) -> [u64; 6] {
    [first, 0, 0, 0, 0, 0]
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_profile_does_what_it_says() {
    let plain = compile(&default_profile(0).unwrap()).unwrap();
    let admin = compile(&default_profile(caps::from_name("CAP_SYS_ADMIN").unwrap()).unwrap()).unwrap();
    for (what, number, first, want, want_admin) in [
        ("read", libc::SYS_read, 0, ALLOW, ALLOW),
        ("mount", libc::SYS_mount, 0, EPERM, ALLOW),
        ("setns", libc::SYS_setns, 0, EPERM, ALLOW),
        ("bpf", libc::SYS_bpf, 0, EPERM, ALLOW),
        ("perf_event_open", libc::SYS_perf_event_open, 0, EPERM, ALLOW),
        ("keyctl", libc::SYS_keyctl, 0, EPERM, EPERM),
        ("add_key", libc::SYS_add_key, 0, EPERM, EPERM),
        ("io_uring_setup", libc::SYS_io_uring_setup, 0, EPERM, EPERM),
        ("io_uring_enter", libc::SYS_io_uring_enter, 0, EPERM, EPERM),
        ("userfaultfd", libc::SYS_userfaultfd, 0, EPERM, EPERM),
        ("init_module", libc::SYS_init_module, 0, EPERM, EPERM),
        ("kexec_load", libc::SYS_kexec_load, 0, EPERM, EPERM),
        ("swapon", libc::SYS_swapon, 0, EPERM, EPERM),
        ("reboot", libc::SYS_reboot, 0, EPERM, EPERM),
        ("ptrace", libc::SYS_ptrace, 0, ALLOW, ALLOW),
        ("clone3", libc::SYS_clone3, 0, ENOSYS, ALLOW),
        ("clone, a thread", libc::SYS_clone, 0x3d_0f00, ALLOW, ALLOW),
        ("clone, a user namespace", libc::SYS_clone, 0x1000_0011, EPERM, ALLOW),
        ("unshare, files", libc::SYS_unshare, 0x400, ALLOW, ALLOW),
        ("unshare, mounts", libc::SYS_unshare, 0x2_0000, EPERM, ALLOW),
        ("unshare, time", libc::SYS_unshare, 0x80, EPERM, ALLOW),
        ("personality, query", libc::SYS_personality, 0xffff_ffff, ALLOW, ALLOW),
        ("personality, no randomisation", libc::SYS_personality, 0x4_0000, EPERM, EPERM),
        ("socket, inet", libc::SYS_socket, 2, ALLOW, ALLOW),
        ("socket, netlink", libc::SYS_socket, 16, ALLOW, ALLOW),
        ("socket, alg", libc::SYS_socket, 38, EPERM, EPERM),
        ("socket, vsock", libc::SYS_socket, 40, EPERM, EPERM),
        ("socket, vsock in disguise", libc::SYS_socket, 1 << 32 | 40, EPERM, EPERM),
        ("fchmodat2", 452, 0, ALLOW, ALLOW),
        ("mseal", 462, 0, ALLOW, ALLOW),
        ("open_tree_attr", 467, 0, EPERM, ALLOW),
        ("a call of the future", 470, 0, ENOSYS, ENOSYS),
        ("far in the future", 1000, 0, ENOSYS, ENOSYS),
    ] {
        let number = u32::try_from(number).unwrap();
        assert_eq!(run(&plain, X86_64, number, with(first)), want, "{what}");
        assert_eq!(run(&admin, X86_64, number, with(first)), want_admin, "{what}, with CAP_SYS_ADMIN");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_32_bit_side_has_no_back_door() {
    let plain = compile(&default_profile(0).unwrap()).unwrap();
    for (what, number, first, want) in [
        ("read", 3, 0, ALLOW),
        ("mount", 21, 0, EPERM),
        ("socket, inet", 359, 2, ALLOW),
        ("socket, alg", 359, 38, EPERM),
        ("socketcall, socket", 102, 1, ENOSYS),
        ("socketcall, connect", 102, 3, ENOSYS),
        ("clone, a user namespace", 120, 0x1000_0011, EPERM),
        ("fchmodat2", 452, 0, ALLOW),
        ("a call of the future", 500, 0, ENOSYS),
    ] {
        assert_eq!(run(&plain, X86, number, with(first)), want, "{what}");
    }
    let x32 = run(&plain, X86_64, 0x4000_0000, with(0));
    assert_ne!(x32, ALLOW);
    assert_eq!(run(&plain, 0xc000_00b7, 63, with(0)) & 0xffff_0000, 0, "another architecture is killed");
}

#[test]
fn a_profile_from_a_file_is_compiled_as_it_says() {
    let text = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"},
                                                               {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}]}]}"#;
    let filter = compile(&parse_profile(text, 0).unwrap()).unwrap();
    let native = if cfg!(target_arch = "x86_64") { X86_64 } else { 0xc000_00b7 };
    let call = |number: i64, second| run(&filter, native, u32::try_from(number).unwrap(), [0, second, 0, 0, 0, 0]);
    assert_eq!([call(libc::SYS_kill, 9), call(libc::SYS_kill, 15), call(libc::SYS_kill, 1)], [EPERM, EPERM, ALLOW]);
    assert_eq!(call(500, 0), ALLOW, "nothing is refused but what the profile names");
    #[cfg(target_arch = "x86_64")]
    assert_eq!(call(libc::SYS_mkdir, 0), 0x0005_0005);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn socketcall_is_no_way_round_a_condition() {
    let text =
        br#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": [
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
    let filter = compile(&parse_profile(text, 0).unwrap()).unwrap();
    let call = |arch, number, first| run(&filter, arch, number, with(first));
    assert_eq!([call(X86, 359, 1), call(X86, 359, 2), call(X86, 102, 1)], [ALLOW, EPERM, EPERM]);
    assert_eq!([call(X86_64, 41, 1), call(X86_64, 102, 0)], [ALLOW, EPERM]);
}

#[test]
fn filters_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = SeccompCompiler::new(folder.path().join("seccomp"));
    let profile = default_profile(0).unwrap();
    let path = compiler.bpf_file(&profile).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = SeccompCompiler::new(folder.path().join("seccomp"));
    assert_eq!(again.bpf_file(&profile).unwrap(), path);
    assert_ne!(
        again.bpf_file(&default_profile(1).unwrap()).unwrap(),
        again.bpf_file(&default_profile(4).unwrap()).unwrap()
    );
    std::fs::remove_file(&path).unwrap();
    assert!(again.bpf_file(&profile).unwrap().exists(), "a file that was removed is made again");
    std::fs::write(&path, "torn").unwrap();
    SeccompCompiler::new(folder.path().join("seccomp")).bpf_file(&profile).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 4);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
}
