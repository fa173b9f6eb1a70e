//! Values that have the right type and still make no sense.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::Duration;

use super::{CgroupDriver, Config, Streaming};

/// Longest Unix socket path (sun_path without its NUL), less the suffix of the temporary name.
const MAX_SOCKET_PATH: usize = 107 - ".new".len();

/// A wrong value.
#[derive(Debug)]
pub struct Bad {
    /// Dotted key.
    pub key: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// Checks what types cannot. Nothing of the machine is looked at.
pub fn validate(config: &Config) -> Result<(), Bad> {
    folders(config)?;
    let Config { log, cgroup, runtime, network, image, container, .. } = config;
    tracing_subscriber::EnvFilter::try_new(&log.level)
        .map_err(|error| bad("log.level", format!("{:?} is not a log filter: {error}", log.level)))?;
    cgroup_parent(cgroup.driver, &cgroup.parent)?;
    handler_name(&runtime.default_handler)?;
    positive("server.drain_timeout", config.server.drain_timeout)?;
    streaming(&config.streaming)?;
    positive("runtime.create_timeout", runtime.create_timeout)?;
    positive("network.plugin_timeout", network.plugin_timeout)?;
    positive("image.progress_timeout", image.progress_timeout)?;
    within("image.max_concurrent_layers", image.max_concurrent_layers as u64, 1, 128)?;
    // Clients take messages of 16 MiB, and both outputs travel in one.
    within("runtime.exec_output_limit", runtime.exec_output_limit as u64, 1024, (16 << 20) - (4 << 10))?;
    if runtime.exec_drain > Duration::from_secs(60) {
        return Err(bad("runtime.exec_drain", "more than 60s would hold up every probe"));
    }
    if network.bin_dirs.is_empty() {
        return Err(bad("network.bin_dirs", "no folder: want at least one"));
    }
    if config.apparmor.default_profile.bytes().any(|b| b.is_ascii_control())
        || config.apparmor.default_profile.len() > 1024
    {
        return Err(bad("apparmor.default_profile", "want the name of a profile, at most 1024 characters"));
    }
    // Policies have 1024 categories; below 3 there would be one pod.
    within("selinux.category_range", config.selinux.category_range.into(), 3, 1024)?;
    within("container.nofile_soft", container.nofile_soft, 1, container.nofile_hard)?;
    within("container.nofile_hard", container.nofile_hard, 1, 1 << 30)?;
    within("container.pids_limit", container.pids_limit, 0, 4_194_304)
}

fn folders(config: &Config) -> Result<(), Bad> {
    let (root, state) = (&config.paths.root, &config.paths.state);
    absolute("server.address", &config.server.address)?;
    let length = config.server.address.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        let reason = format!("{length} bytes; the kernel takes socket paths of at most {MAX_SOCKET_PATH}");
        return Err(bad("server.address", reason));
    }
    absolute("paths.root", root)?;
    absolute("paths.state", state)?;
    if root.starts_with(state) || state.starts_with(root) {
        let reason = format!("{root:?} and paths.state {state:?} must not lie in one another");
        return Err(bad("paths.root", reason));
    }
    absolute("runtime.handlers_dir", &config.runtime.handlers_dir)?;
    absolute("network.conf_dir", &config.network.conf_dir)?;
    for folder in &config.network.bin_dirs {
        absolute("network.bin_dirs", folder)?;
    }
    for folder in &config.cdi.dirs {
        absolute("cdi.dirs", folder)?;
    }
    absolute("image.registry_config_dir", &config.image.registry_config_dir)?;
    for (key, path) in
        [("paths.monitor", &config.paths.monitor), ("seccomp.default_profile", &config.seccomp.default_profile)]
    {
        if !path.as_os_str().is_empty() {
            absolute(key, path)?;
        }
    }
    Ok(())
}

fn streaming(streaming: &Streaming) -> Result<(), Bad> {
    positive("streaming.idle_timeout", streaming.idle_timeout)?;
    positive("streaming.creation_timeout", streaming.creation_timeout)?;
    positive("streaming.client_timeout", streaming.client_timeout)?;
    within("streaming.max_sessions", streaming.max_sessions as u64, 1, 65_536)?;
    let files = [
        ("streaming.tls_cert_file", &streaming.tls_cert_file, &streaming.tls_key_file),
        ("streaming.tls_key_file", &streaming.tls_key_file, &streaming.tls_cert_file),
    ];
    for (key, path, other) in files {
        if !path.as_os_str().is_empty() {
            absolute(key, path)?;
        } else if !other.as_os_str().is_empty() {
            return Err(bad(key, "is empty: TLS wants a certificate and a key"));
        }
    }
    Ok(())
}

