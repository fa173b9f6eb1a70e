//! Usage of containers and sandboxes.

use crate::container::view::ContainerView;
use crate::pod::view::PodView;
use crate::proto::{self, UInt64Value};
use crate::stats::{Interface, LayerUsage, Pressure, Usage};

/// Name of the interface that the kubelet takes for the pod's.
const DEFAULT_INTERFACE: &str = "eth0";

/// What one container uses; without numbers once it has ended.
pub fn container_stats(
    from: &ContainerView,
    usage: Option<&Usage>,
    layer: Option<(&std::path::Path, LayerUsage)>,
) -> proto::ContainerStats {
    proto::ContainerStats {
        attributes: Some(proto::ContainerAttributes {
            id: from.id.to_string(),
            metadata: Some(proto::ContainerMetadata { name: from.config.name.clone(), attempt: from.config.attempt }),
            labels: from.config.labels.clone().into_iter().collect(),
            annotations: from.config.annotations.clone().into_iter().collect(),
        }),
        cpu: usage.map(cpu),
        memory: usage.map(memory),
        writable_layer: layer.map(|(path, layer)| proto::FilesystemUsage {
            timestamp: layer.at_ns,
            fs_id: Some(proto::FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
            used_bytes: value(Some(layer.bytes)),
            inodes_used: value(Some(layer.inodes)),
        }),
        swap: usage.map(swap),
        io: usage.map(io),
    }
}

/// What one sandbox uses, all its containers included.
pub fn pod_stats(
    from: &PodView,
    usage: Option<&Usage>,
    interfaces: &[Interface],
    containers: Vec<proto::ContainerStats>,
) -> proto::PodSandboxStats {
    let key = &from.config.key;
    let at = usage.map_or_else(crate::types::now_ns, |usage| usage.at_ns);
    let (default, others): (Vec<_>, Vec<_>) =
        interfaces.iter().map(interface).partition(|interface| interface.name == DEFAULT_INTERFACE);
    proto::PodSandboxStats {
        attributes: Some(proto::PodSandboxAttributes {
            id: from.id.to_string(),
            metadata: Some(proto::PodSandboxMetadata {
                name: key.name.clone(),
                uid: key.uid.clone(),
                namespace: key.namespace.clone(),
                attempt: key.attempt,
            }),
            labels: from.config.labels.clone().into_iter().collect(),
            annotations: from.config.annotations.clone().into_iter().collect(),
        }),
        linux: Some(proto::LinuxPodSandboxStats {
            cpu: usage.map(cpu),
            memory: usage.map(memory),
            network: (!interfaces.is_empty()).then(|| proto::NetworkUsage {
                timestamp: at,
                default_interface: default.into_iter().next(),
                interfaces: others,
            }),
            process: usage.map(|usage| proto::ProcessUsage { timestamp: at, process_count: value(usage.processes) }),
            containers,
            io: usage.map(io),
        }),
        windows: None,
    }
}

fn cpu(from: &Usage) -> proto::CpuUsage {
    proto::CpuUsage {
        timestamp: from.at_ns,
        usage_core_nano_seconds: value(from.cpu_ns),
        usage_nano_cores: value(from.cpu_rate),
        psi: from.cpu_pressure.map(pressure),
    }
}

fn memory(from: &Usage) -> proto::MemoryUsage {
    proto::MemoryUsage {
        timestamp: from.at_ns,
        working_set_bytes: value(from.working_set),
        available_bytes: value(from.memory_available()),
        usage_bytes: value(from.memory),
        rss_bytes: value(from.rss),
        page_faults: value(from.faults),
        major_page_faults: value(from.major_faults),
        psi: from.memory_pressure.map(pressure),
    }
}

fn swap(from: &Usage) -> proto::SwapUsage {
    proto::SwapUsage {
        timestamp: from.at_ns,
        swap_available_bytes: value(from.swap_limit.zip(from.swap).map(|(limit, used)| limit.saturating_sub(used))),
        swap_usage_bytes: value(from.swap),
    }
}

fn io(from: &Usage) -> proto::IoUsage {
    proto::IoUsage { timestamp: from.at_ns, psi: from.io_pressure.map(pressure) }
}

fn pressure((some, full): (Pressure, Pressure)) -> proto::PsiStats {
    let data = |from: Pressure| proto::PsiData {
        total: from.total,
        avg10: from.avg10,
        avg60: from.avg60,
        avg300: from.avg300,
    };
    proto::PsiStats { full: Some(data(full)), some: Some(data(some)) }
}

fn interface(from: &Interface) -> proto::NetworkInterfaceUsage {
    proto::NetworkInterfaceUsage {
        name: from.name.clone(),
        rx_bytes: value(Some(from.rx_bytes)),
        rx_errors: value(Some(from.rx_errors)),
        tx_bytes: value(Some(from.tx_bytes)),
        tx_errors: value(Some(from.tx_errors)),
    }
}

fn value(from: Option<u64>) -> Option<UInt64Value> {
    from.map(|value| UInt64Value { value })
}
