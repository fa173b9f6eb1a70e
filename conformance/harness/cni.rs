//! CNI set-ups.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The bridge of every test; each test has a network namespace of its own.
pub const BRIDGE: &str = "pwt0";
/// The name of the test's network.
pub const NETWORK: &str = "podwright-test";

/// Bridge and portmap, as on a usual node.
pub fn bridge_portmap(dir: &Path) -> Value {
    conflist(&[bridge(dir), json!({ "type": "portmap", "capabilities": { "portMappings": true } })])
}

/// The bridge plugin with host-local addresses, IPv4 and IPv6.
pub fn bridge(dir: &Path) -> Value {
    json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": dir.join("cni/leases"),
            "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
        }
    })
}

/// A plugin list.
pub fn conflist(plugins: &[Value]) -> Value {
    json!({ "cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins })
}

/// Folders with the plugins of the machine.
pub fn machine_plugins() -> Vec<PathBuf> {
    ["/opt/cni/bin", "/usr/lib/cni"].iter().map(PathBuf::from).filter(|path| path.is_dir()).collect()
}

/// Puts a plugin made of a shell script into the test's own plugin folder.
pub fn script(dir: &Path, name: &str, body: &str) {
    let path = dir.join("cni/bin").join(name);
    fs::write(&path, format!("#!/bin/bash\n{body}\n")).expect("write a plugin");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

/// The body of a plugin which upon ADD takes these steps and then gives an address, and upon all else does nothing.
pub fn on_add(steps: &str) -> String {
    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.2.3/24" }] });
    format!("case $CNI_COMMAND in ADD) {steps}; echo '{result}' ;; esac")
}

/// Addresses that are still leased.
pub fn leases(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join("cni/leases").join(NETWORK)) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.starts_with("last_reserved_ip") && name != "lock").collect()
}
