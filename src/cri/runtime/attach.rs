//! Attach.

use tonic::Status;

use super::exec::{running, wanted};
use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{AttachRequest, AttachResponse};

/// Gives a URL at which the streams of a running container are.
pub async fn attach(services: &Services, request: AttachRequest) -> Result<AttachResponse, Status> {
    let id = from_proto::id("container_id", &request.container_id).map_err(status)?;
    trace::container(id);
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    running(services, id)?;
    let url = services.streaming.attach(&services.pods, id, wanted).map_err(status)?;
    Ok(AttachResponse { url })
}
