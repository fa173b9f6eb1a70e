//! Security contexts.

use super::check::{absolute, known, known_chars, length, list, no_control, user_id};
use super::namespaces::{Whose, namespaces};
use super::{At, DecodeError};
use crate::container::capabilities;
use crate::proto;
use crate::proto::security_profile::ProfileType;
use crate::types::container::ContainerSecurity;
use crate::types::pod::{GroupsPolicy, PodSecurity, Profile, SelinuxOptions};

/// Security context of a sandbox.
pub fn pod_security(at: &At<'_>, from: proto::LinuxSandboxSecurityContext) -> Result<PodSecurity, DecodeError> {
    #[expect(deprecated, reason = "older clients still send it, and it is wrong to ignore it")]
    let proto::LinuxSandboxSecurityContext {
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        privileged,
        seccomp,
        apparmor,
        seccomp_profile_path,
    } = from;
    let run_as_user = optional_id(&at.field("run_as_user"), run_as_user)?;
    let run_as_group = optional_id(&at.field("run_as_group"), run_as_group)?;
    if let (Some(group), None) = (run_as_group, run_as_user) {
        return Err(at.field("run_as_group").bad(group, "needs run_as_user, too"));
    }
    Ok(PodSecurity {
        namespaces: namespaces(&at.field("namespace_options"), namespace_options.unwrap_or_default(), Whose::Sandbox)?,
        selinux: selinux(&at.field("selinux_options"), selinux_options)?,
        run_as_user,
        run_as_group,
        readonly_rootfs,
        supplemental_groups: list(&at.field("supplemental_groups"), supplemental_groups, user_id)?,
        groups_policy: policy(&at.field("supplemental_groups_policy"), supplemental_groups_policy)?,
        privileged,
        seccomp: seccomp_profile(at, seccomp, seccomp_profile_path)?,
        apparmor: apparmor_profile(at, apparmor, String::new())?,
    })
}

/// Security context of a container.
pub fn container_security(
    at: &At<'_>,
    from: proto::LinuxContainerSecurityContext,
) -> Result<ContainerSecurity, DecodeError> {
    #[expect(deprecated, reason = "older clients still send them, and it is wrong to ignore them")]
    let proto::LinuxContainerSecurityContext {
        capabilities: capability,
        privileged,
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp,
        apparmor,
        apparmor_profile: old_apparmor,
        seccomp_profile_path,
    } = from;
    let run_as_user = optional_id(&at.field("run_as_user"), run_as_user)?;
    let run_as_group = optional_id(&at.field("run_as_group"), run_as_group)?;
    if let (Some(group), None, true) = (run_as_group, run_as_user, run_as_username.is_empty()) {
        return Err(at.field("run_as_group").bad(group, "needs run_as_user or run_as_username, too"));
    }
    let caps_at = at.field("capabilities");
    let proto::Capability { add_capabilities, drop_capabilities, add_ambient_capabilities } =
        capability.unwrap_or_default();
    Ok(ContainerSecurity {
        add_capabilities: list(&caps_at.field("add_capabilities"), add_capabilities, capability_name)?,
        drop_capabilities: list(&caps_at.field("drop_capabilities"), drop_capabilities, capability_name)?,
        add_ambient_capabilities: list(
            &caps_at.field("add_ambient_capabilities"),
            add_ambient_capabilities,
            capability_name,
        )?,
        privileged,
        namespaces: namespaces(
            &at.field("namespace_options"),
            namespace_options.unwrap_or_default(),
            Whose::Container,
        )?,
        selinux: selinux(&at.field("selinux_options"), selinux_options)?,
        run_as_user,
        run_as_group,
        run_as_username: user_name(&at.field("run_as_username"), run_as_username)?,
        readonly_rootfs,
        supplemental_groups: list(&at.field("supplemental_groups"), supplemental_groups, user_id)?,
        groups_policy: policy(&at.field("supplemental_groups_policy"), supplemental_groups_policy)?,
        no_new_privs,
        masked_paths: list(&at.field("masked_paths"), masked_paths, below_root)?,
        readonly_paths: list(&at.field("readonly_paths"), readonly_paths, absolute)?,
        seccomp: seccomp_profile(at, seccomp, seccomp_profile_path)?,
        apparmor: apparmor_profile(at, apparmor, old_apparmor)?,
    })
}

