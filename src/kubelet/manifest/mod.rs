//! Pod manifests: YAML or JSON text to checked types. Pure.
//!
//! Architecture Invariant: a field that this driver does not act on is refused by its path or named in
//! [`notes`]; none is dropped silently.

mod container;
mod pod;
mod quantity;
mod security;
mod unsupported;
mod validate;
mod volume;

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;
use sha2::{Digest as _, Sha256};

use crate::types::{ErrorKind, HasKind};

pub use container::*;
pub use pod::*;
pub use quantity::{Quantity, QuantityError};
pub use security::*;
pub(crate) use validate::is_inner_path;
pub use validate::notes;
pub use volume::*;

/// The largest manifest read, in bytes (Kubernetes takes objects of up to about 1.5 MiB each).
pub const MAX_BYTES: usize = 4 << 20;

/// A manifest that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too large.
    #[error("{file}: larger than {MAX_BYTES} bytes")]
    TooLarge {
        /// File.
        file: String,
    },
    /// Neither YAML nor JSON.
    #[error("{file}: {problem}")]
    Syntax {
        /// File.
        file: String,
        /// What the parser says.
        problem: String,
    },
    /// A field is wrong, unknown or not supported.
    #[error("{file}: {object}: {path}: {problem}")]
    Field {
        /// File.
        file: String,
        /// For instance `Pod hello` or `document 2`.
        object: String,
        /// For instance `spec.containers[0].image`.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl HasKind for ManifestError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// A wrong field, before it is known in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// For instance `spec.containers[0].image`.
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) text: String,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }
}

/// Keys and values of a ConfigMap or Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// The ConfigMaps and Secrets of a manifest, by namespace and name.
#[derive(Clone, Default)]
pub struct Objects {
    /// ConfigMaps.
    pub config_maps: BTreeMap<(String, String), Data>,
    /// Secrets.
    pub secrets: BTreeMap<(String, String), Data>,
}

impl Objects {
    /// A ConfigMap in the pod's namespace.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&Data> {
        self.config_maps.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// A Secret in the pod's namespace.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Data> {
        self.secrets.get(&(namespace.to_owned(), name.to_owned()))
    }
}

// Values of Secrets stay out of logs and panics.
impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects")
            .field("config_maps", &self.config_maps.keys())
            .field("secrets", &self.secrets.keys())
            .finish()
    }
}

/// A pod of a manifest.
#[derive(Debug, Clone)]
pub struct PodDocument {
    /// The pod, checked; its namespace is filled in, its uid may be empty.
    pub pod: Pod,
    /// Changes whenever the pod, or a ConfigMap or Secret beside it, does; 64 hexadecimal characters.
    pub hash: String,
}

/// A whole manifest.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// Its pods, in order.
    pub pods: Vec<PodDocument>,
    /// What stands beside them.
    pub objects: Objects,
}

