//! What the tests stand on: a node of one's own per test, and the census at its end.

pub mod census;
pub mod cgroups;
pub mod cni;
pub mod config;
pub mod cri;
pub mod daemon;
pub mod fake_registry;
pub mod host;
pub mod image;
pub mod logs;
pub mod node;
pub mod registry;
pub mod specs;
pub mod wait;

pub use config::Setup;
pub use node::{Ctr, Node, Pod};
pub use specs::{BUSYBOX, HTTPD, args};
pub use wait::{eventually, secs, slowness};
