//! The spec's `linux` section: namespaces, resources, devices, masks.

use serde_json::{Value, json};

use super::{Inputs, SpecError};
use crate::types::container::Resources;
use crate::types::pod::{IdMapping, NamespaceMode};

pub(super) fn build(inputs: &Inputs<'_>) -> Result<Value, SpecError> {
    let security = &inputs.config.security;
    let mut linux = json!({
        "namespaces": namespaces(inputs)?,
        "cgroupsPath": inputs.cgroups_path,
        "resources": inputs.config.resources.as_ref().map_or_else(|| json!({}), resources),
    });
    let mut rules = vec![json!({ "allow": security.privileged, "access": "rwm" })];
    let mut nodes = Vec::new();
    for node in inputs.devices {
        nodes.push(&node.device);
        rules.push(node.rule.clone());
    }
    linux["resources"]["devices"] = json!(rules);
    if inputs.pids != 0 {
        linux["resources"]["pids"] = json!({ "limit": inputs.pids });
    }
    if let Some(user) = &inputs.pod.security.namespaces.user {
        linux["uidMappings"] = id_mappings(&user.uids);
        linux["gidMappings"] = id_mappings(&user.gids);
    }
    if !nodes.is_empty() {
        linux["devices"] = json!(nodes);
    }
    if !inputs.edits.net_devices.is_empty() {
        let moved = inputs.edits.net_devices.iter();
        linux["netDevices"] =
            moved.map(|(host, name)| (host.clone(), json!({ "name": name }))).collect::<serde_json::Map<_, _>>().into();
    }
    if let Some(rdt) = &inputs.edits.intel_rdt {
        linux["intelRdt"] = rdt.clone();
    }
    if !security.privileged {
        linux["maskedPaths"] = json!(security.masked_paths);
        linux["readonlyPaths"] = json!(security.readonly_paths);
        if let Some(seccomp) = &inputs.seccomp {
            linux["seccomp"] = json!(seccomp);
        }
    }
    Ok(linux)
}

/// CRI resources in the OCI form. Unset values are left out, so that the kernel's defaults stay.
pub fn resources(asked: &Resources) -> Value {
    let mut out = json!({});
    let number = |value: i64| (value != 0).then(|| json!(value));
    let text = |value: &str| (!value.is_empty()).then(|| json!(value));
    let cpu = [
        ("shares", number(asked.cpu_shares.max(0))),
        ("quota", number(asked.cpu_quota)),
        ("period", number(asked.cpu_period.max(0))),
        ("cpus", text(&asked.cpuset_cpus)),
        ("mems", text(&asked.cpuset_mems)),
    ];
    let memory = [("limit", number(asked.memory_limit)), ("swap", number(asked.memory_swap_limit))];
    for (section, values) in [("cpu", cpu.to_vec()), ("memory", memory.to_vec())] {
        for (key, value) in values {
            if let Some(value) = value {
                out[section][key] = value;
            }
        }
    }
    if !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.iter();
        out["hugepageLimits"] = limits.map(|(size, limit)| json!({ "pageSize": size, "limit": limit })).collect();
    }
    if !asked.unified.is_empty() {
        out["unified"] = json!(asked.unified);
    }
    out
}

/// Mappings in the OCI form.
fn id_mappings(from: &[IdMapping]) -> Value {
    let one = |map: &IdMapping| json!({ "containerID": map.container_id, "hostID": map.host_id, "size": map.length });
    from.iter().map(one).collect()
}

fn namespaces(inputs: &Inputs<'_>) -> Result<Vec<Value>, SpecError> {
    let options = &inputs.config.security.namespaces;
    let pod = &inputs.pod.security.namespaces;
    let places = inputs.places;
    let of = |pid: i32, kind: &str| format!("/proc/{pid}/ns/{kind}");
    let mut list = vec![json!({ "type": "mount" })];
    if pod.user.is_some() {
        list.push(json!({ "type": "user", "path": of(places.pause, "user") }));
    }
    if let Some(netns) = &places.netns {
        list.push(json!({ "type": "network", "path": netns }));
        list.push(json!({ "type": "uts", "path": of(places.pause, "uts") }));
    }
    if pod.ipc != NamespaceMode::Node {
        list.push(json!({ "type": "ipc", "path": of(places.pause, "ipc") }));
    }
    match options.pid {
        NamespaceMode::Container => list.push(json!({ "type": "pid" })),
        NamespaceMode::Pod => list.push(json!({ "type": "pid", "path": of(places.pause, "pid") })),
        NamespaceMode::Node => {}
        NamespaceMode::Target => match inputs.target_pid {
            Some(pid) => list.push(json!({ "type": "pid", "path": of(pid, "pid") })),
            None => {
                return Err(SpecError {
                    field: "config.linux.security_context.namespace_options.target_id",
                    value: options.target_id.clone(),
                    reason: "no running container of this pod",
                });
            }
        },
    }
    if inputs.cgroup_v2 && !inputs.config.security.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    Ok(list)
}
