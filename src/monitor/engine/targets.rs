//! What a container's mounts are mounted on, made for the root of its user namespace: libcontainer would make it as
//! the host's root, whose files nobody inside may touch. And why it cannot be, where it cannot.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde_json::Value;

use super::{attempt, rootfs};
use crate::types::ErrorKind;
use crate::wire::{CreateSpec, Failure, StagedMount};

/// Where the runtime's own file systems are: what lies in them belongs to the right users already.
const OWN: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Files of the pod that every container gets.
const FILES: [&str; 4] = ["/dev/shm", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];
/// Devices that every container gets in /dev.
const DEVICES: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "console"];

/// A mount of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    place: PathBuf,
    /// Type of the file system; `bind`, too.
    kind: String,
    /// Of a bind mount.
    source: Option<PathBuf>,
    writable: bool,
}

/// The mounts of a spec.
pub(super) fn of(config: &Value) -> Vec<Target> {
    let mounts = config.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let target = |mount: &Value| {
        let is_bind = mount["type"] == "bind";
        let options = mount["options"].as_array().into_iter().flatten();
        Some(Target {
            place: mount["destination"].as_str()?.into(),
            kind: mount["type"].as_str().unwrap_or_default().to_owned(),
            source: mount["source"].as_str().filter(|_| is_bind).map(PathBuf::from),
            writable: !options.into_iter().any(|option| option == "ro" || option == "rro"),
        })
    };
    mounts.filter_map(target).collect()
}

/// Whether an image's /dev is the container's own: libcontainer reaches it by its name as the host sees it.
fn check_dev(mountpoint: &Path) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = attempt(rustix::fs::open(mountpoint, flags, Mode::empty()), || format!("opening {mountpoint:?}"))?;
    match rustix::fs::statat(&root, "dev", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if !FileType::from_raw_mode(found.st_mode).is_dir() => {
            let reason = "the image's /dev is no folder but a file or a link: no container can be made of it";
            Err(super::failure(ErrorKind::InvalidArgument, reason))
        }
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => attempt(Err(error), || "looking at the image's /dev".to_owned()),
    }
}

/// Makes them where they are missing, in the root file system, or in the volume that they lie in.
pub(super) fn make(targets: &[Target], spec: &CreateSpec, owner: (u32, u32)) -> Result<(), Failure> {
    check_dev(&spec.rootfs.mountpoint)?;
    let in_own = |place: &Path| OWN.iter().any(|own| place.starts_with(own) && place != Path::new(own));
    for target in targets.iter().filter(|target| !in_own(&target.place)) {
        let made = match around(targets, &target.place) {
            None => make_in(&spec.rootfs.mountpoint, &target.place, target, owner),
            // In an idmapped volume root's files are those of root on the disk.
            Some(around) => match spec.mounts.iter().find(|mount| Some(&mount.staged) == around.source.as_ref()) {
                Some(volume) if around.writable && volume.image.is_none() && volume.source.is_dir() => {
                    let owner = if volume.idmap.is_some() { (0, 0) } else { owner };
                    let inside = target.place.strip_prefix(&around.place).unwrap_or(&target.place);
                    make_in(&volume.source, &Path::new("/").join(inside), target, owner)
                }
                _ => Ok(()),
            },
        };
        attempt(made, || format!("making {:?} in the container", target.place))?;
    }
    Ok(())
}

/// The innermost mount that a place lies in.
fn around<'a>(targets: &'a [Target], place: &Path) -> Option<&'a Target> {
    let above = |other: &&Target| place != other.place && place.starts_with(&other.place);
    targets.iter().filter(above).max_by_key(|other| other.place.components().count())
}

/// Where mounts go in a root file system that is complete and has nothing mounted in it yet: nothing may lie over the
/// root, or by a link over /dev, which is reached by its name. The places of bind mounts that lead through others are
/// given back: what lies in those may change at any time, and a way through them is safe in the container alone.
pub(super) fn settle(targets: &[Target], mountpoint: &Path) -> Result<Vec<PathBuf>, Failure> {
    let invalid = |reason: String| Err(super::failure(ErrorKind::InvalidArgument, reason));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = attempt(rustix::fs::open(mountpoint, flags, Mode::empty()), || format!("opening {mountpoint:?}"))?;
    let (mut before, mut led): (Vec<PathBuf>, _) = (OWN.iter().map(PathBuf::from).collect(), Vec::new());
    for Target { place, source, .. } in targets {
        let is_own = OWN.iter().any(|own| place == Path::new(own));
        if !is_own && OWN.iter().any(|own| place.starts_with(own)) {
            continue;
        }
        let real = real(&root, place);
        match &real {
            Some(real) if real == Path::new("/") => {
                return invalid(format!("config.mounts.container_path {place:?}: that is the container's root folder"));
            }
            Some(real) if !is_own && (real == Path::new("/dev") || real.starts_with("/proc")) => {
                return invalid(format!("config.mounts.container_path {place:?}: by links it leads to {real:?}"));
            }
            _ => {}
        }
        let through = |place: &Path| before.iter().any(|other| place.starts_with(other));
        let unknown = real.is_none() && !FILES.iter().any(|file| place == Path::new(file));
        if !is_own && source.is_some() && (unknown || through(place) || real.as_deref().is_some_and(through)) {
            led.push(place.clone());
        }
        before.push(place.clone());
        before.extend(real);
    }
    Ok(led)
}

