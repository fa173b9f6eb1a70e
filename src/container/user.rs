//! Who a container's first process is: CRI's wishes and the image's passwd and group files. Pure.

use crate::container::view::User;
use crate::types::container::ContainerSecurity;
use crate::types::pod::GroupsPolicy;

/// Highest id taken: the kernel's and CRI's limit, and what keeps `2^32` from wrapping to root.
const MAX_ID: i64 = i32::MAX as i64;
/// Most supplementary groups the kernel takes (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// Result of the lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Ids.
    pub user: User,
    /// Home folder, for HOME; `None`: not in passwd.
    pub home: Option<String>,
}

/// The user cannot be found or is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not in passwd.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    /// Not in group.
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
    /// Out of range.
    #[error("{what} {value} is out of range: want 0 to {MAX_ID}")]
    Range {
        /// Which number.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// CRI: "run_as_group should only be specified when run_as_user or run_as_username is specified".
    #[error("run_as_group {0} is given without run_as_user or run_as_username")]
    GroupWithoutUser(i64),
    /// More than the kernel takes.
    #[error("more than {MAX_GROUPS} supplementary groups")]
    TooManyGroups,
}

/// Looks up ids. `image_user` is the image's `USER` (`user[:group]`, names or numbers).
pub fn resolve(
    security: &ContainerSecurity,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<Resolved, UserError> {
    let asked_user = match (security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => Some(check("run_as_user", uid)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    if let (None, Some(gid)) = (&asked_user, security.run_as_group) {
        return Err(UserError::GroupWithoutUser(gid));
    }
    let (user, mut group_name) = match &asked_user {
        Some(user) => (user.as_str(), None),
        None => match image_user.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (image_user, None),
        },
    };
    let user = if user.is_empty() { "0" } else { user };
    // Whoever checks that a container does not run as root would read a number here, while the image's
    // passwd could make root of it.
    if looks_like_number(user) && !digits(user) {
        return Err(UserError::Range { what: "uid", value: user.chars().take(40).collect() });
    }
    let entry = find_user(user, passwd);
    let uid = match (&entry, number(user)) {
        (Some(entry), _) => check("uid", entry.uid)?,
        (None, Some(uid)) => check("uid", uid)?,
        (None, None) if digits(user) => return Err(UserError::Range { what: "uid", value: user.to_owned() }),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let asked_group =
        security.run_as_group.map(|gid| check("run_as_group", gid)).transpose()?.map(|gid| gid.to_string());
    if let Some(asked) = &asked_group {
        group_name = Some(asked);
    }
    let gid = match group_name {
        Some(name) => find_group(name, group)?,
        None => entry.as_ref().map_or(Ok(0), |entry| check("gid", entry.gid))?,
    };
    let mut groups = vec![gid];
    if security.groups_policy == GroupsPolicy::Merge {
        let name = entry.as_ref().map(|entry| entry.name);
        groups.extend(name.into_iter().flat_map(|name| memberships(name, group)));
    }
    for wanted in &security.supplemental_groups {
        groups.push(check("supplemental_groups", *wanted)?);
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups);
    }
    let home = entry
        .map(|entry| entry.home.to_owned())
        .filter(|home| home.starts_with('/') && !home.chars().any(char::is_control));
    Ok(Resolved { user: User { uid, gid, groups }, home })
}

/// Signed, or in another base than ten.
fn looks_like_number(user: &str) -> bool {
    let bytes = user.as_bytes();
    bytes.starts_with(b"-")
        || bytes.starts_with(b"+")
        || matches!(bytes, [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', ..])
}

struct Entry<'a> {
    name: &'a str,
    uid: i64,
    gid: i64,
    home: &'a str,
}

fn find_user<'a>(user: &str, passwd: &'a str) -> Option<Entry<'a>> {
    let entries = || {
        passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or("") })
        })
    };
    // A number is always the uid, never a name made of digits: otherwise an image could alias a
    // harmless-looking number to root (CVE-2024-40635 and its kin).
    match number(user) {
        Some(uid) => entries().find(|entry| entry.uid == uid),
        None if digits(user) => None,
        None => entries().find(|entry| entry.name == user),
    }
}

