//! Results of ADD in the shapes of all versions: checked, converted, read.
//!
//! A result stays the JSON the plugin printed, so that fields this runtime does not know reach the next
//! plugin, CHECK and DEL unchanged.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::Version;

/// Most addresses, interfaces or routes taken in one result.
const MAX_ITEMS: usize = 1024;

/// A result as JSON, checked, in the shape of one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PluginResult(Map<String, Value>);

/// An address with its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Length of the network prefix in bits.
    pub prefix: u8,
    /// Default gateway of the network.
    pub gateway: Option<IpAddr>,
}

/// An interface that an attachment made, on the host or in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address; empty: none said.
    pub mac: String,
    /// Network namespace path; empty: the host.
    pub sandbox: String,
}

/// What a result says, in terms of the newest version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Interfaces, in order.
    pub interfaces: Vec<Interface>,
    /// Addresses, in order, each with the index of its interface.
    pub addresses: Vec<(Address, Option<usize>)>,
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// The layouts that results have had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `ip4`, `ip6`, one each
    Pair,
    /// `ips` that repeat their family in `version`
    Tagged,
    /// `ips`
    Plain,
}

fn shape(version: Version) -> Shape {
    match version {
        Version::V0_1_0 | Version::V0_2_0 => Shape::Pair,
        Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => Shape::Tagged,
        Version::V1_0_0 | Version::V1_1_0 => Shape::Plain,
    }
}

impl PluginResult {
    /// Reads what a plugin printed and brings it into the shape of `version`, which is also taken to be
    /// its own if it does not say. The error says what is wrong.
    pub fn parse(text: &[u8], version: Version) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let Value::Object(mut map) = value else { return Err("it is not a JSON object".into()) };
        let own = match map.get("cniVersion") {
            None | Some(Value::Null) => version,
            Some(Value::String(text)) if text.is_empty() => version,
            Some(Value::String(text)) => {
                Version::parse(text).ok_or_else(|| format!("its cniVersion {text:?} is unknown"))?
            }
            Some(_) => return Err("its cniVersion is not a string".into()),
        };
        map.insert("cniVersion".into(), own.as_str().into());
        Self(map).into_version(version)
    }

    /// What it says.
    pub fn content(&self) -> Result<Content, String> {
        read(&to_plain(self.0.clone(), shape(self.version()))?)
    }

    /// The same result in the shape of another version.
    pub fn into_version(self, version: Version) -> Result<Self, String> {
        let (from, to) = (shape(self.version()), shape(version));
        let mut map = self.0;
        // Reading is the check, also where no conversion is due.
        let plain = to_plain(map.clone(), from)?;
        read(&plain)?;
        // Lax plugins leave the tag out; strict ones that come after need it.
        if from != to || to == Shape::Tagged {
            map = from_plain(plain, to)?;
        }
        map.insert("cniVersion".into(), version.as_str().into());
        Ok(Self(map))
    }

    /// As JSON, for `prevResult`.
    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    fn version(&self) -> Version {
        self.0.get("cniVersion").and_then(Value::as_str).and_then(Version::parse).unwrap_or(Version::V1_1_0)
    }
}

fn list(map: &Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() <= MAX_ITEMS => Ok(items.clone()),
        Some(Value::Array(_)) => Err(format!("{key} has more than {MAX_ITEMS} entries")),
        Some(_) => Err(format!("{key} is not a list")),
    }
}

fn to_plain(mut map: Map<String, Value>, from: Shape) -> Result<Map<String, Value>, String> {
    match from {
        Shape::Plain => {}
        Shape::Tagged => {
            for item in map.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(item) = item.as_object_mut() {
                    item.remove("version");
                }
            }
        }
        Shape::Pair => {
            let (mut ips, mut routes) = (Vec::new(), Vec::new());
            for key in ["ip4", "ip6"] {
                match map.remove(key) {
                    None | Some(Value::Null) => {}
                    Some(Value::Object(mut one)) => {
                        routes.extend(list(&one, "routes")?);
                        one.remove("routes");
                        let address = one.remove("ip").ok_or_else(|| format!("{key} has no ip"))?;
                        one.insert("address".into(), address);
                        ips.push(Value::Object(one));
                    }
                    Some(_) => return Err(format!("{key} is not an object")),
                }
            }
            map.insert("ips".into(), ips.into());
            map.insert("routes".into(), routes.into());
        }
    }
    Ok(map)
}

