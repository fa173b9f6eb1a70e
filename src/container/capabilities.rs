//! Capability names, bits, and the sets a container gets: pure.

use crate::types::container::ContainerSecurity;
use crate::wire::Capabilities;

/// Names without `CAP_`, at the index of their bit (capabilities(7)).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets when nothing is asked: the fourteen that Docker once chose and every runtime since.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of `NET_ADMIN`, `CAP_NET_ADMIN`, in any case; `None`: no such capability.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare).map(|at| 1 << at)
}

/// `CAP_…` names of a mask, lowest bit first.
pub fn names(mask: u64) -> Vec<String> {
    NAMES.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1).map(|(_, name)| format!("CAP_{name}")).collect()
}

/// The sets for a container. `held`: what this process itself may give away.
///
/// As containerd: drops and adds apply to the default set, `ALL` first, so that "drop ALL, add X"
/// gives X alone; inheritable stays empty (CVE-2022-24769) but for what becomes ambient.
///
/// # Errors
/// The first name that is no capability.
pub fn sets(security: &ContainerSecurity, held: u64) -> Result<Capabilities, String> {
    let all = held;
    let mut set = if security.privileged {
        all
    } else {
        DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |mask, one| mask | one)
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL");
    if security.add_capabilities.iter().any(is_all) {
        set = all;
    }
    if security.drop_capabilities.iter().any(is_all) {
        set = 0;
    }
    let mask = |list: &[String]| {
        let each = list.iter().filter(|name| !is_all(name));
        each.map(|name| bit(name).ok_or_else(|| name.clone())).try_fold(0, |mask, one| one.map(|one| mask | one))
    };
    let (added, dropped) = (mask(&security.add_capabilities)?, mask(&security.drop_capabilities)?);
    set = (set & !dropped | added) & held;
    let mut ambient = mask(&security.add_ambient_capabilities)?;
    if security.add_ambient_capabilities.iter().any(is_all) {
        ambient = all;
    }
    ambient &= held;
    set |= ambient;
    Ok(Capabilities { bounding: set, permitted: set, effective: set, inheritable: ambient, ambient })
}

/// What was asked for by name and is left out by [`sets`], because it is not ours to give.
pub fn withheld(security: &ContainerSecurity, held: u64) -> Vec<String> {
    let asked = security.add_capabilities.iter().chain(&security.add_ambient_capabilities);
    let bits = asked.filter_map(|name| bit(name)).fold(0, |mask, one| mask | one);
    names(bits & !held)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u64 = (1 << 41) - 1;

    fn check(add: &[&str], drop: &[&str], privileged: bool, want: u64) {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let security = ContainerSecurity {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            privileged,
            ..Default::default()
        };
        let sets = sets(&security, FULL).unwrap();
        assert_eq!(sets.effective, want, "add {add:?} drop {drop:?}");
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
    }

    #[test]
    fn adds_and_drops_as_containerd_does() {
        let default = 0xa804_25fb;
        check(&[], &[], false, default);
        check(&["NET_ADMIN"], &[], false, default | 1 << 12);
        check(&[], &["CAP_CHOWN"], false, default & !1);
        check(&["net_raw"], &["ALL"], false, 1 << 13);
        check(&["ALL"], &["MKNOD"], false, FULL & !(1 << 27));
        check(&[], &[], true, FULL);
    }

    #[test]
    fn what_is_not_held_is_left_out_and_unknown_names_are_told() {
        let security = ContainerSecurity { privileged: true, ..Default::default() };
        assert_eq!(sets(&security, 0b101).unwrap().bounding, 0b101);
        let asked =
            ContainerSecurity { add_capabilities: vec!["CHOWN".into(), "CAP_BPF".into()], ..Default::default() };
        assert_eq!(withheld(&asked, 0b101), ["CAP_BPF"]);
        let wrong = ContainerSecurity { add_capabilities: vec!["SYS_FLY".into()], ..Default::default() };
        assert_eq!(sets(&wrong, FULL), Err("SYS_FLY".into()));
    }
}
