//! What the types alone cannot say: names, references, limits, and fields that exclude each other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::container::{Container, EnvSource, MountPropagation, RecursiveReadOnly};
use super::pod::{DnsPolicy, Pod, PodSpec};
use super::security::{Profile, ProfileType};
use super::volume::{ConfigMapVolume, KeyToPath, Medium, Volume};
use super::{Objects, Problem};

type Check = Result<(), Problem>;

/// Ids above this are refused by Kubernetes, too.
const MAX_ID: i64 = i32::MAX as i64;

/// Checks a pod; the first problem is the answer.
pub(super) fn pod(pod: &Pod, objects: &Objects) -> Check {
    let (metadata, spec) = (&pod.metadata, &pod.spec);
    ensure(is_subdomain(&metadata.name), "metadata.name", SUBDOMAIN)?;
    ensure(is_label(&metadata.namespace), "metadata.namespace", LABEL)?;
    let uid = &metadata.uid;
    // The uid becomes a folder's and a cgroup's name.
    let fine = uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !uid.starts_with('-');
    ensure(fine, "metadata.uid", "want up to 64 letters, digits and '-'")?;
    ensure(!spec.containers.is_empty(), "spec.containers", "want one at least")?;
    pod_fields(spec)?;
    network_fields(spec)?;
    let mut names = BTreeSet::new();
    for (index, item) in spec.volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        ensure(names.insert(&item.name), &format!("{path}.name"), "another volume has this name")?;
        volume(item, &path, &metadata.namespace, objects)?;
    }
    let mut names = BTreeSet::new();
    for (list, items) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        for (index, item) in items.iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            ensure(names.insert(&item.name), &format!("{path}.name"), "another container has this name")?;
            let sidecar_here = list == "initContainers" || !item.is_sidecar();
            ensure(sidecar_here, &format!("{path}.restartPolicy"), "only init containers may have one of their own")?;
            container(item, &path, pod, objects)?;
        }
    }
    host_ports(spec)
}

/// What the driver takes but cannot act on, a line each.
pub fn notes(pod: &Pod) -> Vec<String> {
    let spec = &pod.spec;
    let mut notes = Vec::new();
    for (field, given) in [
        ("nodeSelector", spec.node_selector.is_some()),
        ("affinity", spec.affinity.is_some()),
        ("tolerations", spec.tolerations.is_some()),
        ("topologySpreadConstraints", spec.topology_spread_constraints.is_some()),
        ("schedulerName", spec.scheduler_name.is_some()),
        ("priority", spec.priority.is_some()),
        ("priorityClassName", spec.priority_class_name.is_some()),
        ("preemptionPolicy", spec.preemption_policy.is_some()),
    ] {
        if given {
            notes.push(format!("spec.{field} has no effect: nothing is scheduled here"));
        }
    }
    if spec.service_account_name.as_deref().is_some_and(|name| name != "default") {
        notes.push("spec.serviceAccountName has no effect: there is no API server, so no token is mounted".to_owned());
    }
    for volume in &spec.volumes {
        let limited =
            volume.empty_dir.as_ref().is_some_and(|dir| dir.medium == Medium::Disk && dir.size_limit.is_some());
        if limited {
            notes.push(format!("volume {}: sizeLimit is not enforced on disk", volume.name));
        }
    }
    for container in pod.all_containers() {
        let resources = &container.resources;
        if resources.limits.contains_key("ephemeral-storage") || resources.requests.contains_key("ephemeral-storage") {
            notes.push(format!("container {}: ephemeral-storage is not enforced", container.name));
        }
    }
    notes
}

