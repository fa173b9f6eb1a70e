//! A pod's volumes and small files on the host. Blocking: call from a thread that may block.

mod files;
mod mounts;
mod subpath;

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::proto;
use crate::types::{ErrorKind, HasKind};

use super::manifest::{Container, EmptyDir, HostPath, HostPathType, Medium, Volume};
use super::node::read;
use super::record::{self, Record};
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
    Record::write(job, dirs)?;
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
            let target = dirs.pod(job).join("subpaths").join(&container.name).join(index.to_string());
            subpath::bind(&root, &below, &target)?;
            target
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

/// Unmounts all below a folder of the driver, as [`prepare`] and [`container_mounts`] fill it, then deletes it; nothing
/// below a mount is ever deleted. Fine if it is not there.
///
/// # Errors
/// Something cannot be unmounted or deleted.
pub fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    mounts::unmount_below(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, "delete")(error)),
        _ => Ok(()),
    }
}

/// The same with what is in a pod's folder, but for its record.
///
/// # Errors
/// Something cannot be unmounted or deleted.
pub fn remove_content(path: &Path) -> Result<(), VolumeError> {
    mounts::unmount_below(path)?;
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(path, "list")(error)),
    };
    for entry in entries {
        let entry = entry.map_err(io_error(path, "list"))?;
        if entry.file_name() == record::FILE {
            continue;
        }
        // A link is deleted, and not what it leads to.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.map_err(io_error(&entry.path(), "delete"))?;
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
