//! Kernel parameters: only such as belong to a namespace of the pod's own.

use std::collections::{BTreeMap, HashMap};

use super::check::{count, known_chars, length};
use super::{At, DecodeError};
use crate::types::pod::{NamespaceMode, Namespaces};

/// Parameters of the IPC namespace outside `fs.mqueue`.
const IPC: [&str; 12] = [
    "kernel.auto_msgmni",
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Names with dots to values. A name that would change the host is refused.
pub fn sysctls(
    at: &At<'_>,
    map: HashMap<String, String>,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>, DecodeError> {
    count(at, map.len())?;
    let mut taken = BTreeMap::new();
    for (given, value) in map {
        let at = at.key(&given);
        let name = dotted(&at, &given)?;
        length(&at, &value, 1, 1024)?;
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(at.bad(value, "the value has control characters"));
        }
        let (mode, which) = match () {
            () if name.starts_with("net.") => (namespaces.network, "network"),
            () if name.starts_with("fs.mqueue.") || IPC.contains(&name.as_str()) => (namespaces.ipc, "ipc"),
            () => return Err(at.bad(value, "belongs to no namespace: setting it would change the host")),
        };
        if mode == NamespaceMode::Node {
            return Err(at.bad(value, format!("the pod uses the host's {which} namespace")));
        }
        if taken.insert(name, value).is_some() {
            return Err(at.bad(given.as_str(), "is given twice, with dots and with slashes"));
        }
    }
    Ok(taken)
}

/// `net.core.somaxconn`, also written `net/core/somaxconn`. A name becomes a path under /proc/sys.
fn dotted(at: &At<'_>, name: &str) -> Result<String, DecodeError> {
    length(at, name, 1, 253)?;
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_-./".contains(&b);
    known_chars(at, name, fine, "letters, digits, '_', '-' and dots")?;
    if name.contains('.') && name.contains('/') {
        return Err(at.bad(name, "has dots and slashes: want either"));
    }
    let dotted = name.replace('/', ".");
    let parts = dotted.split('.');
    if parts.clone().count() < 2 || parts.clone().any(str::is_empty) {
        return Err(at.bad(name, "want a name such as net.core.somaxconn"));
    }
    Ok(dotted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(name: &str, value: &str, namespaces: &Namespaces) -> Result<BTreeMap<String, String>, DecodeError> {
        sysctls(&At::root("sysctls"), HashMap::from([(name.to_owned(), value.to_owned())]), namespaces)
    }

    #[test]
    fn only_namespaced_ones() {
        let own = Namespaces::default();
        for (name, value) in [
            ("net.ipv4.ip_local_port_range", "1024\t65535"),
            ("net/core/somaxconn", "1024"),
            ("kernel.shm_rmid_forced", "1"),
            ("fs.mqueue.msg_max", "100"),
        ] {
            assert!(decode(name, value, &own).is_ok(), "{name}");
        }
        assert!(decode("net/core/somaxconn", "1", &own).unwrap().contains_key("net.core.somaxconn"));
        for (name, value) in [
            ("kernel.core_pattern", "|/tmp/x"),
            ("vm.overcommit_memory", "1"),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|x"),
            ("kernel.shm_rmid_forced", ""),
            ("kernel.shm_rmid_forced+kernel.core_pattern", "1"),
            ("net..ipv4", "1"),
            ("net.../x", "1"),
            ("net/../kernel/core_pattern", "1"),
            (".net.a", "1"),
            ("net", "1"),
            ("", "1"),
        ] {
            assert!(decode(name, value, &own).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn not_in_namespaces_of_the_host() {
        let host_network = Namespaces { network: NamespaceMode::Node, ..Default::default() };
        let host_ipc = Namespaces { ipc: NamespaceMode::Node, ..Default::default() };
        assert!(decode("net.core.somaxconn", "1", &host_network).is_err());
        assert!(decode("kernel.sem", "1", &host_network).is_ok());
        assert!(decode("kernel.sem", "1", &host_ipc).is_err());
    }
}
