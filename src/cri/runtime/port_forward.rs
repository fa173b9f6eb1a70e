//! PortForward.

use tonic::Status;

use crate::cri::status::status;
use crate::cri::{Services, from_proto, trace};
use crate::pod::view::PodState;
use crate::proto::{PortForwardRequest, PortForwardResponse};
use crate::streaming::MAX_PORTS;

/// Gives a URL at which ports of a ready sandbox are reached.
pub async fn port_forward(services: &Services, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
    let id = from_proto::id("pod_sandbox_id", &request.pod_sandbox_id).map_err(status)?;
    trace::pod(id);
    let ports = ports(&request.port)?;
    if services.pods.get(id).map_err(status)?.state != PodState::Ready {
        return Err(Status::failed_precondition(format!("sandbox {id:?} is not ready")));
    }
    let url = services.streaming.port_forward(&services.pods, id, ports).map_err(status)?;
    Ok(PortForwardResponse { url })
}

/// Checked numbers.
fn ports(ports: &[i32]) -> Result<Vec<u16>, Status> {
    if ports.len() > MAX_PORTS {
        return Err(Status::invalid_argument(format!("port: {} of them, want at most {MAX_PORTS}", ports.len())));
    }
    let number = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0);
    let checked =
        |port: &i32| number(port).ok_or_else(|| Status::invalid_argument(format!("port: {port}: want 1 to 65535")));
    ports.iter().map(checked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_of_ports() {
        assert_eq!(ports(&[80, 65_535]).unwrap(), [80, 65_535]);
        for bad in [0, -1, 65_536, i32::MIN] {
            let refused = ports(&[80, bad]).unwrap_err();
            assert!(refused.message().contains(&bad.to_string()), "{refused}");
        }
        assert!(ports(&[1; MAX_PORTS + 1]).is_err());
    }
}
