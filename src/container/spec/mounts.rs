//! The spec's mounts: the runtime's own first, then those asked for.

use std::path::Path;

use serde_json::{Value, json};

use super::{Inputs, SpecError};
use crate::container::devices::Node;
use crate::container::edits::EditMount;
use crate::types::container::{Mount, Propagation};
use crate::wire::{IdMaps, ImageTree, StagedMount, StagedPropagation, triples};

/// Mount options that a client may add to a bind mount (CRI 0.37, `Mount.mount_options`).
const EXTRA_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// The pod's shared memory.
const SHM: &str = "/dev/shm";

/// Mount options that are the staging's to carry out.
const PROPAGATION: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];

/// What is wrong with a mount by itself, whatever container it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// CRI field path in a container's request.
    pub field: &'static str,
    /// Which entry, where the field is a list.
    pub index: Option<usize>,
    /// What stands there.
    pub value: String,
    /// What is wanted.
    pub reason: &'static str,
}

/// Checks what a mount says of itself.
///
/// # Errors
/// The first field that does not go with the others, or has a value that is not taken.
pub fn check(mount: &Mount) -> Result<(), Unfit> {
    let unfit = |index, field, value: String, reason| Err(Unfit { field, index, value, reason });
    if mount.recursive_read_only {
        let field = "config.mounts.recursive_read_only";
        if !mount.readonly {
            return unfit(None, field, true.to_string(), "needs readonly, too");
        }
        if mount.propagation != Propagation::Private {
            return unfit(None, field, true.to_string(), "needs private propagation");
        }
    }
    match mount.mount_options.iter().enumerate().find(|(_, option)| !EXTRA_OPTIONS.contains(&option.as_str())) {
        Some((index, option)) => {
            let field = "config.mounts.mount_options";
            unfit(Some(index), field, option.clone(), "want one of noexec, nodev, nosuid")
        }
        None => Ok(()),
    }
}

pub(super) struct Mounts {
    pub(super) list: Vec<Value>,
    pub(super) staged: Vec<StagedMount>,
    pub(super) root_propagation: Option<&'static str>,
}

pub(super) fn build(inputs: &Inputs<'_>) -> Result<Mounts, SpecError> {
    let mut asked: Vec<&Mount> = inputs.config.mounts.iter().collect();
    // Parents before children, so that none hides another; equal depth keeps its order.
    asked.sort_by_key(|mount| mount.container_path.split('/').filter(|part| !part.is_empty()).count());
    let takes = |place: &Path| asked.iter().any(|mount| Path::new(&mount.container_path) == place);
    let taken = |place: &str| {
        let place = Path::new(place);
        // Of what a /sys or a /dev of the client's would cover, only the pod's shared memory is wanted still.
        let hidden = ["/sys", "/sys/fs", "/dev"].iter().map(Path::new).any(|top| place.starts_with(top) && takes(top));
        takes(place) || (hidden && place != Path::new(SHM))
    };
    let mut list: Vec<Value> =
        own(inputs).into_iter().filter(|mount| !taken(mount["destination"].as_str().unwrap_or(""))).collect();

    let mut staged = Vec::new();
    for (index, mount) in asked.iter().enumerate() {
        let pods = inputs.pod.security.namespaces.user.as_ref();
        if pods.is_some() && mount.propagation == Propagation::Bidirectional {
            let reason = "out of a user namespace no mount can reach the host";
            return Err(refuse("config.mounts.propagation", mount, reason));
        }
        let mapped = !mount.uid_mappings.is_empty();
        let own_maps =
            mapped.then(|| IdMaps { uids: triples(&mount.uid_mappings), gids: triples(&mount.gid_mappings) });
        check(mount).map_err(|unfit| refuse(unfit.field, mount, unfit.reason))?;
        let image = match &mount.image {
            None => None,
            Some(name) => Some(image_tree(inputs, mount, name)?),
        };
        // Private ones, too: libcontainer would leave them the host's slaves. No runtime knows of images, not every one
        // of mapped owners, and one that does not would say nothing. All else in the runtime's mount namespace is the
        // host's slave, and nothing would come out of there.
        let both_ways = mount.propagation == Propagation::Bidirectional;
        let stage = inputs.built_in || image.is_some() || mapped || both_ways;
        let source = if stage {
            let place = inputs.staging.join(index.to_string());
            staged.push(StagedMount {
                source: mount.host_path.clone().into(),
                staged: place.clone(),
                propagation: match mount.propagation {
                    Propagation::Private => StagedPropagation::Private,
                    Propagation::HostToContainer => StagedPropagation::Slave,
                    Propagation::Bidirectional => StagedPropagation::Shared,
                },
                // Images belong to the users that they name inside, as the root file system does.
                idmap: own_maps.or_else(|| pods.filter(|_| image.is_some()).map(IdMaps::from)),
                image,
            });
            place
        } else {
            mount.host_path.clone().into()
        };
        let mut options = vec!["rbind"];
        options.push(match mount.propagation {
            Propagation::Bidirectional if !inputs.built_in => "rshared",
            _ if stage => "rbind",
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        });
        options.dedup();
        options.push(match (mount.recursive_read_only, mount.readonly) {
            (true, _) => "rro",
            (_, true) => "ro",
            _ => "rw",
        });
        options.extend(mount.mount_options.iter().map(String::as_str));
        let entry =
            json!({ "destination": mount.container_path, "type": "bind", "source": source, "options": options });
        list.push(entry);
    }
    for (index, mount) in inputs.edits.mounts.iter().enumerate() {
        list.retain(|known| known["destination"] != json!(mount.destination));
        list.push(edit(inputs, mount, index, &mut staged));
    }
    // A /dev of the client's, or of a device, comes before what goes into it.
    let is_dev =
        |mount: &Value| mount["destination"].as_str().is_some_and(|place| Path::new(place) == Path::new("/dev"));
    let in_dev =
        |mount: &Value| mount["destination"].as_str().is_some_and(|place| Path::new(place).starts_with("/dev"));
    if let (Some(first), Some(dev)) = (list.iter().position(in_dev), list.iter().position(is_dev))
        && let Some(part) = list.get_mut(first..=dev)
    {
        part.rotate_right(1);
    }
    let any = |wanted| asked.iter().any(|mount| mount.propagation == wanted);
    let root_propagation = if any(Propagation::Bidirectional) {
        Some("shared")
    } else if any(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    };
    Ok(Mounts { list, staged, root_propagation })
}