fn pod_fields(spec: &PodSpec) -> Check {
    ensure(spec.hostname.is_empty() || is_label(&spec.hostname), "spec.hostname", LABEL)?;
    ensure(spec.host_users != Some(false), "spec.hostUsers", "false is not supported")?;
    ensure(spec.os.as_ref().is_none_or(|os| os.name == "linux"), "spec.os.name", "only linux is supported")?;
    ensure(spec.active_deadline_seconds != Some(0), "spec.activeDeadlineSeconds", "want 1 at least")?;
    ensure(!(spec.host_pid && spec.share_process_namespace), "spec.shareProcessNamespace", "excludes hostPID")?;
    let class = spec.runtime_class_name.as_deref().unwrap_or("none");
    ensure(is_subdomain(class), "spec.runtimeClassName", SUBDOMAIN)?;
    for name in spec.overhead.keys() {
        ensure(["cpu", "memory"].contains(&name.as_str()), &format!("spec.overhead.{name}"), "not supported")?;
    }
    let security = &spec.security_context;
    ids(
        "spec.securityContext",
        &[("runAsUser", security.run_as_user), ("runAsGroup", security.run_as_group), ("fsGroup", security.fs_group)],
    )?;
    for (index, group) in security.supplemental_groups.iter().enumerate() {
        let path = format!("spec.securityContext.supplementalGroups[{index}]");
        ensure((0..=MAX_ID).contains(group), &path, "want 0 to 2147483647")?;
    }
    profiles("spec.securityContext", security.seccomp_profile.as_ref(), security.app_armor_profile.as_ref())?;
    for (index, sysctl) in security.sysctls.iter().enumerate() {
        let path = format!("spec.securityContext.sysctls[{index}]");
        let name = &sysctl.name;
        let fine = !name.is_empty()
            && name.len() <= 253
            && name.split(['.', '/']).all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            });
        ensure(fine, &format!("{path}.name"), "want a name such as net.ipv4.ip_forward")?;
        ensure(!sysctl.value.contains(['\n', '\0']), &format!("{path}.value"), "want a single line")?;
        let host = spec.host_network && (name.starts_with("net.") || name.starts_with("net/"));
        ensure(!host, &format!("{path}.name"), "excludes hostNetwork: it would change the host")?;
    }
    Ok(())
}

fn network_fields(spec: &PodSpec) -> Check {
    for (index, alias) in spec.host_aliases.iter().enumerate() {
        let path = format!("spec.hostAliases[{index}]");
        ensure(alias.ip.parse::<IpAddr>().is_ok(), &format!("{path}.ip"), "not an address")?;
        for (index, name) in alias.hostnames.iter().enumerate() {
            ensure(is_subdomain(name), &format!("{path}.hostnames[{index}]"), SUBDOMAIN)?;
        }
    }
    let no_servers = spec.dns_config.as_ref().is_none_or(|dns| dns.nameservers.is_empty());
    ensure(
        spec.dns_policy != DnsPolicy::None || !no_servers,
        "spec.dnsConfig.nameservers",
        "dnsPolicy None needs one",
    )?;
    let Some(dns) = &spec.dns_config else { return Ok(()) };
    ensure(dns.nameservers.len() <= 3, "spec.dnsConfig.nameservers", "want 3 at most")?;
    for (index, server) in dns.nameservers.iter().enumerate() {
        let path = format!("spec.dnsConfig.nameservers[{index}]");
        ensure(server.parse::<IpAddr>().is_ok(), &path, "not an address")?;
    }
    for (index, domain) in dns.searches.iter().enumerate() {
        // A leading or trailing dot and underscores are fine in a search domain.
        let fine = !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        ensure(fine, &format!("spec.dnsConfig.searches[{index}]"), "not a domain")?;
    }
    for (index, option) in dns.options.iter().enumerate() {
        let path = format!("spec.dnsConfig.options[{index}]");
        let plain = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control());
        ensure(!option.name.is_empty() && plain(&option.name), &format!("{path}.name"), "want a single word")?;
        ensure(option.value.as_deref().is_none_or(plain), &format!("{path}.value"), "want a single word")?;
    }
    Ok(())
}