/// Reads a manifest of one or more documents. `file` is named in errors.
///
/// # Errors
/// The first wrong, unknown or unsupported field.
pub fn parse(text: &str, file: &str) -> Result<Manifest, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge { file: file.to_owned() });
    }
    let mut manifest = Manifest::default();
    let mut pods: Vec<(Pod, Value)> = Vec::new();
    let mut others = Sha256::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let mut value = Value::deserialize(document)
            .and_then(|mut value| value.apply_merge().map(|()| value))
            .map_err(|error| ManifestError::Syntax { file: file.to_owned(), problem: error.to_string() })?;
        drop_nulls(&mut value);
        if value.is_null() || value.as_mapping().is_some_and(|fields| fields.is_empty()) {
            continue;
        }
        let object = describe(&value, index);
        let fail = |problem: Problem| ManifestError::Field {
            file: file.to_owned(),
            object: object.clone(),
            path: problem.path,
            problem: problem.text,
        };
        match value.get("kind").and_then(Value::as_str) {
            _ if value.get("apiVersion").and_then(Value::as_str) != Some("v1") => {
                return Err(fail(Problem::new("apiVersion", "want v1")));
            }
            Some("Pod") => {
                let mut pod: Pod = typed(&value).map_err(fail)?;
                fill_namespace(&mut pod.metadata);
                pods.push((pod, value));
            }
            Some("ConfigMap") => {
                let mut map: ConfigMap = typed(&value).map_err(fail)?;
                fill_namespace(&mut map.metadata);
                others.update(canonical(&value));
                let data = merge(&map.binary_data, &map.data, "binaryData").map_err(fail)?;
                manifest.objects.config_maps.insert((map.metadata.namespace, map.metadata.name), data);
            }
            Some("Secret") => {
                let mut secret: Secret = typed(&value).map_err(fail)?;
                fill_namespace(&mut secret.metadata);
                others.update(canonical(&value));
                let data = merge(&secret.data, &secret.string_data, "data").map_err(fail)?;
                manifest.objects.secrets.insert((secret.metadata.namespace, secret.metadata.name), data);
            }
            _ => return Err(fail(Problem::new("kind", "not supported: want Pod, ConfigMap or Secret"))),
        }
    }
    let others = others.finalize();
    for (pod, value) in pods {
        validate::pod(&pod, &manifest.objects).map_err(|problem| ManifestError::Field {
            file: file.to_owned(),
            object: describe(&value, 0),
            path: problem.path,
            problem: problem.text,
        })?;
        let hash = Sha256::new().chain_update(canonical(&value)).chain_update(others).finalize();
        let hash = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        manifest.pods.push(PodDocument { pod, hash });
    }
    Ok(manifest)
}

fn fill_namespace(metadata: &mut Metadata) {
    if metadata.namespace.is_empty() {
        "default".clone_into(&mut metadata.namespace);
    }
}

/// Kubernetes reads `key: null` as if the key were absent.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Mapping(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Sequence(items) => items.iter_mut().for_each(drop_nulls),
        Value::Tagged(tagged) => drop_nulls(&mut tagged.value),
        _ => {}
    }
}

/// Comments and spacing of the file are gone from this, the order of fields is not.
fn canonical(value: &Value) -> Vec<u8> {
    serde_yaml_ng::to_string(value).unwrap_or_default().into_bytes()
}

fn describe(value: &Value, index: usize) -> String {
    let text =
        |value: Option<&Value>| value.and_then(Value::as_str).map(|text| text.chars().take(80).collect::<String>());
    match (text(value.get("kind")), text(value.get("metadata").and_then(|metadata| metadata.get("name")))) {
        (Some(kind), Some(name)) => format!("{kind} {name}"),
        _ => format!("document {}", index + 1),
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        Problem { text: unsupported::explain(&path, &message), path }
    })
}

/// Base64 values and text values in one; text wins.
fn merge(binary: &BTreeMap<String, String>, text: &BTreeMap<String, String>, field: &str) -> Result<Data, Problem> {
    let mut data = Data::new();
    for (key, value) in binary {
        let compact: String = value.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(compact)
            .map_err(|error| Problem::new(format!("{field}.{key}"), format!("not base64: {error}")))?;
        data.insert(key.clone(), bytes);
    }
    data.extend(text.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes())));
    for key in data.keys() {
        let fine = key.len() <= 253
            && !key.is_empty()
            && !key.starts_with("..")
            && key != "."
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !fine {
            let short: String = key.chars().take(80).collect();
            return Err(Problem::new(field, format!("{short:?} is not a key: want letters, digits, '-', '_' and '.'")));
        }
    }
    Ok(data)
}

/// A file mode, as a number or in octal text: YAML 1.2 reads `0644` as text.
fn mode<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged, expecting = "want a file mode such as 0644")]
    enum Mode {
        Number(u32),
        Text(String),
    }
    match Mode::deserialize(deserializer)? {
        Mode::Number(number) => Ok(Some(number)),
        Mode::Text(text) => text
            .strip_prefix('0')
            .and_then(|digits| u32::from_str_radix(digits.strip_prefix('o').unwrap_or(digits), 8).ok())
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom("want a file mode such as 0644")),
    }
}

#[cfg(test)]
mod tests;
