//! TLS, and new certificates while the server runs.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::world::{OUTPUT, World, settings, soon};
use crate::streaming::{Server, Settings};

/// A new key and certificate; false without openssl.
fn make(folder: &Path, name: &str) -> bool {
    let file = |kind: &str| folder.join(format!("{name}-{kind}.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=podwright", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(file("cert"))
        .output();
    made.is_ok_and(|made| made.status.success())
}

async fn code(url: &str, trusted: &Path) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (host, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let socket = TcpStream::connect(host).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut line = [0; 12];
    soon(stream.read_exact(&mut line)).await.unwrap();
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[tokio::test]
async fn certificates_are_replaced_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    if !make(folder.path(), "one") || !make(folder.path(), "two") {
        eprintln!("SKIPPED: no openssl");
        return;
    }
    let (cert, key) = (at("cert.pem"), at("key.pem"));
    let put = |name: &str| {
        std::fs::rename(at(&format!("{name}-key.pem")), &key).unwrap();
        std::fs::copy(at(&format!("{name}-cert.pem")), at("new.pem")).unwrap();
        std::fs::rename(at("new.pem"), &cert).unwrap();
    };
    put("one");
    let world = World::with(Settings { tls: Some((cert.clone(), key.clone())), ..settings() });
    let url = world.exec("true", OUTPUT);
    assert_eq!(code(&url, &at("one-cert.pem")).await.unwrap(), "HTTP/1.1 400");
    code(&url, &at("two-cert.pem")).await.unwrap_err();
    put("two");
    assert_eq!(code(&url, &at("two-cert.pem")).await.unwrap(), "HTTP/1.1 400");
    // What is no certificate changes nothing.
    std::fs::write(&cert, "nonsense").unwrap();
    assert_eq!(code(&url, &at("two-cert.pem")).await.unwrap(), "HTTP/1.1 400");
    let refused = Server::bind(Settings { tls: Some((cert.clone(), key.clone())), ..settings() }).err().unwrap();
    assert!(crate::types::chain(&refused).contains("cert.pem"), "{}", crate::types::chain(&refused));
}
