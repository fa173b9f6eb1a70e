//! SELinux labels of what libcontainer mounts without one: it would take the label for all mounts or for none, and
//! the pod's message queues and the cgroups are mounted already, with options that cannot change.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use serde_json::Value;

use crate::sys::{lsm, mounts};

/// Where message queues are mounted.
const MQUEUE: &str = "/dev/mqueue";
/// Magic numbers of file systems (statfs(2)).
const MQUEUE_MAGIC: u64 = 0x1980_0202;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What is to be labelled in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels {
    label: String,
    /// The message queues are the pod's, not the host's.
    mqueue: bool,
    /// Masked paths, files among them.
    masked: Vec<PathBuf>,
}

impl Labels {
    /// From a spec, and the label of the container's mounts.
    pub(super) fn of(config: &Value, label: &str) -> Self {
        let list = |pointer: &str| config.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        let mounted = list("/mounts").any(|mount| mount["destination"] == MQUEUE && mount["type"] == "mqueue");
        let own = list("/linux/namespaces").any(|namespace| namespace["type"] == "ipc");
        let masked = list("/linux/maskedPaths").filter_map(Value::as_str).map(PathBuf::from);
        Self { label: label.to_owned(), mqueue: mounted && own, masked: masked.collect() }
    }

    /// Inside the container, once all is mounted, by a process that may still mount.
    pub(super) fn apply(&self) -> io::Result<()> {
        if self.mqueue {
            self.label_mqueue()?;
        }
        self.masked.iter().try_for_each(|path| self.cover(path))
    }

    /// A label of its own is all that it can have: who mounts it again gets the same file system.
    fn label_mqueue(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(MQUEUE, flags, Mode::empty())?;
        // A client may have mounted something else there.
        if kind(&folder)? == MQUEUE_MAGIC { lsm::set_label_of(&folder, &self.label) } else { Ok(()) }
    }

    /// Puts an empty folder with the label over the one that libcontainer has masked a folder with.
    fn cover(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let masked = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            opened => opened?,
        };
        if kind(&masked)? != TMPFS_MAGIC {
            return Ok(());
        }
        let empty = mounts::tmpfs(&mask_options(Some(&self.label)), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        mounts::attach_at(empty, masked, "")
    }

    /// That of the container's mounts.
    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

/// Options of the empty tmpfs that masks a folder.
pub(super) fn mask_options(label: Option<&str>) -> Vec<(&str, &str)> {
    [Some(("mode", "755")), label.map(|label| ("context", label))].into_iter().flatten().collect()
}

/// Magic number of the file system that a file is on.
pub(super) fn kind(file: impl std::os::fd::AsFd) -> io::Result<u64> {
    #[expect(clippy::cast_sign_loss, reason = "a magic number; its type differs between architectures")]
    let kind = rustix::fs::fstatfs(file)?.f_type as u64;
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LABEL: &str = "u:object_r:container_file_t:s0:c1,c2";

    #[test]
    fn masks_and_the_pods_message_queues_are_labelled() {
        let config = json!({
            "mounts": [{"destination": "/dev/mqueue", "type": "mqueue"}, {"destination": "/v", "type": "bind"}],
            "linux": {"namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}], "maskedPaths": ["/proc/acpi"]},
        });
        let labels = Labels::of(&config, LABEL);
        assert_eq!(labels, Labels { label: LABEL.into(), mqueue: true, masked: vec!["/proc/acpi".into()] });
        assert_eq!(mask_options(Some(labels.label())), [("mode", "755"), ("context", LABEL)]);
        assert_eq!(mask_options(None), [("mode", "755")]);
    }

    #[test]
    fn the_hosts_message_queues_keep_their_label() {
        let mount = json!([{"destination": "/dev/mqueue", "type": "mqueue"}]);
        let config = json!({"mounts": mount, "linux": {"namespaces": [{"type": "pid"}]}});
        assert!(!Labels::of(&config, LABEL).mqueue);
        let covered = json!([{"destination": "/dev/mqueue", "type": "bind"}]);
        let config = json!({"mounts": covered, "linux": {"namespaces": [{"type": "ipc"}]}});
        assert!(!Labels::of(&config, LABEL).mqueue, "what a client mounted there");
        assert!(Labels::of(&json!({}), LABEL).masked.is_empty());
    }
}
