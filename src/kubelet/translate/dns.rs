//! Resolver settings and /etc/hosts.

use std::fmt::Write as _;

use crate::proto;

use super::super::manifest::{DnsPolicy, Pod, PodSpec};
use super::{Node, hostname};

/// Reads resolv.conf(5); the last `search` or `domain` line wins, what else is odd is passed over.
pub fn parse_resolv_conf(text: &str) -> proto::DnsConfig {
    let mut config = proto::DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => config.searches = words.map(str::to_owned).collect(),
            Some("options") => config.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    // The resolver reads no more than three.
    config.servers.truncate(3);
    config
}

/// The settings of a pod.
pub(super) fn config(spec: &PodSpec, node: &Node) -> proto::DnsConfig {
    let mut config = match (spec.dns_policy, spec.host_network) {
        (DnsPolicy::None, _) => proto::DnsConfig::default(),
        (_, true) => node.host_dns.clone(),
        (_, false) => node.pod_dns.clone(),
    };
    let Some(extra) = &spec.dns_config else { return config };
    for server in &extra.nameservers {
        if !config.servers.contains(server) {
            config.servers.push(server.clone());
        }
    }
    for domain in &extra.searches {
        if !config.searches.contains(domain) {
            config.searches.push(domain.clone());
        }
    }
    for option in &extra.options {
        let name = |text: &String| text.split(':').next() == Some(option.name.as_str());
        config.options.retain(|known| !name(known));
        config.options.push(match &option.value {
            Some(value) => format!("{}:{value}", option.name),
            None => option.name.clone(),
        });
    }
    config
}

/// The content of /etc/hosts. A pod in the host's network starts from the host's file, `host`.
pub fn hosts_file(pod: &Pod, node: &Node, ips: &[String], host: &str) -> String {
    let mut text = String::from("# written by podwright\n");
    if pod.spec.host_network {
        text.push_str(host.trim_end());
        text.push('\n');
    } else {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
        for ip in ips {
            let _ = writeln!(text, "{ip}\t{}", hostname(pod, node));
        }
    }
    for alias in &pod.spec.host_aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
    }
    text
}
