//! Bounded waits.

use std::time::{Duration, Instant};

/// How many times slower than a plain machine this one is (`PODWRIGHT_TEST_SLOW`); time limits are stretched by it.
pub fn slowness() -> u32 {
    std::env::var("PODWRIGHT_TEST_SLOW").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A time limit of so many seconds, stretched on a slow machine.
pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * slowness()
}

/// So many bytes of output, less on a slow machine.
pub fn volume(bytes: usize) -> usize {
    bytes / slowness() as usize
}

/// Probes until it holds, and panics with the last thing that was wrong once the limit has passed.
///
/// The probes look at files of the kernel (procfs, cgroupfs) and at other processes' doings: there is no event to wait
/// for, so this looks again after a short while.
pub async fn eventually<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        let wrong = match probe().await {
            Ok(value) => return value,
            Err(wrong) => wrong,
        };
        assert!(Instant::now() < end, "{what}: not within {limit:?}: {wrong}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
