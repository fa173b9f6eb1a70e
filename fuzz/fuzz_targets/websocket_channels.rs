//! Any bytes as a WebSocket message of exec, attach or port-forward.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| podwright_fuzz::channels(bytes));
