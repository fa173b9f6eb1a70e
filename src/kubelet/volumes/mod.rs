//! A pod's volumes and small files on the host. Blocking: call from a thread that may block.

mod files;
mod mounts;
mod subpath;

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Errno;

use crate::proto;
use crate::sys::tree;
use crate::types::{ErrorKind, HasKind};

use super::manifest::{Container, EmptyDir, HostPath, HostPathType, Medium, Volume};
use super::node::read;
use super::record;
use super::translate::{Dirs, Node, PodJob, TranslateError, environment, expand, hosts_file, mount};

pub use files::{VolumeFile, files};

/// A volume that cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The host path is not what the manifest says.
    #[error("volume {volume}: {path}: want {want}")]
    HostPath {
        /// Volume.
        volume: String,
        /// Path.
        path: String,
        /// What should be there.
        want: &'static str,
    },
    /// A source names what is not there.
    #[error("volume {volume}: {problem}")]
    Source {
        /// Volume.
        volume: String,
        /// What is wrong.
        problem: String,
    },
    /// Its variables cannot be had.
    #[error(transparent)]
    Environment(#[from] TranslateError),
    /// A system call failed.
    #[error("{path}: {doing}")]
    Io {
        /// Path.
        path: String,
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    /// Whether what was to be used is not there.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl HasKind for VolumeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::HostPath { .. } | Self::Source { .. } => ErrorKind::FailedPrecondition,
            Self::Environment(error) => error.kind(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::ResourceExhausted,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Internal,
            },
        }
    }
}

pub(super) fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_string_lossy().into_owned();
    move |source| VolumeError::Io { path, doing, source }
}

/// Makes all volumes of a pod. What is already there (a driver that died half-way) is kept.
///
/// # Errors
/// The first volume that cannot be made.
pub fn prepare(job: &PodJob, node: &Node, dirs: &Dirs) -> Result<(), VolumeError> {
    make_dir(&dirs.pod(job).join("volumes"), 0o750)?;
    make_dir(&dirs.pod_logs(job), 0o755)?;
    let group = job.pod.spec.security_context.fs_group;
    for volume in &job.pod.spec.volumes {
        let path = place(job, dirs, volume);
        if let Some(wish) = &volume.empty_dir {
            empty_dir(&path, wish, group)?;
        } else if let Some(wish) = &volume.host_path {
            host_path(&volume.name, wish)?;
        } else {
            make_dir(&path, 0o755)?;
            // Secrets must not reach the disk.
            let secret = volume.secret.is_some()
                || volume.projected.as_ref().is_some_and(|p| p.sources.iter().any(|s| s.secret.is_some()));
            if secret {
                mounts::tmpfs(&path, "mode=0755")?;
            }
            let all = files(job, node, volume)
                .map_err(|problem| VolumeError::Source { volume: volume.name.clone(), problem })?;
            files::write(&path, &all, group)?;
        }
    }
    Ok(())
}

/// Writes the pod's /etc/hosts; its addresses must be known.
///
/// # Errors
/// The file cannot be written.
pub fn write_hosts(job: &PodJob, node: &Node, dirs: &Dirs, ips: &[String]) -> Result<(), VolumeError> {
    let host = if job.pod.spec.host_network { read("/etc/hosts") } else { String::new() };
    let path = dirs.hosts_file(job);
    // In place: containers of an adopted pod hold this very file.
    let mut file = open_file(&path, 0o644, true)?;
    file.write_all(hosts_file(&job.pod, node, ips, &host).as_bytes()).map_err(io_error(&path, "write"))
}

/// Makes what a container needs on the host, and answers with its mounts in the order of the manifest.
///
/// # Errors
/// A volume without the folder or file a `subPath` names, or a failing system call.
pub fn container_mounts(
    job: &PodJob,
    container: &Container,
    attempt: u32,
    node: &Node,
    dirs: &Dirs,
    pod_ips: &[String],
) -> Result<Vec<proto::Mount>, VolumeError> {
    make_dir(&dirs.pod_logs(job).join(&container.name), 0o755)?;
    let mut mounts = Vec::new();
    let mut variables = None;
    for (index, wish) in container.volume_mounts.iter().enumerate() {
        let Some(volume) = job.pod.spec.volumes.iter().find(|volume| volume.name == wish.name) else { continue };
        let root = place(job, dirs, volume);
        let below = if wish.sub_path_expr.is_empty() {
            wish.sub_path.clone()
        } else {
            if variables.is_none() {
                variables = Some(environment(job, container, node, pod_ips)?);
            }
            let text = expand(wish.sub_path_expr.as_bytes(), variables.as_deref().unwrap_or_default());
            String::from_utf8_lossy(&text).into_owned()
        };
        let source = if below.is_empty() {
            root
        } else {
            if !super::manifest::is_inner_path(&below) {
                let problem = format!("subPath {below:?} climbs out");
                return Err(VolumeError::Source { volume: volume.name.clone(), problem });
            }
            let inner = Path::new("subpaths").join(&container.name).join(index.to_string());
            let inner = Path::new(&job.uid).join(inner);
            subpath::bind(&root, &below, &dirs.pods, &inner)?;
            dirs.pods.join(inner)
        };
        mounts.push(mount(job, wish, &source, volume.host_path.is_none(), node));
    }
    let own = |target: &str, source: PathBuf| proto::Mount {
        container_path: target.to_owned(),
        host_path: source.to_string_lossy().into_owned(),
        selinux_relabel: node.selinux,
        ..Default::default()
    };
    let taken = |path: &str| container.volume_mounts.iter().any(|wish| wish.mount_path.trim_end_matches('/') == path);
    if !taken("/etc/hosts") {
        mounts.push(own("/etc/hosts", dirs.hosts_file(job)));
    }
    if !taken(container.termination_path()) {
        let path = dirs.termination_file(job, &container.name, attempt);
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o750)?;
        }
        // Whoever the container runs as must be able to write it.
        drop(open_file(&path, 0o666, true)?);
        mounts.push(own(container.termination_path(), path));
    }
    Ok(mounts)
}