fn cgroup_parent(driver: CgroupDriver, parent: &str) -> Result<(), Bad> {
    let slice = parent.ends_with(".slice") && !parent.contains('/');
    let path = parent.starts_with('/') && !Path::new(parent).components().any(|part| part == Component::ParentDir);
    let fits = match driver {
        _ if parent.is_empty() => true,
        CgroupDriver::Auto => slice || path,
        CgroupDriver::Systemd => slice,
        CgroupDriver::Cgroupfs => path,
    };
    let reason = || {
        format!("{parent:?} does not fit the driver: want a slice (a.slice) for systemd, an absolute path for cgroupfs")
    };
    if fits { Ok(()) } else { Err(bad("cgroup.parent", reason())) }
}

fn handler_name(name: &str) -> Result<(), Bad> {
    let fine = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let reason = || format!("{name:?} is no handler name: want lowercase letters, digits, '-' and '.'");
    if fine { Ok(()) } else { Err(bad("runtime.default_handler", reason())) }
}

fn absolute(key: &'static str, path: &Path) -> Result<(), Bad> {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    let wild = path.as_os_str().as_bytes().iter().any(u8::is_ascii_control);
    if path.is_absolute() && !climbs && !wild {
        return Ok(());
    }
    Err(bad(key, format!("{path:?}: want an absolute path without \"..\"")))
}

fn positive(key: &'static str, duration: Duration) -> Result<(), Bad> {
    if duration.is_zero() { Err(bad(key, "zero: want some time")) } else { Ok(()) }
}

fn within(key: &'static str, value: u64, low: u64, high: u64) -> Result<(), Bad> {
    if (low..=high).contains(&value) { Ok(()) } else { Err(bad(key, format!("{value}: want {low} to {high}"))) }
}

fn bad(key: &'static str, reason: impl Into<String>) -> Bad {
    Bad { key, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Config), key: &str) {
        let mut config = Config::default();
        change(&mut config);
        assert_eq!(validate(&config).map_err(|bad| bad.key), Err(key));
    }

    #[test]
    fn each_bad_value_is_told_by_its_key() {
        refused(|c| c.server.address = "podwright.sock".into(), "server.address");
        refused(|c| c.server.address = format!("/run/{}", "a".repeat(110)).into(), "server.address");
        refused(|c| c.paths.root = "/a/../b".into(), "paths.root");
        refused(|c| c.paths.root = "/run/podwright/inside".into(), "paths.root");
        refused(|c| c.paths.state = c.paths.root.clone(), "paths.root");
        refused(|c| c.paths.monitor = "podwright-monitor".into(), "paths.monitor");
        refused(|c| c.log.level = "podwright=loud".into(), "log.level");
        refused(|c| c.cgroup.parent = "pods".into(), "cgroup.parent");
        refused(|c| c.cgroup.parent = "/a/../../b".into(), "cgroup.parent");
        refused(
            |c| {
                c.cgroup.driver = CgroupDriver::Cgroupfs;
                c.cgroup.parent = "a.slice".into();
            },
            "cgroup.parent",
        );
        refused(|c| c.runtime.default_handler = "../x".into(), "runtime.default_handler");
        refused(|c| c.runtime.exec_output_limit = 1 << 40, "runtime.exec_output_limit");
        refused(|c| c.streaming.idle_timeout = Duration::ZERO, "streaming.idle_timeout");
        refused(|c| c.streaming.max_sessions = 0, "streaming.max_sessions");
        refused(|c| c.streaming.tls_cert_file = "/a.pem".into(), "streaming.tls_key_file");
        refused(|c| c.streaming.tls_key_file = "/a.pem".into(), "streaming.tls_cert_file");
        refused(
            |c| {
                c.streaming.tls_cert_file = "a.pem".into();
                c.streaming.tls_key_file = "/k.pem".into();
            },
            "streaming.tls_cert_file",
        );
        refused(|c| c.network.bin_dirs.clear(), "network.bin_dirs");
        refused(|c| c.network.plugin_timeout = Duration::ZERO, "network.plugin_timeout");
        refused(|c| c.apparmor.default_profile = "a\nb".into(), "apparmor.default_profile");
        refused(|c| c.selinux.category_range = 1025, "selinux.category_range");
        refused(|c| c.cdi.dirs.push("cdi".into()), "cdi.dirs");
        refused(|c| c.container.nofile_soft = 1 << 20, "container.nofile_soft");
    }
}