fn volume(volume: &Volume, path: &str, namespace: &str, objects: &Objects) -> Check {
    ensure(is_label(&volume.name), &format!("{path}.name"), LABEL)?;
    ensure(volume.sources() == 1, path, "want exactly one source")?;
    if let Some(host) = &volume.host_path {
        let fine = host.path.starts_with('/') && !host.path.contains('\0') && !host.path.split('/').any(|p| p == "..");
        ensure(fine, &format!("{path}.hostPath.path"), "want an absolute path without '..'")?;
    }
    let file_mode = |mode: Option<u32>, path: String| ensure(mode.unwrap_or(0) <= 0o777, &path, "want 0 to 0777");
    let keys = |items: &[KeyToPath], path: &str| {
        items.iter().enumerate().try_for_each(|(index, item)| {
            file_mode(item.mode, format!("{path}.items[{index}].mode"))?;
            ensure(is_inner_path(&item.path), &format!("{path}.items[{index}].path"), INNER)
        })
    };
    if let Some(ConfigMapVolume { name, items, default_mode, optional }) = &volume.config_map {
        file_mode(*default_mode, format!("{path}.configMap.defaultMode"))?;
        keys(items, &format!("{path}.configMap"))?;
        let found = *optional || objects.config_map(namespace, name).is_some();
        ensure(found, &format!("{path}.configMap.name"), &missing("ConfigMap", namespace, name))?;
    }
    if let Some(secret) = &volume.secret {
        file_mode(secret.default_mode, format!("{path}.secret.defaultMode"))?;
        keys(&secret.items, &format!("{path}.secret"))?;
        let found = secret.optional || objects.secret(namespace, &secret.secret_name).is_some();
        ensure(found, &format!("{path}.secret.secretName"), &missing("Secret", namespace, &secret.secret_name))?;
    }
    if let Some(downward) = &volume.downward_api {
        file_mode(downward.default_mode, format!("{path}.downwardAPI.defaultMode"))?;
        for (index, item) in downward.items.iter().enumerate() {
            let path = format!("{path}.downwardAPI.items[{index}]");
            ensure(is_inner_path(&item.path), &format!("{path}.path"), INNER)?;
            file_mode(item.mode, format!("{path}.mode"))?;
            ensure(item.field_ref.is_some() != item.resource_field_ref.is_some(), &path, "want exactly one source")?;
        }
    }
    for (index, source) in volume.projected.iter().flat_map(|projected| &projected.sources).enumerate() {
        let path = format!("{path}.projected.sources[{index}]");
        let given = [source.config_map.is_some(), source.secret.is_some(), source.downward_api.is_some()];
        ensure(given.iter().filter(|given| **given).count() == 1, &path, "want exactly one source")?;
        if let Some(map) = &source.config_map {
            keys(&map.items, &format!("{path}.configMap"))?;
            let found = map.optional || objects.config_map(namespace, &map.name).is_some();
            ensure(found, &format!("{path}.configMap.name"), &missing("ConfigMap", namespace, &map.name))?;
        }
        if let Some(secret) = &source.secret {
            keys(&secret.items, &format!("{path}.secret"))?;
            let found = secret.optional || objects.secret(namespace, &secret.name).is_some();
            ensure(found, &format!("{path}.secret.name"), &missing("Secret", namespace, &secret.name))?;
        }
        for (index, item) in source.downward_api.iter().flat_map(|downward| &downward.items).enumerate() {
            let path = format!("{path}.downwardAPI.items[{index}]");
            ensure(is_inner_path(&item.path), &format!("{path}.path"), INNER)?;
            file_mode(item.mode, format!("{path}.mode"))?;
            ensure(item.field_ref.is_some() != item.resource_field_ref.is_some(), &path, "want exactly one source")?;
        }
    }
    let default = volume.projected.as_ref().and_then(|projected| projected.default_mode);
    file_mode(default, format!("{path}.projected.defaultMode"))
}

