//! TLS for hosts with roots or a certificate of their own in hosts.toml.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::hosts::Tls;
use crate::image::error::ImageError;

/// The node's roots and those in `tls.ca`, with the first client certificate in it.
pub fn config(tls: &Tls) -> Result<ClientConfig, ImageError> {
    let provider = Arc::new(ring::default_provider());
    let mut own = Vec::new();
    for path in &tls.ca {
        own.extend(certificates(path)?);
    }
    let at = tls.ca.first().or(tls.client.first().map(|(path, _)| path));
    let at = at.map_or(Path::new("tls"), PathBuf::as_path);
    let usual = Verifier::new_with_extra_roots(own.iter().cloned(), provider.clone()).map_err(|e| bad(at, &e))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(at, &error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Roots { usual, own }));
    let mut config = match tls.client.first() {
        None => builder.with_no_client_auth(),
        Some((path, key_path)) => {
            let key_path = key_path.as_ref().unwrap_or(path);
            let key = PrivateKeyDer::from_pem_slice(&read(key_path)?).map_err(|error| bad(key_path, &error))?;
            builder.with_client_auth_cert(certificates(path)?, key).map_err(|error| bad(path, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The usual check, and a registry whose own certificate is given as its root: that is how people set up a registry with
/// a self-signed certificate, which the usual check refuses since an authority is no server.
#[derive(Debug)]
struct Roots {
    usual: Verifier,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Roots {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.own.iter().any(|own| own == end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Makes ring the process's provider for TLS, unless there is one.
pub fn install_provider() {
    if CryptoProvider::get_default().is_none() {
        // Losing a race against another thread that installs the same is fine.
        let _ = ring::default_provider().install_default();
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ImageError> {
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|e| bad(path, &e))?;
    if all.is_empty() {
        let reason = "it holds no PEM certificate".to_owned();
        return Err(ImageError::Hosts { path: path.to_owned(), reason });
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|error| bad(path, &error))
}

fn bad(path: &Path, error: &(dyn std::error::Error + 'static)) -> ImageError {
    ImageError::Hosts { path: path.to_owned(), reason: crate::types::chain(error) }
}
