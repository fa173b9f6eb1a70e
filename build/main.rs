//! Generates the gRPC code from `proto/` without protoc, and compiles the pause program.

mod pause;

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build");
    generate_cri()?;
    // A program that is linked for a fixed address has no relocations: its read-only data stays in the
    // page cache, shared by all monitors, where each would otherwise write its own copy at start.
    println!("cargo::rustc-link-arg-bin=podwright-monitor=-no-pie");
    pause::build()
}

fn generate_cri() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["runtime/v1/api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // It holds passwords: `proto.rs` says what may be printed.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    Ok(())
}
