//! Where an image can be had: the registry itself and its mirrors, from `hosts.toml` in containerd's `certs.d` layout.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use url::Url;

use crate::image::error::ImageError;
use crate::image::reference::DEFAULT_HOST;

/// Largest hosts.toml, bytes.
const MAX_FILE: u64 = 1 << 20;

/// How to speak TLS with a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Take any certificate.
    pub skip_verify: bool,
    /// Further roots, PEM files.
    pub ca: Vec<PathBuf>,
    /// Own certificate, PEM; the key in its own file or in the same.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Up to and including `/v2`.
    pub base: Url,
    /// The registry itself rather than a mirror.
    pub origin: bool,
    /// Gives blobs and manifests by digest.
    pub pull: bool,
    /// Turns tags into digests.
    pub resolve: bool,
    /// TLS.
    pub tls: Tls,
    /// Sent with every request to this host, and to no other.
    pub headers: Vec<(String, String)>,
}

impl Host {
    /// Host and port, as in its URL.
    pub fn name(&self) -> String {
        authority(&self.base)
    }
}

/// Host and port of a URL; without the port if it is the scheme's own.
pub fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What holds without a hosts.toml.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// `certs.d`.
    pub folder: Option<PathBuf>,
    /// Registries on loopback speak plain http.
    pub plain_loopback: bool,
    /// Registries (host with port) that speak plain http.
    pub plain: Vec<String>,
}

