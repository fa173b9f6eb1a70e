//! How long an exited container waits before it is started again. Pure; times are nanoseconds since the epoch.

/// The first wait.
const BASE: i64 = 10_000_000_000;
/// The longest wait.
const MAX: i64 = 300_000_000_000;
/// A container that ran this long since its last restart starts afresh.
const RESET: i64 = 600_000_000_000;

/// The back-off of one container: the first restart is at once, then 10 s doubling to 5 min.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    delay: i64,
    last: Option<i64>,
}

impl Backoff {
    /// When a container that finished at `finished` may be started again.
    pub fn ready_at(&self, finished: i64) -> i64 {
        if self.expired(finished) { finished } else { finished.saturating_add(self.delay) }
    }

    /// Takes note of a restart at `now`.
    pub fn restarted(&mut self, now: i64) {
        self.delay = if self.expired(now) { BASE } else { (self.delay * 2).clamp(BASE, MAX) };
        self.last = Some(now);
    }

    fn expired(&self, at: i64) -> bool {
        self.last.is_none_or(|last| at.saturating_sub(last) > RESET)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let (mut backoff, mut now) = (Backoff::default(), 1_000 * SECOND);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let ready = backoff.ready_at(now);
            waits.push((ready - now) / SECOND);
            now = ready;
            backoff.restarted(now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_good_minutes_are_forgiven() {
        let mut backoff = Backoff::default();
        backoff.restarted(0);
        backoff.restarted(SECOND);
        assert_eq!(backoff.ready_at(2 * SECOND), 22 * SECOND);
        let later = 700 * SECOND;
        assert_eq!(backoff.ready_at(later), later);
        backoff.restarted(later);
        assert_eq!(backoff.ready_at(later), later + 10 * SECOND);
    }

    proptest! {
        #[test]
        fn the_wait_is_bounded_and_never_negative(runs in proptest::collection::vec(0i64..2_000 * SECOND, 1..50)) {
            let (mut backoff, mut now) = (Backoff::default(), 0i64);
            let mut previous = 0;
            for ran in runs {
                now += ran;
                let wait = backoff.ready_at(now) - now;
                prop_assert!((0..=MAX).contains(&wait));
                // It only ever doubles or starts afresh.
                prop_assert!(wait == 0 || wait == BASE || wait == MAX || wait == previous * 2);
                previous = wait;
                now += wait;
                backoff.restarted(now);
            }
        }
    }
}