fn optional_id(at: &At<'_>, value: Option<proto::Int64Value>) -> Result<Option<i64>, DecodeError> {
    value.map(|value| user_id(at, value.value)).transpose()
}

fn policy(at: &At<'_>, value: i32) -> Result<GroupsPolicy, DecodeError> {
    Ok(match known(at, value)? {
        proto::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        proto::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    })
}

/// An absolute path to something in the root folder.
fn below_root(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    let path = absolute(at, path)?;
    let is_root = path.split('/').all(|part| matches!(part, "" | "."));
    if is_root { Err(at.bad(path, "the root folder cannot be masked")) } else { Ok(path) }
}

/// A line of the image's passwd is searched for it: no `:` and no line ends.
fn user_name(at: &At<'_>, name: String) -> Result<String, DecodeError> {
    length(at, &name, 0, 256)?;
    no_control(at, &name)?;
    if name.contains([':', '/']) { Err(at.bad(name, "must not have ':' or '/' in it")) } else { Ok(name) }
}

/// `ALL`, or `CAP_` and a known name.
fn capability_name(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match bare {
        "ALL" if upper == "ALL" => Ok(upper),
        _ if capabilities::NAMES.contains(&bare) => Ok(format!("CAP_{bare}")),
        _ => Err(at.bad(text, "is no capability that this version knows")),
    }
}

