//! A real registry (Debian's docker-registry) on a free loopback port, with images written into its storage.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::archives::{digest, gzip};
use crate::image::{Images, Settings};
use crate::types::Digest;

const BINARY: &str = "/usr/bin/docker-registry";

pub struct Registry {
    child: Child,
    folder: TempDir,
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How an image is written.
#[derive(Clone, Copy)]
pub struct Form {
    pub docker: bool,
    pub index: bool,
    pub compress: fn(&[u8]) -> Vec<u8>,
}

pub const OCI: Form = Form { docker: false, index: true, compress: gzip };
pub const DOCKER: Form = Form { docker: true, index: false, compress: gzip };

/// Digests of an image put into a registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Put {
    pub top: Digest,
    pub config: Digest,
    pub blobs: Vec<Digest>,
    pub diff_ids: Vec<Digest>,
}

impl Registry {
    /// `None`, said aloud, where the binary is not installed.
    pub fn start() -> Option<Self> {
        Self::with_auth("")
    }

    /// With further YAML, such as an `auth:` section.
    pub fn with_auth(more: &str) -> Option<Self> {
        if !Path::new(BINARY).exists() {
            eprintln!("SKIPPED: {BINARY} is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  maintenance: {{uploadpurging: {{enabled: false}}}}\nhttp:\n  addr: \"127.0.0.1:0\"\n{more}",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new(BINARY)
            .arg("serve")
            .arg(&config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the registry ended").unwrap();
            if let Some(at) = line.find("listening on ") {
                let rest = &line[at + "listening on ".len()..];
                break rest.split(['"', ' ', ',']).next().unwrap().to_owned();
            }
        };
        // Its log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, folder, address })
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data/docker/registry/v2")
    }

    pub fn blob_path(&self, blob: Digest) -> PathBuf {
        let hex = blob.hex();
        self.data().join(format!("blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = digest(bytes);
        let path = self.blob_path(digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        digest
    }

    fn link(&self, path: &str, to: Digest) {
        let folder = self.data().join("repositories").join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("link"), to.to_string()).unwrap();
    }

    /// Makes a document reachable under a repository and tag.
    pub fn put_manifest(&self, repository: &str, tag: Option<&str>, document: &Value) -> (Digest, u64) {
        let body = serde_json::to_vec(document).unwrap();
        let digest = self.put_blob(&body);
        self.link(&format!("{repository}/_manifests/revisions/sha256/{}", digest.hex()), digest);
        if let Some(tag) = tag {
            self.link(&format!("{repository}/_manifests/tags/{tag}/current"), digest);
        }
        (digest, body.len() as u64)
    }

    pub fn put_layer(&self, repository: &str, blob: &[u8]) -> Digest {
        let digest = self.put_blob(blob);
        self.link(&format!("{repository}/_layers/sha256/{}", digest.hex()), digest);
        digest
    }

    /// Puts an image of these archives, bottom first.
    pub fn put(&self, repository: &str, tag: &str, form: Form, layers: &[Vec<u8>], run: Value) -> Put {
        let diff_ids: Vec<_> = layers.iter().map(|tar| digest(tar)).collect();
        let packed: Vec<_> = layers.iter().map(|tar| (form.compress)(tar)).collect();
        let blobs: Vec<_> = packed.iter().map(|blob| self.put_layer(repository, blob)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z", "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let config_digest = self.put_layer(repository, &config);
        let prefix = if form.docker { "application/vnd.docker." } else { "application/vnd.oci." };
        let (manifest_type, list_type, config_type, layer_type) = if form.docker {
            (
                "distribution.manifest.v2+json",
                "distribution.manifest.list.v2+json",
                "container.image.v1+json",
                "image.rootfs.diff.tar.gzip",
            )
        } else {
            ("image.manifest.v1+json", "image.index.v1+json", "image.config.v1+json", "image.layer.v1.tar+gzip")
        };
        let listed: Vec<_> = blobs
            .iter()
            .zip(&packed)
            .map(|(digest, blob)| json!({"mediaType": format!("{prefix}{layer_type}"), "digest": digest, "size": blob.len()}))
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": format!("{prefix}{manifest_type}"),
            "config": {"mediaType": format!("{prefix}{config_type}"), "digest": config_digest, "size": config.len()},
            "layers": listed});
        let (mut top, size) = self.put_manifest(repository, (!form.index).then_some(tag), &manifest);
        if form.index {
            let entry = |architecture: &str, digest: Digest| {
                json!({"mediaType": format!("{prefix}{manifest_type}"), "digest": digest, "size": size,
                    "platform": {"os": "linux", "architecture": architecture}})
            };
            // The wrong platform leads nowhere, so that choosing it fails.
            let entries = [entry("s390x", digest(b"nowhere")), entry("amd64", top)];
            let index = json!({"schemaVersion": 2, "mediaType": format!("{prefix}{list_type}"), "manifests": entries});
            top = self.put_manifest(repository, Some(tag), &index).0;
        }
        Put { top, config: config_digest, blobs, diff_ids }
    }
}

/// A fresh image store.
pub fn store() -> (TempDir, Images) {
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(Settings::new(root.path())).unwrap();
    images.collect_garbage();
    (root, images)
}

/// All paths in the store but empty standard folders, relative.
pub fn census(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["images", "layers", "layers/sha256", "layers/trash"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let name = format!("{folder}/{}", entry.unwrap().file_name().into_string().unwrap());
            if !["layers/sha256", "layers/trash"].contains(&name.as_str()) {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}
