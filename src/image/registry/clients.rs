//! HTTP clients, one for each way of speaking TLS, made when first needed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, redirect};

use super::hosts::{Host, Tls};
use crate::image::error::ImageError;

/// How long a connection may take to come up before the next host is tried.
const CONNECT: Duration = Duration::from_secs(15);
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(20);

/// All clients.
#[derive(Debug, Default)]
pub struct Clients {
    known: Mutex<HashMap<(bool, Tls), Client>>,
}

impl Clients {
    /// The client for a host.
    pub fn get(&self, host: &Host) -> Result<Client, ImageError> {
        let secure = host.base.scheme() == "https";
        let key = (secure, host.tls.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(&key) {
            return Ok(client.clone());
        }
        let client = build(secure, &host.tls)?;
        known.insert(key, client.clone());
        Ok(client)
    }
}

fn build(secure: bool, tls: &Tls) -> Result<Client, ImageError> {
    // The second and later calls find it installed, which is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
        // Followed by hand: credentials must not travel to another host.
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .http2_adaptive_window(true)
        .tls_danger_accept_invalid_certs(tls.skip_verify);
    if !secure && tls.ca.is_empty() {
        // A registry without TLS may send us on to a TLS host; that needs roots, but a node without any must still
        // be able to pull from plain registries.
        builder = with_roots_if_any(builder);
    }
    for path in &tls.ca {
        let roots = Certificate::from_pem_bundle(&read(path)?).map_err(|error| bad(path, &error))?;
        builder = builder.tls_certs_merge(roots);
    }
    for (certificate, key) in &tls.client {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        builder = builder.identity(Identity::from_pem(&pem).map_err(|error| bad(certificate, &error))?);
    }
    builder.build().map_err(|error| bad(Path::new("tls"), &error))
}

fn with_roots_if_any(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    let roots = ["/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/ssl/cert.pem"].iter().any(|path| {
        let path = Path::new(path);
        path.is_file() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    });
    if roots { builder } else { builder.tls_certs_only([]) }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|error| bad(path, &error))
}

fn bad(path: &Path, error: &(dyn std::error::Error + 'static)) -> ImageError {
    ImageError::Hosts { path: path.to_owned(), reason: crate::types::chain(error) }
}
