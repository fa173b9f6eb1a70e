//! Version.

use tonic::Status;

use crate::cri::Services;
use crate::proto::{VersionRequest, VersionResponse};

/// Who answers. `version` is that of the kubelet's runtime API, which has been 0.1.0 since there is one.
pub async fn version(_: &Services, _: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "podwright".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    })
}
