//! The generated CRI v1 types, client and server (`proto/runtime/v1/api.proto`).
//!
//! Architecture Invariant: only `cri/` (server half) and the clients in `kubelet/` and `cli/image.rs` import this.
#![expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated; the documentation stands in the .proto file"
)]

tonic::include_proto!("runtime.v1");

impl std::fmt::Debug for AuthConfig {
    /// Whom for, never the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}
