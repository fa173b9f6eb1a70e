//! What CDI devices add to a container: from `containerEdits` (CDI specification 1.1) to parts of
//! the OCI runtime spec.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::devices::{self, Node};
use crate::wire::IdMaps;

/// Where hooks of a kind run, in the order of the OCI runtime specification.
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// All edits of all devices of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// `NAME=value`
    pub env: Vec<String>,
    /// Device nodes with their rules.
    pub devices: Vec<Node>,
    /// Mounts, in order.
    pub mounts: Vec<EditMount>,
    /// Kind and OCI hook, in order.
    pub hooks: Vec<(String, Value)>,
    /// Further supplementary groups.
    pub gids: Vec<u32>,
    /// `linux.netDevices`: name on the host and inside.
    pub net_devices: Vec<(String, String)>,
    /// `linux.intelRdt`
    pub intel_rdt: Option<Value>,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EditMount {
    /// What is mounted.
    pub source: String,
    /// Absolute path inside.
    pub destination: String,
    /// File system; empty or `bind`: a bind mount.
    pub kind: String,
    /// As in fstab.
    pub options: Vec<String>,
}

impl EditMount {
    /// Whether something of the host is shown inside.
    pub fn is_bind(&self) -> bool {
        matches!(self.kind.as_str(), "" | "none" | "bind")
            || self.options.iter().any(|it| it == "bind" || it == "rbind")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    env: Vec<String>,
    device_nodes: Vec<RawNode>,
    net_devices: Vec<RawNet>,
    hooks: Vec<RawHook>,
    mounts: Vec<RawMount>,
    intel_rdt: Option<Value>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawNode {
    path: String,
    host_path: String,
    r#type: String,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawNet {
    host_interface_name: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawHook {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMount {
    host_path: String,
    container_path: String,
    r#type: String,
    options: Vec<String>,
}

/// Reads edits, looks up device nodes on this host, and gives those without an owner to `owner`, uid and gid as the
/// host numbers them, as is the owner of all of them. `maps`: what an owner who is named is called there.
///
/// # Errors
/// What of them cannot be, for people.
pub fn read(list: &[Value], owner: Option<(u32, u32)>, maps: Option<&IdMaps>) -> Result<Edits, String> {
    let mut all = Edits::default();
    for edits in list {
        let raw: Raw = serde_json::from_value(edits.clone()).map_err(|error| format!("container edits: {error}"))?;
        all.env.extend(raw.env);
        for node in raw.device_nodes {
            let node = device(&node, owner, maps)?;
            all.devices.retain(|known| known.device["path"] != node.device["path"]);
            all.devices.push(node);
        }
        for mount in raw.mounts {
            if !absolute(&mount.container_path) {
                return Err(format!("mount on {:?}: want an absolute path", mount.container_path));
            }
            all.mounts.retain(|known| known.destination != mount.container_path);
            all.mounts.push(EditMount {
                source: mount.host_path,
                destination: mount.container_path,
                kind: mount.r#type,
                options: mount.options,
            });
        }
        for hook in raw.hooks {
            all.hooks.push(self::hook(hook)?);
        }
        all.gids.extend(raw.additional_gids.into_iter().filter(|gid| *gid != 0));
        all.net_devices.extend(raw.net_devices.into_iter().map(|device| (device.host_interface_name, device.name)));
        all.intel_rdt = raw.intel_rdt.or(all.intel_rdt);
    }
    Ok(all)
}

fn device(raw: &RawNode, owner: Option<(u32, u32)>, maps: Option<&IdMaps>) -> Result<Node, String> {
    if !absolute(&raw.path) {
        return Err(format!("device {:?}: want an absolute path", raw.path));
    }
    let host = if raw.host_path.is_empty() { &raw.path } else { &raw.host_path };
    let access = match raw.permissions.as_str() {
        "" => "rwm",
        "none" => "",
        letters => letters,
    };
    let mut node = match (raw.major, raw.minor) {
        (Some(major), minor) if !raw.r#type.is_empty() && raw.r#type != "p" => {
            devices::numbered(&raw.path, &raw.r#type, major, minor.unwrap_or(0), access)
        }
        _ => {
            let found = fs::metadata(host).map_err(|error| format!("device {host:?}: {error}"))?;
            let node = devices::node(&found, Path::new(&raw.path), access);
            node.ok_or_else(|| format!("device {host:?} is no device node"))?
        }
    };
    let kind = node.device["type"].as_str().unwrap_or_default();
    if !raw.r#type.is_empty() && raw.r#type != kind && !(raw.r#type == "u" && kind == "c") {
        return Err(format!("device {host:?} is of type {kind:?}, not {:?}", raw.r#type));
    }
    let root = maps.map_or((0, 0), IdMaps::root);
    let named = |id: Option<u32>, map: fn(&IdMaps, u32) -> Option<u32>| match (id, maps) {
        (Some(id), Some(maps)) => map(maps, id)
            .map(Some)
            .ok_or_else(|| format!("device {:?}: its owner {id} does not exist in the pod's user namespace", raw.path)),
        (id, _) => Ok(id),
    };
    let fields = [
        ("fileMode", raw.file_mode),
        ("uid", named(raw.uid, IdMaps::uid)?.or(owner.map(|(uid, _)| uid).filter(|uid| *uid != root.0))),
        ("gid", named(raw.gid, IdMaps::gid)?.or(owner.map(|(_, gid)| gid).filter(|gid| *gid != root.1))),
    ];
    for (key, value) in fields {
        if let Some(value) = value {
            node.device[key] = json!(value);
        }
    }
    Ok(node)
}

fn hook(raw: RawHook) -> Result<(String, Value), String> {
    if !HOOKS.contains(&raw.hook_name.as_str()) {
        return Err(format!("hook {:?}: want one of {}", raw.hook_name, HOOKS.join(", ")));
    }
    if !absolute(&raw.path) {
        return Err(format!("hook {}: {:?} is not an absolute path", raw.hook_name, raw.path));
    }
    let mut hook = json!({ "path": raw.path });
    if !raw.args.is_empty() {
        hook["args"] = json!(raw.args);
    }
    if !raw.env.is_empty() {
        hook["env"] = json!(raw.env);
    }
    if let Some(timeout) = raw.timeout.filter(|timeout| *timeout > 0) {
        hook["timeout"] = json!(timeout);
    }
    Ok((raw.hook_name, hook))
}

fn absolute(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| part != "..") && !path.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_cdi_knows() {
        let list = [
            json!({
                "env": ["A=1"],
                "deviceNodes": [
                    {"path": "/dev/x", "hostPath": "/dev/null", "permissions": "r"},
                    {"path": "/dev/y", "type": "c", "major": 7, "minor": 9, "fileMode": 0o600, "uid": 3},
                ],
                "mounts": [{"hostPath": "/lib", "containerPath": "/m", "options": ["ro"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/h", "args": ["h", "x"], "timeout": 5}],
                "additionalGids": [0, 44],
            }),
            json!({"env": ["B=2"], "mounts": [{"hostPath": "/usr", "containerPath": "/m"}]}),
        ];
        let got = read(&list, Some((1000, 0)), None).unwrap();
        assert_eq!((got.env, got.gids), (vec!["A=1".to_owned(), "B=2".to_owned()], vec![44]));
        assert_eq!(got.mounts.len(), 1);
        assert_eq!((got.mounts[0].source.as_str(), got.mounts[0].is_bind()), ("/usr", true));
        let (x, y) = (&got.devices[0], &got.devices[1]);
        assert_eq!(
            (&x.device["path"], &x.device["major"], &x.device["uid"]),
            (&json!("/dev/x"), &json!(1), &json!(1000))
        );
        assert_eq!(x.rule, json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}));
        assert_eq!(
            (&y.device["minor"], &y.device["fileMode"], &y.device["uid"]),
            (&json!(9), &json!(0o600), &json!(3))
        );
        assert_eq!(
            got.hooks,
            [("createContainer".to_owned(), json!({"path": "/bin/h", "args": ["h", "x"], "timeout": 5}))]
        );
    }

    #[test]
    fn owners_are_as_the_host_numbers_them() {
        let maps = IdMaps { uids: vec![(0, 1000, 10)], gids: vec![(0, 2000, 10)] };
        let list = [json!({"deviceNodes": [
            {"path": "/dev/x", "hostPath": "/dev/null"},
            {"path": "/dev/y", "type": "c", "major": 7, "minor": 9, "uid": 3, "gid": 4},
        ]})];
        let ids = |owner| {
            let devices = read(&list, owner, Some(&maps)).unwrap().devices;
            devices.iter().map(|node| (node.device["uid"].clone(), node.device["gid"].clone())).collect::<Vec<_>>()
        };
        let named = (json!(1003), json!(2004));
        assert_eq!(ids(Some((1005, 2006))), [(json!(1005), json!(2006)), named.clone()]);
        assert_eq!(ids(Some((1000, 2000))), [(json!(0), json!(0)), named], "the host's root, not the one inside");
        let strange = [json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "uid": 10}]})];
        assert!(read(&strange, None, Some(&maps)).unwrap_err().contains("does not exist"));
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (edits, word) in [
            (json!({"deviceNodes": [{"path": "/no/such/node"}]}), "/no/such/node"),
            (json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}), "no device node"),
            (json!({"deviceNodes": [{"path": "mnt/x", "hostPath": "/dev/null"}]}), "absolute"),
            (json!({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}), "of type"),
            (json!({"deviceNodes": [{"path": "/dev/../etc/x"}]}), "absolute"),
            (json!({"mounts": [{"hostPath": "/x", "containerPath": "m"}]}), "absolute"),
            (json!({"hooks": [{"hookName": "later", "path": "/x"}]}), "later"),
            (json!({"env": 5}), "container edits"),
        ] {
            let error = read(&[edits], Some((0, 0)), None).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
