//! A bundle in, a running process out: handlers, the seccomp compiler and the client of the monitor.

pub mod apparmor;
pub mod features;
pub mod handlers;
pub mod monitor;
pub mod seccomp;
