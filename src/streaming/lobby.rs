//! Connections that have shown no token yet. Anybody who reaches the server can open some, so they are few, and the one
//! that waited longest makes room for the next: a flood of idle ones never keeps out a client that says what it wants.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Most connections without a session.
pub(super) const MOST: usize = 256;

/// Those who wait.
#[derive(Debug, Default, Clone)]
pub(super) struct Lobby(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    tasks: VecDeque<(u64, AbortHandle)>,
}

impl Lobby {
    /// Runs `connection` as a task until it ends, or is the oldest of too many. Tells whether one had to go.
    pub(super) fn enter(&self, connection: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut waiting = self.lock();
        waiting.last += 1;
        let number = waiting.last;
        let lobby = self.clone();
        // It cannot leave before it is in: the lock is held.
        let task = tokio::spawn(async move {
            let _leave = Leave { lobby, number };
            connection.await;
        });
        waiting.tasks.push_back((number, task.abort_handle()));
        let oldest = if waiting.tasks.len() > MOST { waiting.tasks.pop_front() } else { None };
        if let Some((_, task)) = &oldest {
            task.abort();
        }
        oldest.is_some()
    }

    /// Sends everybody away.
    pub(super) fn close(&self) {
        for (_, task) in self.lock().tasks.drain(..) {
            task.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Leave {
    lobby: Lobby,
    number: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut waiting = self.lobby.lock();
        if let Ok(at) = waiting.tasks.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.tasks.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn the_oldest_makes_room_and_who_leaves_is_forgotten() {
        let lobby = Lobby::default();
        let mut ends = Vec::new();
        for n in 0..MOST + 2 {
            let (alive, dead) = oneshot::channel::<()>();
            let pushed = lobby.enter(async move {
                let _alive = alive;
                std::future::pending().await
            });
            assert_eq!(pushed, n >= MOST);
            ends.push(dead);
        }
        // Their senders are dropped with their tasks.
        for dead in ends.drain(..2) {
            dead.await.unwrap_err();
        }
        assert!(ends.iter_mut().all(|dead| dead.try_recv() == Err(oneshot::error::TryRecvError::Empty)));
        let (done, ended) = oneshot::channel();
        lobby.enter(async move { done.send(()).unwrap() });
        ended.await.unwrap();
        tokio::task::yield_now().await;
        lobby.close();
        for dead in ends {
            dead.await.unwrap_err();
        }
        assert_eq!(lobby.lock().tasks.len(), 0);
    }
}
