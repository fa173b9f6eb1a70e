//! One pull's view of the registries: asks host after host.

use std::time::Duration;

use reqwest::Method;
use reqwest::header;
use reqwest::header::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, mpsc};

use super::blob::{self, Outcome};
use super::clients::Clients;
use super::hosts::{self, Defaults};
use super::request::{Peer, Refusal, limited};
use crate::image::auth::{Auth, canonical_host};
use crate::image::error::ImageError;
use crate::image::manifest::{ACCEPT, Descriptor, MAX_MANIFEST};
use crate::image::reference::{Reference, Version};
use crate::image::unpack::Piece;
use crate::types::Digest;

/// The hosts that may give one repository's content.
#[derive(Debug)]
pub struct Session {
    what: String,
    peers: Vec<Peer>,
    window: Duration,
}

/// A manifest or index as a host gave it.
#[derive(Debug)]
pub struct Fetched {
    /// Of the body.
    pub digest: Digest,
    /// Header, without parameters.
    pub content_type: String,
    /// The document.
    pub body: Vec<u8>,
}

impl Session {
    /// For pulling `reference`. `window`: how long a host may be silent, or too slow.
    pub fn new(
        reference: &Reference,
        auth: Option<&Auth>,
        clients: &Clients,
        defaults: &Defaults,
        window: Duration,
    ) -> Result<Self, ImageError> {
        let registry = reference.host();
        let peers = hosts::load(registry, defaults)?.into_iter().map(|host| {
            let owner = auth.map(|auth| auth.host(registry));
            let is_owner =
                owner == Some(canonical_host(&host.name())) || (host.origin && owner == Some(canonical_host(registry)));
            Ok(Peer {
                client: clients.get(&host)?,
                auth: auth.filter(|_| is_owner).cloned(),
                repository: reference.path().to_owned(),
                namespace: if host.origin { String::new() } else { registry.to_owned() },
                patience: window,
                authorization: Mutex::new(None),
                host,
            })
        });
        Ok(Self { what: reference.to_string(), peers: peers.collect::<Result<_, ImageError>>()?, window })
    }

    /// How many hosts there are to ask.
    pub fn hosts(&self) -> usize {
        self.peers.len()
    }

    /// A manifest or index by tag or digest; what comes by digest is verified.
    pub async fn manifest(&self, version: &Version) -> Result<Fetched, ImageError> {
        let (text, want) = match version {
            Version::Tag(tag) => (tag.clone(), None),
            Version::Digest(digest) => (digest.to_string(), Some(*digest)),
        };
        let headers = accept();
        let peers: Vec<&Peer> =
            self.peers.iter().filter(|peer| if want.is_some() { peer.host.pull } else { peer.host.resolve }).collect();
        let mut refusals = Vec::new();
        for (i, peer) in peers.iter().enumerate() {
            let path = format!("{}/manifests/{text}", peer.repository);
            match self.fetch(peer, &path, &headers, MAX_MANIFEST, i + 1 == peers.len()).await {
                Ok((body, head)) => {
                    let digest = Digest::from_bytes(Sha256::digest(&body).into());
                    let said = head.get("docker-content-digest").and_then(|v| v.to_str().ok());
                    let said = said.and_then(|text| Digest::parse(text).ok());
                    match want.or(said) {
                        Some(want) if want != digest => {
                            refusals.push((
                                *peer,
                                Refusal::Permanent(format!("wanted the manifest with digest {want}, got {digest}")),
                            ));
                        }
                        _ => {
                            let content_type = head.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
                            let content_type = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
                            return Ok(Fetched { digest, content_type: content_type.to_owned(), body });
                        }
                    }
                }
                Err(refusal) => refusals.push((*peer, refusal)),
            }
        }
        Err(self.refused(&self.what, &refusals))
    }

    /// The digest that a tag has now, if the first host that answers says so. Registries with quotas do not count it as
    /// a pull.
    pub async fn digest_of(&self, tag: &str) -> Option<Digest> {
        for peer in self.peers.iter().filter(|peer| peer.host.resolve) {
            let path = format!("{}/manifests/{tag}", peer.repository);
            match peer.ask(Method::HEAD, &path, &accept(), false).await {
                Ok(response) => {
                    let said = response.headers().get("docker-content-digest")?.to_str().ok()?;
                    return Digest::parse(said).ok();
                }
                Err(refusal) => tracing::debug!(host = %peer.host.name(), ?refusal, "host does not tell a digest"),
            }
        }
        None
    }

