//! Layers made into one tree: a container's root file system, or an image volume.
//!
//! Owners of files are mapped layer by layer, below the overlay: the kernel does not map an overlay's own mount, and
//! the writable folder holds owners as the host numbers them.

use std::cell::RefCell;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::{attempt, failure};
use crate::sys::mounts::{self, Propagation};
use crate::types::ErrorKind;
use crate::wire::{Failure, IMAGE_VOLUME_FAILED, IdMaps, ImageTree, StagedMount};

/// Mounts layers, in a mount namespace of this process's own.
pub(super) struct Mounter {
    /// A folder to be made and used meanwhile.
    scratch: PathBuf,
    /// SELinux label that all files in what is mounted have.
    label: Option<String>,
    namespaces: RefCell<Vec<(IdMaps, Rc<OwnedFd>)>>,
}

impl Mounter {
    /// `scratch` need not exist yet.
    pub(super) fn new(scratch: PathBuf, label: Option<String>) -> Self {
        Self { scratch, label, namespaces: RefCell::default() }
    }

    /// A user namespace with these mappings.
    pub(super) fn namespace(&self, maps: &IdMaps) -> Result<Rc<OwnedFd>, Failure> {
        if let Some((_, known)) = self.namespaces.borrow().iter().find(|(known, _)| known == maps) {
            return Ok(known.clone());
        }
        let made = mounts::user_namespace(&IdMaps::text(&maps.uids), &IdMaps::text(&maps.gids));
        let made = Rc::new(attempt(made, || format!("a user namespace with {maps:?}"))?);
        self.namespaces.borrow_mut().push((maps.clone(), made.clone()));
        Ok(made)
    }

    /// Mounts `lower` (topmost first) at `target`, writable in `upper` (with its work folder), else read-only.
    pub(super) fn mount(
        &self,
        lower: &[PathBuf],
        upper: Option<(&Path, &Path)>,
        idmap: Option<&IdMaps>,
        target: &Path,
    ) -> Result<(), Failure> {
        let what = || format!("mounting {} layers at {target:?}", lower.len());
        let namespace = idmap.filter(|_| !lower.is_empty()).map(|maps| self.namespace(maps)).transpose()?;
        match (lower, upper) {
            ([], None) => Err(failure(ErrorKind::InvalidArgument, "a root file system without any layer")),
            ([], Some((upper, _))) => {
                attempt(mounts::clone_tree(upper, false).and_then(|tree| mounts::attach(tree, target)), what)
            }
            // An overlay needs two folders.
            ([only], None) => attempt(
                layer(only, namespace.as_deref()).and_then(|tree| {
                    mounts::set_tree_read_only(&tree)?;
                    mounts::attach(tree, target)
                }),
                what,
            ),
            (lower, upper) => match namespace {
                None => attempt(mounts::mount_overlay(lower, upper, self.label.as_deref(), target), what),
                Some(namespace) => attempt(self.mapped(lower, upper, &namespace, target), || {
                    format!("{}, their owners mapped (the kernel or the file system may not support it)", what())
                }),
            },
        }
    }

    /// Mapped layers must be attached somewhere to be named; the overlay keeps copies of its own.
    fn mapped(
        &self,
        lower: &[PathBuf],
        upper: Option<(&Path, &Path)>,
        namespace: &OwnedFd,
        target: &Path,
    ) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.scratch)?;
        let inodes = (lower.len() + 2).to_string();
        let root = mounts::tmpfs(&[("mode", "700"), ("nr_inodes", &inodes)], MountAttrFlags::empty())?;
        mounts::attach(&root, &self.scratch)?;
        let mut paths = Vec::new();
        for (index, folder) in lower.iter().enumerate() {
            let name = index.to_string();
            rustix::fs::mkdirat(&root, name.as_str(), Mode::from_raw_mode(0o700))?;
            mounts::attach_at(layer(folder, Some(namespace))?, &root, &name)?;
            paths.push(self.scratch.join(name));
        }
        let mounted = mounts::mount_overlay(&paths, upper, self.label.as_deref(), target);
        mounts::detach(&self.scratch)?;
        mounted
    }

    /// Makes what an image volume is staged on, and mounts it there.
    pub(super) fn mount_image(&self, mount: &StagedMount, image: &ImageTree) -> Result<(), Failure> {
        let done = self.whole_or_part(mount, image);
        done.map_err(|error| {
            failure(error.kind, format!("{IMAGE_VOLUME_FAILED}: image {:?}: {}", image.name, error.message))
        })
    }

    fn whole_or_part(&self, mount: &StagedMount, image: &ImageTree) -> Result<(), Failure> {
        let sub_path = &image.sub_path;
        let whole = match sub_path.as_os_str().is_empty() {
            true => mount.staged.clone(),
            false => mount.staged.with_extension("image"),
        };
        attempt(DirBuilder::new().recursive(true).mode(0o700).create(&whole), || format!("making {whole:?}"))?;
        self.mount(&image.lower, None, mount.idmap.as_ref(), &whole)?;
        if whole == mount.staged {
            return Ok(());
        }
        let part = part(&whole, sub_path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV | libc::EINVAL) => {
                failure(ErrorKind::InvalidArgument, format!("image_sub_path {sub_path:?}: {error}"))
            }
            _ => failure(ErrorKind::Internal, format!("image_sub_path {sub_path:?}: {error}")),
        })?;
        let attached = (|| {
            match FileType::from_raw_mode(rustix::fs::fstat(&part)?.st_mode) {
                FileType::Directory => DirBuilder::new().mode(0o700).create(&mount.staged)?,
                _ => std::fs::write(&mount.staged, "")?,
            }
            mounts::attach(mounts::clone_at(part.as_fd(), false)?, &mount.staged)?;
            mounts::detach(&whole)
        })();
        attempt(attached, || format!("mounting {sub_path:?} at {:?}", mount.staged))
    }
}

/// A folder or file below `root`, which is taken for `/` in links.
fn part(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
        FileType::Directory | FileType::RegularFile => Ok(found),
        _ => Err(Errno::INVAL.into()),
    }
}

/// A detached mount of one layer.
fn layer(folder: &Path, namespace: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let tree = mounts::clone_tree(folder, false)?;
    mounts::set_tree_propagation(&tree, Propagation::Private)?;
    if let Some(namespace) = namespace {
        mounts::set_tree_idmap(&tree, namespace)?;
    }
    Ok(tree)
}
