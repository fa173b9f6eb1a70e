//! ContainerStats, PodSandboxStats and their lists.

use std::path::PathBuf;
use std::sync::Arc;

use tonic::Status;

use crate::container::view::{ContainerState, ContainerView};
use crate::cri::filter::{ContainerFilter, PodFilter};
use crate::cri::status::status;
use crate::cri::{Services, from_proto, to_proto, trace};
use crate::pod::view::{PodState, PodView};
use crate::proto::{
    self, ContainerStatsRequest, ContainerStatsResponse, ListContainerStatsRequest, ListContainerStatsResponse,
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStatsRequest, PodSandboxStatsResponse,
};
use crate::stats::Usage;

/// One container; an ended one has its attributes and the size of its layer only.
pub async fn container_stats(
    services: &Services,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let id = from_proto::id("container_id", &request.container_id).map_err(status)?;
    trace::container(id);
    let view = services.pods.container(id).map_err(status)?;
    let stats = reading(services, move |reader| reader.container(&view)).await?;
    Ok(ContainerStatsResponse { stats: Some(stats) })
}

/// All running containers that the filter wants.
pub async fn list_container_stats(
    services: &Services,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    let filter = request.filter.map(|filter| proto::ContainerFilter {
        id: filter.id,
        state: None,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
    });
    let filter = ContainerFilter::decode(filter).map_err(status)?;
    let views = services.pods.containers();
    let stats = reading(services, move |reader| {
        let wanted = views.iter().filter(|view| view.state != ContainerState::Exited && filter.wants(view));
        wanted.map(|view| reader.container(view)).collect()
    })
    .await?;
    Ok(ListContainerStatsResponse { stats })
}

/// One sandbox.
pub async fn pod_sandbox_stats(
    services: &Services,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let id = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?;
    trace::pod(id);
    let view = services.pods.get(id).map_err(status)?;
    let stats = reading(services, move |reader| reader.pod(&view)).await?;
    Ok(PodSandboxStatsResponse { stats: Some(stats) })
}

/// All ready sandboxes that the filter wants.
pub async fn list_pod_sandbox_stats(
    services: &Services,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    let filter = request.filter.map(|filter| proto::PodSandboxFilter {
        id: filter.id,
        state: None,
        label_selector: filter.label_selector,
    });
    let filter = PodFilter::decode(filter).map_err(status)?;
    let views = services.pods.list();
    let stats = reading(services, move |reader| {
        let wanted = views.iter().filter(|view| view.state == PodState::Ready && filter.wants(view));
        wanted.map(|view| reader.pod(view)).collect()
    })
    .await?;
    Ok(ListPodSandboxStatsResponse { stats })
}

/// What reading takes, on a thread for blocking work.
struct Reader {
    stats: Arc<crate::stats::Stats>,
    cgroups: crate::cgroup::Cgroups,
    root: PathBuf,
}

async fn reading<T: Send + 'static>(
    services: &Services,
    read: impl FnOnce(&Reader) -> T + Send + 'static,
) -> Result<T, Status> {
    let reader = Reader {
        stats: Arc::clone(&services.stats),
        cgroups: services.cgroups.clone(),
        root: services.config.paths.root.clone(),
    };
    tokio::task::spawn_blocking(move || read(&reader)).await.map_err(|error| Status::internal(error.to_string()))
}

impl Reader {
    fn container(&self, view: &ContainerView) -> proto::ContainerStats {
        let running = view.state == ContainerState::Running;
        let usage = running.then(|| self.usage(&view.cgroups)).flatten();
        self.container_with(view, usage.as_ref())
    }

    fn container_with(&self, view: &ContainerView, usage: Option<&Usage>) -> proto::ContainerStats {
        let upper = self.root.join("pods").join(&view.pod).join("containers").join(&view.id).join("upper");
        let layer = self.stats.layer(&upper).map(|layer| (self.root.as_path(), layer));
        to_proto::container_stats(view, usage, layer)
    }

    fn pod(&self, view: &PodView) -> proto::PodSandboxStats {
        let living = view.containers.iter().filter(|container| container.state != ContainerState::Exited);
        let living: Vec<_> = living.map(|container| (container, self.usage(&container.cgroups))).collect();
        let usage = if view.config.cgroup_parent.is_empty() {
            // The default parent is shared with other pods, so this one's parts are added up.
            let parts = living.iter().filter_map(|(_, usage)| usage.clone());
            Usage::sum(self.usage(&view.cgroups).into_iter().chain(parts))
        } else {
            let parents: Vec<_> = view.cgroups.iter().filter_map(|leaf| leaf.parent().map(PathBuf::from)).collect();
            self.usage(&parents)
        };
        let interfaces = match (view.pause, &view.netns) {
            (Some(pause), Some(_)) => crate::stats::interfaces(pause.pid),
            _ => Vec::new(),
        };
        let running = living.iter().filter(|(container, _)| container.state == ContainerState::Running);
        let containers = running.map(|(view, usage)| self.container_with(view, usage.as_ref())).collect();
        to_proto::pod_stats(view, usage.as_ref(), &interfaces, containers)
    }

    fn usage(&self, folders: &[PathBuf]) -> Option<Usage> {
        self.stats.usage(&self.cgroups, folders)
    }
}
