//! Sandboxes: what is asked ([`config`]), and the life of each in its own task.

pub mod config;
