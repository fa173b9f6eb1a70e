//! A registry that a test rules over: it serves what it is given and misbehaves as told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::image::{Image, digest};

/// Who may pull.
#[derive(Debug, Clone)]
pub enum Access {
    /// Everybody.
    Anonymous,
    /// User and password.
    Basic(&'static str, &'static str),
    /// A token that `/token` gives to this user with this password.
    Bearer(&'static str, &'static str),
}

/// What goes wrong with one path.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends after so many bytes of the body, every time.
    CutAfter(usize),
    /// The connection ends after so many bytes, the first time only.
    CutOnce(usize),
    /// Other bytes than the digest promises.
    Body(Vec<u8>),
    /// This status.
    Status(u16),
    /// This status so many times, with `Retry-After: 0`.
    StatusTimes(u16, usize),
    /// The head is sent, then nothing more.
    Hang,
}

#[derive(Debug, Default)]
struct State {
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    blobs: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, Fault>,
    requests: Vec<String>,
}

/// The registry. It ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct FakeRegistry {
    address: String,
    state: Arc<Mutex<State>>,
}

const TOKEN: &str = "a-token-of-the-test";

impl FakeRegistry {
    /// Listens on a port of its own on loopback.
    pub async fn start(access: Access) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address").to_string();
        let registry = Self { address, state: Arc::default() };
        let server = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, access) = (server.clone(), access.clone());
                tokio::spawn(async move {
                    // The client may hang up at any time.
                    let _ = server.serve(stream, &access).await;
                });
            }
        });
        registry
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The full reference of a repository here, with its tag or digest.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Serves an image as `repo:tag` and by digest; the full reference.
    pub fn push(&self, repo: &str, tag: &str, image: &Image) -> String {
        self.push_blobs(image);
        self.push_manifest(repo, tag, &image.manifest);
        self.reference(&format!("{repo}:{tag}"))
    }

    /// Serves an image's configuration and layers.
    pub fn push_blobs(&self, image: &Image) {
        let mut state = self.state.lock().expect("state");
        state.blobs.insert(digest(&image.config), image.config.clone());
        for layer in &image.layers {
            state.blobs.insert(digest(&layer.blob), layer.blob.clone());
        }
    }

    /// Serves a manifest or an index.
    pub fn push_manifest(&self, repo: &str, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let kind = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned();
        let digest = digest(&bytes);
        let mut state = self.state.lock().expect("state");
        state.manifests.insert(format!("/v2/{repo}/manifests/{tag}"), (kind.clone(), bytes.clone()));
        state.manifests.insert(format!("/v2/{repo}/manifests/{digest}"), (kind, bytes));
        digest
    }

    /// Makes every request fail whose path ends so.
    pub fn fail(&self, path_end: &str, fault: Fault) {
        self.state.lock().expect("state").faults.insert(path_end.to_owned(), fault);
    }

    /// Serves everything well again.
    pub fn heal(&self) {
        self.state.lock().expect("state").faults.clear();
    }

    /// `METHOD PATH` of all requests so far that were let in.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().expect("state").requests.clone()
    }

    async fn serve(&self, stream: TcpStream, access: &Access) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 {
                    return Ok(());
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_owned());
            }
            let mut words = head[0].split(' ');
            let (method, target) =
                (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
            let header = |name: &str| {
                head[1..].iter().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            if let Some(length) = header("content-length").and_then(|text| text.parse::<u64>().ok()) {
                tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
            }
            let authorization = header("authorization").unwrap_or_default();
            let answer = self.answer(&method, &target, &authorization, access);
            let mut text = format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
            for (key, value) in &answer.headers {
                text.push_str(&format!("{key}: {value}\r\n"));
            }
            text.push_str("\r\n");
            stream.write_all(text.as_bytes()).await?;
            if method == "HEAD" {
                stream.flush().await?;
                continue;
            }
            match answer.sent {
                Sent::All => stream.write_all(&answer.body).await?,
                Sent::Part(length) => {
                    stream.write_all(&answer.body[..length.min(answer.body.len())]).await?;
                    stream.flush().await?;
                    return Ok(());
                }
                Sent::Nothing => {
                    stream.flush().await?;
                    // Until the client hangs up.
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await?;
                    return Ok(());
                }
            }
            stream.flush().await?;
        }
    }

    fn answer(&self, method: &str, target: &str, authorization: &str, access: &Access) -> Answer {
        let path = target.split('?').next().unwrap_or_default();
        let basic = |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        match access {
            Access::Bearer(user, password) if path == "/token" => {
                if authorization != basic(user, password) {
                    return Answer::status(401);
                }
                return Answer::json(format!("{{\"token\":\"{TOKEN}\",\"expires_in\":60}}"));
            }
            Access::Bearer(..) if authorization != format!("Bearer {TOKEN}") => {
                let realm = format!(
                    "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:x:pull\"",
                    self.address
                );
                return Answer::status(401).with("WWW-Authenticate", realm);
            }
            Access::Basic(user, password) if authorization != basic(user, password) => {
                return Answer::status(401).with("WWW-Authenticate", "Basic realm=\"test\"".to_owned());
            }
            _ => {}
        }
        let mut state = self.state.lock().expect("state");
        state.requests.push(format!("{method} {path}"));
        if path == "/v2/" {
            return Answer::json("{}".to_owned());
        }
        let mut answer = if let Some((kind, bytes)) = state.manifests.get(path) {
            Answer::json(String::from_utf8_lossy(bytes).into_owned())
                .with("Content-Type", kind.clone())
                .with("Docker-Content-Digest", digest(bytes))
        } else if let Some(bytes) = path.rsplit('/').next().and_then(|name| state.blobs.get(name)) {
            Answer { status: 200, headers: Vec::new(), body: bytes.clone(), sent: Sent::All }
                .with("Content-Type", "application/octet-stream".to_owned())
        } else {
            let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return Answer { status: 404, ..Answer::json(unknown.to_owned()) };
        };
        let matching = state.faults.iter().find(|(end, _)| path.ends_with(end.as_str()));
        let Some((end, fault)) = matching.map(|(end, fault)| (end.clone(), fault.clone())) else { return answer };
        match fault {
            Fault::CutAfter(length) => answer.sent = Sent::Part(length),
            Fault::CutOnce(length) => {
                answer.sent = Sent::Part(length);
                state.faults.remove(&end);
            }
            Fault::Body(body) => answer.body = body,
            Fault::Status(status) => return Answer::status(status),
            Fault::StatusTimes(status, times) => {
                if times <= 1 {
                    state.faults.remove(&end);
                } else {
                    state.faults.insert(end, Fault::StatusTimes(status, times - 1));
                }
                return Answer::status(status).with("Retry-After", "0".to_owned());
            }
            Fault::Hang => answer.sent = Sent::Nothing,
        }
        answer
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    sent: Sent,
}

enum Sent {
    All,
    Part(usize),
    Nothing,
}

impl Answer {
    fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), sent: Sent::All }
    }

    fn json(text: String) -> Self {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Self { status: 200, headers, body: text.into_bytes(), sent: Sent::All }
    }

    fn with(mut self, key: &'static str, value: String) -> Self {
        self.headers.retain(|(existing, _)| *existing != key);
        self.headers.push((key, value));
        self
    }
}
