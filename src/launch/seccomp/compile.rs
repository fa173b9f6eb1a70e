//! From a profile to the kernel's `struct sock_filter[]`, by libseccomp, once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};
use rustix::fs::MemfdFlags;
use sha2::{Digest as _, Sha256};

use super::SeccompError;
use super::numbers;
use crate::sys::seccomp::MAX_FILTER;
use crate::types::Digest;

/// Raised when the same profile compiles to something else than before.
const EDITION: u8 = 1;
const EPERM: u16 = 1;

/// Compiles profiles, and keeps what came of it in memory and in a folder.
#[derive(Debug)]
pub struct SeccompCompiler {
    folder: PathBuf,
    known: Mutex<HashMap<Digest, PathBuf>>,
    /// Of our own profile, by bounding set: making and naming it takes longer than all else there is
    /// to prepare for a container.
    defaults: Mutex<HashMap<u64, PathBuf>>,
}

impl SeccompCompiler {
    /// Keeps filters in `folder`, which is made when first needed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, known: Mutex::default(), defaults: Mutex::default() }
    }

    /// The file with the filter that `profile` compiles to. Blocks for about 10 ms the first time.
    pub fn bpf_file(&self, profile: &LinuxSeccomp) -> Result<PathBuf, SeccompError> {
        let key = key(profile)?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(path) = known.filter(|path| path.exists()) {
            return Ok(path);
        }
        let path = self.folder.join(format!("{}.bpf", key.hex()));
        if !is_filter(&path) {
            let filter = compile(profile)?;
            self.keep(&path, &filter).map_err(|source| SeccompError::Io { path: path.clone(), source })?;
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, path.clone());
        Ok(path)
    }

    /// The file with the filter of [`super::default_profile`] for a container with these capabilities.
    pub fn default_file(&self, caps: u64) -> Result<PathBuf, SeccompError> {
        let known = self.defaults.lock().unwrap_or_else(PoisonError::into_inner).get(&caps).cloned();
        if let Some(path) = known.filter(|path| path.exists()) {
            return Ok(path);
        }
        let path = self.bpf_file(&super::default_profile(caps)?)?;
        self.defaults.lock().unwrap_or_else(PoisonError::into_inner).insert(caps, path.clone());
        Ok(path)
    }

    /// Under another name first: whoever finds the file finds all of it.
    fn keep(&self, path: &PathBuf, filter: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let temporary = path.with_extension(format!("new-{:?}", std::thread::current().id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(filter)?;
        fs::rename(temporary, path)
    }
}

fn is_filter(path: &PathBuf) -> bool {
    fs::metadata(path).is_ok_and(|meta| (8..=MAX_FILTER as u64).contains(&meta.len()) && meta.len() % 8 == 0)
}

fn key(profile: &LinuxSeccomp) -> Result<Digest, SeccompError> {
    let mut hash = Sha256::new();
    hash.update([EDITION]);
    hash.update(std::env::consts::ARCH);
    hash.update(serde_json::to_vec(profile)?);
    Ok(Digest::from_bytes(hash.finalize().into()))
}

/// Compiles without keeping.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, SeccompError> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |source| SeccompError::Compile { what, source }
    };
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(fail("the default action"))?;
    // no_new_privs is for the container's spec to decide.
    filter.set_ctl_nnp(false).map_err(fail("attributes"))?;
    // A binary tree rather than a list: it matters to programs that make many system calls.
    filter.set_ctl_optimize(2).map_err(fail("attributes"))?;
    for arch in profile.architectures().iter().flatten() {
        let name = arch.to_string();
        filter.add_arch(architecture(*arch)?).map_err(fail(&name))?;
    }
    let mut young = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        let act = action(rule.action(), rule.errno_ret())?;
        if act == default {
            // libseccomp refuses rules that say nothing.
            continue;
        }
        for name in rule.names() {
            match (ScmpSyscall::from_name(name), numbers::young(name)) {
                (Ok(call), _) => {
                    for args in alternatives(rule)? {
                        filter.add_rule_conditional(act, call, &args).map_err(fail(name))?;
                    }
                }
                (Err(_), Some(number)) if rule.args().as_ref().is_none_or(Vec::is_empty) => {
                    young.push((number, result(act)))
                }
                (Err(_), Some(_)) => return Err(SeccompError::Unsupported("a condition on so young a system call")),
                // One of another architecture, or newer than libseccomp and we: the default is right for it.
                (Err(_), None) => {}
            }
        }
    }
    let architectures: Vec<u32> = profile.architectures().iter().flatten().map(|arch| audit(*arch)).collect();
    let refuses = default == ScmpAction::Errno(i32::from(EPERM));
    let socketcall =
        profile.syscalls().iter().flatten().any(|rule| rule.names().iter().any(|name| name == "socketcall"));
    let mut bytes = if socketcall { Vec::new() } else { numbers::no_socketcall(&architectures, result(default)) };
    bytes.extend(numbers::prologue(&young, &architectures, refuses));
    export(&filter, &mut bytes)?;
    Ok(bytes)
}

