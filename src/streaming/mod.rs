//! What a client of exec, attach and port-forward speaks with once the CRI has given it a URL.

pub mod spdy;
