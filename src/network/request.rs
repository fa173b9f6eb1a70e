//! What an attachment asks of the plugins, derived from the pod: `CNI_ARGS` and the capability arguments.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::error::{NetworkError, invalid};
use super::quantity;
use crate::types::PodId;
use crate::types::pod::{Dns, PodKey, PortMapping, Protocol};

/// Annotation: limit of traffic into the pod, bits per second, a Kubernetes quantity (`10M`).
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation: limit of traffic out of the pod.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// Annotation: addresses wanted, with or without prefix length, separated by commas. It takes effect only
/// with a plugin whose configuration asks for the capability `ips`.
pub const IPS: &str = "podwright.dev/ips";
/// Annotation: hardware address wanted; capability `mac`.
pub const MAC: &str = "podwright.dev/mac";

/// Smallest and largest bandwidth, bits per second; the bounds kubelet sets.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Bits that may pass at once. The limit is on the rate; this is as good as no limit.
const BURST: u64 = i32::MAX as u64;
/// Most addresses asked for.
const MAX_IPS: usize = 32;

/// Where networks and plugins are, for a handler that has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Folder of configurations.
    pub conf_dir: PathBuf,
    /// Folders of plugins.
    pub bin_dirs: Vec<PathBuf>,
}

/// A pod to be attached.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The sandbox; `CNI_CONTAINERID`.
    pub pod: PodId,
    /// Its Kubernetes identity.
    pub key: PodKey,
    /// Its network namespace, pinned here.
    pub netns: PathBuf,
    /// File of the attachment's record, whose folder exists.
    pub record: PathBuf,
    /// Ports to forward; those without a host port are not.
    pub port_mappings: Vec<PortMapping>,
    /// Resolver settings of the pod, for plugins that want them.
    pub dns: Option<Dns>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The pod's cgroup parent; empty: not told.
    pub cgroup_parent: String,
    /// The pod's sysctls. Those of an interface that ADD makes are set after it; the others by `create_netns`.
    pub sysctls: BTreeMap<String, String>,
    /// Instead of the folders in the settings.
    pub dirs: Option<Dirs>,
}

/// `CNI_ARGS`, as Kubernetes plugins know it.
///
/// The text has no quoting: a value with a separator in it would be read as further arguments, and one
/// changed to avoid that could be taken for another pod's. So such a value is an error.
pub fn args(pod: &PodId, key: &PodKey) -> Result<String, NetworkError> {
    let pairs = [
        ("K8S_POD_NAMESPACE", key.namespace.as_str(), "metadata.namespace"),
        ("K8S_POD_NAME", key.name.as_str(), "metadata.name"),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.as_str(), "id"),
        ("K8S_POD_UID", key.uid.as_str(), "metadata.uid"),
    ];
    let mut text = String::from("IgnoreUnknown=1");
    for (name, value, field) in pairs {
        if value.len() > 1024 || value.chars().any(|c| matches!(c, ';' | '=') || c.is_control()) {
            return Err(invalid(field, value, "must not contain ; or = or control characters for CNI"));
        }
        text.push_str(&format!(";{name}={value}"));
    }
    Ok(text)
}

/// All capability arguments there are for this pod.
pub fn capabilities(attach: &Attach) -> Result<Map<String, Value>, NetworkError> {
    let mut all = Map::new();
    let ports =
        attach.port_mappings.iter().filter(|port| port.host_port != 0).map(port).collect::<Result<Vec<_>, _>>()?;
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    let mut bandwidth = Map::new();
    for (annotation, rate, burst) in
        [(INGRESS_BANDWIDTH, "ingressRate", "ingressBurst"), (EGRESS_BANDWIDTH, "egressRate", "egressBurst")]
    {
        if let Some(text) = attach.annotations.get(annotation) {
            let bits = quantity::parse(text).filter(|bits| BANDWIDTH.contains(bits));
            let bits =
                bits.ok_or_else(|| invalid(annotation, text, "want a quantity from 1k to 1P bits per second"))?;
            bandwidth.insert(rate.into(), bits.into());
            bandwidth.insert(burst.into(), BURST.into());
        }
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".into(), bandwidth.into());
    }
    if let Some(dns) = &attach.dns {
        all.insert("dns".into(), json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    if let Some(text) = attach.annotations.get(IPS) {
        all.insert("ips".into(), ips(text)?.into());
    }
    if let Some(text) = attach.annotations.get(MAC) {
        if !is_mac(text) {
            return Err(invalid(MAC, text, "want a unicast hardware address such as 02:00:00:00:00:01"));
        }
        all.insert("mac".into(), text.clone().into());
    }
    if !attach.cgroup_parent.is_empty() {
        all.insert("cgroupPath".into(), attach.cgroup_parent.clone().into());
    }
    if !attach.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(attach.annotations));
    }
    Ok(all)
}

fn port(port: &PortMapping) -> Result<Value, NetworkError> {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let mut entry = json!({"hostPort": port.host_port, "containerPort": port.container_port, "protocol": protocol});
    if port.container_port == 0 {
        return Err(invalid("port_mappings.container_port", "0", "want 1 to 65535"));
    }
    if !port.host_ip.is_empty() {
        if port.host_ip.parse::<IpAddr>().is_err() {
            return Err(invalid("port_mappings.host_ip", &port.host_ip, "want an IP address"));
        }
        entry["hostIP"] = port.host_ip.clone().into();
    }
    Ok(entry)
}

