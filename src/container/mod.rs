//! Containers: what is asked ([`config`]), what becomes of it (state, spec, lifecycle).

pub mod config;
pub mod view;
