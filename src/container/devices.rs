//! Device nodes of the host: those asked for by path, or all of them for a privileged container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

use super::config::Device;

/// Parts of /dev that are each container's own, or no devices.
const SKIPPED: [&str; 9] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev", "hugepages"];
/// Folders of devices are walked this deep and no further.
const MAX_DEPTH: usize = 8;
/// Most files looked at; /dev of a large storage node has a few thousand. A folder that is not for devices, such as
/// /proc, may have millions.
const MAX_FILES: usize = 16_384;

/// A node for `linux.devices` and its rule for `linux.resources.devices` (OCI runtime spec).
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// `linux.devices` entry.
    pub device: Value,
    /// `linux.resources.devices` entry.
    pub rule: Value,
}

/// The nodes for one asked-for device: itself, or all below it if it is a folder.
///
/// # Errors
/// Text that says what is wrong with the host path.
pub fn asked(device: &Device) -> Result<Vec<Node>, String> {
    let host = Path::new(&device.host_path);
    let found = fs::metadata(host).map_err(|error| format!("cannot be used: {error}"))?;
    let inside = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
    let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
    let mut nodes = Vec::new();
    if found.is_dir() {
        let mut left = MAX_FILES;
        walk(host, Path::new(inside), access, 0, &mut left, &mut nodes);
        if left == 0 {
            return Err(format!("is a folder of more than {MAX_FILES} files"));
        }
    } else {
        nodes.extend(node(&found, Path::new(inside), access));
    }
    if nodes.is_empty() { Err("is neither a device node nor a folder that holds any".into()) } else { Ok(nodes) }
}

/// Every device node of the host, with all access, as far as one would look for them.
pub fn all() -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut left = MAX_FILES;
    walk(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut left, &mut nodes);
    nodes
}

/// Looks at no more than so many files as are `left`, and outside /dev into nothing that is mounted there: in /proc
/// alone that could have file systems mounted that nobody uses.
fn walk(host: &Path, inside: &Path, access: &str, depth: usize, left: &mut usize, nodes: &mut Vec<Node>) {
    let Ok(folder) = fs::metadata(host) else { return };
    let enters = |found: &fs::Metadata| host.starts_with("/dev") || found.dev() == folder.dev();
    for entry in fs::read_dir(host).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if depth == 0 && host == Path::new("/dev") && SKIPPED.iter().any(|skip| name == *skip) {
            continue;
        }
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        // Of the entry itself: links into other places are not followed.
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() && enters(&found) && depth < MAX_DEPTH {
            walk(&entry.path(), &inside.join(&name), access, depth + 1, left, nodes);
        } else {
            nodes.extend(node(&found, &inside.join(&name), access));
        }
    }
}

/// A node by its numbers, without a look at the host.
pub(super) fn numbered(path: &str, kind: &str, major: i64, minor: i64, access: &str) -> Node {
    let kind = if kind == "u" { "c" } else { kind };
    let device = json!({ "path": path, "type": kind, "major": major, "minor": minor });
    let rule = json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access });
    Node { device, rule }
}

/// A node of the host under another path; `None`: it is no device.
pub(super) fn node(found: &fs::Metadata, inside: &Path, access: &str) -> Option<Node> {
    let kind = match found.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    let device = json!({
        "path": inside, "type": kind, "major": major, "minor": minor,
        "fileMode": found.mode() & 0o777, "uid": found.uid(), "gid": found.gid(),
    });
    let rule = json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access });
    Some(Node { device, rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str) -> Device {
        Device { container_path: "/dev/x".into(), host_path: path.into(), permissions: "r".into() }
    }

    #[test]
    fn a_node_keeps_its_numbers_under_another_name() {
        let nodes = asked(&device("/dev/null")).unwrap();
        assert_eq!(nodes[0].device["path"], "/dev/x");
        assert_eq!(nodes[0].rule, json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "r" }));
    }

    #[test]
    fn what_is_no_device_is_told() {
        for path in ["/etc/passwd", "/no/such/device", "/etc"] {
            assert!(asked(&device(path)).is_err(), "{path}");
        }
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MAX_FILES {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        let why = asked(&device(folder.path().to_str().unwrap())).unwrap_err();
        assert!(why.contains("files"), "{why}");
    }
}