fn ips(text: &str) -> Result<Vec<String>, NetworkError> {
    let valid = |item: &str| match item.split_once('/') {
        None => item.parse::<IpAddr>().is_ok(),
        Some((ip, prefix)) => ip
            .parse::<IpAddr>()
            .is_ok_and(|ip| prefix.parse::<u8>().is_ok_and(|prefix| prefix <= if ip.is_ipv4() { 32 } else { 128 })),
    };
    let list: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
    if list.len() > MAX_IPS || !list.iter().all(|item| valid(item)) {
        return Err(invalid(IPS, text, "want addresses, with or without /PREFIX, separated by commas"));
    }
    Ok(list)
}

/// Six octets, of which the first is even: an odd one is a group's.
fn is_mac(text: &str) -> bool {
    let octets: Vec<_> = text.split(':').collect();
    let hex = |octet: &str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    octets.len() == 6
        && octets.iter().all(|octet| hex(octet))
        && u8::from_str_radix(octets[0], 16).is_ok_and(|first| first & 1 == 0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::{ErrorKind, HasKind};

    pub(in crate::network) fn attach() -> Attach {
        Attach {
            pod: PodId::parse(&"ab".repeat(32)).unwrap(),
            key: PodKey { name: "web-0".into(), uid: "u-1".into(), namespace: "shop".into(), attempt: 0 },
            netns: "/run/n".into(),
            record: "/r/network.json".into(),
            port_mappings: Vec::new(),
            dns: None,
            annotations: BTreeMap::new(),
            cgroup_parent: String::new(),
            sysctls: BTreeMap::new(),
            dirs: None,
        }
    }

    #[test]
    fn args_name_the_pod() {
        let attach = attach();
        assert_eq!(
            args(&attach.pod, &attach.key).unwrap(),
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=u-1",
                "ab".repeat(32)
            )
        );
    }

    #[test]
    fn separators_in_a_name_are_refused() {
        for name in ["a;K8S_POD_NAMESPACE=kube-system", "a=b", "a\nb", &"a".repeat(2000)] {
            let mut attach = attach();
            attach.key.name = name.into();
            assert_eq!(args(&attach.pod, &attach.key).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn capabilities_follow_from_the_pod() {
        assert!(capabilities(&attach()).unwrap().is_empty());
        let mut attach = attach();
        let mapping = |host_port, host_ip: &str, protocol| PortMapping {
            protocol,
            container_port: 80,
            host_port,
            host_ip: host_ip.into(),
        };
        attach.port_mappings =
            vec![mapping(8080, "", Protocol::Tcp), mapping(0, "", Protocol::Tcp), mapping(53, "::1", Protocol::Udp)];
        attach.dns = Some(Dns { servers: vec!["192.0.2.1".into()], ..Dns::default() });
        attach.cgroup_parent = "/kubepods/x".into();
        for (key, value) in
            [(INGRESS_BANDWIDTH, "10M"), (IPS, "10.0.0.9, fd00::9/64"), (MAC, "02:00:00:00:00:01"), ("other", "x")]
        {
            attach.annotations.insert(key.into(), value.into());
        }
        let all = Value::Object(capabilities(&attach).unwrap());
        assert_eq!(
            all["portMappings"],
            json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 80, "protocol": "udp", "hostIP": "::1"}
            ])
        );
        assert_eq!(all["bandwidth"], json!({"ingressRate": 10_000_000, "ingressBurst": 2_147_483_647}));
        assert_eq!(all["dns"], json!({"servers": ["192.0.2.1"], "searches": [], "options": []}));
        assert_eq!(all["ips"], json!(["10.0.0.9", "fd00::9/64"]));
        assert_eq!(all["mac"], "02:00:00:00:00:01");
        assert_eq!(all["cgroupPath"], "/kubepods/x");
        assert_eq!(all["io.kubernetes.cri.pod-annotations"]["other"], "x");
    }

    #[test]
    fn bad_annotations_and_ports_are_refused() {
        for (key, value) in [
            (INGRESS_BANDWIDTH, "fast"),
            (EGRESS_BANDWIDTH, "999"),
            (EGRESS_BANDWIDTH, "2P"),
            (IPS, "10.0.0.256"),
            (IPS, "10.0.0.1/33"),
            (IPS, ""),
            (MAC, "01:00:00:00:00:01"),
            (MAC, "02:00:00:00:00"),
            (MAC, "02:00:00:00:00:+1"),
        ] {
            let mut attach = attach();
            attach.annotations.insert(key.into(), value.into());
            assert_eq!(capabilities(&attach).unwrap_err().kind(), ErrorKind::InvalidArgument, "{key} {value}");
        }
        for (container_port, host_ip) in [(0, ""), (80, "localhost"), (80, "1.2.3.4; rm")] {
            let mut attach = attach();
            attach.port_mappings =
                vec![PortMapping { protocol: Protocol::Tcp, container_port, host_port: 1, host_ip: host_ip.into() }];
            assert!(capabilities(&attach).is_err());
        }
    }
}
