//! The node driver: pod manifests in, CRI calls over a socket out. Knows nothing of the runtime behind the socket.
//!
//! ```text
//! manifest/ ──▶ translate/ (pure) ──▶ client ──▶ any CRI runtime
//!                  ▲ volumes/           ▲
//! one_shot, static_pods/ ──▶ pod_worker/: look, decide (pure), act ──▶ reports, logs/
//! record (whose a pod's folder is) ──▶ remove ──▶ teardown
//! ```
//!
//! Architecture Invariant: nothing here knows which runtime is behind the socket.

pub mod backoff;
pub mod client;
pub mod console;
pub mod events;
#[cfg(test)]
mod fake;
pub mod logs;
pub mod manifest;
pub mod node;
pub mod one_shot;
pub mod pod_worker;
pub mod qos;
pub mod record;
pub mod remove;
pub mod static_pods;
pub mod teardown;
pub mod translate;
pub mod uid;
pub mod volumes;
