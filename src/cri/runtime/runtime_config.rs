//! RuntimeConfig and UpdateRuntimeConfig.

use tonic::Status;
use tracing::info;

use crate::cri::Services;
use crate::proto::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse, UpdateRuntimeConfigRequest,
    UpdateRuntimeConfigResponse,
};

/// The cgroup driver: the kubelet makes cgroup parents to its taste.
pub async fn runtime_config(services: &Services, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
    let driver = if services.systemd_cgroup { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
}

/// The node's pod CIDR. CNI plugins have their own configuration, so there is nothing to do with it.
pub async fn update_runtime_config(
    _: &Services,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let cidr = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default().pod_cidr;
    let shown: String = cidr.chars().take(128).collect();
    info!(pod_cidr = ?shown, "the pod cidr is up to the cni configuration");
    Ok(UpdateRuntimeConfigResponse {})
}
