//! The order of writes of one record.
//!
//! A driver starts writes without waiting for earlier ones, and threads finish in any order. So each
//! write has a number from the moment it is asked for; an older state never overwrites a newer one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::context::save;
use super::error::PodError;
use crate::store::Record;

/// Writes one record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    asked: AtomicU64,
    /// Number of the newest state on disk; locked while one is written.
    written: Mutex<u64>,
}

impl Journal {
    /// Writes `record` as it is now, unless a newer state is there when its turn comes.
    pub(crate) fn save<T: Record + Clone + Send + Sync + 'static>(
        &self,
        path: PathBuf,
        record: &T,
    ) -> impl Future<Output = Result<(), PodError>> + Send + 'static + use<T> {
        let shared = self.0.clone();
        let number = shared.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let record = record.clone();
        async move {
            let mut written = shared.written.lock().await;
            if *written < number {
                save(path, &record).await?;
                *written = number;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Number(u32);
    impl Record for Number {
        const VERSION: u32 = 1;
    }

    #[tokio::test]
    async fn the_newest_state_wins_in_whatever_order_writes_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        let journal = Journal::default();
        let mut writes: Vec<_> = (0..20).map(|n| journal.save(path.clone(), &Number(n))).collect();
        writes.reverse();
        writes.rotate_left(7);
        let tasks: Vec<_> = writes.into_iter().map(tokio::spawn).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(crate::store::load(&path).unwrap(), Some(Number(19)));
    }
}
