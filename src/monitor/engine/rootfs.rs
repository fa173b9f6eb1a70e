//! The container's root file system and its staged mounts, in the helper's private mount namespace:
//! when the helper and init are gone, so is all of it. Nothing of it is ever visible to the host.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::UnshareFlags;

use super::layers::Mounter;
use super::targets::{self, Target};
use super::{attempt, failure};
use crate::sys::fork;
use crate::sys::mounts::{self, Propagation};
use crate::types::ErrorKind;
use crate::wire::{CreateSpec, Failure, IdMaps, Rootfs, StagedMount, StagedPropagation};

/// As many links in a row as the kernel follows.
const MAX_LINKS: usize = 40;
/// Folder in the bundle for mounts of passing use.
const SCRATCH: &str = "layers";

/// Enters a mount namespace and mounts there all that `spec` names.
pub(super) fn prepare(spec: &CreateSpec, targets: &[Target]) -> Result<(), Failure> {
    let trees = enter(&spec.mounts)?;
    mount(spec, trees, targets)
}

/// Enters a mount namespace, with copies of the host's mounts.
pub(super) fn enter(mounts: &[StagedMount]) -> Result<Vec<OwnedFd>, Failure> {
    attempt(fork::unshare(UnshareFlags::NEWNS), || "a private mount namespace".to_owned())?;
    // Copies of shared mounts are taken while they still are the host's peers; cutting the ties of
    // all that is attached does not reach them.
    let trees = of_host(mounts).map(clone).collect::<Result<Vec<_>, _>>()?;
    attempt(mounts::set_root_propagation(Propagation::Slave), || "making mounts one-way".to_owned())?;
    Ok(trees)
}

fn of_host(mounts: &[StagedMount]) -> impl Iterator<Item = &StagedMount> {
    mounts.iter().filter(|mount| mount.image.is_none())
}

/// Mounts all that `spec` names; `trees` is what [`enter`] gave for its mounts.
pub(super) fn mount(spec: &CreateSpec, trees: Vec<OwnedFd>, targets: &[Target]) -> Result<(), Failure> {
    let Rootfs { lower, upper, mountpoint, idmap, label } = &spec.rootfs;
    let mounter = Mounter::new(spec.bundle.join(SCRATCH), label.clone());
    let upper = upper.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
    mounter.mount(lower, upper, idmap.as_ref(), mountpoint)?;
    for (mount, tree) in of_host(&spec.mounts).zip(trees) {
        stage(mount, tree, &mounter)?;
    }
    for mount in &spec.mounts {
        if let Some(image) = &mount.image {
            mounter.mount_image(mount, image)?;
        }
    }
    let owner = spec.rootfs.idmap.as_ref().map_or((0, 0), IdMaps::root);
    make_folders(spec, owner)?;
    targets::make(targets, spec, owner)
}

/// While the root file system is still empty of mounts, and can be written.
fn make_folders(spec: &CreateSpec, owner: (u32, u32)) -> Result<(), Failure> {
    if spec.folders.is_empty() || spec.rootfs.upper.is_none() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mountpoint = &spec.rootfs.mountpoint;
    let root = attempt(rustix::fs::open(mountpoint, flags, Mode::empty()), || format!("opening {mountpoint:?}"))?;
    for path in &spec.folders {
        make_folder(&root, path, owner).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotADirectory => ErrorKind::InvalidArgument,
                std::io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
                _ => ErrorKind::Internal,
            };
            failure(kind, format!("making the folder {path:?} in the container: {error}"))
        })?;
    }
    Ok(())
}

fn clone(mount: &StagedMount) -> Result<OwnedFd, Failure> {
    mounts::clone_tree(&mount.source, true).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        };
        failure(kind, format!("mount source {:?}: {error}", mount.source))
    })
}

fn stage(mount: &StagedMount, tree: OwnedFd, mounter: &Mounter) -> Result<(), Failure> {
    let source = &mount.source;
    if let Some(maps) = &mount.idmap {
        let namespace = mounter.namespace(maps)?;
        attempt(mounts::set_tree_idmap(&tree, &*namespace), || {
            format!("mapping the owners of files in {source:?} (its file system may not support idmapped mounts)")
        })?;
    }
    let propagation = match mount.propagation {
        StagedPropagation::Private => Propagation::Private,
        StagedPropagation::Slave => Propagation::Slave,
        StagedPropagation::Shared => Propagation::Shared,
    };
    attempt(mounts::set_tree_propagation(&tree, propagation), || format!("propagation of {source:?}"))?;
    attempt(mounts::attach(tree, &mount.staged), || format!("mounting {source:?} on {:?}", mount.staged))
}

/// Makes the folder `path` under `root`, which is taken for `/` in links and in `..`, where it does
/// not exist, for `owner` (uid and gid as the host numbers them); links that lead where nothing is yet are followed, too. Links into other processes'
/// descriptors (/proc/N/fd) are refused: those left the root.
pub(super) fn make_folder(root: &OwnedFd, path: &Path, owner: (u32, u32)) -> std::io::Result<OwnedFd> {
    make_by_links(root, path, owner, MAX_LINKS)
}

