//! ImageService: who answers which call.

mod fs_info;
mod list;
mod pull;
mod remove;

use std::sync::Arc;

use futures_util::stream;
use tonic::{Request, Response, Status};

use super::status::unavailable_yet;
use super::{Services, trace};
use crate::proto;
use crate::proto::image_service_server::ImageService;

/// ImageService on the domain.
pub struct Door {
    services: Arc<Services>,
}

impl Door {
    /// A door to these services.
    pub fn new(services: Arc<Services>) -> Self {
        Self { services }
    }
}

#[tonic::async_trait]
impl ImageService for Door {
    async fn list_images(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, Status> {
        list::list_images(&self.services, request.into_inner()).map(Response::new)
    }

    type StreamImagesStream = stream::Empty<Result<proto::StreamImagesResponse, Status>>;

    async fn stream_images(
        &self,
        _: Request<proto::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(unavailable_yet("the streamed list of images (StreamImages)"))
    }

    async fn image_status(
        &self,
        request: Request<proto::ImageStatusRequest>,
    ) -> Result<Response<proto::ImageStatusResponse>, Status> {
        list::image_status(&self.services, request.into_inner()).map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Result<Response<proto::PullImageResponse>, Status> {
        pull::pull_image(&self.services, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageResponse>, Status> {
        let patience = trace::patience(request.metadata().as_ref());
        remove::remove_image(&self.services, request.into_inner(), patience).await.map(Response::new)
    }

    async fn image_fs_info(
        &self,
        request: Request<proto::ImageFsInfoRequest>,
    ) -> Result<Response<proto::ImageFsInfoResponse>, Status> {
        let patience = trace::patience(request.metadata().as_ref());
        Ok(Response::new(fs_info::image_fs_info(&self.services, patience).await))
    }
}
