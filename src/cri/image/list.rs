//! ListImages and ImageStatus.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, info, to_proto, trace};
use crate::proto::{ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse};

/// All images, or the one that the filter names.
pub fn list_images(services: &Services, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
    let wanted = request.filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
    let images = match wanted.as_str() {
        "" => services.images.list(),
        name => services.images.find(name).into_iter().collect(),
    };
    Ok(ListImagesResponse { images: images.iter().map(|image| to_proto::image(image)).collect() })
}

/// One image. One that is not here is no error but an answer without an image.
pub fn image_status(services: &Services, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
    let name = from_proto::image_name(request.image, &services.handler_names()).map_err(status)?;
    trace::image(&name);
    let Some(image) = services.images.find(&name) else { return Ok(ImageStatusResponse::default()) };
    Ok(ImageStatusResponse {
        image: Some(to_proto::image(&image)),
        info: if request.verbose { info::image(&image) } else { Default::default() },
    })
}