fn image_tree(inputs: &Inputs<'_>, mount: &Mount, name: &str) -> Result<ImageTree, SpecError> {
    let lower = inputs.volumes.get(name).cloned();
    let lower = lower.ok_or_else(|| refuse("config.mounts.image", mount, "the image is not here"))?;
    Ok(ImageTree { name: name.to_owned(), lower, sub_path: mount.image_sub_path.clone().into() })
}

/// Devices outside /dev are made in the root file system, before anything is mounted: what is mounted there would hide
/// them, or lie on them.
pub(super) fn keep_clear(nodes: &[Node], mounts: &[Value]) -> Result<(), SpecError> {
    let places = || mounts.iter().filter_map(|mount| mount["destination"].as_str().map(Path::new));
    for path in nodes.iter().filter_map(|node| node.device["path"].as_str().map(Path::new)) {
        if path == Path::new("/dev") {
            return Err(SpecError {
                field: "config.devices.container_path",
                value: "/dev".to_owned(),
                reason: "that is the folder of all devices",
            });
        }
        let meets = |place: &Path| path.starts_with(place) || place.starts_with(path);
        if !path.starts_with("/dev") && places().any(meets) {
            return Err(SpecError {
                field: "config.devices.container_path",
                value: path.display().to_string().chars().take(300).collect(),
                reason: "a mount is in its place, or around it, or below it; only /dev has room for both",
            });
        }
    }
    Ok(())
}

/// A mount of a CDI device.
fn edit(inputs: &Inputs<'_>, mount: &EditMount, index: usize, staged: &mut Vec<StagedMount>) -> Value {
    let has = |names: &[&str]| mount.options.iter().any(|option| names.contains(&option.as_str()));
    let EditMount { source, destination, kind, options } = mount;
    if !mount.is_bind() {
        return json!({ "destination": destination, "type": kind, "source": source, "options": options });
    }
    let mut options = options.clone();
    if !has(&["bind", "rbind"]) {
        options.push("rbind".to_owned());
    }
    if !inputs.built_in {
        return json!({ "destination": destination, "type": "bind", "source": source, "options": options });
    }
    let propagation = match () {
        () if has(&["rshared", "shared"]) => StagedPropagation::Shared,
        () if has(&["rslave", "slave"]) => StagedPropagation::Slave,
        () => StagedPropagation::Private,
    };
    options.retain(|option| !PROPAGATION.contains(&option.as_str()));
    let place = inputs.staging.join(format!("cdi-{index}"));
    staged.push(StagedMount { source: source.into(), staged: place.clone(), propagation, idmap: None, image: None });
    json!({ "destination": destination, "type": "bind", "source": place, "options": options })
}

/// What every container gets, in the order and with the options that images are used to.
fn own(inputs: &Inputs<'_>) -> Vec<Value> {
    let privileged = inputs.config.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let files = if inputs.config.security.readonly_rootfs { "ro" } else { "rw" };
    let places = inputs.places;
    let bind = |destination: &str, source: &std::path::Path, mode: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode] });
    let mut list = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", access] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", access] }),
        bind(SHM, &places.shm, "rw"),
        bind("/etc/resolv.conf", &places.resolv_conf, files),
        bind("/etc/hosts", &places.hosts, files),
    ];
    if let Some(hostname) = &places.hostname {
        list.push(bind("/etc/hostname", hostname, files));
    }
    list
}

fn refuse(field: &'static str, mount: &Mount, reason: &'static str) -> SpecError {
    SpecError { field, value: mount.container_path.chars().take(300).collect(), reason }
}