fn make_by_links(root: &OwnedFd, path: &Path, owner: (u32, u32), links: usize) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    match open(path) {
        Err(rustix::io::Errno::NOENT) => {}
        other => return other.map_err(Into::into),
    }
    let mut so_far = std::path::PathBuf::from("/");
    let mut parent = open(&so_far)?;
    for part in path.components() {
        so_far.push(part);
        parent = match open(&so_far) {
            Err(rustix::io::Errno::NOENT) => {
                match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                    Err(rustix::io::Errno::EXIST) if links > 0 => {
                        let link = rustix::fs::readlinkat(&parent, part.as_os_str(), Vec::new())?;
                        let folder = so_far.parent().unwrap_or(Path::new("/"));
                        let target = folder.join(std::ffi::OsStr::from_bytes(link.as_bytes()));
                        parent = make_by_links(root, &target, owner, links - 1)?;
                        continue;
                    }
                    made => made?,
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&parent, part.as_os_str(), flags, Mode::empty())?;
                give(&made, owner)?;
                made
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// The folder `name` of `at`, by no link; made for `owner` if it is missing.
pub(super) fn step(at: &OwnedFd, name: &std::ffi::OsStr, owner: (u32, u32)) -> std::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            let made = rustix::fs::openat(at, name, flags | OFlags::RDONLY, Mode::empty())?;
            give(&made, owner)?;
            Ok(made)
        }
        Err(rustix::io::Errno::EXIST) => Ok(rustix::fs::openat(at, name, flags | OFlags::PATH, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

/// Makes an empty file in `folder` for `owner` where nothing is. Whether what is there can be mounted on shows when it is.
pub(super) fn make_file(folder: &OwnedFd, name: &std::ffi::OsStr, (uid, gid): (u32, u32)) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => {
            let found = rustix::fs::fstat(&file)?;
            if (found.st_uid, found.st_gid) != (uid, gid) {
                let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                rustix::fs::fchown(&file, Some(uid), Some(gid))?;
            }
            Ok(())
        }
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives a folder that was just made to `owner`: root, although the caller may be the container's user by now.
/// Whoever can write where it was made may have put another one in its place before it was opened: only what
/// is the caller's, and empty, is given away.
pub(super) fn give(folder: &OwnedFd, owner: (u32, u32)) -> std::io::Result<()> {
    let found = rustix::fs::fstat(folder)?;
    if (found.st_uid, found.st_gid) == owner {
        return Ok(());
    }
    let mut entries = rustix::fs::Dir::read_from(folder)?;
    let is_entry = |entry: &rustix::fs::DirEntry| !matches!(entry.file_name().to_bytes(), b"." | b"..");
    let empty = !entries.any(|entry| entry.as_ref().map_or(true, is_entry));
    if found.st_uid != rustix::process::geteuid().as_raw() || !empty {
        return Err(std::io::Error::other("another folder was put in its place"));
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
    rustix::fs::fchown(folder, Some(uid), Some(gid)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_took_the_place_of_a_new_one_is_not_given_away() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let give = |path: &Path| {
            let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            super::give(&opened, (1234, 1235))
        };
        let (new, full, others) = (make("new"), make("full"), make("others"));
        give(&new).unwrap();
        std::fs::write(full.join("file"), "").unwrap();
        chown(&others, Some(99), Some(99)).unwrap();
        assert!(give(&full).is_err() && give(&others).is_err());
        let owners = [&new, &full, &others].map(|path| std::fs::metadata(path).unwrap().uid());
        assert_eq!(owners, [1234, 0, 99]);
        give(&new).unwrap();
    }

    #[test]
    fn folders_are_made_inside_the_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(folder.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        std::os::unix::fs::symlink("/target", folder.path().join("link")).unwrap();
        std::fs::create_dir(folder.path().join("target")).unwrap();
        for path in ["/a/b/c", "/link/d", "/../../e", "/a/../f/g", "/"] {
            make_folder(&root, Path::new(path), (0, 0)).unwrap();
        }
        std::os::unix::fs::symlink("../../../new/one", folder.path().join("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", folder.path().join("loop")).unwrap();
        make_folder(&root, Path::new("/dangling/x"), (0, 0)).unwrap();
        assert!(make_folder(&root, Path::new("/loop/x"), (0, 0)).is_err());
        for made in ["a/b/c", "target/d", "e", "f/g", "new/one/x"] {
            assert!(folder.path().join(made).is_dir(), "{made}");
        }
        let own = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let leak = std::os::fd::AsRawFd::as_raw_fd(&root);
        assert!(make_folder(&own, Path::new(&format!("/proc/self/fd/{leak}")), (0, 0)).is_err());
    }
}
