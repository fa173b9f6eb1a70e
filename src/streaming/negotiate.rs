//! What a request wants to become: SPDY or WebSocket, and in which protocol. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

/// Names the protocol that SPDY carries.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Names those that would have been taken, in a refusal.
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// What the WebSocket key is hashed with (RFC 6455, 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Most names of protocols looked at.
const MAX_NAMES: usize = 64;

/// What the connection becomes, and the answer that says so.
#[derive(Debug)]
pub(super) struct Upgrade<P> {
    /// What is spoken from then on.
    pub(super) protocol: P,
    /// 101, with the headers that go with it.
    pub(super) answer: Response<String>,
}

/// Protocols that fit an endpoint, by name; the client's order decides.
#[derive(Debug)]
pub(super) struct Offer<P: 'static> {
    /// `X-Stream-Protocol-Version`.
    pub(super) spdy: &'static [(&'static str, P)],
    /// For a client that names none, as clients did before there were names.
    pub(super) spdy_unnamed: P,
    /// `Sec-WebSocket-Protocol`.
    pub(super) websocket: &'static [(&'static str, P)],
    /// For a client that names none.
    pub(super) websocket_unnamed: Option<P>,
}

/// Chooses, or gives the answer that refuses.
pub(super) fn upgrade<P: Copy>(method: &Method, headers: &HeaderMap, offer: &Offer<P>) -> Result<Upgrade<P>, Refused> {
    if !named(headers, &CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade")) {
        return Err(refusal(StatusCode::BAD_REQUEST, "want an upgrade of the connection to SPDY/3.1 or websocket"));
    }
    let wants = |wanted: &str| named(headers, &UPGRADE).any(|name| name.eq_ignore_ascii_case(wanted));
    if wants("websocket") {
        websocket(method, headers, offer)
    } else if wants("spdy/3.1") {
        spdy(headers, offer)
    } else {
        Err(refusal(StatusCode::BAD_REQUEST, "want an upgrade to SPDY/3.1 or websocket"))
    }
}

/// An answer that ends the connection.
pub(super) type Refused = Box<Response<String>>;

/// Makes one.
pub(super) fn refusal(status: StatusCode, text: &str) -> Refused {
    let mut answer = Response::new(format!("{text}\n"));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Box::new(answer)
}

