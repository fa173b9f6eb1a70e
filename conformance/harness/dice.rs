//! Random values for tests, from a seed that is printed; `PODWRIGHT_TEST_SEED` repeats a run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::slowness;

/// splitmix64: good enough to choose moments and values.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        let given = std::env::var("PODWRIGHT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = given.unwrap_or(now);
        println!("PODWRIGHT_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    /// Up to `longest` milliseconds, more on a slow machine. Early moments are the more interesting ones.
    pub fn moment(&mut self, longest: usize) -> Duration {
        let bound = self.below(longest * 1000) + 1;
        Duration::from_micros(self.below(bound) as u64) * slowness()
    }
}