fn container(container: &Container, path: &str, pod: &Pod, objects: &Objects) -> Check {
    ensure(is_label(&container.name), &format!("{path}.name"), LABEL)?;
    let image = &container.image;
    let plain = !image.is_empty() && !image.contains(|c: char| c.is_whitespace() || c.is_control());
    ensure(plain, &format!("{path}.image"), "want an image reference")?;
    let absolute = container.termination_path().starts_with('/');
    ensure(absolute, &format!("{path}.terminationMessagePath"), "want an absolute path")?;
    for (index, port) in container.ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        ensure(port.container_port > 0, &format!("{path}.containerPort"), "want 1 to 65535")?;
        let fine = port.host_ip.is_empty() || port.host_ip.parse::<IpAddr>().is_ok();
        ensure(fine, &format!("{path}.hostIP"), "not an address")?;
        let same = !pod.spec.host_network || port.host_port == 0 || port.host_port == port.container_port;
        ensure(same, &format!("{path}.hostPort"), "must be containerPort with hostNetwork")?;
    }
    environment(container, path, &pod.metadata.namespace, objects)?;
    resources(container, path)?;
    let mut targets = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let known = pod.spec.volumes.iter().any(|volume| volume.name == mount.name);
        ensure(known, &format!("{path}.name"), &format!("the pod has no volume {:?}", mount.name))?;
        let target = mount.mount_path.trim_end_matches('/');
        let fine = mount.mount_path.starts_with('/') && !target.is_empty() && !target.contains([':', '\0']);
        ensure(fine, &format!("{path}.mountPath"), "want an absolute path other than / without ':'")?;
        ensure(targets.insert(target), &format!("{path}.mountPath"), "another volume is mounted there")?;
        ensure(mount.sub_path.is_empty() || is_inner_path(&mount.sub_path), &format!("{path}.subPath"), INNER)?;
        let one = mount.sub_path.is_empty() || mount.sub_path_expr.is_empty();
        ensure(one, &format!("{path}.subPathExpr"), "excludes subPath")?;
        let both_ways = mount.mount_propagation == MountPropagation::Bidirectional;
        let fine = !both_ways || container.security_context.privileged;
        ensure(fine, &format!("{path}.mountPropagation"), "Bidirectional needs a privileged container")?;
        let recursive = mount.recursive_read_only != RecursiveReadOnly::Disabled;
        let fine = !recursive || (mount.read_only && mount.mount_propagation == MountPropagation::None);
        ensure(fine, &format!("{path}.recursiveReadOnly"), "needs readOnly and excludes mountPropagation")?;
    }
    let security = &container.security_context;
    let path = format!("{path}.securityContext");
    ids(&path, &[("runAsUser", security.run_as_user), ("runAsGroup", security.run_as_group)])?;
    let fine = !security.privileged || security.allow_privilege_escalation != Some(false);
    ensure(fine, &format!("{path}.allowPrivilegeEscalation"), "a privileged container cannot do without")?;
    profiles(&path, security.seccomp_profile.as_ref(), security.app_armor_profile.as_ref())
}

fn environment(container: &Container, path: &str, namespace: &str, objects: &Objects) -> Check {
    for (index, source) in container.env_from.iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        ensure(source.config_map_ref.is_some() != source.secret_ref.is_some(), &path, "want exactly one source")?;
        if let Some(map) = &source.config_map_ref {
            let found = map.optional || objects.config_map(namespace, &map.name).is_some();
            ensure(found, &format!("{path}.configMapRef.name"), &missing("ConfigMap", namespace, &map.name))?;
        }
        if let Some(secret) = &source.secret_ref {
            let found = secret.optional || objects.secret(namespace, &secret.name).is_some();
            ensure(found, &format!("{path}.secretRef.name"), &missing("Secret", namespace, &secret.name))?;
        }
    }
    for (index, variable) in container.env.iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let fine = !variable.name.is_empty() && !variable.name.contains(['=', '\0']);
        ensure(fine, &format!("{path}.name"), "want a name without '='")?;
        ensure(!variable.value.as_deref().unwrap_or("").contains('\0'), &format!("{path}.value"), "holds a NUL")?;
        let Some(EnvSource { config_map_key_ref, secret_key_ref, field_ref, resource_field_ref }) =
            &variable.value_from
        else {
            continue;
        };
        let path = format!("{path}.valueFrom");
        ensure(variable.value.as_deref().unwrap_or("").is_empty(), &path, "excludes value")?;
        let given =
            [config_map_key_ref.is_some(), secret_key_ref.is_some(), field_ref.is_some(), resource_field_ref.is_some()];
        ensure(given.iter().filter(|given| **given).count() == 1, &path, "want exactly one source")?;
        if let Some(key) = config_map_key_ref.as_ref().filter(|key| !key.optional) {
            let found = objects.config_map(namespace, &key.name).is_some_and(|data| data.contains_key(&key.key));
            let text = format!("{} with key {:?}", missing("ConfigMap", namespace, &key.name), key.key);
            ensure(found, &format!("{path}.configMapKeyRef"), &text)?;
        }
        if let Some(key) = secret_key_ref.as_ref().filter(|key| !key.optional) {
            let found = objects.secret(namespace, &key.name).is_some_and(|data| data.contains_key(&key.key));
            let text = format!("{} with key {:?}", missing("Secret", namespace, &key.name), key.key);
            ensure(found, &format!("{path}.secretKeyRef"), &text)?;
        }
    }
    Ok(())
}