fn spdy<P: Copy>(headers: &HeaderMap, offer: &Offer<P>) -> Result<Upgrade<P>, Refused> {
    let mut answer = switching("SPDY/3.1");
    if !headers.contains_key(&STREAM_PROTOCOL) {
        return Ok(Upgrade { protocol: offer.spdy_unnamed, answer });
    }
    let Some((name, protocol)) = choose(headers, &STREAM_PROTOCOL, offer.spdy) else {
        let names: Vec<_> = offer.spdy.iter().map(|(name, _)| *name).collect();
        let mut refused = refusal(StatusCode::FORBIDDEN, &format!("no common protocol: want one of {names:?}"));
        for name in names {
            refused.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        return Err(refused);
    };
    answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok(Upgrade { protocol, answer })
}

fn websocket<P: Copy>(method: &Method, headers: &HeaderMap, offer: &Offer<P>) -> Result<Upgrade<P>, Refused> {
    if method != Method::GET {
        return Err(refusal(StatusCode::BAD_REQUEST, "a websocket begins with GET"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut refused = refusal(StatusCode::UPGRADE_REQUIRED, "want version 13 of the websocket protocol");
        refused.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(refused);
    }
    let Some(accept) = headers.get(http::header::SEC_WEBSOCKET_KEY).and_then(accept_key) else {
        return Err(refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key: want 16 bytes in base64"));
    };
    let mut answer = switching("websocket");
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
        && let Some(protocol) = offer.websocket_unnamed
    {
        return Ok(Upgrade { protocol, answer });
    }
    let Some((name, protocol)) = choose(headers, &SEC_WEBSOCKET_PROTOCOL, offer.websocket) else {
        let names: Vec<_> = offer.websocket.iter().map(|(name, _)| *name).collect();
        return Err(refusal(StatusCode::FORBIDDEN, &format!("no common protocol: want one of {names:?}")));
    };
    answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    Ok(Upgrade { protocol, answer })
}

/// The first of the client's that is offered.
fn choose<P: Copy>(
    headers: &HeaderMap,
    header: &HeaderName,
    offered: &'static [(&'static str, P)],
) -> Option<(&'static str, P)> {
    let mut wanted = named(headers, header).take(MAX_NAMES);
    wanted.find_map(|name| offered.iter().find(|(offer, _)| *offer == name)).copied()
}

/// Comma-separated names in all headers of that name.
fn named<'a>(headers: &'a HeaderMap, header: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

fn switching(to: &'static str) -> Response<String> {
    let mut answer = Response::new(String::new());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

/// `Sec-WebSocket-Accept` for a key; SHA-1 proves nothing but that the protocol was understood.
fn accept_key(key: &HeaderValue) -> Option<HeaderValue> {
    if STANDARD.decode(key.as_bytes()).ok()?.len() != 16 {
        return None;
    }
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(WEBSOCKET_GUID);
    HeaderValue::from_str(&STANDARD.encode(hash.finish())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer<u8> = Offer {
        spdy: &[("v4.channel.k8s.io", 4), ("channel.k8s.io", 1)],
        spdy_unnamed: 1,
        websocket: &[("v5.channel.k8s.io", 5), ("v4.channel.k8s.io", 4)],
        websocket_unnamed: Some(0),
    };

    fn ask(method: &str, lines: &[(&str, &str)]) -> Result<Upgrade<u8>, Refused> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        upgrade(&method.parse().unwrap(), &headers, &OFFER)
    }

    const SPDY: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")];
    // The key and its answer stand in RFC 6455, 1.3.
    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn the_client_s_first_choice_that_is_known_is_taken() {
        for names in [
            &["v4.channel.k8s.io", "channel.k8s.io"][..],
            &["v9.channel.k8s.io, v4.channel.k8s.io,channel.k8s.io"],
            &["v9.channel.k8s.io", " ,v4.channel.k8s.io"],
        ] {
            let mut lines = SPDY.to_vec();
            lines.extend(names.iter().map(|name| ("X-Stream-Protocol-Version", *name)));
            let chosen = ask("POST", &lines).unwrap();
            assert_eq!(chosen.protocol, 4, "{names:?}");
            assert_eq!(chosen.answer.status(), 101);
            assert_eq!(chosen.answer.headers()[STREAM_PROTOCOL], "v4.channel.k8s.io");
            assert_eq!(chosen.answer.headers()["upgrade"], "SPDY/3.1");
        }
        let chosen = ask("GET", &SPDY).unwrap();
        assert_eq!((chosen.protocol, chosen.answer.headers().get(STREAM_PROTOCOL)), (1, None));
    }

    #[test]
    fn a_websocket_is_answered_as_its_rfc_says() {
        let chosen = ask("GET", &WEBSOCKET).unwrap();
        assert_eq!(chosen.protocol, 0);
        assert_eq!(chosen.answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!chosen.answer.headers().contains_key("sec-websocket-protocol"));
        let mut lines = WEBSOCKET.to_vec();
        lines.push(("sec-websocket-protocol", "x, v5.channel.k8s.io, v4.channel.k8s.io"));
        let chosen = ask("GET", &lines).unwrap();
        assert_eq!(chosen.protocol, 5);
        assert_eq!(chosen.answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_the_right_code() {
        let code = |method: &str, lines: &[(&str, &str)]| ask(method, lines).unwrap_err().status().as_u16();
        assert_eq!(code("GET", &[]), 400);
        assert_eq!(code("GET", &[("upgrade", "SPDY/3.1")]), 400);
        assert_eq!(code("GET", &[("connection", "upgrade"), ("upgrade", "h2c")]), 400);
        assert_eq!(code("POST", &WEBSOCKET), 400);
        assert_eq!(code("GET", &WEBSOCKET[..2]), 426);
        assert_eq!(code("GET", &WEBSOCKET[..3]), 400);
        let mut lines = WEBSOCKET[..3].to_vec();
        lines.push(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ"));
        assert_eq!(code("GET", &lines), 400);
        let mut lines = WEBSOCKET.to_vec();
        lines.push(("sec-websocket-protocol", "chat"));
        assert_eq!(code("GET", &lines), 403);
        let mut lines = SPDY.to_vec();
        lines.push(("x-stream-protocol-version", "v9.channel.k8s.io"));
        let refused = ask("POST", &lines).unwrap_err();
        assert_eq!(refused.status(), 403);
        let told: Vec<_> = refused.headers().get_all(ACCEPTED_PROTOCOLS).iter().collect();
        assert_eq!(told, ["v4.channel.k8s.io", "channel.k8s.io"]);
    }
}
