//! Tests of the built programs.

mod monitor;
