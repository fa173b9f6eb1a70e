//! TLS of the streaming server, with certificates that can be replaced while it runs.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tracing::{info, warn};

/// Largest certificate or key file read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{file:?}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file has no PEM of the right kind.
    #[error("{file:?}: {reason}")]
    Pem {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// They do not fit each other.
    #[error("certificate {certificate:?} with key {key:?}: {reason}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Gives out what connections are accepted with; reads the files again when they have changed.
#[derive(Debug)]
pub(super) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    now: Mutex<Loaded>,
}

struct Loaded {
    acceptor: TlsAcceptor,
    /// What the files looked like when they were last read.
    stamp: Stamp,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

/// Changes with a file's content, also when a symlink is turned to another file.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 2];

impl Tls {
    /// Reads both files, PEM. Blocks.
    pub(super) fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamp = stamp(certificate, key);
        let acceptor = read(certificate, key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            now: Mutex::new(Loaded { acceptor, stamp }),
        })
    }

    /// For a connection that begins now. Files that were changed into something that cannot be used are warned of once,
    /// and the last good ones stay. Blocks as long as it takes to look at two files.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.certificate, &self.key);
        if stamp != now.stamp {
            now.stamp = stamp;
            match read(&self.certificate, &self.key) {
                Ok(acceptor) => {
                    now.acceptor = acceptor;
                    info!(certificate = ?self.certificate, "certificate of the streaming server read again");
                }
                Err(error) => {
                    warn!(error = crate::types::chain(&error), "certificate of the streaming server stays as it was");
                }
            }
        }
        now.acceptor.clone()
    }
}

fn stamp(certificate: &Path, key: &Path) -> Stamp {
    let look = |m: Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec());
    [certificate, key].map(|path| fs::metadata(path).ok().map(look))
}

fn read(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let pem = |file: &Path, error: rustls_pki_types::pem::Error| TlsError::Pem {
        file: file.to_owned(),
        reason: match error {
            rustls_pki_types::pem::Error::NoItemsFound => "no such thing in PEM is in there".to_owned(),
            error => error.to_string(),
        },
    };
    let text = content(certificate)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| pem(certificate, error))?;
    if chain.is_empty() {
        return Err(pem(certificate, rustls_pki_types::pem::Error::NoItemsFound));
    }
    let private = PrivateKeyDer::from_pem_slice(&content(key)?).map_err(|error| pem(key, error))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })?;
    // An upgrade needs HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn content(file: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        if fs::metadata(file)?.len() > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        fs::read(file)
    };
    read().map_err(|source| TlsError::Read { file: file.to_owned(), source })
}
