//! Namespaces and id mappings.

use super::check::{count, known, list};
use super::{At, DecodeError, check};
use crate::proto;
use crate::types::pod::{IdMapping, NamespaceMode, Namespaces, UserNamespace};

/// Who asks: a sandbox has no target container yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// RunPodSandbox.
    Sandbox,
    /// CreateContainer.
    Container,
}

/// Namespace choices.
pub fn namespaces(at: &At<'_>, from: proto::NamespaceOption, whose: Whose) -> Result<Namespaces, DecodeError> {
    use NamespaceMode::{Container, Node, Pod, Target};
    let proto::NamespaceOption { network, pid, ipc, target_id, userns_options } = from;
    let target_at = at.field("target_id");
    check::length(&target_at, &target_id, 0, 128)?;
    check::no_control(&target_at, &target_id)?;
    let pids: &[NamespaceMode] = match whose {
        Whose::Sandbox => &[Pod, Container, Node],
        Whose::Container => &[Pod, Container, Node, Target],
    };
    let pid = mode(&at.field("pid"), pid, pids)?;
    if pid == Target && target_id.is_empty() {
        return Err(target_at.bad("", "is empty, which does not go with pid: TARGET"));
    }
    if pid != Target && !target_id.is_empty() {
        return Err(target_at.bad(target_id, "goes with pid: TARGET only"));
    }
    // A message that is not there is not one with mode: NODE.
    let said = userns_options.is_some();
    let user = userns_options.map(|options| user(&at.field("userns_options"), options)).transpose()?.flatten();
    Ok(Namespaces {
        network: mode(&at.field("network"), network, &[Pod, Node])?,
        pid,
        ipc: mode(&at.field("ipc"), ipc, &[Pod, Node])?,
        target_id,
        host_user: said && user.is_none(),
        user,
    })
}

fn mode(at: &At<'_>, value: i32, fine: &[NamespaceMode]) -> Result<NamespaceMode, DecodeError> {
    let proto_mode: proto::NamespaceMode = known(at, value)?;
    let mode = match proto_mode {
        proto::NamespaceMode::Pod => NamespaceMode::Pod,
        proto::NamespaceMode::Container => NamespaceMode::Container,
        proto::NamespaceMode::Node => NamespaceMode::Node,
        proto::NamespaceMode::Target => NamespaceMode::Target,
    };
    if fine.contains(&mode) { Ok(mode) } else { Err(at.bad(proto_mode.as_str_name(), "is no mode of this namespace")) }
}

/// One mapping of each kind, with root inside mapped: all that the kubelet ever asks for.
fn user(at: &At<'_>, from: proto::UserNamespace) -> Result<Option<UserNamespace>, DecodeError> {
    let proto::UserNamespace { mode: raw, uids, gids } = from;
    let (uids_at, gids_at) = (at.field("uids"), at.field("gids"));
    if mode(&at.field("mode"), raw, &[NamespaceMode::Pod, NamespaceMode::Node])? == NamespaceMode::Node {
        return match (uids.len(), gids.len()) {
            (0, 0) => Ok(None),
            (0, n) => Err(gids_at.bad(n, "mappings do not go with mode: NODE")),
            (n, _) => Err(uids_at.bad(n, "mappings do not go with mode: NODE")),
        };
    }
    let one = |at: &At<'_>, from: Vec<proto::IdMapping>| {
        if from.len() != 1 {
            return Err(at.bad(from.len(), "mappings given, exactly one is supported"));
        }
        let mappings = id_mappings(at, from)?;
        match mappings.iter().find(|mapping| mapping.container_id != 0) {
            Some(mapping) => Err(at.index(0).field("container_id").bad(mapping.container_id, "0 must be mapped")),
            None => Ok(mappings),
        }
    };
    Ok(Some(UserNamespace { uids: one(&uids_at, uids)?, gids: one(&gids_at, gids)? }))
}

