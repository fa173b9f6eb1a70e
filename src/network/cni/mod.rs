//! The Container Network Interface, specification 1.1.0 and the older ones still met: configurations,
//! plugin calls, results. Nothing here knows of pods or keeps anything.

pub mod chain;
pub mod config;
pub mod exec;
pub mod result;
pub mod version;
