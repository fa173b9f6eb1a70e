//! DNS and ports.

use std::net::IpAddr;

use super::check::{MAX_NAME, known, length, list, range};
use super::{At, DecodeError};
use crate::proto;
use crate::types::pod::{Dns, PortMapping, Protocol};

/// Most entries of each kind; resolv.conf readers look at far fewer.
const MAX_ENTRIES: usize = 64;

/// resolver settings; all empty is the same as none: the pod gets the host's file.
pub fn dns(at: &At<'_>, from: proto::DnsConfig) -> Result<Option<Dns>, DecodeError> {
    let proto::DnsConfig { servers, searches, options } = from;
    for (name, length) in [("servers", servers.len()), ("searches", searches.len()), ("options", options.len())] {
        if length > MAX_ENTRIES {
            return Err(at.field(name).bad(length, format!("want at most {MAX_ENTRIES} entries")));
        }
    }
    let dns = Dns {
        servers: list(&at.field("servers"), servers, server)?,
        searches: list(&at.field("searches"), searches, resolv_word)?,
        options: list(&at.field("options"), options, resolv_word)?,
    };
    Ok((dns != Dns::default()).then_some(dns))
}

/// An address, with a zone where it is link-local (`fe80::1%eth0`).
fn server(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    let text = resolv_word(at, text)?;
    let address = match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => address,
        _ => &text,
    };
    if address.parse::<IpAddr>().is_ok() { Ok(text) } else { Err(at.bad(text, "want an IP address")) }
}

/// One word of a line in resolv.conf.
fn resolv_word(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    length(at, &text, 1, MAX_NAME)?;
    if text.bytes().all(|b| b.is_ascii_graphic()) && !text.starts_with(['#', ';']) {
        Ok(text)
    } else {
        Err(at.bad(text, "want one word"))
    }
}

/// One port mapping.
pub fn port_mapping(at: &At<'_>, from: proto::PortMapping) -> Result<PortMapping, DecodeError> {
    let proto::PortMapping { protocol, container_port, host_port, host_ip } = from;
    let port = |name: &'static str, value: i32, low: i64| {
        let at = at.field(name);
        let value = range(&at, i64::from(value), low, 65_535)?;
        u16::try_from(value).map_err(|_| at.bad(value, "want a port"))
    };
    if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
        return Err(at.field("host_ip").bad(host_ip, "want an IP address"));
    }
    Ok(PortMapping {
        protocol: match known(&at.field("protocol"), protocol)? {
            proto::Protocol::Tcp => Protocol::Tcp,
            proto::Protocol::Udp => Protocol::Udp,
            proto::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: port("container_port", container_port, 1)?,
        host_port: port("host_port", host_port, 0)?,
        host_ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: At<'static> = At::root("d");

    fn config(servers: &[&str], searches: &[&str], options: &[&str]) -> proto::DnsConfig {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        proto::DnsConfig { servers: own(servers), searches: own(searches), options: own(options) }
    }

    #[test]
    fn resolver_settings() {
        let full = config(&["10.96.0.10", "fe80::1%eth0"], &["ns.svc.cluster.local", "."], &["ndots:5"]);
        assert!(dns(&AT, full).unwrap().is_some());
        assert_eq!(dns(&AT, config(&[], &[], &[])), Ok(None));
        for (bad, field) in [
            (config(&["10.0.0.1\nnameserver 6.6.6.6"], &[], &[]), "d.servers[0]"),
            (config(&["dns.example"], &[], &[]), "d.servers[0]"),
            (config(&["fe80::1%"], &[], &[]), "d.servers[0]"),
            (config(&[], &["a", "b c"], &[]), "d.searches[1]"),
            (config(&[], &[""], &[]), "d.searches[0]"),
            (config(&[], &[], &["ndots:5\noptions rotate"]), "d.options[0]"),
            (config(&["1.1.1.1"; 65], &[], &[]), "d.servers"),
        ] {
            assert_eq!(dns(&AT, bad).unwrap_err().field, field);
        }
    }

    #[test]
    fn ports() {
        let decode = |protocol, container_port, host_port, host_ip: &str| {
            let from = proto::PortMapping { protocol, container_port, host_port, host_ip: host_ip.into() };
            port_mapping(&AT, from).map_err(|error| error.field)
        };
        assert!(decode(2, 80, 0, "").is_ok());
        assert!(decode(0, 65_535, 65_535, "::1").is_ok());
        assert_eq!(decode(3, 80, 0, "").unwrap_err(), "d.protocol");
        assert_eq!(decode(0, 0, 0, "").unwrap_err(), "d.container_port");
        assert_eq!(decode(0, 80, -1, "").unwrap_err(), "d.host_port");
        assert_eq!(decode(0, 65_536, 0, "").unwrap_err(), "d.container_port");
        assert_eq!(decode(0, 80, 0, "localhost").unwrap_err(), "d.host_ip");
    }
}
