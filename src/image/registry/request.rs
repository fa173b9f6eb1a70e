//! One request to one host: redirects, tokens, retries.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode, header};
use tokio::sync::Mutex;
use url::Url;

use super::hosts::{Host, authority};
use super::token;
use crate::image::auth::{Auth, parse_challenges};

/// Most redirects in a row.
const MAX_REDIRECTS: usize = 10;
/// Tries for one request, where no other host is left to ask.
const TRIES: u32 = 4;
/// First pause between tries; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause a host may ask for; one that wants more is given up for now.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Most bytes read of an error's body.
const MAX_COMPLAINT: u64 = 8 << 10;

/// Why a host does not give what was asked for.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// It does not have it.
    NotFound(String),
    /// It wants (other) credentials.
    Unauthenticated(String),
    /// The credentials do not allow it.
    Forbidden(String),
    /// It fails for now.
    Temporary(String),
    /// No connection comes up, so that it cannot even say no.
    Unreachable(String),
    /// It fails, and asking again would not help.
    Permanent(String),
}

impl Refusal {
    /// The text in it.
    pub fn reason(&self) -> &str {
        match self {
            Self::NotFound(reason)
            | Self::Unauthenticated(reason)
            | Self::Forbidden(reason)
            | Self::Temporary(reason)
            | Self::Unreachable(reason)
            | Self::Permanent(reason) => reason,
        }
    }
}

/// A host as one pull sees it.
#[derive(Debug)]
pub struct Peer {
    /// The host.
    pub host: Host,
    /// How to speak with it.
    pub client: Client,
    /// Credentials that belong to this host.
    pub auth: Option<Auth>,
    /// Repository path, for token scopes.
    pub repository: String,
    /// Query parameter that tells a mirror whose image is wanted; empty: none.
    pub namespace: String,
    /// Longest wait for an answer's head.
    pub patience: Duration,
    /// The `Authorization` header that worked last.
    pub authorization: Mutex<Option<HeaderValue>>,
}

impl Peer {
    /// GETs `path` (below the host's base). With `only` false, other hosts can be asked instead, so that this one
    /// gets a single try.
    pub async fn get(&self, path: &str, headers: &HeaderMap, only: bool) -> Result<Response, Refusal> {
        self.ask(Method::GET, path, headers, only).await
    }

