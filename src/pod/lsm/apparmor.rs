//! Which AppArmor profile a process gets: pure.

use super::AppArmor;
use crate::pod::PodError;
use crate::types::ErrorKind;
use crate::types::pod::Profile;

/// The field that asks for it, of sandboxes and containers alike.
const FIELD: &str = "config.linux.security_context.apparmor";

/// The profile's name; `None`: unconfined. A client that says nothing gets the default profile, as kubelet relies on,
/// if there is one. CRI has privileged containers run without any.
pub(super) fn decide(asked: &Profile, privileged: bool, apparmor: &AppArmor) -> Result<Option<String>, PodError> {
    match (asked, apparmor) {
        (Profile::Unconfined, _) => Ok(None),
        (Profile::Localhost(name), AppArmor::Off) => Err(refuse(name, "AppArmor is not in use on this node")),
        _ if privileged => Ok(None),
        (Profile::Localhost(name), _) => Ok(Some(name.clone())),
        (Profile::Unset | Profile::RuntimeDefault, AppArmor::On(name)) => Ok(Some(name.clone())),
        (Profile::Unset | Profile::RuntimeDefault, AppArmor::Off) | (Profile::Unset, AppArmor::NoDefault(_)) => {
            Ok(None)
        }
        (Profile::RuntimeDefault, AppArmor::NoDefault(name)) => {
            let text = format!("{FIELD}: RuntimeDefault: the AppArmor profile {name:?} is not loaded on this node");
            Err(PodError::failed(ErrorKind::FailedPrecondition, text))
        }
    }
}

/// A named profile that cannot be had.
pub(super) fn refuse(name: &str, why: &str) -> PodError {
    PodError::Invalid { field: FIELD, value: name.to_owned(), reason: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_under_which_profile() {
        let (off, on, none) = (AppArmor::Off, AppArmor::On("d".into()), AppArmor::NoDefault("d".into()));
        let mine = Profile::Localhost("mine".into());
        for (asked, privileged, apparmor, want) in [
            (&Profile::Unset, false, &on, Ok(Some("d"))),
            (&Profile::RuntimeDefault, false, &on, Ok(Some("d"))),
            (&mine, false, &on, Ok(Some("mine"))),
            (&Profile::Unconfined, false, &on, Ok(None)),
            (&Profile::Unset, true, &on, Ok(None)),
            (&Profile::RuntimeDefault, true, &on, Ok(None)),
            (&mine, true, &on, Ok(None)),
            (&Profile::Unset, false, &off, Ok(None)),
            (&Profile::RuntimeDefault, false, &off, Ok(None)),
            (&Profile::Unconfined, false, &off, Ok(None)),
            (&mine, false, &off, Err(())),
            (&mine, true, &off, Err(())),
            (&Profile::Unset, false, &none, Ok(None)),
            (&Profile::RuntimeDefault, false, &none, Err(())),
            (&Profile::RuntimeDefault, true, &none, Ok(None)),
            (&mine, false, &none, Ok(Some("mine"))),
        ] {
            let got = decide(asked, privileged, apparmor);
            let got = got.as_ref().map(|name| name.as_deref()).map_err(|_| ());
            assert_eq!(got, want, "{asked:?} {privileged} {apparmor:?}");
        }
    }

    #[test]
    fn a_refusal_names_field_and_profile() {
        let error = decide(&Profile::Localhost("mine".into()), false, &AppArmor::Off).unwrap_err();
        assert!(matches!(&error, PodError::Invalid { field: FIELD, value, .. } if value == "mine"), "{error}");
    }
}