/// The places to ask for images of `registry`, in order; the registry itself is the last.
pub fn load(registry: &str, defaults: &Defaults) -> Result<Vec<Host>, ImageError> {
    let candidates =
        defaults.folder.iter().flat_map(|folder| folders(registry).into_iter().map(|name| folder.join(name)));
    for folder in candidates {
        let path = folder.join("hosts.toml");
        match fs::File::open(&path) {
            Ok(file) => {
                let mut text = String::new();
                file.take(MAX_FILE).read_to_string(&mut text).map_err(ImageError::io("read", &path))?;
                return parse(registry, &text, &folder, defaults).map_err(|reason| ImageError::Hosts { path, reason });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(ImageError::io("open", &path)(error)),
        }
        if folder.is_dir() {
            let mut origin = origin(registry, None, defaults).map_err(|reason| ImageError::Hosts { path, reason })?;
            origin.tls = certificates(&folder)?;
            return Ok(vec![origin]);
        }
    }
    let path = PathBuf::from(registry);
    Ok(vec![origin(registry, None, defaults).map_err(|reason| ImageError::Hosts { path, reason })?])
}

/// Folder names for a registry, the most special first: `host_port_`, `host:port`, `_default`.
fn folders(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && !host.is_empty()
        && !port.contains(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

/// Docker's older layout: `*.crt` are roots, `NAME.cert` and `NAME.key` a client's.
fn certificates(folder: &Path) -> Result<Tls, ImageError> {
    let mut tls = Tls::default();
    for entry in fs::read_dir(folder).map_err(ImageError::io("read", folder))? {
        let path = entry.map_err(ImageError::io("read", folder))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    tls.ca.sort();
    tls.client.sort();
    Ok(tls)
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Table,
    #[serde(default)]
    host: BTreeMap<String, Spanned<Table>>,
}

#[derive(Default, Deserialize)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

fn parse(registry: &str, text: &str, folder: &Path, defaults: &Defaults) -> Result<Vec<Host>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string().trim().replace('\n', " "))?;
    let mut tables: Vec<_> = file.host.into_iter().collect();
    // The order in the file is the order of preference.
    tables.sort_by_key(|(_, table)| table.span().start);
    let mut hosts = Vec::new();
    for (name, table) in tables {
        let url = address(&name, table.get_ref().override_path, defaults)?;
        hosts.push(host(url, false, table.into_inner(), folder).map_err(|reason| format!("host {name:?}: {reason}"))?);
    }
    let url = match &file.server {
        Some(server) if !server.is_empty() => address(server, file.own.override_path, defaults)?,
        _ => origin(registry, None, defaults)?.base,
    };
    let origin = host(url, true, file.own, folder)?;
    // A mirror list may name the registry itself; asking it twice helps nobody.
    if let Some(same) = hosts.iter_mut().find(|host| host.base == origin.base) {
        same.origin = true;
    } else {
        hosts.push(origin);
    }
    Ok(hosts)
}

fn host(base: Url, origin: bool, table: Table, folder: &Path) -> Result<Host, String> {
    let (mut pull, mut resolve) = (true, true);
    if let Some(capabilities) = &table.capabilities {
        (pull, resolve) = (false, false);
        for capability in capabilities {
            match capability.as_str() {
                "pull" => pull = true,
                "resolve" => resolve = true,
                "push" | "referrers" => {}
                other => return Err(format!("unknown capability {other:?}: want pull, resolve or push")),
            }
        }
    }
    let file = |name: String| folder.join(name);
    let client = match table.client {
        None => Vec::new(),
        Some(Client::One(one)) => vec![(file(one), None)],
        Some(Client::Many(many)) => {
            let pair = |entry: OneOrMany| match entry.list().as_slice() {
                [one] => Ok((file(one.clone()), None)),
                [certificate, key] if key.is_empty() => Ok((file(certificate.clone()), None)),
                [certificate, key] => Ok((file(certificate.clone()), Some(file(key.clone())))),
                _ => Err("client: want a file, or pairs of certificate and key".to_owned()),
            };
            many.into_iter().map(pair).collect::<Result<_, _>>()?
        }
    };
    let ca = table.ca.map(OneOrMany::list).unwrap_or_default().into_iter().map(file).collect();
    let values =
        |(name, values): (String, OneOrMany)| values.list().into_iter().map(move |value| (name.clone(), value));
    let headers = table.header.into_iter().flat_map(values).collect();
    Ok(Host { base, origin, pull, resolve, tls: Tls { skip_verify: table.skip_verify, ca, client }, headers })
}

/// A URL from hosts.toml, with `/v2` unless the path is to be taken as it is.
fn address(text: &str, as_it_is: bool, defaults: &Defaults) -> Result<Url, String> {
    let text_with_scheme =
        if text.contains("://") { text.to_owned() } else { format!("{}://{text}", scheme(text, defaults)) };
    let mut url = Url::parse(&text_with_scheme).map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.cannot_be_a_base() {
        return Err(format!("{text:?}: want http:// or https:// and a host"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&if as_it_is || path.ends_with("/v2") { path } else { format!("{path}/v2") });
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn origin(registry: &str, tls: Option<Tls>, defaults: &Defaults) -> Result<Host, String> {
    let name = if registry == DEFAULT_HOST { "registry-1.docker.io" } else { registry };
    let base = address(name, false, defaults)?;
    Ok(Host { base, origin: true, pull: true, resolve: true, tls: tls.unwrap_or_default(), headers: Vec::new() })
}

fn scheme(registry: &str, defaults: &Defaults) -> &'static str {
    // Port 443 speaks TLS anywhere.
    let loopback = defaults.plain_loopback && is_loopback(registry) && !registry.ends_with(":443");
    let plain = loopback || defaults.plain.iter().any(|host| host == registry);
    if plain { "http" } else { "https" }
}

/// Whether a host (with port) is this machine.
pub fn is_loopback(registry: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{registry}")) else { return false };
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults { folder: None, plain_loopback: true, plain: vec!["plain.lan:5000".into()] }
    }

    fn bases(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|host| host.base.as_str()).collect()
    }

    #[test]
    fn without_configuration_the_registry_is_asked() {
        for (registry, want) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("gcr.io", "https://gcr.io/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1:1", "http://127.0.0.1:1/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost:443", "https://localhost/v2"),
            ("plain.lan:5000", "http://plain.lan:5000/v2"),
            ("127.0.0.1.evil.io", "https://127.0.0.1.evil.io/v2"),
        ] {
            assert_eq!(bases(&load(registry, &defaults()).unwrap()), [want]);
        }
    }

    #[test]
    fn mirrors_keep_their_order_and_the_registry_is_last() {
        let text = r#"
            server = "https://up.stream"
            skip_verify = true
            [host."http://z.lan:5000"]
              capabilities = ["pull"]
            [host."https://a.lan/proxy"]
              capabilities = ["pull", "resolve"]
              ca = "a.pem"
              client = [["c.pem", "k.pem"], ["both.pem", ""]]
              [host."https://a.lan/proxy".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."https://b.lan/exact/path"]
              override_path = true
              client = "both.pem"
              ca = ["/abs.pem", "rel.pem"]
        "#;
        let hosts = parse("up.stream", text, Path::new("/etc/x"), &defaults()).unwrap();
        assert_eq!(
            bases(&hosts),
            ["http://z.lan:5000/v2", "https://a.lan/proxy/v2", "https://b.lan/exact/path", "https://up.stream/v2"]
        );
        assert_eq!(
            hosts.iter().map(|h| (h.pull, h.resolve, h.origin)).collect::<Vec<_>>(),
            [(true, false, false), (true, true, false), (true, true, false), (true, true, true)]
        );
        assert_eq!(
            hosts[1].tls.client,
            [("/etc/x/c.pem".into(), Some("/etc/x/k.pem".into())), ("/etc/x/both.pem".into(), None)]
        );
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(hosts[1].headers, [header("x-one", "1"), header("x-two", "2"), header("x-two", "3")]);
        assert_eq!(hosts[2].tls.ca, [PathBuf::from("/abs.pem"), "/etc/x/rel.pem".into()]);
        assert!(hosts[3].tls.skip_verify && !hosts[0].tls.skip_verify);
    }

    #[test]
    fn folders_are_tried_from_special_to_default() {
        let folder = tempfile::tempdir().unwrap();
        let defaults = Defaults { folder: Some(folder.path().into()), ..defaults() };
        let write = |name: &str| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            let text = format!("[host.\"https://{}.lan\"]\n", name.replace([':', '_'], "-").trim_matches('-'));
            fs::write(folder.path().join(name).join("hosts.toml"), text).unwrap();
        };
        let first = || load("r.io:5000", &defaults).unwrap()[0].name();
        assert_eq!(first(), "r.io:5000");
        write("_default");
        assert_eq!(first(), "default.lan");
        write("r.io:5000");
        assert_eq!(first(), "r.io-5000.lan");
        write("r.io_5000_");
        assert_eq!(load("r.io:5000", &defaults).unwrap().len(), 2);
        fs::create_dir(folder.path().join("certs.io")).unwrap();
        fs::write(folder.path().join("certs.io/ca.crt"), "").unwrap();
        assert_eq!(load("certs.io", &defaults).unwrap()[0].tls.ca.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("server = 3", "server"),
            ("[host.\"ftp://x\"]", "http:// or https://"),
            ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"https://x\"]\nclient = [[\"a\",\"b\",\"c\"]]", "pairs"),
            ("nonsense", "key"),
        ] {
            let error = parse("r.io", text, Path::new("/"), &defaults()).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        let same = parse("r.io", "[host.\"https://r.io\"]", Path::new("/"), &defaults()).unwrap();
        assert_eq!(same.len(), 1);
        assert!(same[0].origin);
    }
}