    /// The same with any method.
    pub async fn ask(&self, method: Method, path: &str, headers: &HeaderMap, only: bool) -> Result<Response, Refusal> {
        let url = self.url(path)?;
        let tries = if only { TRIES } else { 1 };
        let mut challenged = false;
        let mut tried = 0;
        loop {
            let authorization = self.authorization.lock().await.clone();
            let sent =
                tokio::time::timeout(self.patience, self.send(&method, url.clone(), headers, authorization.as_ref()));
            let (refusal, wait) = match sent.await {
                Ok(Ok(response)) if response.status().is_success() => return Ok(response),
                Ok(Ok(response)) => match response.status() {
                    StatusCode::UNAUTHORIZED if !challenged => {
                        challenged = true;
                        self.answer(&response, authorization).await?;
                        continue;
                    }
                    StatusCode::UNAUTHORIZED => return Err(Refusal::Unauthenticated(complaint(response).await)),
                    StatusCode::FORBIDDEN => return Err(Refusal::Forbidden(complaint(response).await)),
                    StatusCode::NOT_FOUND => return Err(Refusal::NotFound(complaint(response).await)),
                    status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                        let wait = retry_after(response.headers());
                        (Refusal::Temporary(complaint(response).await), wait)
                    }
                    _ => return Err(Refusal::Permanent(complaint(response).await)),
                },
                Ok(Err(refusal @ Refusal::Permanent(_))) => return Err(refusal),
                Ok(Err(refusal)) => (refusal, None),
                Err(_) => (Refusal::Temporary(format!("no answer in {:?}", self.patience)), None),
            };
            tried += 1;
            let pause = wait.unwrap_or(PAUSE * 2u32.pow(tried - 1)) + jitter();
            if tried >= tries || pause > MAX_PAUSE + PAUSE {
                return Err(refusal);
            }
            tracing::debug!(host = %self.host.name(), reason = refusal.reason(), ?pause, "registry request will be tried again");
            tokio::time::sleep(pause).await;
        }
    }

    fn url(&self, path: &str) -> Result<Url, Refusal> {
        let mut url = self.host.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
        if !self.namespace.is_empty() {
            url.query_pairs_mut().append_pair("ns", &self.namespace);
        }
        Ok(url)
    }

    /// Sends, and follows redirects. Authorization and configured headers stay with this host.
    async fn send(
        &self,
        method: &Method,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Refusal> {
        let mut secure = url.scheme() == "https";
        for _ in 0..MAX_REDIRECTS {
            let own = same_place(&url, &self.host.base);
            let mut all = headers.clone();
            if own {
                for (name, value) in &self.host.headers {
                    let header = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
                    let (name, value) = header
                        .ok_or_else(|| Refusal::Permanent(format!("the configured header {name:?} is malformed")))?;
                    all.append(name, value);
                }
                if let Some(value) = authorization {
                    all.insert(header::AUTHORIZATION, value.clone());
                }
            }
            let response = self.client.request(method.clone(), url.clone()).headers(all).send().await;
            let response = response.map_err(|error| {
                // A certificate will be no better the next time.
                let (untrusted, unreachable) = (is_certificate(&error), error.is_connect());
                let reason = transport(error);
                match (untrusted, unreachable) {
                    (true, _) => Refusal::Permanent(reason),
                    (false, true) => Refusal::Unreachable(reason),
                    (false, false) => Refusal::Temporary(reason),
                }
            })?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|text| url.join(text).ok());
            url = next.ok_or_else(|| Refusal::Permanent("it redirects to nowhere".into()))?;
            if !matches!(url.scheme(), "http" | "https") || (secure && url.scheme() == "http") {
                return Err(Refusal::Permanent(format!("it redirects to the insecure {}", authority(&url))));
            }
            secure = url.scheme() == "https";
        }
        Err(Refusal::Permanent(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Gets authorization after a 401; if another request did so meanwhile, its result is used.
    async fn answer(&self, response: &Response, sent: Option<HeaderValue>) -> Result<(), Refusal> {
        let mut current = self.authorization.lock().await;
        if current.is_some() && *current != sent {
            return Ok(());
        }
        let values = response.headers().get_all(header::WWW_AUTHENTICATE);
        let text: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
        let challenge = parse_challenges(&text.join(", "));
        let auth = self.auth.as_ref();
        let work = token::authorize(&self.client, &self.host, challenge, auth, &self.repository);
        let done = tokio::time::timeout(self.patience, work).await;
        *current = Some(done.unwrap_or_else(|_| Err(Refusal::Temporary("its token service does not answer".into())))?);
        Ok(())
    }
}

/// Same scheme, host and port.
fn same_place(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// The body, unless it is longer than `limit` bytes.
pub async fn limited(mut response: Response, limit: u64) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
    }
    Ok(body)
}

/// Status, and what the body says, for people: the distribution spec's `errors`, else nothing.
pub async fn complaint(mut response: Response) -> String {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > MAX_COMPLAINT {
            break;
        }
    }
    let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let first = &parsed["errors"][0];
    let said = first["message"].as_str().or(first["code"].as_str()).or(parsed["details"].as_str()).unwrap_or("");
    let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
    if said.is_empty() { status.to_string() } else { format!("{status}: {said}") }
}

/// An HTTP library error without its URL, which may hold a signature.
pub fn transport(error: reqwest::Error) -> String {
    crate::types::chain(&error.without_url())
}

fn is_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // An I/O error's source is its inner error's source, not the inner error.
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => is_certificate(inner),
        None => error.source().is_some_and(is_certificate),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Up to a quarter of a second, so that many nodes do not come back at the same moment.
fn jitter() -> Duration {
    let mut byte = [0u8; 1];
    // Without random numbers there is no jitter, which harms nobody.
    let _ = getrandom::fill(&mut byte);
    Duration::from_millis(u64::from(byte[0]))
}
