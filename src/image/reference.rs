//! Image references: a pure parser with the normalisation that Docker began and CRI clients expect.
//!
//! `busybox` is `docker.io/library/busybox:latest`. A first component is a host if it holds a dot or a
//! colon, or is `localhost`; a capital alone makes no host, but a repository name that is refused.
//! A tag beside a digest is dropped: the digest decides.

use std::fmt;

use super::error::ImageError;
use crate::types::Digest;

/// Host of names without one.
pub const DEFAULT_HOST: &str = "docker.io";
/// Longest repository name, host included, in characters.
const MAX_NAME: usize = 255;
/// Longest tag, in characters.
const MAX_TAG: usize = 128;

/// Which manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    /// By tag.
    Tag(String),
    /// By the manifest's digest.
    Digest(Digest),
}

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    version: Version,
}

impl Reference {
    /// Parses and normalises; the error names the value and the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |reason| ImageError::Reference { value: text.chars().take(300).collect(), reason };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > MAX_NAME + MAX_TAG + 80 {
            return Err(bad("it is too long"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                (named, Some(Digest::parse(digest).map_err(|_| bad("the part after @ is no sha256 digest"))?))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; before it, a port.
        let name_at = named.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match named[name_at..].find(':') {
            Some(colon) => (&named[..name_at + colon], Some(&named[name_at + colon + 1..])),
            None => (named, None),
        };
        if Digest::from_hex(name).is_some() {
            return Err(bad("64 hexadecimal characters are an id, not a name"));
        }
        let (host, path) = split_host(name);
        if !is_host(&host) {
            return Err(bad("the registry host is malformed"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("the repository name must be lowercase"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(bad("the repository name must be lowercase letters and digits, separated by . _ __ - or /"));
        }
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(bad("the repository name is longer than 255 characters"));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad("the tag must be up to 128 letters, digits, _ . or -, not beginning with . or -"));
        }
        let version = match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { host, path, version })
    }

    /// Registry host with its port, `docker.io` for short names.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Repository path inside the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and path.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// Tag or digest.
    pub fn version(&self) -> &Version {
        &self.version
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.path),
        }
    }
}

fn split_host(name: &str) -> (String, String) {
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let short = host == DEFAULT_HOST && !path.contains('/');
    (host.to_owned(), if short { format!("library/{path}") } else { path.to_owned() })
}

/// `name[:port]`, where name is a DNS name, an IPv4 or a bracketed IPv6 address.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", rest)
        }
        None => match host.find(':') {
            Some(colon) => (&host[..colon], &host[colon..]),
            None => (host, ""),
        },
    };
    let port_fine = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => {
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok()
        }
    };
    let label = |label: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let raw = label.as_bytes();
        edge(raw.first()) && edge(raw.last()) && raw.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    port_fine && name.split('.').all(label)
}

/// Runs of lowercase letters and digits, joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let raw = part.as_bytes();
    let edges = raw.first().is_some_and(|b| alphanumeric(*b)) && raw.last().is_some_and(|b| alphanumeric(*b));
    edges
        && raw
            .split(|b| alphanumeric(*b))
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{ErrorKind, HasKind};

    #[test]
    fn short_names_are_completed() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox:x", "docker.io/library/busybox:x"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("Host.io/a", "Host.io/a:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("127.0.0.1:5000/a--b__c.d:_x", "127.0.0.1:5000/a--b__c.d:_x"),
            (&format!("a:tag@{digest}"), &format!("docker.io/library/a@{digest}")),
            (&format!("gcr.io/a@{digest}"), &format!("gcr.io/a@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = format!("a.io/{}", "n".repeat(251));
        for text in [
            "",
            ":",
            "/",
            "a:",
            "a@",
            "a@sha256:12",
            "A",
            "a/B",
            "Host/a",
            "UPPER/case:latest",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a//b",
            "a/",
            "/a",
            "a b",
            "a\nb",
            "a:b:c",
            "x.io:99999999/a",
            "x.io:/a",
            "x.io:p/a",
            "-x.io/a",
            "x..io/a",
            "[::1/a",
            "[zz]/a",
            "../a",
            "a/../b",
            "a:.t",
            "a:-t",
            "héllo",
            "http://x.io/a",
            &long_tag,
            &long_name,
            &"0a".repeat(32),
            &format!("a@sha256:{}", "A".repeat(64)),
            &format!("a@sha512:{}", "a".repeat(128)),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().starts_with("invalid image reference"), "{text}: {error}");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(Reference::parse(&format!("a.io/{}", "n".repeat(250))).is_ok());
    }

    proptest! {
        #[test]
        fn normalised_text_is_a_fixed_point(text in "[a-zA-Z0-9._:/@-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                let normal = reference.to_string();
                prop_assert_eq!(Reference::parse(&normal).unwrap(), reference);
            }
        }

        #[test]
        fn good_names_are_taken_and_keep_their_parts(
            host in "[a-z]{1,8}\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            prop_assume!(host != "docker.io" && host != "index.docker.io");
            let reference = Reference::parse(&format!("{host}/{path}:{tag}")).unwrap();
            prop_assert_eq!(reference.host(), host);
            prop_assert_eq!(reference.path(), path);
            prop_assert_eq!(reference.version(), &Version::Tag(tag));
        }

        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = Reference::parse(&text);
        }
    }
}
