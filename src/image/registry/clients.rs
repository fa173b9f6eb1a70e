//! HTTP clients, one for each way of speaking TLS, made when first needed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, redirect};

use super::hosts::{Host, Tls, is_loopback};
use super::tls;
use crate::image::error::ImageError;

/// How long a connection may take to come up before the next host is tried.
const CONNECT: Duration = Duration::from_secs(15);
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    secure: bool,
    loopback: bool,
}

/// All clients.
#[derive(Debug, Default)]
pub struct Clients {
    known: Mutex<HashMap<(Kind, Tls), Client>>,
}

impl Clients {
    /// The client for a host.
    pub fn get(&self, host: &Host) -> Result<Client, ImageError> {
        let kind = Kind { secure: host.base.scheme() == "https", loopback: is_loopback(&host.name()) };
        let key = (kind, host.tls.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(&key) {
            return Ok(client.clone());
        }
        let client = build(kind, &host.tls)?;
        known.insert(key, client.clone());
        Ok(client)
    }
}

fn build(kind: Kind, tls: &Tls) -> Result<Client, ImageError> {
    tls::install_provider();
    let mut builder = Client::builder()
        .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
        // Followed by hand: credentials must not travel to another host.
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .http2_adaptive_window(true);
    if kind.loopback {
        // A proxy's loopback is another one.
        builder = builder.no_proxy();
    }
    if tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    } else if !tls.ca.is_empty() || !tls.client.is_empty() {
        builder = builder.tls_backend_preconfigured(tls::config(tls)?);
    } else if !kind.secure && !has_roots() {
        // A registry without TLS may send us on to a TLS host, which needs roots; but a node without any must still be
        // able to pull from plain registries.
        builder = builder.tls_certs_only([]);
    }
    let bad = |error| ImageError::Hosts { path: "tls".into(), reason: crate::types::chain(&error) };
    builder.build().map_err(bad)
}

fn has_roots() -> bool {
    ["/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/ssl/cert.pem"].iter().any(|path| {
        let path = Path::new(path);
        path.is_file() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    })
}
