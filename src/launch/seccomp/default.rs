//! The profile a container gets when it asks for the runtime's default: what ordinary programs need
//! is allowed, all else fails with EPERM.
//!
//! Left out on purpose: whatever gives control over the machine (modules, reboot, swap, clocks,
//! raw I/O), other namespaces and mounts, kernel keyrings and BPF (not bound to namespaces), perf,
//! io_uring and userfaultfd (rich in kernel bugs), the address families AF_ALG and AF_VSOCK
//! (the kernel's crypto, the hypervisor), and the 32-bit multiplexer `socketcall`, whose arguments
//! a filter cannot see. Some of it comes back with the capability that the kernel demands for it.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::sys::caps;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Bits of clone's flags that make namespaces: time is no flag of clone, but of unshare.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const NEW_TIME_NAMESPACE: u64 = 0x80;
/// An int: what lies above in the register is ignored by the kernel, so it must be here, too.
const INT: u64 = 0xffff_ffff;
/// Address families are numbers below this.
const FAMILIES: u64 = 46;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// Execution domains: Linux, 32-bit Linux, both without randomised uname, and "which is it?".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, INT];

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
    fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32 \
    lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek _llseek lsetxattr lstat lstat64 mkdir mkdirat \
    mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile \
    sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range \
    sync_file_range2 arm_sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat \
    utimensat_time64 utimes vmsplice write writev cachestat listmount statmount";
const WAITING: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 \
    pselect6_time64 select _newselect signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64";
const MEMORY: &str = "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages \
    process_mrelease";
const PROCESSES: &str = "capget capset execve execveat exit exit_group fork vfork getcpu getpgid getpgrp getpid getppid \
    getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl \
    prlimit64 ptrace process_vm_readv process_vm_writev restart_syscall rseq sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list get_robust_list \
    set_tid_address setpgid setpriority setrlimit ugetrlimit setsid tgkill tkill times uname sysinfo wait4 waitid waitpid \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_set_self_attr lsm_list_modules";
const SIGNALS: &str = "alarm rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn getitimer setitimer";
const IDENTITY: &str = "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 \
    getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32";
const TIME: &str = "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake getrandom \
    gettimeofday nanosleep time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
    timer_settime64";
const TALKING: &str = "accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify \
    mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd \
    recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg \
    sendto setsockopt shmat shmctl shmdt shmget shutdown socketpair";
const MACHINE: &str = "arch_prctl modify_ldt get_thread_area set_thread_area arm_fadvise64_64 breakpoint cacheflush set_tls \
    riscv_flush_icache uretprobe";

/// What a capability brings back.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 \
         unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// The default profile for a container whose bounding set is `capabilities`, bit n for capability n.
pub fn default_profile(capabilities: u64) -> Result<LinuxSeccomp, OciSpecError> {
    let groups = [FILES, WAITING, MEMORY, PROCESSES, SIGNALS, IDENTITY, TIME, TALKING, MACHINE];
    let mut rules = vec![rule(&groups.join(" "), Action::ScmpActAllow, None, Vec::new())?];
    // libseccomp, also that of runtime binaries, would let `socket` through it without conditions.
    rules.push(rule("socketcall", Action::ScmpActErrno, Some(ENOSYS), Vec::new())?);
    for (name, calls) in BY_CAPABILITY {
        if caps::from_name(name).is_some_and(|bit| capabilities & bit != 0) {
            rules.push(rule(calls, Action::ScmpActAllow, None, Vec::new())?);
        }
    }
    if caps::from_name("CAP_SYS_ADMIN").is_none_or(|bit| capabilities & bit == 0) {
        // clone3 has its flags in memory, where a filter cannot look; libc falls back to clone.
        rules.push(rule("clone3", Action::ScmpActErrno, Some(ENOSYS), Vec::new())?);
        let flags = if cfg!(target_arch = "s390x") { 1 } else { 0 };
        rules.push(rule("clone", Action::ScmpActAllow, None, vec![masked(flags, NEW_NAMESPACES, 0)?])?);
        let all = NEW_NAMESPACES | NEW_TIME_NAMESPACE;
        rules.push(rule("unshare", Action::ScmpActAllow, None, vec![masked(0, all, 0)?])?);
    }
    for value in PERSONALITIES {
        rules.push(rule("personality", Action::ScmpActAllow, None, vec![masked(0, INT, value)?])?);
    }
    for family in (0..FAMILIES).filter(|family| ![AF_ALG, AF_VSOCK].contains(family)) {
        rules.push(rule("socket", Action::ScmpActAllow, None, vec![masked(0, INT, family)?])?);
    }
    LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures())
        .syscalls(rules)
        .build()
}

/// The native architecture and its 32-bit sibling, where programs for it are common.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchNative]
    }
}

fn rule(
    names: &str,
    action: Action,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut rule = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        rule = rule.errno_ret(errno);
    }
    if !args.is_empty() {
        rule = rule.args(args);
    }
    rule.build()
}

/// Argument `index`, of whose bits only those in `mask` count, equals `value`.
fn masked(index: usize, mask: u64, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default().index(index).op(Operator::ScmpCmpMaskedEq).value(mask).value_two(value).build()
}
