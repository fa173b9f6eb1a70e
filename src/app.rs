//! The one place that constructs and wires concrete types.

use std::path::Path;
use std::sync::Arc;

use crate::config::{CgroupDriver, Config};
use crate::cri::{Features, HandlerInfo, Services};
use crate::image::Images;
use crate::network::Network;
use crate::pod::Pods;
use crate::types::{ErrorKind, HasKind};

/// The daemon could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AppError {}

impl HasKind for AppError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// Everything the daemon is made of.
pub struct App {
    /// Sandboxes and containers.
    pub pods: Pods,
    /// Images.
    pub images: Images,
    /// Pod network.
    pub network: Network,
    /// Runtime handlers, the default one first.
    pub handlers: Arc<[HandlerInfo]>,
    /// Configuration.
    pub config: Arc<Config>,
}

impl App {
    /// Puts it together; the root and state folders exist and are locked.
    pub async fn build(config: Arc<Config>) -> Result<Self, AppError> {
        let handlers = Arc::new([HandlerInfo {
            name: config.runtime.default_handler.clone(),
            recursive_read_only_mounts: false,
            user_namespaces: false,
        }]);
        Ok(Self { pods: Pods {}, images: Images::default(), network: Network::default(), handlers, config })
    }

    /// What the gRPC door needs.
    pub fn services(&self) -> Services {
        let systemd_cgroup = match self.config.cgroup.driver {
            CgroupDriver::Systemd => true,
            CgroupDriver::Cgroupfs => false,
            CgroupDriver::Auto => {
                Path::new("/run/systemd/system").is_dir() && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
            }
        };
        Services {
            pods: self.pods.clone(),
            images: self.images.clone(),
            network: self.network.clone(),
            handlers: Arc::clone(&self.handlers),
            systemd_cgroup,
            features: Features::default(),
            config: Arc::clone(&self.config),
        }
    }
}
