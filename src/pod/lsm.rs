//! Security modules of the kernel: what is asked of them and cannot be given yet is refused, not dropped.

use std::fs;
use std::path::Path;

use super::error::PodError;
use crate::types::pod::{Profile, SelinuxOptions};

/// Which modules the kernel has switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Active {
    apparmor: bool,
    selinux: bool,
}

/// Refuses profiles and labels that would have an effect if they could be applied. Where the kernel lacks the module,
/// its default profile and its labels mean nothing and are ignored, as other runtimes do.
pub(crate) fn check(apparmor: &Profile, selinux: Option<&SelinuxOptions>) -> Result<(), PodError> {
    if matches!(apparmor, Profile::Unset | Profile::Unconfined) && selinux.is_none() {
        return Ok(());
    }
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let active = Active {
        apparmor: enabled.is_ok_and(|text| text.trim() == "Y"),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
    };
    refuse(apparmor, selinux, active)
}

fn refuse(apparmor: &Profile, selinux: Option<&SelinuxOptions>, active: Active) -> Result<(), PodError> {
    match apparmor {
        Profile::Localhost(_) => Err(PodError::Unimplemented("an AppArmor profile for a container")),
        Profile::RuntimeDefault if active.apparmor => {
            Err(PodError::Unimplemented("a default AppArmor profile for containers"))
        }
        _ if selinux.is_some() && active.selinux => Err(PodError::Unimplemented("an SELinux label for a container")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_have_an_effect_is_refused() {
        let label = SelinuxOptions { level: "s0:c1".into(), ..SelinuxOptions::default() };
        let on = Active { apparmor: true, selinux: true };
        let off = Active { apparmor: false, selinux: false };
        let fine = |profile: &Profile, label, active| refuse(profile, label, active).is_ok();
        assert!(fine(&Profile::Unset, None, on) && fine(&Profile::Unconfined, None, on));
        assert!(fine(&Profile::RuntimeDefault, Some(&label), off));
        assert!(!fine(&Profile::RuntimeDefault, None, on));
        assert!(!fine(&Profile::Unset, Some(&label), on));
        assert!(!fine(&Profile::Localhost("mine".into()), None, off));
    }
}