/// Conditions hold together, unless they concern the same argument: then any of them is enough, as
/// libseccomp takes one condition per argument.
fn alternatives(rule: &LinuxSyscall) -> Result<Vec<Vec<ScmpArgCompare>>, SeccompError> {
    let args = rule.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut indices: Vec<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    indices.sort_unstable();
    indices.dedup();
    match indices.len() == args.len() {
        true => Ok(vec![conditions]),
        false => Ok(conditions.into_iter().map(|condition| vec![condition]).collect()),
    }
}

fn condition(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare, SeccompError> {
    let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
    if index > 5 {
        return Err(SeccompError::Unknown { what: "argument index", value: arg.index().to_string() });
    }
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    Ok(ScmpArgCompare::new(index, op, datum))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let errno = errno.unwrap_or(u32::from(EPERM));
    let small = u16::try_from(errno).map_err(|_| SeccompError::Unknown { what: "errno", value: errno.to_string() })?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::from(small)),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(small),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch, SeccompError> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        other => return Err(SeccompError::Unknown { what: "architecture", value: other.to_string() }),
    })
}

/// What a filter returns for an action (SECCOMP_RET_*).
fn result(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillProcess => 0x8000_0000,
        ScmpAction::Trap => 0x0003_0000,
        ScmpAction::Errno(errno) => 0x0005_0000 | u32::from(errno as u16),
        ScmpAction::Notify => 0x7fc0_0000,
        ScmpAction::Trace(data) => 0x7ff0_0000 | u32::from(data),
        ScmpAction::Log => 0x7ffc_0000,
        ScmpAction::Allow => 0x7fff_0000,
        // The thread is killed, as it is for any action that is not known here.
        _ => 0,
    }
}

/// The kernel's own number for an architecture (AUDIT_ARCH_*).
fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::ScmpArchNative => numbers::NATIVE,
        // A mode of x86_64 rather than an architecture.
        Arch::ScmpArchX32 => Arch::ScmpArchX86_64 as u32,
        other => other as u32,
    }
}

fn export(filter: &ScmpFilterContext, bytes: &mut Vec<u8>) -> Result<(), SeccompError> {
    let io = |source: io::Error| SeccompError::Io { path: "memory".into(), source };
    let mut file =
        File::from(rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC).map_err(|errno| io(errno.into()))?);
    filter.export_bpf(&file).map_err(|source| SeccompError::Compile { what: "the filter".into(), source })?;
    file.rewind().map_err(io)?;
    file.read_to_end(bytes).map_err(io)?;
    if bytes.len() > MAX_FILTER {
        return Err(SeccompError::Unsupported("a filter of more than 4096 instructions"));
    }
    Ok(())
}
