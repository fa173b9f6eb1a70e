//! Podwright: a container runtime for Kubernetes nodes.
//!
//! This library is what the two binaries `podwright` (daemon and tools) and `podwright-monitor` (one
//! small process per pod) are made of. ARCHITECTURE.md tells how the rooms below fit together; a
//! module imports from below only: `tidy.rs` holds the order, and checks it.

pub mod app;
pub mod cdi;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod container;
pub mod cri;
pub mod image;
pub mod kubelet;
pub mod launch;
pub mod monitor;
pub mod network;
pub mod pod;
pub mod proto;
pub mod snapshot;
pub mod stats;
pub mod store;
pub mod streaming;
pub mod sys;
#[cfg(test)]
mod tidy;
pub mod types;
pub mod wire;
