//! References, registries, pulls, and the record of what is here.

use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{Digest, ErrorKind, HasKind};

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not built yet.
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
}

impl HasKind for ImageError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unimplemented
    }
}

/// All images of this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Images {}

impl Images {
    /// Pulls; the image id.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        platform: Option<Platform>,
    ) -> Result<Digest, ImageError> {
        let _ = (reference, auth, platform);
        Err(ImageError::Unimplemented("PullImage"))
    }
    /// All images.
    pub fn list(&self) -> Vec<Arc<Image>> {
        Vec::new()
    }
    /// One image.
    pub fn find(&self, reference_or_id: &str) -> Option<Arc<Image>> {
        let _ = reference_or_id;
        None
    }
    /// Forgets an image with all its names.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), ImageError> {
        let _ = reference_or_id;
        Err(ImageError::Unimplemented("RemoveImage"))
    }
    /// What the image store takes.
    pub async fn fs_info(&self) -> Result<FsInfo, ImageError> {
        Err(ImageError::Unimplemented("ImageFsInfo"))
    }
}

/// An image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its config.
    pub id: Digest,
    /// `name:tag`.
    pub tags: Vec<String>,
    /// `name@digest`.
    pub digests: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// Diff ids, lowest first.
    pub layers: Vec<Digest>,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Its config.
    pub config: ImageConfig,
    /// Not to be collected.
    pub pinned: bool,
}

/// What the image says of its containers.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct ImageConfig {
    /// USER
    pub user: String,
}

/// Credentials.
#[derive(Clone, Default)]
pub struct Auth {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
    /// Registry these are for.
    pub server_address: String,
}

/// os/arch/variant
#[derive(Debug, Clone)]
pub struct Platform {}

/// What the image store takes.
#[derive(Debug, Clone)]
pub struct FsInfo {
    /// Folder.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
    /// When.
    pub timestamp_ns: i64,
}
