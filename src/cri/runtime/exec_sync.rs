//! ExecSync.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::proto::{ExecSyncRequest, ExecSyncResponse};

/// Runs a command in a container. A command past its time limit was killed, and is DeadlineExceeded:
/// by that code the kubelet knows that a probe timed out.
pub async fn exec_sync(services: &Services, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let id = from_proto::id("container_id", &request.container_id).map_err(status)?;
    trace::container(id);
    let command = from_proto::command("cmd", request.cmd).map_err(status)?;
    let timeout = from_proto::seconds("timeout", request.timeout).map_err(status)?;
    let timeout = (!timeout.is_zero()).then_some(timeout);
    let outcome = services.pods.exec_sync(id, command, timeout).await.map_err(status)?;
    if outcome.timed_out {
        let seconds = timeout.unwrap_or_default().as_secs();
        return Err(Status::deadline_exceeded(format!("exec in container {id:?}: killed after timeout of {seconds}s")));
    }
    Ok(ExecSyncResponse { stdout: outcome.stdout.into(), stderr: outcome.stderr.into(), exit_code: outcome.exit_code })
}
