//! The code under test, by itself: it needs nothing else of Podwright.

#[path = "../src/streaming/spdy/mod.rs"]
pub mod spdy;
