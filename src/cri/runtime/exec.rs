//! Exec.

use tonic::Status;

use crate::container::view::ContainerState;
use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::pod::streams::Wanted;
use crate::proto::{ExecRequest, ExecResponse};

/// Gives a URL at which a command is executed in a running container. The command begins when a client comes with it.
pub async fn exec(services: &Services, request: ExecRequest) -> Result<ExecResponse, Status> {
    let id = from_proto::id("container_id", &request.container_id).map_err(status)?;
    trace::container(id);
    // What is wrong with it is told without its words: this error is logged, and commands may hold secrets.
    let command = from_proto::command("cmd", request.cmd)
        .map_err(|error| Status::invalid_argument(format!("{}: {}", error.field, error.reason)))?;
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    running(services, id)?;
    let url = services.streaming.exec(&services.pods, id, command, wanted).map_err(status)?;
    Ok(ExecResponse { url })
}

/// The streams of a request.
pub fn wanted(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<Wanted, Status> {
    if tty && stderr {
        return Err(Status::invalid_argument("stderr: true together with tty: a terminal has one output, stdout"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument("stdin, stdout, stderr: all false, want at least one"));
    }
    Ok(Wanted { stdin, stdout, stderr, tty })
}

/// Checks that a container runs, as far as it is known.
pub fn running(services: &Services, id: &str) -> Result<(), Status> {
    let view = services.pods.container(id).map_err(status)?;
    let state = match view.state {
        // One whose monitor does not answer may be back when the client comes.
        ContainerState::Running | ContainerState::Unknown => return Ok(()),
        ContainerState::Created => "was not started",
        ContainerState::Exited => "has ended",
    };
    Err(Status::failed_precondition(format!("container {id:?} {state}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn streams_that_make_no_sense_are_refused() {
        assert!(wanted(true, true, false, true).is_ok());
        assert!(wanted(false, false, true, false).is_ok());
        for (stdin, stdout, stderr, tty) in
            [(true, true, true, true), (false, false, false, false), (false, false, false, true)]
        {
            assert_eq!(wanted(stdin, stdout, stderr, tty).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