/// What a path is without links in a root file system; `None`: nothing is there.
fn real(root: &OwnedFd, place: &Path) -> Option<PathBuf> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    let name = |file: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
    Some(Path::new("/").join(name(&found)?.strip_prefix(name(root)?).ok()?))
}

/// For a container that could not be made: if what was asked of it does not go with what is in it, that is why, and
/// not a fault of this node's. `cwd`: its working directory.
pub(super) fn blame(targets: &[Target], spec: &CreateSpec, cwd: &Path, failure: Failure) -> Failure {
    if !matches!(failure.kind, ErrorKind::Internal | ErrorKind::InvalidArgument | ErrorKind::NotFound) {
        return failure;
    }
    let mount = targets.iter().find_map(|target| impossible(targets, spec, target));
    let reason = mount.or_else(|| match look(targets, spec, cwd) {
        Ok(found) if found.is_dir() => None,
        Ok(_) | Err(Errno::NOTDIR) => {
            let text = format!("config.working_dir (or the image's): {cwd:?} is no folder in the container");
            Some((ErrorKind::InvalidArgument, text))
        }
        Err(_) => None,
    });
    match reason {
        Some((kind, reason)) => super::failure(kind, format!("{reason}: {}", failure.message)),
        None => failure,
    }
}

/// Why a bind mount cannot be where it is to be.
fn impossible(targets: &[Target], spec: &CreateSpec, target: &Target) -> Option<(ErrorKind, String)> {
    let (source, place) = (target.source.as_ref()?, &target.place);
    let folder = std::fs::metadata(source).ok()?.is_dir();
    let staged = spec.mounts.iter().find(|mount| mount.staged == *source);
    let shown = match staged {
        Some(StagedMount { image: Some(image), .. }) => format!("of image {:?}", image.name),
        Some(mount) => format!("{:?}", mount.source),
        None => format!("{source:?}"),
    };
    if place == Path::new("/dev/ptmx") && around(targets, place).is_some_and(|around| around.source.is_none()) {
        let reason = format!("config.mounts: {shown} cannot be mounted on {place:?}: that is a link to the terminals'");
        return Some((ErrorKind::InvalidArgument, reason));
    }
    if let Some(link) = link_in_dev(targets, place) {
        let reason = format!("config.mounts: {shown} cannot be mounted on {place:?}: {link:?} is a link");
        return Some((ErrorKind::InvalidArgument, reason));
    }
    let reason = match look(targets, spec, place) {
        Ok(found) if found.is_dir() == folder => return None,
        Ok(_) if folder => format!("the folder {shown} cannot be mounted on {place:?}, which is none in the container"),
        Ok(_) => format!("the file {shown} cannot be mounted on {place:?}, which is a folder in the container"),
        Err(Errno::NOTDIR) => format!("{shown} cannot be mounted on {place:?}: what that lies in is no folder"),
        Err(Errno::LOOP) => format!("{shown} cannot be mounted on {place:?}: links there lead nowhere"),
        Err(_) => return None,
    };
    let by_device = || source.file_name().is_some_and(|name| name.as_bytes().starts_with(b"cdi-"));
    Some(match staged {
        _ if FILES.iter().any(|file| place == Path::new(file)) && staged.is_none() => {
            (ErrorKind::FailedPrecondition, format!("the image does not fit: {reason}"))
        }
        Some(_) if by_device() => (ErrorKind::FailedPrecondition, format!("config.CDI_devices: {reason}")),
        _ => (ErrorKind::InvalidArgument, format!("config.mounts: {reason}")),
    })
}

/// The link that a place in a /dev of the client's leads through.
fn link_in_dev(targets: &[Target], place: &Path) -> Option<PathBuf> {
    let dev = targets.iter().find(|target| target.place == Path::new("/dev"))?;
    let (mut at, mut shown) = (dev.source.clone()?, dev.place.clone());
    place.strip_prefix(&dev.place).ok()?.iter().find_map(|part| {
        at.push(part);
        shown.push(part);
        at.is_symlink().then(|| shown.clone())
    })
}

/// What stands at a place in the container before anything is mounted just there.
fn look(targets: &[Target], spec: &CreateSpec, place: &Path) -> Result<FileType, Errno> {
    let around = around(targets, place);
    let inside = around.and_then(|around| place.strip_prefix(&around.place).ok()).unwrap_or(place);
    let root = match around {
        None => &spec.rootfs.mountpoint,
        Some(Target { source: Some(source), .. }) => source,
        // The kernel shows the same files everywhere.
        Some(own) if own.kind == "proc" || own.kind == "sysfs" => &own.place,
        Some(own) if own.place == Path::new("/dev") && DEVICES.iter().any(|name| inside == Path::new(name)) => {
            return Ok(FileType::CharacterDevice);
        }
        Some(_) => return Err(Errno::NOENT),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let inside = Path::new("/").join(inside);
    let found = rustix::fs::openat2(&root, inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    Ok(FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode))
}

fn make_in(root: &Path, path: &Path, target: &Target, owner: (u32, u32)) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = rustix::fs::open(root, flags, Mode::empty())?;
    let is_file = target.source.as_ref().is_some_and(|source| !source.is_dir());
    let (true, Some(folder), Some(name)) = (is_file, path.parent(), path.file_name()) else {
        return rootfs::make_folder(&root, path, owner).map(drop);
    };
    let folder = rootfs::make_folder(&root, folder, owner)?;
    rootfs::make_file(&folder, name, owner)
}
