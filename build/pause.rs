//! Compiles src/pause/main.rs to a static program of a few hundred bytes, for podwright-monitor to embed.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/pause/main.rs";

/// Leaves the program at `$OUT_DIR/pause`.
pub fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pause");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["--edition=2024", "--crate-name=pause", "--crate-type=bin", SOURCE]);
    rustc.arg("--target").arg(env::var("TARGET")?).arg("-o").arg(&out);
    for option in ["opt-level=s", "panic=abort", "relocation-model=static", "strip=symbols", "debuginfo=0"] {
        rustc.arg("-C").arg(option);
    }
    // One page: no sections of the C runtime, no build id, headers and code in one segment.
    for argument in ["-nostdlib", "-nostartfiles", "-static", "-no-pie"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    rustc.args(["-C", "link-arg=-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack"]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let output = rustc.output()?;
    if !output.status.success() {
        return Err(format!("compiling {SOURCE}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}
