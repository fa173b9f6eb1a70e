//! Capability sets of this process as bit masks, bit n for capability n.

use std::io;

use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// CAP_SYS_ADMIN, as a mask.
pub const SYS_ADMIN: u64 = CapabilitySet::SYS_ADMIN.bits();
/// CAP_SYS_RESOURCE, as a mask.
pub const SYS_RESOURCE: u64 = CapabilitySet::SYS_RESOURCE.bits();

/// Names of all capabilities, at the index of their number (capability.h).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The bounding set.
pub fn bounding() -> u64 {
    // The kernel answers EINVAL past its last capability.
    (0..64)
        .map(|n| 1u64 << n)
        .map_while(|bit| {
            thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(bit)).ok().map(|is| (bit, is))
        })
        .filter_map(|(bit, is)| is.then_some(bit))
        .fold(0, |set, bit| set | bit)
}

/// The permitted set.
pub fn permitted() -> io::Result<u64> {
    Ok(thread::capabilities(None)?.permitted.bits())
}

/// Drops what is not in `keep` from the bounding set. Needs CAP_SETPCAP if anything is to go.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for bit in bits(bounding() & !keep) {
        thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit))?;
    }
    Ok(())
}

/// Sets the effective, permitted and inheritable sets.
pub fn set(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let set = CapabilitySet::from_bits_retain;
    let sets = CapabilitySets { effective: set(effective), permitted: set(permitted), inheritable: set(inheritable) };
    thread::set_capabilities(None, sets).map_err(Into::into)
}

/// Makes the ambient set exactly `ambient`, as far as the permitted and inheritable sets allow: the
/// kernel refuses the others, and they are left out.
pub fn set_ambient(ambient: u64) -> io::Result<()> {
    thread::clear_ambient_capability_set()?;
    for bit in bits(ambient) {
        match thread::configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(bit), true) {
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The single bits of a mask, lowest first.
pub fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).map(|n| 1u64 << n).filter(move |bit| mask & bit != 0)
}

/// The names of the capabilities in a mask; those without a name are left out.
pub fn names(mask: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(n, _)| mask >> n & 1 == 1).map(|(_, name)| *name).collect()
}

/// The mask of one capability; `None`: not known.
pub fn from_name(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|n| 1 << n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_masks_agree() {
        assert_eq!(from_name("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(from_name("CAP_CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(names(1 << 21 | 1), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        assert_eq!(names(u64::MAX).len(), 41);
    }

    #[test]
    fn the_bounding_set_is_the_kernels() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
        assert_eq!(bounding(), u64::from_str_radix(line.trim(), 16).unwrap());
    }
}
