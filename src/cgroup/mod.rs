//! Where the cgroups of pods and containers are, on cgroup v1 and v2, with either driver.
//!
//! A pod's parent cgroup belongs to whoever asked for it (the kubelet); below it lie one leaf for
//! pause and one per container, and those are ours. A parent that did not exist is made, and taken
//! away again once it is empty.

mod path;
mod tree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use path::{Driver, Parent, expand_slice};
pub use tree::{kill_all, make, populated, remove, remove_empty_parents};

use crate::types::{ErrorKind, HasKind};

/// Where the cgroup file systems are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// v1 controllers that a leaf of ours is made in; a machine may lack some.
const V1: [&str; 11] =
    ["memory", "pids", "cpu,cpuacct", "cpu", "cpuacct", "cpuset", "freezer", "blkio", "devices", "hugetlb", "systemd"];

/// What can go wrong with cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A parent in the other driver's form, or one that points elsewhere.
    #[error("linux.cgroup_parent: {value:?} {reason}")]
    Parent {
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("{action} cgroup {path:?}")]
    Io {
        /// make, remove, kill, read.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what a node looks like.
    #[error("no cgroup file system at {MOUNT}")]
    None,
}

impl HasKind for CgroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Parent { .. } => ErrorKind::InvalidArgument,
            Self::Io { .. } | Self::None => ErrorKind::Internal,
        }
    }
}

/// This node's cgroup set-up, found once at start.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// Who makes container cgroups.
    pub driver: Driver,
    /// The hierarchies that leaves are made in: one on v2, one per controller on v1.
    roots: Vec<PathBuf>,
    /// The unified hierarchy alone.
    v2: bool,
}

impl Cgroups {
    /// Looks at the node. `driver`: as configured; `None` takes systemd where it is in charge on v2,
    /// else cgroupfs (libcontainer drives systemd on v2 only).
    pub fn detect(driver: Option<Driver>) -> Result<Self, CgroupError> {
        let mount = Path::new(MOUNT);
        let v2 = mount.join("cgroup.controllers").exists();
        let roots: Vec<PathBuf> = if v2 {
            vec![mount.to_owned()]
        } else {
            let mut seen = Vec::new();
            for name in V1 {
                // `cpu` is often a link to `cpu,cpuacct`: count each hierarchy once.
                match fs::canonicalize(mount.join(name)) {
                    Ok(real) if !seen.contains(&real) && real.join("cgroup.procs").exists() => seen.push(real),
                    _ => {}
                }
            }
            seen
        };
        if roots.is_empty() {
            return Err(CgroupError::None);
        }
        let booted_systemd = Path::new("/run/systemd/system").exists();
        let driver = driver.unwrap_or(if v2 && booted_systemd { Driver::Systemd } else { Driver::Cgroupfs });
        Ok(Self { driver, roots, v2 })
    }

    /// True for the unified hierarchy alone.
    pub fn is_v2(&self) -> bool {
        self.v2
    }

    /// Checks a client's cgroup parent (empty: our own) against the driver.
    pub fn parent(&self, asked: &str) -> Result<Parent, CgroupError> {
        Parent::parse(self.driver, asked)
    }

    /// The absolute folders of a cgroup given by its path below the root (`kubepods/pod1/ID`).
    pub fn folders(&self, relative: &Path) -> Vec<PathBuf> {
        self.roots.iter().map(|root| root.join(relative)).collect()
    }

    /// As [`Cgroups::folders`] for reading one controller's files: `memory`, `cpu`, `pids`, ….
    pub fn controller(&self, name: &str, relative: &Path) -> Option<PathBuf> {
        if self.v2 {
            return self.roots.first().map(|root| root.join(relative));
        }
        let serves = |root: &&PathBuf| {
            root.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.split(',').any(|part| part == name))
        };
        self.roots.iter().find(serves).map(|root| root.join(relative))
    }
}
