//! Network namespaces and CNI: a pod's config in, its addresses out.

use crate::types::{ErrorKind, HasKind};

/// What can go wrong with networks.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not built yet.
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
}

impl HasKind for NetworkError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unimplemented
    }
}

/// The node's pod network. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Network {}

impl Network {
    /// Whether pods can be networked now.
    pub fn status(&self) -> Result<(), NetworkError> {
        Err(NetworkError::Unimplemented("network"))
    }
}
