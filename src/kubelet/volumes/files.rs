//! Volumes made of files: ConfigMaps, Secrets, fields of the pod.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use super::super::manifest::{Data, DownwardFile, KeyToPath, Volume};
use super::super::translate::{Node, PodJob, field, resource_field};
use super::{VolumeError, io_error, make_dir, open_file};

const DEFAULT_MODE: u32 = 0o644;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// Mode bits.
    pub mode: u32,
    /// Content.
    pub bytes: Vec<u8>,
}

type Files = BTreeMap<String, VolumeFile>;

/// The files of a volume by relative path. Pure.
///
/// # Errors
/// A key, object or field that is not there.
pub fn files(job: &PodJob, node: &Node, volume: &Volume) -> Result<Files, String> {
    let namespace = &job.pod.metadata.namespace;
    let mut all = Files::new();
    if let Some(source) = &volume.config_map {
        let data = job.objects.config_map(namespace, &source.name);
        from_object(&mut all, data, &source.items, source.default_mode, source.optional)?;
    }
    if let Some(source) = &volume.secret {
        let data = job.objects.secret(namespace, &source.secret_name);
        from_object(&mut all, data, &source.items, source.default_mode, source.optional)?;
    }
    if let Some(source) = &volume.downward_api {
        from_pod(&mut all, job, node, &source.items, source.default_mode)?;
    }
    if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in &projected.sources {
            if let Some(map) = &source.config_map {
                let data = job.objects.config_map(namespace, &map.name);
                from_object(&mut all, data, &map.items, mode, map.optional)?;
            }
            if let Some(secret) = &source.secret {
                let data = job.objects.secret(namespace, &secret.name);
                from_object(&mut all, data, &secret.items, mode, secret.optional)?;
            }
            if let Some(downward) = &source.downward_api {
                from_pod(&mut all, job, node, &downward.items, mode)?;
            }
        }
    }
    Ok(all)
}

fn from_object(
    all: &mut Files,
    data: Option<&Data>,
    items: &[KeyToPath],
    mode: Option<u32>,
    optional: bool,
) -> Result<(), String> {
    let default = mode.unwrap_or(DEFAULT_MODE);
    let Some(data) = data else {
        return if optional { Ok(()) } else { Err("its ConfigMap or Secret is not in the manifest".to_owned()) };
    };
    if items.is_empty() {
        all.extend(data.iter().map(|(key, bytes)| (key.clone(), VolumeFile { mode: default, bytes: bytes.clone() })));
        return Ok(());
    }
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let file = VolumeFile { mode: item.mode.unwrap_or(default), bytes: bytes.clone() };
                all.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("there is no key {:?}", item.key)),
        }
    }
    Ok(())
}

fn from_pod(
    all: &mut Files,
    job: &PodJob,
    node: &Node,
    items: &[DownwardFile],
    mode: Option<u32>,
) -> Result<(), String> {
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(reference), _) => {
                // Addresses come too late for volumes, in Kubernetes as well.
                let path = &reference.field_path;
                let known = path.starts_with("metadata.").then(|| field(job, node, &[], path)).flatten();
                known.ok_or_else(|| format!("fieldPath {path:?} is not supported"))?
            }
            (None, Some(reference)) => resource_field(&job.pod, None, node, reference)?,
            (None, None) => continue,
        };
        let mode = item.mode.or(mode).unwrap_or(DEFAULT_MODE);
        all.insert(item.path.clone(), VolumeFile { mode, bytes: value.into_bytes() });
    }
    Ok(())
}

/// Writes the files. Containers see the folder read-only, so that nothing in it can lead elsewhere.
pub(super) fn write(root: &Path, files: &Files, group: Option<i64>) -> Result<(), VolumeError> {
    for (name, wanted) in files {
        let path = root.join(name);
        if fs::read(&path).is_ok_and(|bytes| bytes == wanted.bytes) {
            continue;
        }
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o755)?;
        }
        // Under another name first: a running container never reads half a file.
        let draft = path.with_file_name(format!("..{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
        let readable = if group.is_some() { 0o440 } else { 0 };
        let mut file = open_file(&draft, wanted.mode | readable, true)?;
        file.write_all(&wanted.bytes).map_err(io_error(&draft, "write"))?;
        drop(file);
        hand_over(&draft, group)?;
        fs::rename(&draft, &path).map_err(io_error(&path, "rename"))?;
    }
    if group.is_some() {
        hand_over(root, group)?;
        fs::set_permissions(root, Permissions::from_mode(0o2755)).map_err(io_error(root, "set mode"))?;
    }
    Ok(())
}

/// Gives a file or folder to the fsGroup.
pub(super) fn hand_over(path: &Path, group: Option<i64>) -> Result<(), VolumeError> {
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else { return Ok(()) };
    chown(path, None, Some(group)).map_err(io_error(path, "change group"))
}
