//! RemoveImage.

use std::time::Duration;

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{RemoveImageRequest, RemoveImageResponse};
use crate::types::{ErrorKind, HasKind as _};

/// Forgets an image with all its names. One that is not here, or no longer, is forgotten. Answers when it is deleted:
/// a kubelet looks at the file system then, to learn whether it must evict pods as well. After `patience` it has to wait
/// no longer.
pub async fn remove_image(
    services: &Services,
    request: RemoveImageRequest,
    patience: Duration,
) -> Result<RemoveImageResponse, Status> {
    let name = from_proto::image_name(request.image, &services.handler_names()).map_err(status)?;
    trace::image(&name);
    match services.images.remove(&name).await {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(status(error)),
        _ => {
            services.images.deleted(patience).await;
            Ok(RemoveImageResponse {})
        }
    }
}
