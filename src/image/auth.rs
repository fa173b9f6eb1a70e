//! Credentials of a pull, and the challenges that registries answer with.

use std::fmt;

use super::reference::DEFAULT_HOST;

/// Credentials as the CRI gives them. They go to [`Auth::server_address`]'s host, or to the image's own
/// registry where that is empty, and to nobody else.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// OAuth2 refresh token; exchanged at the registry's token service.
    pub identity_token: String,
    /// Bearer token sent to the registry as it is.
    pub registry_token: String,
    /// URL or host the credentials are for; empty: the image's registry.
    pub server_address: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth for {:?}", self.server_address)
    }
}

impl Auth {
    /// Whether there is anything to send.
    pub fn is_empty(&self) -> bool {
        self.username.is_empty() && self.identity_token.is_empty() && self.registry_token.is_empty()
    }

    /// The host (with port) these are for, when pulling from `registry`.
    pub fn host<'a>(&'a self, registry: &'a str) -> &'a str {
        if self.server_address.is_empty() {
            return canonical_host(registry);
        }
        let rest = self.server_address.split_once("://").map_or(self.server_address.as_str(), |(_, rest)| rest);
        canonical_host(rest.split('/').next().unwrap_or(rest))
    }
}

/// Docker Hub goes by several names.
pub fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DEFAULT_HOST,
        other => other,
    }
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// URL of the token service.
        realm: String,
        /// Its name for the registry; empty: none given.
        service: String,
        /// What to ask for; empty: none given.
        scope: String,
    },
}

/// Parses one header value; the strongest scheme we know wins (Bearer before Basic).
pub fn parse_challenges(header: &str) -> Option<Challenge> {
    let mut found: Option<Challenge> = None;
    for (scheme, parameters) in split_challenges(header) {
        let get = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value).to_owned()
        };
        if scheme.eq_ignore_ascii_case("bearer") && !get("realm").is_empty() {
            return Some(Challenge::Bearer { realm: get("realm"), service: get("service"), scope: get("scope") });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found = found.or(Some(Challenge::Basic));
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// RFC 9110, 11.6.1: `scheme key=value, key="value", scheme2 …`.
fn split_challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return challenges;
        }
        let end = rest.find([' ', '\t', '=', ',']).unwrap_or(rest.len());
        let word = &rest[..end];
        rest = rest[end..].trim_start_matches([' ', '\t']);
        match rest.strip_prefix('=') {
            Some(value) => {
                let (value, after) = quoted_or_token(value.trim_start_matches([' ', '\t']));
                rest = after;
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
            }
            None => challenges.push((word.to_owned(), Vec::new())),
        }
    }
}

fn quoted_or_token(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_of_real_registries() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        for (header, want) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                bearer("https://auth.docker.io/token", "registry.docker.io", "repository:library/busybox:pull"),
            ),
            (r#"Basic realm="r, with comma""#, Some(Challenge::Basic)),
            (r#"basic realm="x", bearer realm = "http://t" , service=plain"#, bearer("http://t", "plain", "")),
            (r#"Bearer realm="a\"b""#, bearer("a\"b", "", "")),
            (r#"Bearer service="no realm""#, None),
            (r#"Bearer realm="unterminated"#, bearer("unterminated", "", "")),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(parse_challenges(header), want, "{header}");
        }
    }

    #[test]
    fn credentials_belong_to_one_host() {
        let auth = |server: &str| Auth { server_address: server.into(), ..Auth::default() };
        for (server, registry, want) in [
            ("", "r.io:5000", "r.io:5000"),
            ("https://index.docker.io/v1/", "docker.io", "docker.io"),
            ("r.io:5000/v2", "other", "r.io:5000"),
            ("", "registry-1.docker.io", "docker.io"),
        ] {
            assert_eq!(auth(server).host(registry), want, "{server}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let auth = Auth { username: "u".into(), password: "hunter2".into(), ..Auth::default() };
        assert!(!format!("{auth:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_header_is_answered(text in any::<String>()) {
            let _ = parse_challenges(&text);
        }
    }
}
