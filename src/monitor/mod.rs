//! The per-pod process: pause, container creation, stdio and CRI logs, exits. No tokio, no tonic, no store, no config.

pub mod engine;
