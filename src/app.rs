//! The one place that constructs the concrete parts and wires them together.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cdi;
use crate::cgroup::{Cgroups, Driver};
use crate::config::{CgroupDriver, Config, ExpediteRcu, UnsetProfile};
use crate::cri::{Features, HandlerInfo, Services};
use crate::image::{self, Images};
use crate::launch::handlers::Handlers;
use crate::launch::monitor::Launcher;
use crate::launch::seccomp::SeccompCompiler;
use crate::network::{self, Network};
use crate::pod::{self, Context, Limits, Lsm, LsmSettings, Pods};
use crate::snapshot::Snapshots;
use crate::streaming::{self, Streaming};
use crate::types::{ErrorKind, HasKind, chain};

/// The daemon cannot be put together.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct AppError {
    kind: ErrorKind,
    what: &'static str,
    reason: String,
}

impl HasKind for AppError {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

fn failed<E: HasKind + 'static>(what: &'static str) -> impl Fn(E) -> AppError {
    move |error| AppError { kind: error.kind(), what, reason: chain(&error) }
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> AppError {
    move |error| AppError { kind: ErrorKind::Internal, what, reason: error.to_string() }
}

/// The parts that the gRPC door talks to.
#[derive(Clone)]
pub struct App {
    /// Sandboxes and containers.
    pub pods: Pods,
    /// Images.
    pub images: Images,
    /// Networks.
    pub network: Network,
    /// Runtime handlers.
    pub handlers: Handlers,
    /// Devices by name.
    pub cdi: cdi::Registry,
    /// cgroup set-up.
    pub cgroups: Cgroups,
    /// Security modules of the kernel.
    pub lsm: Arc<Lsm>,
    /// Pods can have user namespaces.
    pub has_user_namespaces: bool,
    /// The configuration, as merged.
    pub config: Arc<Config>,
}

impl App {
    /// Builds everything and takes over what an earlier daemon left. The caller holds the lock on
    /// root and state.
    pub async fn build(config: Arc<Config>) -> Result<Self, AppError> {
        let (root, state) = (config.paths.root.clone(), config.paths.state.clone());
        let driver = match config.cgroup.driver {
            CgroupDriver::Auto => None,
            CgroupDriver::Systemd => Some(Driver::Systemd),
            CgroupDriver::Cgroupfs => Some(Driver::Cgroupfs),
        };
        let cgroups = Cgroups::detect(driver).map_err(failed("cgroups"))?;
        let images = Images::open(image_settings(&config)).map_err(failed("images"))?;
        let network = Network::new(network_settings(&config)).map_err(failed("network"))?;
        let mut handlers = Handlers::load(&config.runtime.handlers_dir, &config.runtime.default_handler)
            .map_err(failed("handlers"))?;
        let own = std::env::current_exe().map_err(io("own program"))?;
        let held_capabilities = held_capabilities()?;
        let launcher = Launcher::new(config.paths.monitor_program(&own));
        let (place, probe) = (pod::user_place(&state), root.join("probe"));
        let ((), user_namespaces) = tokio::join!(handlers.ask(&place), launcher.probe_user_namespaces(&probe));
        for problem in handlers.iter().filter_map(|handler| handler.program().err()) {
            tracing::warn!(error = chain(&problem), "pods with this runtime handler are refused");
        }
        if let Err(reason) = &user_namespaces {
            tracing::warn!(reason, "pods cannot have user namespaces on this node");
        }
        let has_user_namespaces = user_namespaces.is_ok();
        let lsm = Arc::new(Lsm::start(&lsm_settings(&config), &state).await);
        let cdi = cdi_registry(&config);
        cdi.watch();
        let context = Context {
            lsm: lsm.clone(),
            boot_id: boot_id()?,
            cgroups: cgroups.clone(),
            snapshots: Snapshots::new(&root),
            images: images.clone(),
            network: network.clone(),
            handlers: handlers.clone(),
            cdi: cdi.clone(),
            seccomp: SeccompCompiler::new(state.join("seccomp")),
            launcher,
            user_namespaces,
            held_capabilities,
            limits: limits(&config, held_capabilities),
            root,
            state,
        };
        let pods = Pods::recover(context).await.map_err(failed("recovery"))?;
        Ok(Self { pods, images, network, handlers, cdi, cgroups, lsm, has_user_namespaces, config })
    }
}

impl App {
    /// What the gRPC door needs. `streaming` gives out the URLs of a server that was made with
    /// [`App::streaming_settings`].
    pub fn services(&self, streaming: Streaming) -> Services {
        let default = self.handlers.default_name();
        let mut handlers: Vec<_> = self.handlers.iter().collect();
        handlers.sort_by_key(|handler| (handler.name != default, &handler.name));
        let handlers = handlers.into_iter().map(|handler| HandlerInfo {
            handler: handler.clone(),
            recursive_read_only_mounts: handler.makes_recursive_read_only_mounts(),
            user_namespaces: self.has_user_namespaces && handler.takes_user_namespaces().is_ok(),
        });
        Services {
            pods: self.pods.clone(),
            images: self.images.clone(),
            network: self.network.clone(),
            handlers: handlers.collect(),
            cdi: self.cdi.clone(),
            cgroups: self.cgroups.clone(),
            stats: Arc::default(),
            lsm: self.lsm.clone(),
            streaming,
            systemd_cgroup: self.cgroups.driver == Driver::Systemd,
            features: Features {
                supplemental_groups_policy: true,
                mount_options: true,
                user_namespaces_host_network: self.has_user_namespaces,
            },
            config: Arc::clone(&self.config),
        }
    }
}

impl App {
    /// How the streaming server is to be.
    pub fn streaming_settings(&self) -> streaming::Settings {
        let config = &self.config.streaming;
        let tls = (config.tls_cert_file.clone(), config.tls_key_file.clone());
        streaming::Settings {
            address: config.address,
            // Both or none: the configuration was validated.
            tls: Some(tls).filter(|(certificate, _)| !certificate.as_os_str().is_empty()),
            idle_timeout: config.idle_timeout,
            creation_timeout: config.creation_timeout,
            client_timeout: config.client_timeout,
            drain: self.config.runtime.exec_drain,
            max_sessions: config.max_sessions,
        }
    }
}

fn image_settings(config: &Config) -> image::Settings {
    image::Settings {
        registry_config_dir: Some(config.image.registry_config_dir.clone()),
        max_concurrent_layers: config.image.max_concurrent_layers,
        pull_progress_timeout: config.image.progress_timeout,
        ..image::Settings::new(&config.paths.root)
    }
}

/// The registry of devices by name, not watched yet.
pub fn cdi_registry(config: &Config) -> cdi::Registry {
    cdi::Registry::new(config.cdi.enabled, config.cdi.dirs.clone())
}

/// The network's part of the configuration.
pub fn network_settings(config: &Config) -> network::Settings {
    network::Settings {
        conf_dir: config.network.conf_dir.clone(),
        bin_dirs: config.network.bin_dirs.clone(),
        plugin_timeout: config.network.plugin_timeout,
        expedite: config.network.expedite_rcu == ExpediteRcu::Auto,
        expedited: config.paths.state.join("rcu-expedited"),
        ..network::Settings::default()
    }
}

fn lsm_settings(config: &Config) -> LsmSettings {
    LsmSettings {
        apparmor: config.apparmor.enabled,
        apparmor_profile: config.apparmor.default_profile.clone(),
        selinux: config.selinux.enabled,
        selinux_categories: config.selinux.category_range,
    }
}

fn limits(config: &Config, held: u64) -> Limits {
    // Only CAP_SYS_RESOURCE may raise a hard limit above one's own.
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let may_raise = crate::container::capabilities::bit("SYS_RESOURCE").is_some_and(|bit| held & bit != 0);
    let hard = if may_raise { config.container.nofile_hard } else { config.container.nofile_hard.min(own) };
    Limits {
        cgroup_parent: config.cgroup.parent.clone(),
        create_timeout: config.runtime.create_timeout,
        exec_output: config.runtime.exec_output_limit,
        exec_drain: config.runtime.exec_drain,
        seccomp_default: Some(config.seccomp.default_profile.clone()).filter(|path| !path.as_os_str().is_empty()),
        seccomp_when_unset: config.seccomp.unset == UnsetProfile::RuntimeDefault,
        nofile: (config.container.nofile_soft.min(hard), hard),
        pids: config.container.pids_limit,
        unprivileged_ports: config.network.unprivileged_ports,
        unprivileged_icmp: config.network.unprivileged_icmp,
        owned_devices: config.container.device_ownership_from_security_context,
    }
}

fn boot_id() -> Result<String, AppError> {
    let text = fs::read_to_string(PathBuf::from("/proc/sys/kernel/random/boot_id")).map_err(io("boot id"))?;
    Ok(text.trim().to_owned())
}

/// The bounding set: what this process, and so its monitors, can give away.
fn held_capabilities() -> Result<u64, AppError> {
    let status = fs::read_to_string("/proc/self/status").map_err(io("capabilities"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).ok_or_else(|| AppError {
        kind: ErrorKind::Internal,
        what: "capabilities",
        reason: "/proc/self/status has no CapBnd".into(),
    })
}
