//! Manifests, indexes and configs: pure parsing of what registries send, with every bound checked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::error::ImageError;
use super::platform::Platform;
use super::record::ImageConfig;
use crate::types::{Digest, Signal};

/// Largest manifest or index, bytes.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest config, bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most layers in an image; overlayfs takes 500.
pub const MAX_LAYERS: usize = 256;
/// Most entries read from an index.
const MAX_INDEX: usize = 1024;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The `Accept` header of a manifest request.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A reference to a blob or manifest by content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is; empty: not said.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its exact length in bytes.
    pub size: u64,
    /// In an index: what it runs on.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// One image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image's config; its digest is the image id.
    pub config: Descriptor,
    /// Layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// What a manifest URL gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images by platform.
    Index(Vec<Descriptor>),
}

/// Parses a manifest or index. `content_type` is the HTTP header (parameters cut off), empty if absent; `what`
/// names the image in errors.
pub fn parse(what: &str, content_type: &str, body: &[u8]) -> Result<Document, ImageError> {
    let bad = |reason: String| ImageError::Manifest { what: what.to_owned(), reason };
    let value: Value = serde_json::from_slice(body).map_err(|e| bad(format!("the manifest is not JSON: {e}")))?;
    let Value::Object(object) = &value else {
        return Err(bad("the manifest is not a JSON object".into()));
    };
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    if has("fsLayers") || object.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        return Err(
            bad("it has a manifest of schema version 1, which registries gave up; push the image again".into()),
        );
    }
    if object.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(bad("the manifest lacks schemaVersion 2".into()));
    }
    // A document that is both can mean one thing to a scanner and another one here (CVE-2021-41190).
    if has("manifests") && (has("layers") || has("config")) {
        return Err(bad("the manifest is ambiguous: it has both layers and manifests".into()));
    }
    let inner = match object.get("mediaType") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text.as_str(),
        Some(_) => return Err(bad("the manifest's mediaType is not text".into())),
    };
    let is_known = |t: &str| [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&t);
    if is_known(content_type) && !inner.is_empty() && inner != content_type {
        return Err(bad(format!("the manifest says {inner}, the registry {content_type}")));
    }
    let media_type = if inner.is_empty() { content_type } else { inner };
    let index = match media_type {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        // Old registries send text/plain or nothing for OCI documents without mediaType.
        other if inner.is_empty() && !other.contains("manifest") => has("manifests"),
        other => return Err(bad(format!("manifests of type {other:?} are not images"))),
    };
    if index { parse_index(&value, &bad) } else { parse_manifest(&value, &bad) }
}

fn parse_index(value: &Value, bad: &dyn Fn(String) -> ImageError) -> Result<Document, ImageError> {
    let entries =
        value.get("manifests").and_then(Value::as_array).ok_or_else(|| bad("the index lacks manifests".into()))?;
    if entries.len() > MAX_INDEX {
        return Err(bad(format!("the index has more than {MAX_INDEX} entries")));
    }
    // An entry of a kind that we do not know (another digest algorithm, say) must not spoil the others.
    Ok(Document::Index(entries.iter().filter_map(|entry| Descriptor::deserialize(entry).ok()).collect()))
}

fn parse_manifest(value: &Value, bad: &dyn Fn(String) -> ImageError) -> Result<Document, ImageError> {
    let part = |key: &str| value.get(key).ok_or_else(|| bad(format!("the manifest lacks {key}")));
    let descriptor =
        |v: &Value, what: &str| Descriptor::deserialize(v).map_err(|e| bad(format!("the manifest's {what}: {e}")));
    let config = descriptor(part("config")?, "config")?;
    if config.size > MAX_CONFIG {
        return Err(bad(format!("the config has {} bytes, more than {MAX_CONFIG}", config.size)));
    }
    let list = part("layers")?.as_array().ok_or_else(|| bad("the manifest's layers are no list".into()))?;
    if list.len() > MAX_LAYERS {
        return Err(bad(format!("the image has {} layers, more than {MAX_LAYERS}", list.len())));
    }
    let layers = list.iter().map(|layer| descriptor(layer, "layer")).collect::<Result<Vec<_>, _>>()?;
    for layer in &layers {
        check_layer_type(&layer.media_type).map_err(|reason| bad(format!("layer {}: {reason}", layer.digest)))?;
    }
    Ok(Document::Manifest(Manifest { config, layers }))
}

