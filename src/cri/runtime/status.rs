//! Status.

use tonic::Status;

use crate::cri::{HandlerInfo, Services, info};
use crate::proto::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};
use crate::types::chain;

/// The two conditions the kubelet knows, one for people who look, and what this runtime can do.
pub async fn status(services: &Services, request: StatusRequest) -> Result<StatusResponse, Status> {
    let condition = |kind: &str, status, reason: &str, message: String| RuntimeCondition {
        r#type: kind.into(),
        status,
        reason: reason.into(),
        message,
    };
    let network = match services.network.status() {
        Ok(()) => condition("NetworkReady", true, "", String::new()),
        Err(error) => condition("NetworkReady", false, "NetworkPluginNotReady", chain(&error)),
    };
    let security = match services.lsm.problem() {
        None => condition("SecurityModulesReady", true, "", String::new()),
        Some(problem) => condition("SecurityModulesReady", false, "SecurityModuleNotReady", problem.to_owned()),
    };
    let features = services.features;
    let info = match request.verbose {
        true => {
            let cdi = services.cdi.clone();
            let devices = tokio::task::spawn_blocking(move || cdi.inspect()).await;
            info::daemon(&services.config, &services.lsm, &services.handlers, &devices.unwrap_or_default())
        }
        false => Default::default(),
    };
    Ok(StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![condition("RuntimeReady", true, "", String::new()), network, security],
        }),
        info,
        runtime_handlers: handlers(&services.handlers),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: features.supplemental_groups_policy,
            user_namespaces_host_network: features.user_namespaces_host_network,
            mount_options: features.mount_options,
        }),
    })
}

/// The entry without a name stands for the default handler; clients that miss it skip the features.
fn handlers(from: &[HandlerInfo]) -> Vec<RuntimeHandler> {
    let entry = |name: &str, handler: &HandlerInfo| RuntimeHandler {
        name: name.into(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.recursive_read_only_mounts,
            user_namespaces: handler.user_namespaces,
        }),
    };
    let default = from.first().map(|handler| entry("", handler));
    default.into_iter().chain(from.iter().map(|handler| entry(&handler.handler.name, handler))).collect()
}