/// Unmounts and deletes all that is in a pod's folder, as [`prepare`] and [`container_mounts`] fill it, but its record.
/// `folder` is that folder, wherever it has been moved and whatever stands in its place.
///
/// # Errors
/// Something cannot be unmounted or deleted. Nothing below a mount is ever deleted.
pub fn remove_content(folder: BorrowedFd<'_>) -> Result<(), VolumeError> {
    let (by_fd, place) = names(folder)?;
    mounts::unmount_below(&place)?;
    empty(&by_fd, &place, Some(record::FILE))
}

/// Deletes a folder in which the driver has no mount (any more); of a link, only that. Fine if it is not there.
///
/// # Errors
/// Something is mounted there, or cannot be deleted.
pub fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    let fail = |doing| move |errno: Errno| io_error(path, doing)(errno.into());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(fail("delete")(Errno::INVAL));
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match open(parent, flags | OFlags::PATH, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(fail("open")(errno)),
    };
    let removed = match openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(folder) => {
            let (by_fd, place) = names(folder.as_fd())?;
            mounts::none_at(&place)?;
            empty(&by_fd, &place, None)?;
            unlinkat(&parent, name, AtFlags::REMOVEDIR)
        }
        Err(Errno::LOOP | Errno::NOTDIR) => unlinkat(&parent, name, AtFlags::empty()),
        Err(errno) => Err(errno),
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(fail("delete")(errno)),
    }
}

/// The name by which this process reaches an open folder, whatever becomes of its path; and that path, without links.
fn names(folder: BorrowedFd<'_>) -> Result<(PathBuf, PathBuf), VolumeError> {
    let by_fd = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let place = fs::read_link(&by_fd).map_err(io_error(&by_fd, "look up"))?;
    Ok((by_fd, place))
}

/// Deletes what is in a folder, but `keep`. `place` is its path for messages.
fn empty(by_fd: &Path, place: &Path, keep: Option<&str>) -> Result<(), VolumeError> {
    for entry in fs::read_dir(by_fd).map_err(io_error(place, "list"))? {
        let name = entry.map_err(io_error(place, "list"))?.file_name();
        if keep.is_some_and(|keep| name == keep) {
            continue;
        }
        match tree::remove(&by_fd.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&place.join(&name), "delete")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn place(job: &PodJob, dirs: &Dirs, volume: &Volume) -> PathBuf {
    match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => dirs.pod(job).join("volumes").join(&volume.name),
    }
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), VolumeError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io_error(path, "make folder"))
}

/// Opens an own file for writing, emptied, and gives it exactly this mode.
fn open_file(path: &Path, mode: u32, follow_none: bool) -> Result<fs::File, VolumeError> {
    let flags = if follow_none { libc::O_NOFOLLOW } else { 0 };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .custom_flags(flags)
        .open(path)
        .map_err(io_error(path, "open"))?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(io_error(path, "set mode"))?;
    Ok(file)
}

fn empty_dir(path: &Path, wish: &EmptyDir, group: Option<i64>) -> Result<(), VolumeError> {
    make_dir(path, 0o777)?;
    if wish.medium == Medium::Memory {
        let size = wish.size_limit.map(|size| format!(",size={}", size.value())).unwrap_or_default();
        mounts::tmpfs(path, &format!("mode=0777{size}"))?;
    }
    // The process's umask had its say above.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    files::hand_over(path, group)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error(path, "set mode"))
}

fn host_path(volume: &str, wish: &HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&wish.path);
    let kind = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let (fine, want) = match wish.kind {
        HostPathType::Unset => (true, ""),
        HostPathType::DirectoryOrCreate if kind.is_none() => {
            make_dir(path, 0o755)?;
            (true, "")
        }
        HostPathType::FileOrCreate if kind.is_none() => {
            drop(open_file(path, 0o644, false)?);
            (true, "")
        }
        HostPathType::Directory | HostPathType::DirectoryOrCreate => (kind.is_some_and(|k| k.is_dir()), "a folder"),
        HostPathType::File | HostPathType::FileOrCreate => (kind.is_some_and(|k| k.is_file()), "a file"),
        HostPathType::Socket => (kind.is_some_and(|k| k.is_socket()), "a socket"),
        HostPathType::CharDevice => (kind.is_some_and(|k| k.is_char_device()), "a character device"),
        HostPathType::BlockDevice => (kind.is_some_and(|k| k.is_block_device()), "a block device"),
    };
    if fine { Ok(()) } else { Err(VolumeError::HostPath { volume: volume.to_owned(), path: wish.path.clone(), want }) }
}

#[cfg(test)]
mod tests;