fn check_layer_type(media_type: &str) -> Result<(), String> {
    if media_type.contains("encrypted") {
        return Err("it is encrypted, which this runtime cannot read".into());
    }
    let known = media_type.is_empty()
        || media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
        || media_type.starts_with("application/vnd.docker.container.image.rootfs.");
    if known { Ok(()) } else { Err(format!("{media_type:?} is no file system layer; the artifact is not an image")) }
}

/// The entry of an index that fits `machine` best.
pub fn choose<'a>(what: &str, entries: &'a [Descriptor], machine: &Platform) -> Result<&'a Descriptor, ImageError> {
    let usable = |entry: &&Descriptor| ["", OCI_MANIFEST, DOCKER_MANIFEST].contains(&entry.media_type.as_str());
    let best = entries
        .iter()
        .filter(usable)
        .filter_map(|entry| Some((entry.platform.as_ref()?.distance(machine)?, entry)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, entry)| entry);
    // An index with a single entry that names no platform leaves no choice; its config decides.
    let only = || match entries {
        [entry] if entry.platform.is_none() && usable(&entry) => Some(entry),
        _ => None,
    };
    best.or_else(only).ok_or_else(|| ImageError::Platform {
        what: what.to_owned(),
        platform: machine.to_string(),
        found: entries
            .iter()
            .filter_map(|e| e.platform.as_ref().map(Platform::to_string))
            .take(40)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// What of a config blob this runtime needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigBlob {
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
    /// How to run it.
    pub config: ImageConfig,
    /// RFC 3339, as written; empty: not said.
    pub created: String,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    created: Option<String>,
    rootfs: RawRootfs,
    #[serde(default)]
    config: Option<RawRun>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, Value>>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
}

/// Parses the config of an image with `layers` layers and checks that it runs on `machine`.
pub fn parse_config(what: &str, body: &[u8], layers: usize, machine: &Platform) -> Result<ConfigBlob, ImageError> {
    let bad = |reason: String| ImageError::Manifest { what: what.to_owned(), reason };
    let raw: RawConfig = serde_json::from_slice(body).map_err(|e| bad(format!("the config: {e}")))?;
    if raw.platform.distance(machine).is_none() {
        let (platform, found) = (machine.to_string(), raw.platform.to_string());
        return Err(ImageError::Platform { what: what.to_owned(), platform, found });
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(bad(format!("the manifest has {layers} layers, the config {}", diff_ids.len())));
    }
    let run = raw.config.unwrap_or_default();
    let stop_signal = run.stop_signal.unwrap_or_default();
    if !stop_signal.is_empty() {
        Signal::parse(&stop_signal).map_err(|e| bad(format!("the config's StopSignal: {e}")))?;
    }
    let config = ImageConfig {
        user: run.user.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        volumes: run.volumes.unwrap_or_default().into_keys().collect(),
        labels: run.labels.unwrap_or_default(),
        stop_signal,
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
    };
    Ok(ConfigBlob { diff_ids, config, created: raw.created.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(byte: u8) -> String {
        Digest::from_bytes([byte; 32]).to_string()
    }

    fn good() -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(1), "size": 10},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(2), "size": 20}]})
    }

    fn text(value: &Value) -> Vec<u8> {
        serde_json::to_vec(value).unwrap()
    }

    fn with(key: &str, new: Value) -> Value {
        let mut value = good();
        value[key] = new;
        value
    }

    #[test]
    fn a_manifest_and_an_index_are_told_apart() {
        assert!(matches!(parse("i", OCI_MANIFEST, &text(&good())), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        let mut untyped = good();
        untyped.as_object_mut().unwrap().remove("mediaType");
        assert!(matches!(parse("i", "", &text(&untyped)), Ok(Document::Manifest(_))));
        let index = json!({"schemaVersion": 2, "manifests": [
            {"digest": digest(1), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "sha512:00", "size": 1}]});
        assert!(matches!(parse("i", OCI_INDEX, &text(&index)), Ok(Document::Index(entries)) if entries.len() == 1));
    }

    #[test]
    fn strange_manifests_are_refused_by_name() {
        for (content_type, body, want) in [
            ("", text(&with("manifests", json!([]))), "both layers and manifests"),
            (OCI_INDEX, text(&good()), "the registry application/vnd.oci.image.index"),
            ("", text(&json!({"schemaVersion": 1, "fsLayers": []})), "schema version 1"),
            ("", text(&with("schemaVersion", json!(3))), "schemaVersion 2"),
            ("", text(&with("layers", json!({}))), "no list"),
            ("", text(&with("config", json!({"digest": "x"}))), "config"),
            ("", text(&json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []})), "lacks config"),
            ("", text(&with("layers", Value::Null)), "no list"),
            ("", text(&with("mediaType", json!("application/x"))), "not images"),
            ("", text(&with("mediaType", json!(7))), "not text"),
            ("", text(&with("layers", json!(vec![good()["layers"][0].clone(); 257]))), "more than 256"),
            (
                "",
                text(&with("layers", json!([{"mediaType": "application/vnd.helm", "digest": digest(1), "size": 1}]))),
                "no file system layer",
            ),
            (
                "",
                text(&with(
                    "layers",
                    json!([{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": digest(1), "size": 1}]),
                )),
                "encrypted",
            ),
            ("", text(&with("layers", json!([{"digest": digest(1), "size": -1}]))), "layer"),
            ("", text(&with("config", json!({"digest": digest(1), "size": 99_999_999}))), "more than"),
            ("", b"[]".to_vec(), "not a JSON object"),
            ("", b"{".to_vec(), "not JSON"),
        ] {
            let error = parse("img", content_type, &body).unwrap_err().to_string();
            assert!(error.contains(want) && error.starts_with("img: "), "{want}: {error}");
        }
    }

    #[test]
    fn an_index_without_our_platform_says_what_it_has() {
        let machine = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        let entry = |architecture: &str| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::from_bytes([1; 32]),
            size: 1,
            platform: Some(Platform { architecture: architecture.into(), ..machine.clone() }),
        };
        assert_eq!(choose("i", &[entry("arm64"), entry("amd64")], &machine).unwrap(), &entry("amd64"));
        let error = choose("i", &[entry("arm64"), entry("s390x")], &machine).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64, linux/s390x"), "{error}");
        let nameless = Descriptor { platform: None, ..entry("") };
        assert!(choose("i", std::slice::from_ref(&nameless), &machine).is_ok());
    }

    #[test]
    fn configs_are_checked_against_manifest_and_machine() {
        let machine = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        let config = json!({"os": "linux", "architecture": "amd64", "created": "2023-11-14T22:13:20Z",
            "rootfs": {"type": "layers", "diff_ids": [digest(9)]},
            "config": {"Env": ["A=b"], "Cmd": null, "User": "1:2", "Volumes": {"/v": {}}, "StopSignal": "SIGQUIT",
                "ExposedPorts": {"80/tcp": {}}, "Unknown": 1}});
        let parsed = parse_config("i", &text(&config), 1, &machine).unwrap();
        assert_eq!(parsed.config.env, ["A=b"]);
        assert_eq!(parsed.config.volumes, ["/v"]);
        assert_eq!((parsed.config.user.as_str(), parsed.config.stop_signal.as_str()), ("1:2", "SIGQUIT"));
        let refused = |key: &str, new: Value, layers| {
            let mut value = config.clone();
            value[key] = new;
            parse_config("i", &text(&value), layers, &machine).unwrap_err().to_string()
        };
        assert!(refused("architecture", json!("arm64"), 1).contains("linux/arm64"));
        assert!(refused("os", json!("linux"), 2).contains("2 layers, the config 1"));
        assert!(refused("rootfs", json!({"diff_ids": ["x"]}), 1).contains("not a digest"));
        assert!(refused("config", json!({"StopSignal": "NOPE"}), 1).contains("StopSignal"));
        assert!(refused("config", json!({"Env": "A=b"}), 1).contains("the config"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse("i", "", &body);
            let _ = parse_config("i", &body, 0, &Platform::host());
        }
    }
}
