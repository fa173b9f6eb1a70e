//! The conformance suite: drives the built daemon over its socket, as a kubelet would.
//!
//! Each test makes itself a node of its own (`harness::Node`): a network and a mount namespace, a root, a state folder, a
//! CNI bridge, a registry with the test images. Each ends with the census, which counts what is left behind.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed test's message is its panic")]

mod api;
mod bad_images;
mod bad_input;
mod cdi;
mod cgroups;
mod config;
mod containers;
mod covered;
mod crash;
mod driver;
mod exec;
mod fields;
mod handlers;
mod harness;
mod image_volumes;
mod images;
mod install;
mod layers;
mod limits;
mod logs;
mod lsm;
mod monitor;
mod network;
mod notify;
mod places;
mod sandbox;
mod security;
mod stats;
mod streaming;
mod streams;
mod survival;
mod unit;
mod update;
mod userns;
