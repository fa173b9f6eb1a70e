//! What the driver asks of the machine and the runtime before it translates anything.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use tonic::Code;

use crate::proto;

use super::client::{Cri, CriError};
use super::qos::CgroupDriver;
use super::translate::{Node, parse_resolv_conf};

/// Files of /etc are read up to this size, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Asks the runtime and the machine. `driver` overrides what the runtime says. The second part are lines worth
/// showing.
///
/// # Errors
/// The runtime does not answer.
pub async fn discover(cri: &Cri, driver: Option<CgroupDriver>) -> Result<(Node, Vec<String>), CriError> {
    let (status, config) = tokio::join!(
        cri.status(proto::StatusRequest::default()),
        cri.runtime_config(proto::RuntimeConfigRequest::default())
    );
    let status = status?;
    let mut notes = Vec::new();
    for condition in status.status.iter().flat_map(|status| &status.conditions).filter(|condition| !condition.status) {
        notes.push(format!("the runtime says {} is false: {}", condition.r#type, condition.message));
    }
    let driver = match (driver, config) {
        (Some(driver), _) => driver,
        (None, Ok(answer)) => match answer.linux.map(|linux| linux.cgroup_driver()) {
            Some(proto::CgroupDriver::Systemd) => CgroupDriver::Systemd,
            _ => CgroupDriver::Cgroupfs,
        },
        (None, Err(error)) if error.code() == Code::Unimplemented => {
            tracing::debug!("the runtime does not tell its cgroup driver; taking cgroupfs (see --cgroup-driver)");
            CgroupDriver::Cgroupfs
        }
        (None, Err(error)) => return Err(error),
    };
    let recursive = |handler: &proto::RuntimeHandler| {
        handler.features.as_ref().is_some_and(|features| features.recursive_read_only_mounts)
    };
    let handlers = status.runtime_handlers.into_iter().filter(recursive).map(|handler| handler.name).collect();
    let host_dns = parse_resolv_conf(&read("/etc/resolv.conf"));
    // A resolver on the host's loopback cannot be reached from a pod; systemd-resolved keeps the real ones aside.
    let stub = host_dns.servers.iter().all(|server| server.starts_with("127.") || server == "::1");
    let upstream = parse_resolv_conf(&read("/run/systemd/resolve/resolv.conf"));
    let pod_dns = if stub && !upstream.servers.is_empty() { upstream } else { host_dns.clone() };
    let info = rustix::system::sysinfo();
    let memory = u128::from(info.totalram) * u128::from(info.mem_unit.max(1));
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let node = Node {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        memory: i64::try_from(memory).unwrap_or(i64::MAX),
        cpu_milli: i64::try_from(cpus).unwrap_or(1).saturating_mul(1000),
        pod_dns,
        host_dns,
        driver,
        cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        recursive_read_only: handlers,
    };
    Ok((node, notes))
}

/// A small text file of the host; empty if there is none.
pub(super) fn read(path: &str) -> String {
    let mut text = Vec::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
    if let Err(error) = result {
        tracing::debug!(path, %error, "cannot read");
    }
    String::from_utf8_lossy(&text).into_owned()
}