fn from_plain(mut map: Map<String, Value>, to: Shape) -> Result<Map<String, Value>, String> {
    let is_v6 = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).is_some_and(|text| text.contains(':'));
    match to {
        Shape::Plain => {}
        Shape::Tagged => {
            for item in map.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
                let family = if is_v6(item, "address") { "6" } else { "4" };
                if let Some(item) = item.as_object_mut() {
                    item.insert("version".into(), family.into());
                }
            }
        }
        Shape::Pair => {
            let (ips, routes) = (list(&map, "ips")?, list(&map, "routes")?);
            if ips.is_empty() {
                return Err("it has no address, which this version of CNI cannot express".into());
            }
            for key in ["ips", "routes", "interfaces"] {
                map.remove(key);
            }
            for (key, v6) in [("ip4", false), ("ip6", true)] {
                // That version has room for one address of each family.
                let Some(Value::Object(mut one)) = ips.iter().find(|ip| is_v6(ip, "address") == v6).cloned() else {
                    continue;
                };
                let address = one.remove("address").unwrap_or_default();
                one.remove("interface");
                one.insert("ip".into(), address);
                let routes: Vec<_> = routes.iter().filter(|route| is_v6(route, "dst") == v6).cloned().collect();
                one.insert("routes".into(), routes.into());
                map.insert(key.into(), Value::Object(one));
            }
        }
    }
    Ok(map)
}

/// Reads the newest shape.
fn read(map: &Map<String, Value>) -> Result<Content, String> {
    let mut content = Content::default();
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for item in list(map, "interfaces")? {
        if !item.is_object() {
            return Err("interfaces holds something other than objects".into());
        }
        let interface =
            Interface { name: text(&item, "name"), mac: text(&item, "mac"), sandbox: text(&item, "sandbox") };
        if interface.name.len() > 255 || interface.sandbox.len() > 4096 || interface.mac.len() > 255 {
            return Err("an interface has an over-long name, mac or sandbox".into());
        }
        content.interfaces.push(interface);
    }
    for item in list(map, "ips")? {
        let written = text(&item, "address");
        let (ip, prefix) = network(&written).ok_or_else(|| {
            format!("{:?} is not an address with a prefix length", written.chars().take(80).collect::<String>())
        })?;
        let gateway = match item.get("gateway") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(text.parse().map_err(|_| format!("gateway {text:?} is not an address"))?),
            Some(_) => return Err("a gateway is not a string".into()),
        };
        // Out of range or negative: the address belongs to no interface listed.
        let interface = match item.get("interface") {
            None | Some(Value::Null) => None,
            Some(index) => Some(index.as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)),
        };
        content.addresses.push((Address { ip, prefix, gateway }, interface));
    }
    list(map, "routes")?;
    if let Some(Value::Object(dns)) = map.get("dns") {
        let strings = |key| -> Result<Vec<String>, String> {
            Ok(list(dns, key)?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        };
        content.nameservers = strings("nameservers")?;
        content.search = strings("search")?;
        content.options = strings("options")?;
    }
    Ok(content)
}

/// `10.1.0.5/16`
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix = prefix.parse().ok()?;
    (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, prefix))
}

impl Content {
    /// The addresses of the pod's interface `name`: those tied to it, or to no interface at all. If the
    /// plugin lists it under another name, those tied to any interface in a sandbox.
    pub fn addresses_of(&self, name: &str) -> Vec<Address> {
        let of = |wanted: &dyn Fn(Option<&Interface>) -> bool| -> Vec<Address> {
            let tied = |index: &Option<usize>| match index {
                None => true,
                Some(index) => wanted(self.interfaces.get(*index)),
            };
            self.addresses.iter().filter(|(_, index)| tied(index)).map(|(address, _)| address.clone()).collect()
        };
        let named = of(&|interface| interface.is_some_and(|one| one.name == name));
        if named.is_empty() { of(&|interface| interface.is_some_and(|one| !one.sandbox.is_empty())) } else { named }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: &Value, version: Version) -> Result<PluginResult, String> {
        PluginResult::parse(value.to_string().as_bytes(), version)
    }

