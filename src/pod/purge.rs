//! Taking away a sandbox of which nothing is known but its id: its record is damaged, or was removed
//! already. Every part of a sandbox bears the id or lies in a folder that does.

use std::sync::Arc;

use super::context::{Context, blocking};
use super::error::PodError;
use super::files;
use super::retry::Backoff;
use super::teardown::{containers, empty, end_monitor, join};
use crate::types::PodId;

/// Purges, in the background, until it succeeds.
pub(super) fn begin(context: Arc<Context>, id: PodId) {
    tokio::spawn(async move {
        let mut backoff = Backoff::default();
        while let Err(error) = purge(&context, &id).await {
            let pause = backoff.next();
            tracing::warn!(pod = %id, %error, ?pause, "remains of a sandbox could not be removed; trying again");
            tokio::time::sleep(pause).await;
        }
        tracing::info!(pod = %id, "remains of a sandbox removed");
    });
}

/// Removes whatever there is. May be repeated.
async fn purge(context: &Arc<Context>, id: &PodId) -> Result<(), PodError> {
    let paths = context.paths(id);
    end_monitor(context, id, None, None).await?;
    let (looked, looker, pod) = (paths.clone(), context.clone(), id.clone());
    let folders = blocking("cgroup", move || {
        let mut ids: Vec<String> = containers(&looked).iter().map(ToString::to_string).collect();
        ids.push(pod.to_string());
        Ok(looker.cgroups.find(&ids))
    })
    .await?;
    let ended = empty(folders).await;
    let detached = context.network.detach(id, &paths.network_record()).await;
    let detached = detached.map_err(|error| PodError::of("network", &error));
    let removed = match &detached {
        Ok(()) => context.network.remove_netns(&paths.netns()).await,
        Err(_) => Ok(()),
    };
    let unmounted = paths.clone();
    join(vec![
        ended.err(),
        detached.err(),
        removed.map_err(|error| PodError::of("network namespace", &error)).err(),
        blocking("shm", move || files::unmount(&unmounted)).await.err(),
    ])?;
    context.discard(paths.state).await?;
    context.discard(paths.data).await
}
