//! Names of cgroups: pure.

use std::path::{Path, PathBuf};

use super::CgroupError;
use super::systemd;

/// Prefix of our systemd scopes.
const SCOPE: &str = "podwright";

/// Who makes a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Folders, made by the runtime.
    Cgroupfs,
    /// Transient scopes, made by systemd on request.
    Systemd,
}

/// A valid cgroup parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    driver: Driver,
    /// cgroupfs: path without its leading slash; systemd: slice name.
    name: String,
}

impl Parent {
    /// cgroupfs takes an absolute path, systemd the name of a slice; empty takes our default.
    pub fn parse(driver: Driver, asked: &str) -> Result<Self, CgroupError> {
        let bad = |reason| Err(CgroupError::Parent { value: asked.chars().take(300).collect(), reason });
        if asked.len() > 1024 || asked.chars().any(char::is_control) {
            return bad("is over-long or has control characters");
        }
        match driver {
            Driver::Cgroupfs => {
                if asked.ends_with(".slice") {
                    return bad("is a systemd slice, but the cgroup driver is cgroupfs: want an absolute path");
                }
                if !asked.is_empty() && !asked.starts_with('/') {
                    return bad("is not an absolute path, which the cgroupfs driver wants");
                }
                let parts: Vec<&str> = asked.split('/').filter(|part| !part.is_empty()).collect();
                if parts.iter().any(|part| *part == "." || *part == "..") {
                    return bad("has `.` or `..` in it");
                }
                let name = if parts.is_empty() { SCOPE.to_owned() } else { parts.join("/") };
                Ok(Self { driver, name })
            }
            Driver::Systemd => {
                // The kubelet sends the bare name; others the whole path, of which the last part says it all.
                let last = asked.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                let name = if last.is_empty() { "system.slice" } else { last };
                match expand_slice(name) {
                    Some(_) => Ok(Self { driver, name: name.to_owned() }),
                    None => bad("is not the name of a systemd slice (`a-b.slice`), which the systemd driver wants"),
                }
            }
        }
    }

    /// The parent's own path below the cgroup root.
    pub fn relative(&self) -> PathBuf {
        match self.driver {
            Driver::Cgroupfs => PathBuf::from(&self.name),
            Driver::Systemd => expand_slice(&self.name).unwrap_or_default(),
        }
    }

    /// Path below the cgroup root of the leaf for this id.
    pub fn leaf(&self, id: &str) -> PathBuf {
        match self.driver {
            Driver::Cgroupfs => self.relative().join(id),
            Driver::Systemd => self.relative().join(format!("{SCOPE}-{id}.scope")),
        }
    }

    /// The scope that systemd has to make for this id; `None`: with the cgroupfs driver.
    pub fn scope(&self, id: &str) -> Option<systemd::Scope> {
        let unit = format!("{SCOPE}-{id}.scope");
        (self.driver == Driver::Systemd).then(|| systemd::Scope { unit, slice: self.name.clone() })
    }

    /// `linux.cgroupsPath` of the OCI runtime spec for this id.
    pub fn oci_path(&self, id: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => Path::new("/").join(self.leaf(id)).to_string_lossy().into_owned(),
            Driver::Systemd => format!("{}:{SCOPE}:{id}", self.name),
        }
    }
}

/// Whether `name` is what a leaf for `id` is called under systemd.
pub(super) fn is_scope_of(name: &str, id: &str) -> bool {
    let inner = name.strip_prefix(SCOPE).and_then(|rest| rest.strip_prefix('-'));
    inner.and_then(|rest| rest.strip_suffix(".scope")) == Some(id)
}

/// `a-b-c.slice` lies at `a.slice/a-b.slice/a-b-c.slice` (systemd.slice(5)); `None`: no slice name.
pub fn expand_slice(name: &str) -> Option<PathBuf> {
    let stem = name.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(PathBuf::new());
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '\\' | '@');
    if stem.is_empty() || name.len() > 255 || !stem.chars().all(fine) || stem.split('-').any(str::is_empty) {
        return None;
    }
    let mut path = PathBuf::new();
    for (at, _) in stem.match_indices('-') {
        path.push(format!("{}.slice", &stem[..at]));
    }
    path.push(name);
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_expand_to_their_ancestors() {
        let path = |name| expand_slice(name).map(|p| p.to_string_lossy().into_owned());
        assert_eq!(path("a.slice").as_deref(), Some("a.slice"));
        assert_eq!(
            path("kubepods-burstable-pod1_2.slice").as_deref(),
            Some("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice")
        );
        assert_eq!(path("-.slice").as_deref(), Some(""));
        for bad in ["", ".slice", "a--b.slice", "-a.slice", "a/b.slice", "a", "a.scope", "..slice/..", "a b.slice"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn parents_are_taken_in_their_drivers_form_only() {
        for (driver, asked, leaf) in [
            (Driver::Cgroupfs, "/kubepods/pod1", "kubepods/pod1/x"),
            (Driver::Cgroupfs, "", "podwright/x"),
            (Driver::Systemd, "kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice/podwright-x.scope"),
            (
                Driver::Systemd,
                "/kubepods.slice/kubepods-pod1.slice",
                "kubepods.slice/kubepods-pod1.slice/podwright-x.scope",
            ),
            (Driver::Systemd, "", "system.slice/podwright-x.scope"),
        ] {
            assert_eq!(Parent::parse(driver, asked).unwrap().leaf("x"), PathBuf::from(leaf), "{asked}");
        }
        for (driver, asked) in [
            (Driver::Cgroupfs, "kubepods.slice"),
            (Driver::Cgroupfs, "relative/path"),
            (Driver::Cgroupfs, "/a/../../b"),
            (Driver::Cgroupfs, "/a\n"),
            (Driver::Systemd, "/kubepods/pod1"),
            (Driver::Systemd, "pod1"),
        ] {
            assert!(Parent::parse(driver, asked).is_err(), "{driver:?} {asked}");
        }
    }

    #[test]
    fn a_leaf_is_known_by_its_id() {
        let leaf = Parent::parse(Driver::Systemd, "").unwrap().leaf("abc");
        let name = leaf.file_name().unwrap().to_str().unwrap();
        assert!(is_scope_of(name, "abc") && !is_scope_of(name, "ab") && !is_scope_of("abc", "abc"));
    }

    #[test]
    fn the_runtime_spec_gets_each_drivers_form() {
        assert_eq!(Parent::parse(Driver::Cgroupfs, "/k/p").unwrap().oci_path("x"), "/k/p/x");
        let parent = Parent::parse(Driver::Systemd, "k-p.slice").unwrap();
        assert_eq!(parent.oci_path("x"), "k-p.slice:podwright:x");
        let scope = parent.scope("x").unwrap();
        assert_eq!((scope.slice.as_str(), parent.leaf("x").ends_with(&scope.unit)), ("k-p.slice", true));
    }
}
