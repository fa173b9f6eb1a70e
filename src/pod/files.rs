//! The files that a sandbox's containers share: resolv.conf, hostname, hosts, /dev/shm.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::{Dns, NamespaceMode, PodConfig};
use crate::sys::lsm;
use crate::wire::IdMaps;

/// Size of a pod's /dev/shm, bytes: what every runtime gives.
const SHM_SIZE: u64 = 64 << 20;
/// Most bytes of the host's resolver configuration that are copied.
const MAX_RESOLV: u64 = 64 << 10;

/// The folders of one sandbox.
#[derive(Debug, Clone)]
pub struct PodPaths {
    /// `ROOT/pods/ID`: record, network record, containers' data.
    pub data: PathBuf,
    /// `STATE/pods/ID`: sockets, netns, bundles.
    pub state: PathBuf,
}

impl PodPaths {
    /// The pod's record.
    pub fn record(&self) -> PathBuf {
        self.data.join("pod.json")
    }
    /// The network's record.
    pub fn network_record(&self) -> PathBuf {
        self.data.join("network.json")
    }
    /// The bind-mounted network namespace.
    pub fn netns(&self) -> PathBuf {
        self.state.join("netns")
    }
    /// resolv.conf for the containers.
    pub fn resolv_conf(&self) -> PathBuf {
        self.state.join("resolv.conf")
    }
    /// hostname for the containers.
    pub fn hostname(&self) -> PathBuf {
        self.state.join("hostname")
    }
    /// hosts for the containers.
    pub fn hosts(&self) -> PathBuf {
        self.state.join("hosts")
    }
    /// The pod's own /dev/shm.
    pub fn shm(&self) -> PathBuf {
        self.state.join("shm")
    }
    /// A container's data: record, upper, work.
    pub fn container_data(&self, id: &crate::types::ContainerId) -> PathBuf {
        self.data.join("containers").join(id)
    }
    /// A container's bundle.
    pub fn container_state(&self, id: &crate::types::ContainerId) -> PathBuf {
        self.state.join("containers").join(id)
    }
}

/// Makes a folder that only root may enter, with its parents.
pub fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes the files and mounts /dev/shm, all with the SELinux label that the pod has, if any. Blocks.
pub fn make(paths: &PodPaths, config: &PodConfig, label: Option<&str>) -> io::Result<()> {
    let host_network = config.security.namespaces.network == NamespaceMode::Node;
    write(&paths.resolv_conf(), &resolv_conf(config.dns.as_ref())?)?;
    if !host_network {
        write(&paths.hostname(), &format!("{}\n", config.hostname))?;
    }
    if host_network {
        write(&paths.hosts(), &fs::read_to_string("/etc/hosts").unwrap_or_default())?;
    } else {
        write(&paths.hosts(), &hosts(&config.hostname, &[]))?;
    }
    if let Some(label) = label {
        for file in [paths.resolv_conf(), paths.hostname(), paths.hosts()].iter().filter(|file| file.exists()) {
            lsm::set_label(file, label)?;
        }
    }
    let root = config.security.namespaces.user.as_ref().map(|user| IdMaps::from(user).root());
    if let Some((uid, gid)) = root {
        let hostname = Some(paths.hostname()).filter(|_| !host_network);
        for file in [paths.resolv_conf(), paths.hosts()].into_iter().chain(hostname) {
            std::os::unix::fs::chown(file, Some(uid), Some(gid))?;
        }
    }
    if config.security.namespaces.ipc != NamespaceMode::Node {
        let shm = paths.shm();
        fs::DirBuilder::new().recursive(true).mode(0o1777).create(&shm)?;
        let (uid, gid) = root.unwrap_or((0, 0));
        let label = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
        let options = format!("mode=1777,size={SHM_SIZE},uid={uid},gid={gid}{label}");
        let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
        let flags =
            rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NOEXEC | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("shm", &shm, "tmpfs", flags, Some(options.as_c_str()))?;
    }
    Ok(())
}

/// Undoes [`make`]; fine if nothing is there. Blocks.
pub fn unmount(paths: &PodPaths) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::mount::unmount(paths.shm(), rustix::mount::UnmountFlags::DETACH) {
        // INVAL: a folder, but no mount.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The hosts file once the addresses are known.
pub fn write_hosts(paths: &PodPaths, config: &PodConfig, ips: &[IpAddr]) -> io::Result<()> {
    write(&paths.hosts(), &hosts(&config.hostname, ips))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    // Readable for every user inside, whatever the daemon's umask; the folder above is closed to others.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn resolv_conf(dns: Option<&Dns>) -> io::Result<String> {
    let Some(dns) = dns else {
        let mut text = String::new();
        return match fs::File::open("/etc/resolv.conf") {
            Ok(file) => file.take(MAX_RESOLV).read_to_string(&mut text).map(|_| text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
            Err(error) => Err(error),
        };
    };
    Ok(render(dns))
}

/// resolv.conf(5) for these settings.
fn render(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if !hostname.is_empty() {
        for ip in ips {
            text += &format!("{ip}\t{hostname}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_is_written_as_the_resolver_reads_it() {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect();
        let dns = Dns { servers: list("10.0.0.1 10.0.0.2"), searches: list("a b"), options: list("ndots:5") };
        assert_eq!(render(&dns), "search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
        assert_eq!(render(&Dns::default()), "");
    }

    #[test]
    fn hosts_name_the_pod_by_all_its_addresses() {
        let text = hosts("box", &["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()]);
        assert!(text.contains("10.1.2.3\tbox\n") && text.contains("fd00::1\tbox\n"));
    }
}