fn resources(container: &Container, path: &str) -> Check {
    let resources = &container.resources;
    for (list, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for name in amounts.keys() {
            let known =
                ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()) || name.starts_with("hugepages-");
            ensure(known, &format!("{path}.resources.{list}.{name}"), "not supported")?;
        }
    }
    for (name, request) in &resources.requests {
        let fine = resources.limits.get(name).is_none_or(|limit| request <= limit);
        ensure(fine, &format!("{path}.resources.requests.{name}"), "is above the limit")?;
    }
    Ok(())
}

fn host_ports(spec: &PodSpec) -> Check {
    let mut taken = BTreeSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        for (port_index, port) in container.ports.iter().enumerate().filter(|(_, port)| port.host_port > 0) {
            let path = format!("spec.containers[{index}].ports[{port_index}].hostPort");
            ensure(taken.insert((port.host_port, port.protocol, &port.host_ip)), &path, "is taken by another port")?;
        }
    }
    Ok(())
}

fn ids(path: &str, fields: &[(&str, Option<i64>)]) -> Check {
    fields.iter().try_for_each(|(field, id)| {
        ensure((0..=MAX_ID).contains(&id.unwrap_or(0)), &format!("{path}.{field}"), "want 0 to 2147483647")
    })
}

fn profiles(path: &str, seccomp: Option<&Profile>, apparmor: Option<&Profile>) -> Check {
    for (field, profile) in [("seccompProfile", seccomp), ("appArmorProfile", apparmor)] {
        let Some(profile) = profile else { continue };
        let path = format!("{path}.{field}.localhostProfile");
        match (&profile.localhost_profile, profile.kind) {
            (Some(name), ProfileType::Localhost) => {
                let fine = if field == "seccompProfile" { is_inner_path(name) } else { !name.trim().is_empty() };
                ensure(fine, &path, if field == "seccompProfile" { INNER } else { "want a profile's name" })?;
            }
            (None, ProfileType::Localhost) => ensure(false, &path, "type Localhost needs it")?,
            (Some(_), _) => ensure(false, &path, "needs type Localhost")?,
            (None, _) => {}
        }
    }
    Ok(())
}

const LABEL: &str = "want up to 63 lowercase letters, digits and '-', a letter or digit first and last";
const SUBDOMAIN: &str = "want up to 253 lowercase letters, digits, '-' and '.', a letter or digit first and last";
const INNER: &str = "want a relative path without '..'";

fn missing(kind: &str, namespace: &str, name: &str) -> String {
    format!("the manifest has no {kind} {name:?} in namespace {namespace:?}")
}

fn ensure(fine: bool, path: &str, text: &str) -> Check {
    if fine { Ok(()) } else { Err(Problem::new(path, text)) }
}

fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let raw = text.as_bytes();
    raw.len() <= 63
        && edge(raw.first())
        && edge(raw.last())
        && raw.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// A relative path that does not climb.
pub(crate) fn is_inner_path(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 4096
        && !text.starts_with('/')
        && !text.contains('\0')
        && text.split('/').all(|part| part != "..")
}
