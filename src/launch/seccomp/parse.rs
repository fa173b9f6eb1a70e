//! Profiles from files, in the OCI form and in Docker's, which adds conditions to rules.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSeccompFilterFlag, LinuxSyscall,
    LinuxSyscallBuilder,
};
use serde::Deserialize;

use super::SeccompError;
use crate::sys::caps;

/// Largest profile, bytes.
pub const MAX_PROFILE: usize = 1 << 20;

/// Longest path of a Unix socket, bytes.
const MAX_LISTENER: usize = 107;
/// Names of architectures in Docker's conditions, as Go knows them.
const GO_ARCH: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    std::env::consts::ARCH
};
/// The native architecture, in a profile's words.
const NATIVE: &str = if cfg!(target_arch = "x86_64") {
    "SCMP_ARCH_X86_64"
} else if cfg!(target_arch = "aarch64") {
    "SCMP_ARCH_AARCH64"
} else {
    "SCMP_ARCH_NATIVE"
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<LinuxSeccompFilterFlag>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Condition {
    arches: Option<Vec<String>>,
    caps: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile. Docker's conditions are settled for `capabilities` (the container's bounding
/// set, bit n for capability n) and this machine.
pub fn parse_profile(text: &[u8], capabilities: u64) -> Result<LinuxSeccomp, SeccompError> {
    if text.len() > MAX_PROFILE {
        return Err(SeccompError::TooLarge(text.len()));
    }
    let profile: Profile = serde_json::from_slice(text)?;
    let mut names = profile.architectures;
    for map in profile.arch_map.into_iter().filter(|map| map.architecture == NATIVE) {
        names.push(map.architecture);
        names.extend(map.sub_architectures.unwrap_or_default());
    }
    let architectures = names.iter().map(|name| {
        name.parse::<Arch>().map_err(|_| SeccompError::Unknown { what: "architecture", value: name.clone() })
    });
    let mut rules = Vec::new();
    for rule in profile.syscalls {
        if applies(&rule, capabilities) {
            rules.extend(finish(rule)?);
        }
    }
    let listener = profile.listener_path.filter(|path| !path.is_empty());
    asked(profile.default_action, &rules, listener.as_deref())?;
    let mut built = LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .architectures(architectures.collect::<Result<Vec<_>, _>>()?)
        .syscalls(rules);
    if let Some(errno) = profile.default_errno_ret {
        built = built.default_errno_ret(errno);
    }
    if !profile.flags.is_empty() {
        built = built.flags(profile.flags);
    }
    if let Some(path) = listener {
        built = built.listener_path(path);
    }
    if let Some(metadata) = profile.listener_metadata {
        built = built.listener_metadata(metadata);
    }
    built.build().map_err(|_| SeccompError::Unsupported("a profile of this form"))
}

/// Calls that somebody else decides on need somebody, and the one by which he is told must go through.
fn asked(default: LinuxSeccompAction, rules: &[LinuxSyscall], listener: Option<&str>) -> Result<(), SeccompError> {
    let asks = |rule: &&LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    if default == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY as the default action"));
    }
    if rules.iter().filter(asks).any(|rule| rule.names().iter().any(|name| name == "sendmsg")) {
        return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY for sendmsg"));
    }
    match listener {
        None if rules.iter().any(|rule| asks(&rule)) => {
            Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY without a listenerPath"))
        }
        Some(path) if !path.starts_with('/') || path.len() > MAX_LISTENER => {
            Err(SeccompError::Unknown { what: "listenerPath", value: path.chars().take(300).collect() })
        }
        _ => Ok(()),
    }
}

fn applies(rule: &Rule, capabilities: u64) -> bool {
    let has = |name: &String| caps::from_name(name).is_some_and(|bit| capabilities & bit != 0);
    let here = |name: &String| name == GO_ARCH;
    let included = rule.includes.as_ref().is_none_or(|on| {
        on.arches.as_ref().is_none_or(|list| list.is_empty() || list.iter().any(here))
            && on.caps.as_ref().is_none_or(|list| list.iter().all(has))
            && on.min_kernel.as_ref().is_none_or(|version| kernel() >= numbers(version))
    });
    let excluded = rule.excludes.as_ref().is_some_and(|off| {
        off.arches.as_ref().is_some_and(|list| list.iter().any(here))
            || off.caps.as_ref().is_some_and(|list| list.iter().any(has))
            || off.min_kernel.as_ref().is_some_and(|version| kernel() >= numbers(version))
    });
    included && !excluded
}

fn finish(rule: Rule) -> Result<Option<LinuxSyscall>, SeccompError> {
    let names: Vec<String> = rule.names.into_iter().chain(rule.name).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut built = LinuxSyscallBuilder::default().names(names).action(rule.action);
    if let Some(errno) = rule.errno_ret {
        built = built.errno_ret(errno);
    }
    match rule.args {
        Some(args) if !args.is_empty() => {
            if let Some(arg) = args.iter().find(|arg| arg.index() > 5) {
                return Err(SeccompError::Unknown { what: "argument index", value: arg.index().to_string() });
            }
            built = built.args(args);
        }
        _ => {}
    }
    built.build().map(Some).map_err(|_| SeccompError::Unsupported("a rule of this form"))
}

/// Major and minor version of the running kernel.
fn kernel() -> (u32, u32) {
    numbers(&rustix::system::uname().release().to_string_lossy())
}

fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_conditions_are_settled() {
        let text = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": null}],
            "syscalls": [
              {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
              {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
              {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390"]},
               "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
              {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
              {"names": ["never"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
              {"name": "old", "action": "SCMP_ACT_ALLOW"}]}"#;
        let names = |profile: &LinuxSeccomp| -> Vec<String> {
            profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
        };
        let plain = parse_profile(text, 0).unwrap();
        assert_eq!(names(&plain), ["read", "clone", "ptrace", "old"]);
        assert_eq!(names(&parse_profile(text, 1 << 21).unwrap()), ["read", "mount", "ptrace", "old"]);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(plain.architectures().as_ref().unwrap().len(), 2);
        }
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let long = vec![b' '; MAX_PROFILE + 1];
        for text in [
            &b""[..],
            b"{}",
            br#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#,
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}"#,
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "x"}"#,
            br#"{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}"#,
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": [{"names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY"}]}"#,
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
            br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
            &long,
        ] {
            assert!(parse_profile(text, 0).is_err(), "{}", String::from_utf8_lossy(&text[..text.len().min(80)]));
        }
    }
}
