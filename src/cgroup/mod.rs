//! Where the cgroups of pods and containers are, on cgroup v1 and v2, with either driver.
//!
//! A pod's parent cgroup belongs to whoever asked for it (the kubelet); below it lie one leaf for
//! pause and one per container, and those are ours. A parent that did not exist is made, and taken
//! away again once it is empty.

pub mod limits;
mod parents;
mod path;
pub mod systemd;
mod tree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use parents::Parents;
pub use path::{Driver, Parent, expand_slice};
pub use tree::{find, kill_all, make, populated, remove, scope_of};

use crate::types::{ErrorKind, HasKind};

/// Where the cgroup file systems are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// v1 controllers that pause's leaf is made in; a machine may lack some. Containers have theirs in all
/// hierarchies, because libcontainer makes them there.
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
    /// systemd would not.
    #[error("stop {unit}")]
    Unit {
        /// The scope.
        unit: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd would not.
    #[error("limits of {unit}")]
    Properties {
        /// The scope.
        unit: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel would not.
    #[error("limit {file} = {value:?}")]
    Refused {
        /// File in the cgroup.
        file: String,
        /// What was to be written to it.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node lacks what a limit needs.
    #[error("limit {file}: this node has no cgroup controller {controller:?}")]
    NoController {
        /// File in the cgroup.
        file: String,
        /// What would have it.
        controller: String,
    },
    /// `unified` is for cgroup v2.
    #[error("linux.resources.unified: {file:?} cannot be set on a node with cgroup v1")]
    NoUnified {
        /// The first that was asked for.
        file: String,
    },
    /// The kernel would kill the container.
    #[error("limit memory.max = {limit}: {usage} bytes are in use, and cannot be reclaimed")]
    InUse {
        /// Asked for, bytes.
        limit: u64,
        /// In use, bytes.
        usage: u64,
    },
    /// Some limits are in force, others are not.
    #[error(
        "{}; and limits that were changed before could not be put back: {}",
        crate::types::chain(cause),
        crate::types::chain(restore)
    )]
    Half {
        /// Why not all could be changed.
        cause: Box<CgroupError>,
        /// Why not all could be put back.
        restore: Box<CgroupError>,
    },
    /// The systemd driver is configured on a machine that cannot have it.
    #[error("cgroup.driver = \"systemd\" wants cgroup v2 and systemd as the init: configure \"cgroupfs\" or \"auto\"")]
    NoSystemd,
}

impl HasKind for CgroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Parent { .. } | Self::NoUnified { .. } => ErrorKind::InvalidArgument,
            Self::NoSystemd | Self::NoController { .. } | Self::InUse { .. } => ErrorKind::FailedPrecondition,
            Self::Refused { source, .. } => match source.raw_os_error() {
                Some(libc::EBUSY) => ErrorKind::FailedPrecondition,
                // No such file: of all that is asked for only `unified` names files.
                Some(libc::EINVAL | libc::ERANGE | libc::ENOENT | libc::EACCES | libc::ENODEV) => {
                    ErrorKind::InvalidArgument
                }
                _ => ErrorKind::Internal,
            },
            Self::Half { cause, .. } => cause.kind(),
            Self::Io { .. } | Self::Unit { .. } | Self::Properties { .. } | Self::None => ErrorKind::Internal,
        }
    }
}

/// This node's cgroup set-up, found once at start.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// Who makes container cgroups.
    pub driver: Driver,
    /// The hierarchies that pause's leaf is made in: one on v2, one per controller on v1.
    roots: Vec<PathBuf>,
    /// All hierarchies with controllers, `roots` first.
    all: Vec<PathBuf>,
    parents: Arc<Parents>,
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
        let capable = v2 && systemd::booted();
        let driver = driver.unwrap_or(if capable { Driver::Systemd } else { Driver::Cgroupfs });
        if driver == Driver::Systemd && !capable {
            return Err(CgroupError::NoSystemd);
        }
        let mut all = roots.clone();
        if !v2 {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            for root in hierarchies(&table) {
                match fs::canonicalize(root) {
                    Ok(real) if real.starts_with(mount) && !all.contains(&real) => all.push(real),
                    _ => {}
                }
            }
        }
        Ok(Self { driver, roots, all, parents: Arc::default(), v2 })
    }

    /// The parents that were made for pods.
    pub fn parents(&self) -> &Parents {
        &self.parents
    }

    /// Notes which folders of `parent` do not exist, and so will have been made for `pod`; deepest
    /// first, for its record, and one day for [`Parents::release`]. None are with the systemd driver:
    /// slices are systemd's, which takes away what [`systemd::Scope::enter`] had it make. Blocks.
    pub fn claim(&self, pod: &str, parent: &Parent) -> Vec<PathBuf> {
        if self.driver == Driver::Systemd {
            return Vec::new();
        }
        self.parents.claim(pod, &self.all, &parent.relative())
    }

    /// The cgroups, anywhere, that bear one of these ids. Walks all hierarchies: for emergencies. Blocks.
    pub fn find(&self, ids: &[String]) -> Vec<PathBuf> {
        find(&self.all, &|name| ids.iter().any(|id| name == id || path::is_scope_of(name, id)))
    }

    /// True for the unified hierarchy alone.
    pub fn is_v2(&self) -> bool {
        self.v2
    }

    /// Checks a client's cgroup parent (empty: our own) against the driver.
    pub fn parent(&self, asked: &str) -> Result<Parent, CgroupError> {
        Parent::parse(self.driver, asked)
    }

    /// The absolute folders of pause's cgroup, given by its path below the root (`kubepods/pod1/ID`).
    pub fn folders(&self, relative: &Path) -> Vec<PathBuf> {
        self.roots.iter().map(|root| root.join(relative)).collect()
    }

    /// The same of a container's.
    pub fn container_folders(&self, relative: &Path) -> Vec<PathBuf> {
        self.all.iter().map(|root| root.join(relative)).collect()
    }

    /// As [`Cgroups::folders`] for reading one controller's files: `memory`, `cpu`, `pids`, ….
    pub fn controller(&self, name: &str, relative: &Path) -> Option<PathBuf> {
        if self.v2 {
            return self.roots.first().map(|root| root.join(relative));
        }
        let serves = |root: &&PathBuf| {
            root.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.split(',').any(|part| part == name))
        };
        self.all.iter().find(serves).map(|root| root.join(relative))
    }
}

/// Mount points of the v1 hierarchies in a mountinfo table.
fn hierarchies(table: &str) -> impl Iterator<Item = &str> {
    let v1 = |line: &&str| line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("cgroup "));
    table.lines().filter(v1).filter_map(|line| line.split(' ').nth(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_v1_hierarchies_are_taken() {
        let table = "30 29 0:26 / /sys/fs/cgroup/cpuset rw,nosuid shared:9 - cgroup cgroup rw,cpuset\n\
                     31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n\
                     32 1 8:1 / / rw - ext4 /dev/sda1 rw\nrubbish\n";
        assert_eq!(hierarchies(table).collect::<Vec<_>>(), ["/sys/fs/cgroup/cpuset"]);
    }
}