    fn bridge() -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth1", "mac": "00:11:22:33:44:56"},
                {"name": "eth0", "mac": "00:11:22:33:44:57", "sandbox": "/run/n"}
            ],
            "ips": [
                {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
                {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
                {"address": "192.0.2.1/24", "interface": 0}
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.1.0.1"], "search": ["a.b"], "options": ["ndots:2"]},
            "strange": {"kept": true}
        })
    }

    #[test]
    fn the_pods_addresses_are_those_of_its_interface() {
        let content = parse(&bridge(), Version::V1_0_0).unwrap().content().unwrap();
        let of = |name| content.addresses_of(name).into_iter().map(|a| a.ip.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(of("eth0"), "10.1.0.5 fd00::5");
        assert_eq!(of("net1"), "10.1.0.5 fd00::5", "listed under another name");
        assert_eq!(content.nameservers, ["10.1.0.1"]);
        let loose = json!({"interfaces": [{"name": "cali1"}], "ips": [{"address": "10.0.0.2/32"}]});
        let loose = parse(&loose, Version::V0_4_0).unwrap().content().unwrap();
        assert_eq!(loose.addresses_of("eth0").len(), 1, "tied to none");
        let off =
            json!({"ips": [{"address": "10.0.0.2/32", "interface": -1}, {"address": "10.0.0.3/32", "interface": 9}]});
        assert!(parse(&off, Version::V1_0_0).unwrap().content().unwrap().addresses_of("eth0").is_empty());
    }

    #[test]
    fn shapes_convert_and_unknown_fields_stay() {
        let newest = parse(&bridge(), Version::V1_1_0).unwrap().to_value();
        assert_eq!(newest["cniVersion"], "1.1.0");
        assert_eq!(newest["strange"]["kept"], true);
        let tagged = parse(&bridge(), Version::V0_3_1).unwrap().to_value();
        assert_eq!((&tagged["ips"][0]["version"], &tagged["ips"][1]["version"]), (&json!("4"), &json!("6")));
        let pair = parse(&bridge(), Version::V0_2_0).unwrap().to_value();
        assert_eq!(
            pair,
            json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
                "dns": bridge()["dns"],
                "strange": {"kept": true}
            })
        );
        let back = parse(&pair, Version::V1_0_0).unwrap();
        assert_eq!(back.content().unwrap().addresses_of("eth0").len(), 2);
        assert_eq!(back.to_value()["routes"], bridge()["routes"]);
    }

    #[test]
    fn rubbish_is_refused_with_a_reason() {
        for (text, want) in [
            ("", "not JSON"),
            ("hello", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"cniVersion":"7.0.0"}"#, "unknown"),
            (r#"{"cniVersion":1}"#, "not a string"),
            (r#"{"ips":{}}"#, "ips is not a list"),
            (r#"{"ips":[{}]}"#, "not an address"),
            (r#"{"ips":["10.0.0.1/8"]}"#, "not an address"),
            (r#"{"ips":[{"address":"10.0.0.1"}]}"#, "not an address"),
            (r#"{"ips":[{"address":"10.0.0.1/33"}]}"#, "not an address"),
            (r#"{"ips":[{"address":"10.0.0.1/8","gateway":"x"}]}"#, "gateway"),
            (r#"{"interfaces":["eth0"]}"#, "interfaces"),
        ] {
            let error = PluginResult::parse(text.as_bytes(), Version::V1_0_0).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        let many = json!({"ips": vec![json!({"address": "10.0.0.1/8"}); MAX_ITEMS + 1]});
        assert!(parse(&many, Version::V1_0_0).unwrap_err().contains("more than"));
        assert!(parse(&json!({}), Version::V0_2_0).is_ok(), "no conversion, no complaint");
        assert!(parse(&json!({"cniVersion": "1.0.0"}), Version::V0_2_0).is_err());
    }

    proptest! {
        #[test]
        fn tagging_is_undone_by_untagging(ips in prop::collection::vec((any::<IpAddr>(), 0u8..=32), 1..6)) {
            let ips: Vec<_> = ips.iter().map(|(ip, prefix)| json!({"address": format!("{ip}/{prefix}")})).collect();
            let first = parse(&json!({"ips": ips}), Version::V1_0_0).unwrap();
            let there = first.clone().into_version(Version::V0_4_0).unwrap();
            prop_assert_eq!(there.into_version(Version::V1_0_0).unwrap(), first);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = PluginResult::parse(&bytes, Version::V0_4_0);
        }
    }
}