fn find_group(group: &str, file: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(group) {
        return check("gid", gid);
    }
    if digits(group) {
        return Err(UserError::Range { what: "gid", value: group.to_owned() });
    }
    let found = lines(file).find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid);
    check("gid", found.ok_or_else(|| UserError::NoGroup(group.to_owned()))?)
}

fn memberships<'a>(user: &'a str, file: &'a str) -> impl Iterator<Item = u32> + 'a {
    lines(file)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .filter_map(|(_, gid, _)| check("gid", gid).ok())
}

fn lines(file: &str) -> impl Iterator<Item = (&str, i64, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn number(text: &str) -> Option<i64> {
    digits(text).then(|| text.parse().ok()).flatten()
}

fn check(what: &'static str, value: i64) -> Result<u32, UserError> {
    u32::try_from(value)
        .ok()
        .filter(|_| value <= MAX_ID)
        .ok_or_else(|| UserError::Range { what, value: value.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/sh\n\nbroken\nevil:x:4294967296:0::/:\n4000:x:0:0::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nextra:x:50:www,other\nmore:x:51:other\n";

    fn ids(security: ContainerSecurity, image: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(&security, image, PASSWD, GROUP).map(|r| (r.user.uid, r.user.gid, r.user.groups))
    }

    #[test]
    fn image_users_of_every_form() {
        let plain = ContainerSecurity::default;
        assert_eq!(ids(plain(), ""), Ok((0, 0, vec![0])));
        assert_eq!(ids(plain(), "www"), Ok((33, 34, vec![34, 50])));
        assert_eq!(ids(plain(), "33"), Ok((33, 34, vec![34, 50])));
        assert_eq!(ids(plain(), "1002"), Ok((1002, 0, vec![0])));
        assert_eq!(ids(plain(), "1003:1004"), Ok((1003, 1004, vec![1004])));
        assert_eq!(ids(plain(), "www:more"), Ok((33, 51, vec![50, 51])));
    }

    #[test]
    fn odd_numbers_are_no_names() {
        for user in ["-1", "+0", "0x0", "0b0", "0o17", "-", "-1:0"] {
            let name = user.split(':').next().unwrap();
            let passwd = format!("root:x:0:0::/:\n{name}:x:0:0::/:\n");
            let found = resolve(&ContainerSecurity::default(), user, &passwd, GROUP);
            assert!(matches!(found, Err(UserError::Range { .. })), "{user}: {found:?}");
        }
    }

    #[test]
    fn requests_win_and_policies_hold() {
        let by = |uid, gid, policy| ContainerSecurity {
            run_as_user: uid,
            run_as_group: gid,
            supplemental_groups: vec![7],
            groups_policy: policy,
            ..Default::default()
        };
        assert_eq!(ids(by(Some(33), None, GroupsPolicy::Merge), "root"), Ok((33, 34, vec![7, 34, 50])));
        assert_eq!(ids(by(Some(33), Some(9), GroupsPolicy::Strict), "root"), Ok((33, 9, vec![7, 9])));
        assert_eq!(ids(by(None, Some(9), GroupsPolicy::Merge), "www"), Err(UserError::GroupWithoutUser(9)));
    }

    #[test]
    fn numbers_never_become_root_by_wrapping_or_by_alias() {
        let plain = ContainerSecurity::default;
        for image in ["2147483648", "4294967296", "18446744073709551616", "evil", "www:4294967296"] {
            assert!(matches!(ids(plain(), image), Err(UserError::Range { .. })), "{image}");
        }
        assert_eq!(ids(plain(), "4000"), Ok((4000, 0, vec![0])));
        assert_eq!(ids(plain(), "nobody"), Err(UserError::NoUser("nobody".into())));
        let negative = ContainerSecurity { run_as_user: Some(-1), ..Default::default() };
        assert!(ids(negative, "").is_err());
    }
}
