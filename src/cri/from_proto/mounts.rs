//! Mounts and devices.

use std::path::{Path, PathBuf};

use super::check::{absolute, known, known_chars, length, list, relative_or_empty};
use super::namespaces::id_mappings;
use super::{At, DecodeError, image};
use crate::container::spec::check_mount;
use crate::proto::{self, MountPropagation};
use crate::types::container::{Device, Mount, Propagation};

/// Files in /proc that may be covered: what programs such as lxcfs answer in the kernel's place.
const COVERED: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// One mount.
pub fn mount(at: &At<'_>, from: proto::Mount, handlers: &[&str]) -> Result<Mount, DecodeError> {
    let proto::Mount {
        container_path,
        host_path,
        readonly,
        selinux_relabel,
        propagation,
        uid_mappings,
        gid_mappings,
        recursive_read_only,
        image,
        image_sub_path,
        mount_options,
    } = from;
    let host_at = at.field("host_path");
    let propagation = match known(&at.field("propagation"), propagation)? {
        MountPropagation::PropagationPrivate => Propagation::Private,
        MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let image = image.map(|spec| image::spec(&at.field("image"), spec, handlers)).transpose()?;
    match &image {
        Some(_) if !host_path.is_empty() => return Err(host_at.bad(host_path, "does not go with image")),
        Some(_) if !readonly => return Err(at.field("readonly").bad(readonly, "image volumes are always read-only")),
        Some(_) if propagation == Propagation::Bidirectional => {
            let value = MountPropagation::PropagationBidirectional.as_str_name();
            return Err(at.field("propagation").bad(value, "does not go with image"));
        }
        None if !image_sub_path.is_empty() => {
            return Err(at.field("image_sub_path").bad(image_sub_path, "goes with image only"));
        }
        _ => {}
    }
    let (uid_at, gid_at) = (at.field("uidMappings"), at.field("gidMappings"));
    if uid_mappings.is_empty() != gid_mappings.is_empty() {
        return Err(uid_at.bad(uid_mappings.len(), "mappings need gidMappings beside them, and the other way round"));
    }
    let mount = Mount {
        container_path: outside_proc(
            &at.field("container_path"),
            below_root(&at.field("container_path"), absolute(&at.field("container_path"), container_path)?)?,
            &host_path,
        )?,
        host_path: if image.is_some() { host_path } else { absolute(&host_at, host_path)? },
        readonly,
        recursive_read_only,
        selinux_relabel,
        propagation,
        uid_mappings: id_mappings(&uid_at, uid_mappings)?,
        gid_mappings: id_mappings(&gid_at, gid_mappings)?,
        image: image.map(|image| image.name),
        image_sub_path: relative_or_empty(&at.field("image_sub_path"), image_sub_path)?,
        mount_options: list(&at.field("mount_options"), mount_options, |_, option| Ok(option))?,
    };
    check_mount(&mount).map_err(|unfit| {
        let field = at.field(unfit.field.rsplit('.').next().unwrap_or(unfit.field));
        match unfit.index {
            Some(index) => field.index(index).bad(unfit.value, unfit.reason),
            None => field.bad(unfit.value, unfit.reason),
        }
    })?;
    Ok(mount)
}

/// Nothing may lie over the root folder: that is the image's.
fn below_root(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    let is_root = path.split('/').all(|part| matches!(part, "" | "."));
    if is_root { Err(at.bad(path, "nothing may be mounted over the root folder")) } else { Ok(path) }
}

/// Nothing may lie over /proc: what the runtime writes there must reach the kernel. Its own files are fine.
fn outside_proc(at: &At<'_>, path: String, host_path: &str) -> Result<String, DecodeError> {
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let clean = format!("/{}", parts.join("/"));
    let fine = parts.first() != Some(&"proc")
        || COVERED.contains(&clean.as_str())
        || (clean == "/proc" && host_path.trim_end_matches('/') == "/proc");
    if fine { Ok(path) } else { Err(at.bad(path, "nothing may be mounted over /proc")) }
}

/// One device.
pub fn device(at: &At<'_>, from: proto::Device) -> Result<Device, DecodeError> {
    let proto::Device { container_path, host_path, permissions } = from;
    let permissions_at = at.field("permissions");
    length(&permissions_at, &permissions, 1, 3)?;
    known_chars(&permissions_at, &permissions, |b| b"rwm".contains(&b), "the letters r, w and m")?;
    let mut letters: Vec<u8> = permissions.bytes().collect();
    letters.sort_unstable();
    if letters.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(permissions_at.bad(permissions, "has a letter twice"));
    }
    let host_path = absolute(&at.field("host_path"), host_path)?;
    // A device without a path inside stands where it stands on the host.
    let given = if container_path.is_empty() { host_path.clone() } else { container_path };
    let inside_at = at.field("container_path");
    // Without the slashes and dots that change nothing.
    let inside: PathBuf = Path::new(&absolute(&inside_at, given.clone())?).components().collect();
    match inside.to_str().filter(|inside| *inside != "/") {
        Some(inside) => Ok(Device { container_path: inside.to_owned(), host_path, permissions }),
        None => Err(inside_at.bad(given, "want the path of a device or of a folder of devices")),
    }
}

