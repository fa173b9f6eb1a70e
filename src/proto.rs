//! The generated CRI v1 types, client and server (`proto/runtime/v1/api.proto`).
//!
//! Architecture Invariant: only `cri/` (server half) and `kubelet/` (client half) import this.
#![expect(missing_docs, clippy::all, reason = "generated; the documentation stands in the .proto file")]

tonic::include_proto!("runtime.v1");
