//! The keys, their types and their defaults. `examples/config.toml` documents each for users; a
//! test keeps the two equal.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

            impl Default for $name {
                fn default() -> Self {
                    Self { $($field: $default,)* }
                }
            }
        )*
    };
}

sections! {
    /// The daemon's whole configuration.
    Config {
        /// The CRI socket.
        server: Server = Server::default(),
        /// Exec, attach, port-forward.
        streaming: Streaming = Streaming::default(),
        /// Folders and programs.
        paths: Paths = Paths::default(),
        /// What is logged, and how.
        log: Log = Log::default(),
        /// Control groups.
        cgroup: Cgroup = Cgroup::default(),
        /// Runtime handlers and operations.
        runtime: Runtime = Runtime::default(),
        /// CNI.
        network: Network = Network::default(),
        /// Images and registries.
        image: Image = Image::default(),
        /// Seccomp.
        seccomp: Seccomp = Seccomp::default(),
        /// AppArmor.
        apparmor: Apparmor = Apparmor::default(),
        /// SELinux.
        selinux: Selinux = Selinux::default(),
        /// What containers get unless they say otherwise.
        container: Container = Container::default(),
        /// Container Device Interface.
        cdi: Cdi = Cdi::default(),
    }

    /// `[server]`
    Server {
        /// Absolute path of the CRI socket.
        address: PathBuf = "/run/podwright/podwright.sock".into(),
        /// Longest wait for requests under way when the daemon is told to stop.
        #[serde(with = "duration")]
        drain_timeout: Duration = Duration::from_secs(20),
    }

    /// `[streaming]`
    Streaming {
        /// Where the streaming server listens; port 0: one that is free.
        address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 0)),
        /// Certificate chain, PEM; empty: no TLS.
        tls_cert_file: PathBuf = PathBuf::new(),
        /// Its private key, PEM; empty: no TLS.
        tls_key_file: PathBuf = PathBuf::new(),
        /// A session in which nothing was sent either way for this long is ended.
        #[serde(with = "duration")]
        idle_timeout: Duration = Duration::from_secs(4 * 3600),
        /// Longest wait for the streams that a client has to open.
        #[serde(with = "duration")]
        creation_timeout: Duration = Duration::from_secs(30),
        /// A client whose machine has answered nothing for this long is lost.
        #[serde(with = "duration")]
        client_timeout: Duration = Duration::from_secs(120),
        /// Most sessions at once.
        max_sessions: usize = 1000,
    }

    /// `[paths]`
    Paths {
        /// What survives a reboot: images, layers, records.
        root: PathBuf = "/var/lib/podwright".into(),
        /// What does not: sockets, namespaces, bundles.
        state: PathBuf = "/run/podwright".into(),
        /// The monitor program; empty: `podwright-monitor` beside the daemon's own program.
        monitor: PathBuf = PathBuf::new(),
    }

    /// `[log]`
    Log {
        /// A level (error, warn, info, debug, trace) or a filter such as `info,podwright::image=debug`.
        level: String = "info".into(),
        /// Form of the lines.
        format: LogFormat = LogFormat::Auto,
    }

    /// `[cgroup]`
    Cgroup {
        /// Who makes cgroups.
        driver: CgroupDriver = CgroupDriver::Auto,
        /// Parent of pods that name none; empty: `/podwright` (cgroupfs) or `podwright.slice` (systemd).
        parent: String = String::new(),
    }

    /// `[runtime]`
    Runtime {
        /// Handler of pods that name none.
        default_handler: String = "youki".into(),
        /// Folder with one TOML file per further handler.
        handlers_dir: PathBuf = "/etc/podwright/runtime-handlers".into(),
        /// Longest time the creation of one container may take before it is undone.
        #[serde(with = "duration")]
        create_timeout: Duration = Duration::from_secs(60),
        /// Most bytes collected of both outputs of an ExecSync together; the rest is dropped.
        exec_output_limit: usize = 16_000_000,
        /// How long an ExecSync goes on reading after its process ended, while grandchildren hold the pipes.
        #[serde(with = "duration")]
        exec_drain: Duration = Duration::from_millis(500),
    }

    /// `[network]`
    Network {
        /// Folder with CNI configuration lists.
        conf_dir: PathBuf = "/etc/cni/net.d".into(),
        /// Folders searched for plugins, in order.
        bin_dirs: Vec<PathBuf> = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        /// Longest run of one plugin.
        #[serde(with = "duration")]
        plugin_timeout: Duration = Duration::from_secs(60),
        /// Pods with a network of their own may listen on ports below 1024 without a capability.
        unprivileged_ports: bool = true,
        /// Pods with a network of their own may ping without a capability.
        unprivileged_icmp: bool = true,
        /// Short RCU grace periods while plugins take things away.
        expedite_rcu: ExpediteRcu = ExpediteRcu::Auto,
    }

    /// `[image]`
    Image {
        /// Folder with `HOST/hosts.toml` (mirrors, certificates), in containerd's `certs.d` layout.
        registry_config_dir: PathBuf = "/etc/podwright/certs.d".into(),
        /// Most layers of one pull that are fetched at once.
        max_concurrent_layers: usize = 8,
        /// A download that stands still this long is given up, and the next mirror tried.
        #[serde(with = "duration")]
        progress_timeout: Duration = Duration::from_secs(30),
    }

    /// `[seccomp]`
    Seccomp {
        /// File with the profile that RuntimeDefault stands for, in OCI form; empty: the built-in one.
        default_profile: PathBuf = PathBuf::new(),
        /// What a client gets that says nothing about seccomp.
        unset: UnsetProfile = UnsetProfile::Unconfined,
    }

    /// `[apparmor]`
    Apparmor {
        /// Confine containers where the kernel has AppArmor.
        enabled: bool = true,
        /// Name of the loaded profile that RuntimeDefault stands for; empty: the built-in one, loaded at start.
        default_profile: String = String::new(),
    }

    /// `[selinux]`
    Selinux {
        /// Label containers where the kernel has SELinux.
        enabled: bool = false,
        /// Categories that pods' levels are made of are numbered below this.
        category_range: u32 = 1024,
    }

    /// `[container]`
    Container {
        /// Soft limit of open files.
        nofile_soft: u64 = 1024,
        /// Hard limit of open files.
        nofile_hard: u64 = 524_288,
        /// Most processes of a container; 0: no limit of its own.
        pids_limit: u64 = 0,
        /// Device nodes belong to the user that the container runs as, not to whom they belong on the host.
        device_ownership_from_security_context: bool = false,
    }

    /// `[cdi]`
    Cdi {
        /// Devices may be asked for by CDI name.
        enabled: bool = true,
        /// Folders with CDI files; what a later one defines overrides earlier ones.
        dirs: Vec<PathBuf> = vec!["/etc/cdi".into(), "/var/run/cdi".into()],
    }
}

impl Paths {
    /// The monitor program, with the default filled in from where `own` (the daemon's program) is.
    pub fn monitor_program(&self, own: &Path) -> PathBuf {
        if self.monitor.as_os_str().is_empty() { own.with_file_name("podwright-monitor") } else { self.monitor.clone() }
    }
}

/// Whether the kernel's grace periods are made short during CNI DEL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpediteRcu {
    /// Unless processors are isolated (`isolcpus`, `nohz_full`) or `rcu_normal` is set.
    Auto,
    /// Never.
    Never,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `Journal` when standard error is the journal, else `Text`.
    Auto,
    /// With time.
    Text,
    /// Without time, which the journal adds itself.
    Journal,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// `Systemd` where systemd is PID 1 and cgroup v2 is mounted, else `Cgroupfs`.
    Auto,
    /// systemd, by D-Bus.
    Systemd,
    /// This runtime, in the file system.
    Cgroupfs,
}

/// What applies if the client says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnsetProfile {
    /// No profile.
    Unconfined,
    /// The default profile.
    RuntimeDefault,
}
