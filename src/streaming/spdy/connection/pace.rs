//! How often a peer may send what moves no stream: pings, settings, streams that are refused, frames nobody knows. Each
//! is little work, but a peer could have it done without end and never be idle.

use tokio::time::Instant;

use super::super::error::End;

/// Frames that are free again each second.
const PER_SECOND: u32 = 1000;

/// So many frames at once, or [`PER_SECOND`] for ever.
#[derive(Debug)]
pub(super) struct Pace {
    most: u32,
    left: u32,
    /// When frames were last set free.
    at: Instant,
}

impl Pace {
    pub(super) fn new(most: u32, now: Instant) -> Pace {
        Pace { most, left: most, at: now }
    }

    /// Takes note of a frame.
    ///
    /// # Errors
    /// It is one too many.
    pub(super) fn idle_frame(&mut self, now: Instant) -> Result<(), End> {
        let free = now.saturating_duration_since(self.at).as_millis() * u128::from(PER_SECOND) / 1000;
        if free > 0 {
            self.left = self.most.min(self.left.saturating_add(u32::try_from(free).unwrap_or(u32::MAX)));
            self.at = now;
        }
        self.left = self.left.checked_sub(1).ok_or(End::Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_taken_and_then_so_many_each_second() {
        let mut now = Instant::now();
        let mut pace = Pace::new(5000, now);
        let mut burst = |now| (0..).take_while(|_| pace.idle_frame(now).is_ok()).count();
        assert_eq!(burst(now), 5000);
        for _ in 0..3 {
            now += Duration::from_secs(2);
            assert_eq!(burst(now), 2000);
        }
        now += Duration::from_secs(3600);
        assert_eq!(burst(now), 5000);
        let steady = (0..100_000).all(|_| {
            now += Duration::from_millis(1);
            pace.idle_frame(now).is_ok()
        });
        assert!(steady);
    }
}
