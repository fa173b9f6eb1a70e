//! Knowing when to look again: the runtime's event stream, or polling where it has none.

use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tonic::Code;

use super::client::Cri;

/// How often a broken stream is tried again, at most.
const RETRY: Duration = Duration::from_secs(5);
/// Streams may lose events (runtimes drop them for slow readers), so all is looked at now and then even so.
const SAFETY: Duration = Duration::from_secs(30);
/// The shortest and the longest time between two looks without a stream.
const FASTEST: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(1);

/// The runtime's events for any number of listeners.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<String>,
    streaming: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Events {
    /// Starts to read the stream.
    pub fn start(cri: Cri) -> Self {
        let (sender, _) = broadcast::channel(256);
        let (mode, streaming) = watch::channel(false);
        let task = tokio::spawn(read(cri, sender.clone(), mode));
        Self { sender, streaming, task }
    }

    /// A listener for one pod.
    pub fn listen(&self) -> Listener {
        Listener { events: self.sender.subscribe(), streaming: self.streaming.clone(), interval: FASTEST }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(cri: Cri, sender: broadcast::Sender<String>, mode: watch::Sender<bool>) {
    loop {
        match cri.events().await {
            Ok(mut stream) => {
                mode.send_replace(true);
                while let Ok(Some(event)) = stream.message().await {
                    let sandbox = event.pod_sandbox_status.map(|status| status.id).unwrap_or_default();
                    // Nobody listening is fine.
                    let _ = sender.send(sandbox);
                }
                mode.send_replace(false);
            }
            Err(error) if error.code() == Code::Unimplemented => {
                tracing::debug!("the runtime has no event stream; polling");
                return;
            }
            Err(error) => tracing::debug!(%error, "no event stream for now; polling"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Tells one pod's worker when to look again.
#[derive(Debug)]
pub struct Listener {
    events: broadcast::Receiver<String>,
    streaming: watch::Receiver<bool>,
    interval: Duration,
}

impl Listener {
    /// Returns when the sandbox may have changed, or after `limit`.
    ///
    /// A CRI client without an event stream has nothing else to wait on: CRI offers no blocking call that ends
    /// when a container does. So it asks, often at first and less often while nothing happens.
    pub async fn wait(&mut self, sandbox: &str, limit: Duration) {
        let streaming = *self.streaming.borrow_and_update();
        let look = if streaming { SAFETY } else { self.interval };
        self.interval = (self.interval * 3 / 2).min(SLOWEST);
        let timer = tokio::time::sleep(look.min(limit));
        tokio::pin!(timer);
        loop {
            tokio::select! {
                () = &mut timer => return,
                // From streaming to polling or back: what happened between is not known.
                changed = self.streaming.changed() => if changed.is_ok() { return } else { return timer.await },
                event = self.events.recv() => match event {
                    Ok(id) if id != sandbox && !id.is_empty() => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => return timer.await,
                },
            }
        }
    }

    /// Something changed: look often again.
    pub fn changed(&mut self) {
        self.interval = FASTEST;
    }
}
