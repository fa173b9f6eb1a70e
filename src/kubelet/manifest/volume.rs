//! Volumes, ConfigMaps and Secrets.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::container::{FieldRef, ResourceFieldRef};
use super::pod::Metadata;
use super::quantity::Quantity;

/// A volume of a pod: exactly one source.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// DNS-1123 label.
    pub name: String,
    /// A folder that lives as long as the pod.
    #[serde(default)]
    pub empty_dir: Option<EmptyDir>,
    /// A path of the host.
    #[serde(default)]
    pub host_path: Option<HostPath>,
    /// Files from a ConfigMap.
    #[serde(default)]
    pub config_map: Option<ConfigMapVolume>,
    /// Files from a Secret.
    #[serde(default)]
    pub secret: Option<SecretVolume>,
    /// Files with fields of the pod.
    #[serde(default, rename = "downwardAPI")]
    pub downward_api: Option<DownwardVolume>,
    /// Several of these in one folder.
    #[serde(default)]
    pub projected: Option<ProjectedVolume>,
}

impl Volume {
    /// How many sources are given; one is right.
    pub fn sources(&self) -> usize {
        [
            self.empty_dir.is_some(),
            self.host_path.is_some(),
            self.config_map.is_some(),
            self.secret.is_some(),
            self.downward_api.is_some(),
            self.projected.is_some(),
        ]
        .into_iter()
        .filter(|given| *given)
        .count()
    }

    /// True for volumes containers may not write to.
    pub fn is_read_only(&self) -> bool {
        self.empty_dir.is_none() && self.host_path.is_none()
    }
}

/// `emptyDir`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmptyDir {
    /// Disk or memory.
    #[serde(default)]
    pub medium: Medium,
    /// Size of a `Memory` volume.
    #[serde(default)]
    pub size_limit: Option<Quantity>,
}

/// Where an emptyDir lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Medium {
    /// On disk.
    #[default]
    #[serde(rename = "")]
    Disk,
    /// A tmpfs.
    Memory,
}

/// `hostPath`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPath {
    /// Absolute path.
    pub path: String,
    /// What must be there.
    #[serde(default, rename = "type")]
    pub kind: HostPathType,
}

/// What must be at a host path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum HostPathType {
    /// Anything; not checked.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// A folder, made with mode 0755 if nothing is there.
    DirectoryOrCreate,
    /// A folder.
    Directory,
    /// A file, made with mode 0644 if nothing is there.
    FileOrCreate,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// One key as one file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyToPath {
    /// Key.
    pub key: String,
    /// Relative path of the file.
    pub path: String,
    /// Mode; absent: the volume's.
    #[serde(default, deserialize_with = "super::mode")]
    pub mode: Option<u32>,
}

/// `configMap`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapVolume {
    /// Object.
    pub name: String,
    /// Keys; empty: all.
    #[serde(default)]
    pub items: Vec<KeyToPath>,
    /// 0644 if absent.
    #[serde(default, deserialize_with = "super::mode")]
    pub default_mode: Option<u32>,
    /// It may be missing.
    #[serde(default)]
    pub optional: bool,
}

/// `secret`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretVolume {
    /// Object.
    pub secret_name: String,
    /// Keys; empty: all.
    #[serde(default)]
    pub items: Vec<KeyToPath>,
    /// 0644 if absent.
    #[serde(default, deserialize_with = "super::mode")]
    pub default_mode: Option<u32>,
    /// It may be missing.
    #[serde(default)]
    pub optional: bool,
}

/// `downwardAPI`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DownwardVolume {
    /// Files.
    #[serde(default)]
    pub items: Vec<DownwardFile>,
    /// 0644 if absent.
    #[serde(default, deserialize_with = "super::mode")]
    pub default_mode: Option<u32>,
}

/// One field as one file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DownwardFile {
    /// Relative path of the file.
    pub path: String,
    /// A field of the pod.
    #[serde(default)]
    pub field_ref: Option<FieldRef>,
    /// A request or limit; `containerName` is needed.
    #[serde(default)]
    pub resource_field_ref: Option<ResourceFieldRef>,
    /// Mode; absent: the volume's.
    #[serde(default, deserialize_with = "super::mode")]
    pub mode: Option<u32>,
}

/// `projected`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProjectedVolume {
    /// Sources, later ones win.
    #[serde(default)]
    pub sources: Vec<Projection>,
    /// 0644 if absent.
    #[serde(default, deserialize_with = "super::mode")]
    pub default_mode: Option<u32>,
}

/// One source of a projected volume: exactly one of these.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Projection {
    /// From a ConfigMap.
    #[serde(default)]
    pub config_map: Option<ObjectProjection>,
    /// From a Secret.
    #[serde(default)]
    pub secret: Option<ObjectProjection>,
    /// Fields of the pod.
    #[serde(default, rename = "downwardAPI")]
    pub downward_api: Option<DownwardProjection>,
}

/// A ConfigMap or Secret in a projected volume.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectProjection {
    /// Object.
    pub name: String,
    /// Keys; empty: all.
    #[serde(default)]
    pub items: Vec<KeyToPath>,
    /// It may be missing.
    #[serde(default)]
    pub optional: bool,
}

/// Fields of the pod in a projected volume.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownwardProjection {
    /// Files.
    #[serde(default)]
    pub items: Vec<DownwardFile>,
}

/// A v1 ConfigMap.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMap {
    /// Always `v1`.
    pub api_version: String,
    /// Always `ConfigMap`.
    pub kind: String,
    /// Name.
    pub metadata: Metadata,
    /// Text values.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Base64 values.
    #[serde(default)]
    pub binary_data: BTreeMap<String, String>,
    /// Of no meaning here: nothing changes it.
    #[serde(default)]
    pub immutable: Option<IgnoredAny>,
}

/// A v1 Secret.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// Always `v1`.
    pub api_version: String,
    /// Always `Secret`.
    pub kind: String,
    /// Name.
    pub metadata: Metadata,
    /// Base64 values.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Text values; win over `data`.
    #[serde(default)]
    pub string_data: BTreeMap<String, String>,
    /// Of no meaning here.
    #[serde(default, rename = "type")]
    pub kind_of_secret: Option<String>,
    /// Of no meaning here.
    #[serde(default)]
    pub immutable: Option<IgnoredAny>,
}