    /// A small blob, verified.
    pub async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let what = format!("blob {} of {}", descriptor.digest, self.what);
        let mut refusals = Vec::new();
        let peers: Vec<&Peer> = self.peers.iter().filter(|peer| peer.host.pull).collect();
        for (i, peer) in peers.iter().enumerate() {
            let path = format!("{}/blobs/{}", peer.repository, descriptor.digest);
            match self.fetch(peer, &path, &HeaderMap::new(), descriptor.size, i + 1 == peers.len()).await {
                Ok((body, _)) => {
                    let found = Digest::from_bytes(Sha256::digest(&body).into());
                    if found == descriptor.digest && body.len() as u64 == descriptor.size {
                        return Ok(body);
                    }
                    let reason =
                        format!("wanted {} bytes, got {} bytes with digest {found}", descriptor.size, body.len());
                    refusals.push((*peer, Refusal::Permanent(reason)));
                }
                Err(refusal) => refusals.push((*peer, refusal)),
            }
        }
        Err(self.refused(&what, &refusals))
    }

    /// Streams a blob into `out`, with [`Piece::End`] after the last byte. Begins at host number `first`. `Ok(false)`:
    /// the receiver went away.
    pub async fn stream(
        &self,
        descriptor: &Descriptor,
        first: usize,
        out: &mpsc::Sender<Piece>,
    ) -> Result<bool, ImageError> {
        let what = format!("layer blob {} of {}", descriptor.digest, self.what);
        let peers: Vec<&Peer> = self.peers.iter().skip(first).filter(|peer| peer.host.pull).collect();
        let mut refusals = Vec::new();
        let mut at = 0;
        for (i, peer) in peers.iter().enumerate() {
            let path = format!("{}/blobs/{}", peer.repository, descriptor.digest);
            let only = i + 1 == peers.len();
            match blob::stream(peer, &path, descriptor.size, &mut at, self.window, only, out).await {
                Outcome::Complete => return Ok(out.send(Piece::End).await.is_ok()),
                Outcome::NobodyListens => return Ok(false),
                Outcome::Refused(refusal) => {
                    tracing::debug!(host = %peer.host.name(), blob = %descriptor.digest, ?refusal, "host gave up");
                    refusals.push((*peer, refusal));
                }
            }
        }
        Err(self.refused(&what, &refusals))
    }

    async fn fetch(
        &self,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
        limit: u64,
        only: bool,
    ) -> Result<(Vec<u8>, HeaderMap), Refusal> {
        let response = peer.get(path, headers, only).await?;
        let head = response.headers().clone();
        match tokio::time::timeout(self.window, limited(response, limit)).await {
            Ok(Ok(body)) => Ok((body, head)),
            Ok(Err(reason)) => Err(Refusal::Permanent(reason)),
            Err(_) => Err(Refusal::Temporary(format!("its answer did not end in {:?}", self.window))),
        }
    }

    /// The last host that could be reached (the registry itself comes last) decides what kind of error it is; the text
    /// tells of all.
    fn refused(&self, what: &str, refusals: &[(&Peer, Refusal)]) -> ImageError {
        let what = what.to_owned();
        let reached = refusals.iter().rfind(|(_, refusal)| !matches!(refusal, Refusal::Unreachable(_)));
        let Some((peer, last)) = reached.or(refusals.last()) else {
            let reason = "hosts.toml names no host that may be asked for it".to_owned();
            return ImageError::Unavailable { what, reason };
        };
        let all: Vec<_> = refusals.iter().map(|(peer, r)| format!("{}: {}", peer.host.name(), r.reason())).collect();
        let (reason, host) = (all.join("; "), peer.host.name());
        match last {
            Refusal::NotFound(_) => ImageError::NotFound { what, reason },
            Refusal::Unauthenticated(_) => ImageError::Unauthenticated { host, what, reason },
            Refusal::Forbidden(_) => ImageError::Forbidden { host, what, reason },
            Refusal::Temporary(_) | Refusal::Unreachable(_) => ImageError::Unavailable { what, reason },
            Refusal::Permanent(_) => ImageError::Refused { what, reason },
        }
    }
}

fn accept() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(ACCEPT))])
}