/// Ranges that end within 32 bits and do not overlap.
pub fn id_mappings(at: &At<'_>, from: Vec<proto::IdMapping>) -> Result<Vec<IdMapping>, DecodeError> {
    // The kernel's own limit on lines of a uid_map.
    if from.len() > 340 {
        return Err(at.bad(from.len(), "want at most 340 mappings"));
    }
    count(at, from.len())?;
    let mappings = list(at, from, |at, proto::IdMapping { host_id, container_id, length }| {
        let fits = |first: u32| length > 0 && first.checked_add(length - 1).is_some_and(|last| last < u32::MAX);
        if !fits(host_id) || !fits(container_id) {
            return Err(at.field("length").bad(length, "want at least 1, and ids below 4294967295"));
        }
        Ok(IdMapping { host_id, container_id, length })
    })?;
    let overlap = |start: fn(&IdMapping) -> u32| {
        mappings.iter().enumerate().find_map(|(index, a)| {
            let clash = mappings[..index].iter().any(|b| {
                u64::from(start(a)) < u64::from(start(b)) + u64::from(b.length)
                    && u64::from(start(b)) < u64::from(start(a)) + u64::from(a.length)
            });
            clash.then_some(index)
        })
    };
    match overlap(|m| m.container_id).or_else(|| overlap(|m| m.host_id)) {
        Some(index) => Err(at.index(index).bad(index, "overlaps an earlier mapping")),
        None => Ok(mappings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::NamespaceMode as Mode;

    const AT: At<'static> = At::root("n");

    fn option(network: Mode, pid: Mode, ipc: Mode, target: &str) -> proto::NamespaceOption {
        proto::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            target_id: target.into(),
            userns_options: None,
        }
    }

    #[test]
    fn modes() {
        let take = |from, whose| namespaces(&AT, from, whose).map_err(|error| error.field);
        assert!(take(option(Mode::Node, Mode::Node, Mode::Node, ""), Whose::Sandbox).is_ok());
        assert!(take(option(Mode::Pod, Mode::Target, Mode::Pod, "abc"), Whose::Container).is_ok());
        for (from, whose, field) in [
            (option(Mode::Container, Mode::Pod, Mode::Pod, ""), Whose::Sandbox, "n.network"),
            (option(Mode::Pod, Mode::Pod, Mode::Target, ""), Whose::Sandbox, "n.ipc"),
            (option(Mode::Pod, Mode::Target, Mode::Pod, "abc"), Whose::Sandbox, "n.pid"),
            (option(Mode::Pod, Mode::Target, Mode::Pod, ""), Whose::Container, "n.target_id"),
            (option(Mode::Pod, Mode::Pod, Mode::Pod, "abc"), Whose::Container, "n.target_id"),
        ] {
            assert_eq!(take(from, whose).unwrap_err(), field);
        }
        let unknown = proto::NamespaceOption { pid: 9, ..Default::default() };
        assert_eq!(take(unknown, Whose::Sandbox).unwrap_err(), "n.pid");
    }

    #[test]
    fn user_namespaces() {
        let map = |container_id, length| proto::IdMapping { host_id: 65_536, container_id, length };
        let take = |mode: Mode, uids: Vec<proto::IdMapping>, gids: Vec<proto::IdMapping>| {
            user(&AT, proto::UserNamespace { mode: mode.into(), uids, gids }).map_err(|error| error.field)
        };
        assert!(take(Mode::Pod, vec![map(0, 65_536)], vec![map(0, 65_536)]).unwrap().is_some());
        assert_eq!(take(Mode::Node, vec![], vec![]), Ok(None));
        assert_eq!(take(Mode::Node, vec![map(0, 1)], vec![]).unwrap_err(), "n.uids");
        assert_eq!(take(Mode::Container, vec![], vec![]).unwrap_err(), "n.mode");
        assert_eq!(take(Mode::Target, vec![], vec![]).unwrap_err(), "n.mode");
        assert_eq!(take(Mode::Pod, vec![], vec![]).unwrap_err(), "n.uids");
        assert_eq!(take(Mode::Pod, vec![map(0, 1), map(1, 1)], vec![]).unwrap_err(), "n.uids");
        assert_eq!(take(Mode::Pod, vec![map(1, 1)], vec![map(0, 1)]).unwrap_err(), "n.uids[0].container_id");
        assert_eq!(take(Mode::Pod, vec![map(0, 0)], vec![map(0, 1)]).unwrap_err(), "n.uids[0].length");
        assert_eq!(take(Mode::Pod, vec![map(0, u32::MAX)], vec![map(0, 1)]).unwrap_err(), "n.uids[0].length");
    }

    #[test]
    fn the_host_s_user_namespace_by_name_is_not_nothing() {
        let node = proto::UserNamespace { mode: Mode::Node.into(), ..Default::default() };
        let take = |userns_options| {
            let from = proto::NamespaceOption { userns_options, ..Default::default() };
            let taken = namespaces(&AT, from, Whose::Container).unwrap();
            (taken.user, taken.host_user)
        };
        assert_eq!((take(Some(node)), take(None)), ((None, true), (None, false)));
    }

    #[test]
    fn overlaps() {
        let map = |container_id, host_id, length| proto::IdMapping { host_id, container_id, length };
        assert!(id_mappings(&AT, vec![map(0, 100, 10), map(10, 200, 10)]).is_ok());
        assert!(id_mappings(&AT, vec![map(0, 100, 10), map(9, 200, 10)]).is_err());
        assert!(id_mappings(&AT, vec![map(0, 100, 10), map(10, 109, 10)]).is_err());
    }
}