fn selinux(at: &At<'_>, from: Option<proto::SeLinuxOption>) -> Result<Option<SelinuxOptions>, DecodeError> {
    let Some(proto::SeLinuxOption { user, role, r#type, level }) = from else { return Ok(None) };
    let part = |name: &'static str, text: String| {
        let at = at.field(name);
        length(&at, &text, 0, 256)?;
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-:,".contains(&b);
        known_chars(&at, &text, fine, "letters, digits and _.-:,")?;
        Ok(text)
    };
    let options = SelinuxOptions {
        user: part("user", user)?,
        role: part("role", role)?,
        kind: part("type", r#type)?,
        level: level_of(&at.field("level"), part("level", level)?)?,
    };
    Ok((options != SelinuxOptions::default()).then_some(options))
}

/// `s0`, `s0:c1,c2`, `s0:c0.c9`, or two such with `-` between them.
fn level_of(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    let number = |text: &str, letter: char, most: u16| {
        let digits = text.strip_prefix(letter).filter(|digits| !digits.starts_with('+'));
        digits.and_then(|digits| digits.parse::<u16>().ok()).filter(|number| *number <= most)
    };
    let category = |text: &str| number(text, 'c', 1023);
    let categories = |text: &str| match text.split_once('.') {
        Some((first, last)) => category(first).zip(category(last)).is_some_and(|(first, last)| first < last),
        None => category(text).is_some(),
    };
    let one = |text: &str| match text.split_once(':') {
        Some((sensitivity, list)) => number(sensitivity, 's', 15).is_some() && list.split(',').all(categories),
        None => number(text, 's', 15).is_some(),
    };
    let fine = text.is_empty() || text.split_once('-').map_or_else(|| one(&text), |(low, high)| one(low) && one(high));
    if fine { Ok(text) } else { Err(at.bad(text, "want a level such as s0 or s0:c1,c2")) }
}

fn seccomp_profile(at: &At<'_>, new: Option<proto::SecurityProfile>, old: String) -> Result<Profile, DecodeError> {
    let profile = profile(at, "seccomp", "seccomp_profile_path", new, old)?;
    if let Profile::Localhost(path) = &profile {
        absolute(&at.field("seccomp").field("localhost_ref"), path.clone())?;
    }
    Ok(profile)
}

fn apparmor_profile(at: &At<'_>, new: Option<proto::SecurityProfile>, old: String) -> Result<Profile, DecodeError> {
    match profile(at, "apparmor", "apparmor_profile", new, old)? {
        Profile::Localhost(name) => {
            let name = name.strip_prefix("localhost/").unwrap_or(&name).to_owned();
            length(&at.field("apparmor").field("localhost_ref"), &name, 1, 1024)?;
            Ok(Profile::Localhost(name))
        }
        profile => Ok(profile),
    }
}

/// The structured field wins over the deprecated text.
fn profile(
    at: &At<'_>,
    new_name: &'static str,
    old_name: &'static str,
    new: Option<proto::SecurityProfile>,
    old: String,
) -> Result<Profile, DecodeError> {
    if let Some(proto::SecurityProfile { profile_type, localhost_ref }) = new {
        let at = at.field(new_name);
        let ref_at = at.field("localhost_ref");
        let kind = known(&at.field("profile_type"), profile_type)?;
        length(&ref_at, &localhost_ref, if kind == ProfileType::Localhost { 1 } else { 0 }, 4095)?;
        no_control(&ref_at, &localhost_ref)?;
        return match kind {
            ProfileType::Localhost => Ok(Profile::Localhost(localhost_ref)),
            _ if !localhost_ref.is_empty() => Err(ref_at.bad(localhost_ref, "goes with profile_type: Localhost only")),
            ProfileType::RuntimeDefault => Ok(Profile::RuntimeDefault),
            ProfileType::Unconfined => Ok(Profile::Unconfined),
        };
    }
    let at = at.field(old_name);
    length(&at, &old, 0, 4095)?;
    no_control(&at, &old)?;
    match old.as_str() {
        "" => Ok(Profile::Unset),
        "runtime/default" | "docker/default" => Ok(Profile::RuntimeDefault),
        "unconfined" => Ok(Profile::Unconfined),
        text => match text.strip_prefix("localhost/") {
            Some(rest) if !rest.is_empty() => Ok(Profile::Localhost(rest.to_owned())),
            _ => Err(at.bad(old, "want runtime/default, unconfined or localhost/NAME")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: At<'static> = At::root("s");

    fn decode(change: impl FnOnce(&mut proto::LinuxContainerSecurityContext)) -> Result<ContainerSecurity, String> {
        let mut from = proto::LinuxContainerSecurityContext::default();
        change(&mut from);
        container_security(&AT, from).map_err(|error| error.field)
    }

    fn id(value: i64) -> Option<proto::Int64Value> {
        Some(proto::Int64Value { value })
    }

    #[test]
    fn capabilities_are_normalised_and_known() {
        for (given, want) in
            [("NET_ADMIN", "CAP_NET_ADMIN"), ("CAP_SYS_TIME", "CAP_SYS_TIME"), ("all", "ALL"), ("cap_bpf", "CAP_BPF")]
        {
            assert_eq!(capability_name(&AT, given.into()).as_deref(), Ok(want));
        }
        for bad in ["", "CAP_", "CAP_ALL", "NET ADMIN", "CAP_CAP_KILL", "SYS_ADMIN\n"] {
            assert!(capability_name(&AT, bad.into()).is_err(), "{bad}");
        }
        let error = decode(|s| {
            s.capabilities =
                Some(proto::Capability { drop_capabilities: vec!["KILL".into(), "X".into()], ..Default::default() });
        });
        assert_eq!(error.unwrap_err(), "s.capabilities.drop_capabilities[1]");
    }

    #[test]
    fn users_and_groups() {
        assert_eq!(decode(|s| s.run_as_user = id(0)).unwrap().run_as_user, Some(0));
        for (bad, field) in [(-1, "s.run_as_user"), (1 << 32, "s.run_as_user"), (u32::MAX.into(), "s.run_as_user")] {
            assert_eq!(decode(|s| s.run_as_user = id(bad)).unwrap_err(), field);
        }
        assert_eq!(decode(|s| s.run_as_group = id(3)).unwrap_err(), "s.run_as_group");
        assert!(decode(|s| (s.run_as_group, s.run_as_username) = (id(3), "nobody".into())).is_ok());
        assert_eq!(decode(|s| s.run_as_username = "a:b".into()).unwrap_err(), "s.run_as_username");
        assert_eq!(decode(|s| s.run_as_username = "a\nroot::0:0".into()).unwrap_err(), "s.run_as_username");
        assert_eq!(decode(|s| s.supplemental_groups = vec![1, -1]).unwrap_err(), "s.supplemental_groups[1]");
        assert_eq!(decode(|s| s.supplemental_groups_policy = 7).unwrap_err(), "s.supplemental_groups_policy");
        let pod = proto::LinuxSandboxSecurityContext { run_as_group: id(3), ..Default::default() };
        assert_eq!(pod_security(&AT, pod).unwrap_err().field, "s.run_as_group");
    }

    #[test]
    fn profiles() {
        let new = |kind: ProfileType, path: &str| {
            Some(proto::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() })
        };
        assert_eq!(decode(|_| {}).unwrap().seccomp, Profile::Unset);
        assert_eq!(
            decode(|s| s.seccomp = new(ProfileType::RuntimeDefault, "")).unwrap().seccomp,
            Profile::RuntimeDefault
        );
        let local = decode(|s| s.seccomp = new(ProfileType::Localhost, "/var/lib/kubelet/seccomp/a.json")).unwrap();
        assert_eq!(local.seccomp, Profile::Localhost("/var/lib/kubelet/seccomp/a.json".into()));
        for bad in [
            new(ProfileType::Localhost, ""),
            new(ProfileType::Localhost, "a.json"),
            new(ProfileType::Localhost, "/a/../b"),
            new(ProfileType::Unconfined, "/a"),
        ] {
            assert_eq!(decode(|s| s.seccomp = bad).unwrap_err(), "s.seccomp.localhost_ref");
        }
        let app = decode(|s| s.apparmor = new(ProfileType::Localhost, "localhost/mine")).unwrap().apparmor;
        assert_eq!(app, Profile::Localhost("mine".into()));
    }

    #[test]
    #[expect(deprecated, reason = "that is what is tested")]
    fn old_profile_texts_count_when_the_new_field_is_missing() {
        let old = |text: &str| decode(|s| s.seccomp_profile_path = text.into()).map(|s| s.seccomp);
        assert_eq!(old("docker/default"), Ok(Profile::RuntimeDefault));
        assert_eq!(old("unconfined"), Ok(Profile::Unconfined));
        assert_eq!(old("localhost//a/b.json"), Ok(Profile::Localhost("/a/b.json".into())));
        assert_eq!(old("whatever").unwrap_err(), "s.seccomp_profile_path");
        assert_eq!(
            decode(|s| s.apparmor_profile = "localhost/x".into()).unwrap().apparmor,
            Profile::Localhost("x".into())
        );
    }

    #[test]
    fn the_root_folder_is_not_masked() {
        assert!(decode(|s| s.masked_paths = vec!["/proc/kcore".into(), "/a/./b".into()]).is_ok());
        for bad in ["/", "//", "/./", ""] {
            assert_eq!(decode(|s| s.masked_paths = vec![bad.into()]).unwrap_err(), "s.masked_paths[0]", "{bad}");
        }
    }

    #[test]
    fn selinux_labels_cannot_smuggle() {
        let option = |level: &str| Some(proto::SeLinuxOption { level: level.into(), ..Default::default() });
        assert!(decode(|s| s.selinux_options = option("s0:c1,c2")).unwrap().selinux.is_some());
        assert_eq!(decode(|s| s.selinux_options = option("")).unwrap().selinux, None);
        for level in ["s0", "s0-s0:c0.c1023", "s0:c1,c3.c5,c9", "s15:c1-s15:c1"] {
            assert!(decode(|s| s.selinux_options = option(level)).is_ok(), "{level}");
        }
        for level in ["s0,c4,c5", "c1", "s16", "s0:", "s0:c1,", "s0:c1024", "s0:c5.c1", "s0:c+1", "s0-", "s0:c1:c2"] {
            let error = decode(|s| s.selinux_options = option(level)).unwrap_err();
            assert_eq!(error, "s.selinux_options.level", "{level}");
        }
        assert_eq!(decode(|s| s.selinux_options = option("s0\n")).unwrap_err(), "s.selinux_options.level");
    }
}
