#!/bin/sh
# Runs the fuzz targets, or those named, for FUZZ_SECONDS each (60): fuzz/run.sh [TARGET…]
# This builds with the stable compiler what `cargo fuzz` builds with a nightly one, without the address sanitizer:
# the code under test has no unsafe.
set -eu
cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- spdy_frames spdy_headers spdy_connection websocket_channels
host=$(rustc -vV | sed -n 's/^host: //p')
bins=$(printf -- '--bin %s ' "$@")
# Seeds that the code would not write any more are worth less than they look.
cargo run --quiet --locked --bin seeds -- --check
# Flags go to the target only, not to procedural macros, because it is named.
# shellcheck disable=SC2086
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" cargo build --release --locked --target "$host" $bins
for target in "$@"; do
    mkdir -p "target/corpus/$target"
    # New inputs go to the first folder; the seeds stay as they are.
    "target/$host/release/$target" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=10 -rss_limit_mb=512 -max_len=65536 \
        -artifact_prefix="target/$target-" -print_final_stats=1 "target/corpus/$target" "corpus/$target"
done