/// `vendor.com/class=name`.
pub fn cdi_device(at: &At<'_>, from: proto::CdiDevice) -> Result<String, DecodeError> {
    let at = at.field("name");
    length(&at, &from.name, 1, 512)?;
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-:/=".contains(&b);
    known_chars(&at, &from.name, fine, "letters, digits and ._-:/=")?;
    let (kind, device) = from.name.split_once('=').unwrap_or_default();
    let (vendor, class) = kind.split_once('/').unwrap_or_default();
    if [vendor, class, device].iter().all(|part| !part.is_empty()) {
        Ok(from.name)
    } else {
        Err(at.bad(from.name, "want VENDOR/CLASS=NAME"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_the_kernel_s() {
        let covers = |path: &str, host: &str| outside_proc(&At::root("config"), path.to_owned(), host).is_ok();
        for path in ["/proc", "//proc/", "/./proc/self", "/proc/sys/kernel"] {
            assert!(!covers(path, "/data"), "{path}");
        }
        for (path, host) in
            [("/proc/meminfo", "/lxcfs/meminfo"), ("/proc", "/proc/"), ("/host/proc", "/proc"), ("/process", "/data")]
        {
            assert!(covers(path, host), "{path}");
        }
    }

    const AT: At<'static> = At::root("m");

    fn decode(change: impl FnOnce(&mut proto::Mount)) -> Result<Mount, String> {
        let mut from = proto::Mount { container_path: "/data".into(), host_path: "/srv".into(), ..Default::default() };
        change(&mut from);
        mount(&AT, from, &["youki"]).map_err(|error| error.field)
    }

    fn image(name: &str) -> Option<proto::ImageSpec> {
        Some(proto::ImageSpec { image: name.into(), ..Default::default() })
    }

    #[test]
    fn host_mounts() {
        assert!(decode(|_| {}).is_ok());
        let refused = |change: fn(&mut proto::Mount), field: &str| assert_eq!(decode(change).unwrap_err(), field);
        refused(|m| m.container_path = "data".into(), "m.container_path");
        refused(|m| m.container_path = "/data/../etc".into(), "m.container_path");
        refused(|m| m.container_path = String::new(), "m.container_path");
        refused(|m| m.container_path = "/".into(), "m.container_path");
        refused(|m| m.container_path = "//./".into(), "m.container_path");
        refused(|m| m.host_path = String::new(), "m.host_path");
        refused(|m| m.host_path = "srv".into(), "m.host_path");
        refused(|m| m.propagation = 3, "m.propagation");
        refused(|m| m.recursive_read_only = true, "m.recursive_read_only");
        refused(|m| (m.recursive_read_only, m.readonly, m.propagation) = (true, true, 1), "m.recursive_read_only");
        refused(|m| (m.recursive_read_only, m.readonly, m.propagation) = (true, true, 2), "m.recursive_read_only");
        refused(|m| m.image_sub_path = "a".into(), "m.image_sub_path");
        refused(|m| m.mount_options = vec!["noexec".into(), "remount".into()], "m.mount_options[1]");
        refused(|m| m.uid_mappings = vec![proto::IdMapping { length: 1, ..Default::default() }], "m.uidMappings");
        assert!(decode(|m| (m.recursive_read_only, m.readonly) = (true, true)).is_ok());
    }

    #[test]
    fn image_volumes() {
        let of_image = |change: fn(&mut proto::Mount)| {
            decode(|m| {
                (m.host_path, m.readonly, m.image) = (String::new(), true, image("busybox"));
                change(m);
            })
        };
        assert_eq!(of_image(|m| m.image_sub_path = "etc".into()).unwrap().image.as_deref(), Some("busybox"));
        let refused = |change: fn(&mut proto::Mount), field: &str| assert_eq!(of_image(change).unwrap_err(), field);
        refused(|m| m.readonly = false, "m.readonly");
        refused(|m| m.host_path = "/srv".into(), "m.host_path");
        refused(|m| m.image = image(""), "m.image.image");
        refused(|m| m.image_sub_path = "../etc".into(), "m.image_sub_path");
        refused(|m| m.image_sub_path = "/etc".into(), "m.image_sub_path");
        refused(|m| m.propagation = 2, "m.propagation");
    }

    #[test]
    fn devices() {
        let decode = |container: &str, host: &str, permissions: &str| {
            let from = proto::Device {
                container_path: container.into(),
                host_path: host.into(),
                permissions: permissions.into(),
            };
            device(&AT, from).map_err(|error| error.field)
        };
        assert!(decode("/dev/x", "/dev/null", "mrw").is_ok());
        assert_eq!(decode("", "/dev/null", "r").unwrap().container_path, "/dev/null");
        assert_eq!(decode("/dev/x", "/dev/null", "").unwrap_err(), "m.permissions");
        assert_eq!(decode("/dev/x", "/dev/null", "rx").unwrap_err(), "m.permissions");
        assert_eq!(decode("/dev/x", "/dev/null", "rr").unwrap_err(), "m.permissions");
        assert_eq!(decode("//dev//./x/", "/dev/null", "r").unwrap().container_path, "/dev/x");
        assert_eq!(decode("/opt/./x", "/dev/null", "r").unwrap().container_path, "/opt/x");
        for path in ["dev/x", "////", "/dev/../etc/x"] {
            assert_eq!(decode(path, "/dev/null", "r").unwrap_err(), "m.container_path");
        }
        assert_eq!(decode("/dev/x", "", "r").unwrap_err(), "m.host_path");
    }

    #[test]
    fn cdi_names() {
        let decode = |name: &str| cdi_device(&AT, proto::CdiDevice { name: name.into() });
        assert!(decode("vendor.com/gpu=0").is_ok());
        for bad in ["", "gpu", "vendor.com/gpu", "/gpu=0", "vendor.com/=0", "vendor.com/gpu=", "v/c=\n"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
