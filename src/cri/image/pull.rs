//! PullImage.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{PullImageRequest, PullImageResponse};

/// Pulls. `sandbox_config` says on whose behalf, which makes no difference here.
pub async fn pull_image(services: &Services, request: PullImageRequest) -> Result<PullImageResponse, Status> {
    let name = from_proto::image_name(request.image, &services.handler_names()).map_err(status)?;
    trace::image(&name);
    let auth = from_proto::auth(request.auth).map_err(status)?;
    let id = services.images.pull(&name, auth, None).await.map_err(status)?;
    Ok(PullImageResponse { image_ref: id.to_string() })
}
