//! Kernel parameters of a network namespace (`net.*`).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::NetworkError;
use crate::sys::netns;

/// Longest name or value, bytes.
const MAX: usize = 4096;

/// Sets the parameters under `net.` in the calling thread's network namespace; others belong to other
/// namespaces and are left out. Those of an interface that does not exist yet (`net.ipv4.conf.eth0.…`) are
/// left out, too: [`apply_late`] sets them.
pub(super) fn apply_early(sysctls: &BTreeMap<String, String>) -> Result<(), NetworkError> {
    set(sysctls, |components| !of_interface(components))
}

/// Sets the parameters of interfaces in the namespace pinned at `path`. Blocks.
pub(super) fn apply_late(path: &Path, sysctls: &BTreeMap<String, String>) -> Result<(), NetworkError> {
    if !sysctls.keys().any(|name| split(name).is_some_and(|components| of_interface(&components))) {
        return Ok(());
    }
    netns::within(path, || set(sysctls, of_interface).map_err(Late::Sysctl)).map_err(|error| match error {
        Late::Sysctl(error) => error,
        Late::Io(source) => NetworkError::Io { what: "cannot enter network namespace", path: path.to_owned(), source },
    })
}

enum Late {
    Sysctl(NetworkError),
    Io(io::Error),
}

impl From<io::Error> for Late {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn set(sysctls: &BTreeMap<String, String>, wanted: impl Fn(&[String]) -> bool) -> Result<(), NetworkError> {
    for (name, value) in sysctls {
        let failed = |source| NetworkError::Sysctl { name: name.chars().take(120).collect(), source };
        let strange = |what| failed(io::Error::new(io::ErrorKind::InvalidInput, what));
        let components = split(name).ok_or_else(|| strange("not the name of a parameter"))?;
        if components[0] != "net" || !wanted(&components) {
            continue;
        }
        if value.len() > MAX || value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(strange("its value is too long or has control characters"));
        }
        let mut path = PathBuf::from("/proc/sys");
        path.extend(components);
        let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(failed)?;
    }
    Ok(())
}

/// The name's components, each safe as a file name. As with sysctl(8), the separator is whichever of `.`
/// and `/` comes first, and inside a component the other one stands for it (`net.ipv4.conf.eth0/1.forwarding`).
fn split(name: &str) -> Option<Vec<String>> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let components: Vec<String> = name
        .split(separator)
        .map(|component| if separator == '.' { component.replace('/', ".") } else { component.to_owned() })
        .collect();
    let safe = |component: &String| {
        !component.is_empty() && component != "." && component != ".." && !component.chars().any(char::is_control)
    };
    (name.len() <= MAX && components.iter().all(safe)).then_some(components)
}

/// `net.FAMILY.conf.NAME.…` or `net.FAMILY.neigh.NAME.…` of an interface other than `lo`.
fn of_interface(components: &[String]) -> bool {
    let at = |i: usize| components.get(i).map(String::as_str);
    at(0) == Some("net")
        && matches!(at(2), Some("conf" | "neigh"))
        && at(3).is_some_and(|name| !matches!(name, "all" | "default" | "lo"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_split_in_both_notations() {
        let join = |name| split(name).map(|components| components.join(" "));
        assert_eq!(join("net.ipv4.ip_forward").as_deref(), Some("net ipv4 ip_forward"));
        assert_eq!(join("net/ipv4/conf/eth0.1/x").as_deref(), Some("net ipv4 conf eth0.1 x"));
        assert_eq!(join("net.ipv4.conf.eth0/1.x").as_deref(), Some("net ipv4 conf eth0.1 x"));
        for name in ["", "net", "net..x", "net/../kernel/x", "net.//.kernel", "net./.x", "net.a\nb", "/net/x"] {
            assert_eq!(join(name), None, "{name}");
        }
        assert!(of_interface(&split("net.ipv4.conf.eth0.forwarding").unwrap()));
        assert!(!of_interface(&split("net.ipv4.conf.all.forwarding").unwrap()));
    }

    #[test]
    fn parameters_take_effect_inside_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        let read = || fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").map(|t| t.trim().to_owned());
        let own = read().unwrap();
        let sysctls = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let wanted = sysctls(&[
            ("net.ipv4.ip_unprivileged_port_start", "7"),
            ("kernel.shm_rmid_forced", "1"),
            ("net.ipv4.conf.eth9.forwarding", "1"),
        ]);
        netns::create(&path, || apply_early(&wanted).map_err(|error| io::Error::other(error.to_string()))).unwrap();
        assert_eq!(netns::within(&path, read).unwrap(), "7");
        assert_eq!(read().unwrap(), own);
        let error = apply_late(&path, &wanted).unwrap_err();
        assert!(matches!(error, NetworkError::Sysctl { name, .. } if name == "net.ipv4.conf.eth9.forwarding"));
        for (name, value) in [("net.no.such", "1"), ("net.ipv4.ip_forward", "1\n2"), ("net/../vm/x", "1")] {
            assert!(apply_early(&sysctls(&[(name, value)])).is_err(), "{name}");
        }
        netns::remove(&path).unwrap();
    }
}
