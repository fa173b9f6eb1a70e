//! What may differ between the nodes of two tests, and the files that say so to the daemon.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{cgroups, cni, secs};

/// How a test wants its node.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Cgroup driver, `cgroupfs` or `systemd`.
    pub driver: &'static str,
    /// The CNI configuration; `None`: there is none yet.
    pub cni: Cni,
    /// More TOML, in a file of `conf.d`.
    pub extra: String,
    /// Handlers beside the built-in one: file name and TOML.
    pub handlers: Vec<(String, String)>,
    /// Bytes of disk for the daemon's root folder; 0: as much as there is.
    pub disk: u64,
    /// Cover the v2 tree of a hybrid set-up, which some runtimes refuse; in this test's own mount namespace.
    pub hide_unified: bool,
}

/// A CNI configuration.
#[derive(Debug, Clone)]
pub enum Cni {
    /// Bridge and portmap.
    Bridge,
    /// No configuration.
    None,
    /// This list.
    List(Value),
}

impl Default for Setup {
    fn default() -> Self {
        let (extra, handlers) = (String::new(), Vec::new());
        Self { driver: cgroups::driver(), cni: Cni::Bridge, extra, handlers, disk: 0, hide_unified: false }
    }
}

/// Registry hosts whose images the test registry serves.
const HOSTS: [&str; 5] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io", "docker.io", "public.ecr.aws"];
/// The v2 tree of a hybrid set-up.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// Where the test registry listens, in the test's own network namespace.
pub const REGISTRY: &str = "127.0.0.1:5000";

impl Setup {
    /// Lays out the node's folders and files below `dir`.
    pub fn write(&self, dir: &Path) {
        for folder in ["root", "state", "conf.d", "cni/net.d", "cni/bin", "cni/leases", "handlers", "certs.d", "logs"] {
            fs::create_dir_all(dir.join(folder)).expect("make the node's folders");
        }
        if self.disk > 0 {
            let options = format!("size={},mode=0755", self.disk);
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("pwt"), &dir.join("root"), Some("tmpfs"), flags, Some(options.as_str()))
                .expect("a small disk");
        }
        if self.hide_unified && Path::new(UNIFIED).exists() {
            println!("NOTE: {UNIFIED} is covered for this test: the runtime refuses a hybrid cgroup set-up");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("pwt"), UNIFIED, Some("tmpfs"), flags, None::<&str>).expect("cover the v2 tree");
        }
        write(dir, "config.toml", &self.toml(dir));
        if !self.extra.is_empty() {
            write(dir, "conf.d/50-test.toml", &self.extra);
        }
        match &self.cni {
            Cni::Bridge => install_cni(dir, &cni::bridge_portmap(dir)),
            Cni::List(list) => install_cni(dir, list),
            Cni::None => {}
        }
        for (name, text) in &self.handlers {
            write(dir, &format!("handlers/{name}"), text);
        }
        for host in HOSTS {
            fs::create_dir_all(dir.join("certs.d").join(host)).expect("make certs.d");
            let text = format!("[host.\"http://{REGISTRY}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
            write(dir, &format!("certs.d/{host}/hosts.toml"), &text);
        }
    }

    fn toml(&self, dir: &Path) -> String {
        let mut plugins = vec![dir.join("cni/bin")];
        plugins.extend(cni::machine_plugins());
        let dir = dir.display();
        let driver = self.driver;
        let monitor = std::env::var("PODWRIGHT_MONITOR_BIN").unwrap_or_default();
        let plugin_timeout = secs(10).as_secs();
        format!(
            "[server]\naddress = \"{dir}/cri.sock\"\n\
             [paths]\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\nmonitor = {monitor:?}\n\
             [log]\nlevel = \"debug\"\nformat = \"text\"\n\
             [cgroup]\ndriver = \"{driver}\"\n\
             [runtime]\nhandlers_dir = \"{dir}/handlers\"\n\
             [network]\nconf_dir = \"{dir}/cni/net.d\"\nbin_dirs = {plugins:?}\nplugin_timeout = \"{plugin_timeout}s\"\n\
             expedite_rcu = \"never\"\n\
             [image]\nregistry_config_dir = \"{dir}/certs.d\"\n"
        )
    }
}

/// Puts a CNI configuration in place, as a whole.
pub fn install_cni(dir: &Path, list: &Value) {
    write(dir, "cni/net.d/.new", &list.to_string());
    fs::rename(dir.join("cni/net.d/.new"), dir.join("cni/net.d/10-test.conflist"))
        .expect("install the CNI configuration");
}

/// Writes a file below the node's folder.
pub fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
