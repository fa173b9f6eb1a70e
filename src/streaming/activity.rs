//! When data was last sent in a session, either way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by everything that copies bytes in one session.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Last>);

#[derive(Debug)]
struct Last {
    start: Instant,
    /// Milliseconds after `start`.
    at: AtomicU64,
}

impl Activity {
    /// Begins now.
    pub(super) fn new() -> Self {
        Self(Arc::new(Last { start: Instant::now(), at: AtomicU64::new(0) }))
    }

    /// Data was sent.
    pub(super) fn touch(&self) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.at.store(now, Ordering::Relaxed);
    }

    /// Ready once nothing was sent for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let end = self.0.start + Duration::from_millis(self.0.at.load(Ordering::Relaxed)) + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_a_while_after_the_last_touch() {
        let (activity, limit) = (Activity::new(), Duration::from_millis(60));
        let other = activity.clone();
        let watch = tokio::spawn(async move {
            other.idle(limit).await;
            Instant::now()
        });
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let mut touches = Vec::new();
        for _ in 0..8 {
            tick.tick().await;
            touches.push(Instant::now());
            activity.touch();
        }
        // On a busy machine there may be a pause between two of them.
        let end = watch.await.unwrap();
        let last = touches.into_iter().filter(|touch| *touch <= end).max().unwrap();
        assert!(end >= last + limit - Duration::from_millis(2), "{:?}", end - last);
    }
}
