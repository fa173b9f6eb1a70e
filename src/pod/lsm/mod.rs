//! Security modules of the kernel: what is on, and which profile or label each process gets.
//!
//! AppArmor: [`apparmor`] decides. SELinux, off by default: [`selinux`] keeps the levels of pods apart. Where the kernel
//! lacks a module, its default profile and its labels mean nothing and are ignored, as other runtimes do; what names a
//! profile is refused.

mod apparmor;
mod selinux;

use std::path::Path;

pub use selinux::Selinux;
pub(crate) use selinux::relabel;

use super::error::PodError;
use crate::container::selinux::Labels;
use crate::launch::apparmor::{DEFAULT_PROFILE, load_default};
use crate::sys::lsm;
use crate::types::chain;
use crate::types::container::ContainerSecurity;
use crate::types::pod::{PodSecurity, Profile, SelinuxOptions};

/// What the configuration says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Use AppArmor where the kernel has it.
    pub apparmor: bool,
    /// The loaded profile that RuntimeDefault stands for; empty: the built-in one.
    pub apparmor_profile: String,
    /// Use SELinux where the kernel has it.
    pub selinux: bool,
    /// Categories that levels are made of are numbered below this.
    pub selinux_categories: u32,
}

/// The security modules of this node.
#[derive(Debug)]
pub struct Lsm {
    apparmor: AppArmor,
    selinux: Option<Selinux>,
    /// The kernel has SELinux on, and the configuration off.
    selinux_unused: bool,
    /// What is not as the configuration wants it.
    problem: Option<String>,
}

/// How AppArmor stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppArmor {
    /// The kernel lacks it, or it is switched off.
    Off,
    /// On; the profile that RuntimeDefault stands for.
    On(String),
    /// On, but that profile is not loaded.
    NoDefault(String),
}

/// What is applied to a process, and to the mounts around it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) apparmor: Option<String>,
    pub(crate) process_label: Option<String>,
    pub(crate) mount_label: Option<String>,
}

impl Lsm {
    /// Looks at the kernel, and loads the built-in AppArmor profile. `state`: a folder that no boot survives.
    pub async fn start(settings: &Settings, state: &Path) -> Self {
        let mut problems = Vec::new();
        let apparmor = start_apparmor(settings, state, &mut problems).await;
        let present = lsm::selinux_enabled();
        let selinux = match (settings.selinux, present) {
            (true, true) => Selinux::start(settings.selinux_categories).map_err(|why| problems.push(why)).ok(),
            (true, false) => {
                problems.push("SELinux is wanted, but not on in this kernel".to_owned());
                None
            }
            (false, _) => None,
        };
        problems.extend(selinux.as_ref().and_then(Selinux::problem));
        for problem in &problems {
            tracing::warn!(%problem, "security modules");
        }
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        tracing::info!(?apparmor, selinux = selinux.is_some(), "security modules");
        Self { apparmor, selinux, selinux_unused: present && !settings.selinux, problem }
    }

    /// SELinux, if it is used.
    pub fn selinux(&self) -> Option<&Selinux> {
        self.selinux.as_ref()
    }

    /// How AppArmor stands.
    pub fn apparmor(&self) -> &AppArmor {
        &self.apparmor
    }

    /// What is not as the configuration wants it; `None`: nothing.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// For pause. It can do nothing, so that only what is asked for is applied to it.
    pub(crate) fn for_pause(&self, security: &PodSecurity, labels: Option<&Labels>) -> Result<Applied, PodError> {
        self.refuse(security.selinux.as_ref())?;
        let apparmor = match security.apparmor {
            Profile::Unset => None,
            _ => self.profile(&security.apparmor, security.privileged)?,
        };
        let Some((selinux, labels)) = self.selinux.as_ref().zip(labels) else {
            return Ok(Applied { apparmor, ..Applied::default() });
        };
        let process_label = if security.privileged { selinux.privileged() } else { Some(labels.process.clone()) };
        Ok(Applied { apparmor, process_label, mount_label: Some(labels.mount.clone()) })
    }

    /// For a container of a pod with these labels.
    pub(crate) fn for_container(
        &self,
        security: &ContainerSecurity,
        of_pod: Option<&Labels>,
    ) -> Result<Applied, PodError> {
        self.refuse(security.selinux.as_ref())?;
        let apparmor = self.profile(&security.apparmor, security.privileged)?;
        let Some((selinux, of_pod)) = self.selinux.as_ref().zip(of_pod) else {
            return Ok(Applied { apparmor, ..Applied::default() });
        };
        let labels = selinux.container(of_pod, security.selinux.as_ref())?;
        let process_label = if security.privileged { selinux.privileged() } else { Some(labels.process) };
        Ok(Applied { apparmor, process_label, mount_label: Some(labels.mount) })
    }

    fn profile(&self, asked: &Profile, privileged: bool) -> Result<Option<String>, PodError> {
        let wish = apparmor::decide(asked, privileged, &self.apparmor)?;
        if let (Some(name), Profile::Localhost(_)) = (&wish, asked) {
            match lsm::apparmor_loaded(name) {
                Ok(true) => {}
                Ok(false) => return Err(apparmor::refuse(name, "no AppArmor profile of this name is loaded")),
                Err(error) => return Err(PodError::io("AppArmor's list of profiles", &error)),
            }
        }
        Ok(wish)
    }

    /// What would have an effect is not dropped silently.
    fn refuse(&self, asked: Option<&SelinuxOptions>) -> Result<(), PodError> {
        match asked {
            Some(asked) if self.selinux_unused => Err(PodError::Invalid {
                field: "config.linux.security_context.selinux_options",
                value: format!("{}:{}:{}:{}", asked.user, asked.role, asked.kind, asked.level),
                reason: "SELinux is on in this kernel but not used; set [selinux] enabled = true".into(),
            }),
            _ => Ok(()),
        }
    }
}

async fn start_apparmor(settings: &Settings, state: &Path, problems: &mut Vec<String>) -> AppArmor {
    if !settings.apparmor || !lsm::apparmor_enabled() {
        return AppArmor::Off;
    }
    if !settings.apparmor_profile.is_empty() {
        let name = settings.apparmor_profile.clone();
        return match lsm::apparmor_loaded(&name) {
            Ok(true) => AppArmor::On(name),
            Ok(false) => {
                problems.push(format!("the AppArmor profile {name:?} of the configuration is not loaded"));
                AppArmor::NoDefault(name)
            }
            Err(error) => {
                problems.push(format!("AppArmor's list of profiles cannot be read: {error}"));
                AppArmor::NoDefault(name)
            }
        };
    }
    let name = DEFAULT_PROFILE.to_owned();
    match load_default(state).await {
        Ok(()) => AppArmor::On(name),
        // Somebody else may have loaded it.
        Err(_) if lsm::apparmor_loaded(&name).unwrap_or(false) => AppArmor::On(name),
        Err(error) => {
            problems.push(format!("AppArmor is on, but the built-in profile is not loaded: {}", chain(&error)));
            AppArmor::NoDefault(name)
        }
    }
}
