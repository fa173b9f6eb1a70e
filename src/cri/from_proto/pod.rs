//! Sandbox configuration.

use super::check::{absolute_or_empty, annotations, labels, length, list, name, no_control};
use super::network::{dns, port_mapping};
use super::resources::resources;
use super::security::pod_security;
use super::sysctls::sysctls;
use super::{At, DecodeError, required};
use crate::proto;
use crate::types::pod::{PodConfig, PodKey};

/// `config` of RunPodSandbox.
pub fn pod(from: Option<proto::PodSandboxConfig>) -> Result<PodConfig, DecodeError> {
    let at = At::root("config");
    let proto::PodSandboxConfig {
        metadata,
        hostname: host,
        log_directory,
        dns_config,
        port_mappings,
        labels: label_map,
        annotations: annotation_map,
        linux,
        windows,
    } = required(&at, from)?;
    if windows.is_some() {
        return Err(at.field("windows").bad("", "this runtime runs on Linux only"));
    }
    let metadata_at = at.field("metadata");
    let metadata = required(&metadata_at, metadata)?;
    let linux_at = at.field("linux");
    let proto::LinuxPodSandboxConfig {
        cgroup_parent: parent,
        security_context,
        sysctls: sysctl_map,
        overhead,
        resources: limits,
    } = linux.unwrap_or_default();
    let security = pod_security(&linux_at.field("security_context"), security_context.unwrap_or_default())?;
    Ok(PodConfig {
        key: PodKey {
            name: name(&metadata_at.field("name"), metadata.name)?,
            uid: name(&metadata_at.field("uid"), metadata.uid)?,
            namespace: name(&metadata_at.field("namespace"), metadata.namespace)?,
            attempt: metadata.attempt,
        },
        hostname: hostname(&at.field("hostname"), host)?,
        log_directory: absolute_or_empty(&at.field("log_directory"), log_directory)?,
        dns: dns(&at.field("dns_config"), dns_config.unwrap_or_default())?,
        port_mappings: list(&at.field("port_mappings"), port_mappings, port_mapping)?,
        labels: labels(&at.field("labels"), label_map)?,
        annotations: annotations(&at.field("annotations"), annotation_map)?,
        cgroup_parent: cgroup_parent(&linux_at.field("cgroup_parent"), parent)?,
        sysctls: sysctls(&linux_at.field("sysctls"), sysctl_map, &security.namespaces)?,
        overhead: overhead.map(|from| resources(&linux_at.field("overhead"), from)).transpose()?,
        resources: limits.map(|from| resources(&linux_at.field("resources"), from)).transpose()?,
        security,
    })
}

/// What sethostname takes, and nothing that forges a line in /etc/hosts.
fn hostname(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    length(at, &text, 0, 64)?;
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    if !text.bytes().all(fine) || text.starts_with(['-', '.']) || text.ends_with('-') {
        return Err(at.bad(text, "want letters, digits, '-' and '.'"));
    }
    Ok(text)
}

/// A path or a slice; which of them fits the cgroup driver is not known here.
fn cgroup_parent(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    length(at, &text, 0, 1024)?;
    no_control(at, &text)?;
    let slice = text.ends_with(".slice") && !text.contains('/');
    let path = text.starts_with('/') && !text.split('/').any(|part| part == "..");
    if text.is_empty() || slice || path {
        Ok(text)
    } else {
        Err(at.bad(text, "want an absolute cgroup path or the name of a slice"))
    }
}

/// What requests have that every client may send (tests of this folder).
#[cfg(test)]
pub fn sample() -> proto::PodSandboxConfig {
    proto::PodSandboxConfig {
        metadata: Some(proto::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "0e1b7e9c".into(),
            namespace: "default".into(),
            attempt: 2,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web-0_0e1b7e9c".into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        linux: Some(proto::LinuxPodSandboxConfig {
            cgroup_parent: "kubepods-pod1.slice".into(),
            sysctls: [("net.core.somaxconn".to_owned(), "512".to_owned())].into(),
            overhead: Some(proto::LinuxContainerResources::default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(config: &mut proto::PodSandboxConfig) -> &mut proto::PodSandboxMetadata {
        config.metadata.as_mut().unwrap()
    }

    fn linux(config: &mut proto::PodSandboxConfig) -> &mut proto::LinuxPodSandboxConfig {
        config.linux.as_mut().unwrap()
    }

    #[test]
    fn a_plain_request() {
        let got = pod(Some(sample())).unwrap();
        assert_eq!((got.key.name.as_str(), got.key.attempt), ("web-0", 2));
        assert_eq!(got.sysctls["net.core.somaxconn"], "512");
        assert_eq!((got.dns, got.resources), (None, None));
        assert!(got.overhead.is_some());
    }

    #[test]
    fn wrong_values_are_told_by_their_field() {
        let refused = |change: fn(&mut proto::PodSandboxConfig), field: &str| {
            let mut from = sample();
            change(&mut from);
            assert_eq!(pod(Some(from)).map_err(|error| error.field), Err(field.to_owned()));
        };
        assert_eq!(pod(None).unwrap_err().field, "config");
        refused(|c| c.metadata = None, "config.metadata");
        refused(|c| metadata(c).name.clear(), "config.metadata.name");
        refused(|c| metadata(c).name = "a".repeat(254), "config.metadata.name");
        refused(|c| metadata(c).uid.clear(), "config.metadata.uid");
        refused(|c| metadata(c).uid = "../../etc".into(), "config.metadata.uid");
        refused(|c| metadata(c).namespace = "..".into(), "config.metadata.namespace");
        refused(|c| c.hostname = "a".repeat(65), "config.hostname");
        refused(|c| c.hostname = "a\n10.0.0.1 b".into(), "config.hostname");
        refused(|c| c.log_directory = "var/log".into(), "config.log_directory");
        refused(|c| c.log_directory = "/var/log/../../etc".into(), "config.log_directory");
        refused(|c| c.windows = Some(proto::WindowsPodSandboxConfig::default()), "config.windows");
        refused(|c| c.port_mappings = vec![proto::PortMapping::default()], "config.port_mappings[0].container_port");
        refused(|c| _ = c.labels.insert(String::new(), String::new()), "config.labels[\"\"]");
        refused(|c| linux(c).cgroup_parent = "/a/../../b".into(), "config.linux.cgroup_parent");
        refused(|c| linux(c).cgroup_parent = "a/b.slice".into(), "config.linux.cgroup_parent");
        refused(
            |c| _ = linux(c).sysctls.insert("kernel.core_pattern".into(), "x".into()),
            "config.linux.sysctls[\"kernel.core_pattern\"]",
        );
        refused(|c| linux(c).overhead.as_mut().unwrap().cpu_shares = -1, "config.linux.overhead.cpu_shares");
        refused(
            |c| {
                let namespace_options = Some(proto::NamespaceOption { network: 1, ..Default::default() });
                linux(c).security_context =
                    Some(proto::LinuxSandboxSecurityContext { namespace_options, ..Default::default() });
            },
            "config.linux.security_context.namespace_options.network",
        );
    }
}
