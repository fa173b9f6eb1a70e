//! Images made in a test, byte by byte if need be.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer's tar, under construction.
#[derive(Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A regular file, mode 0644, owned by root.
    pub fn file(self, path: &str, content: &str) -> Self {
        self.entry(tar::EntryType::Regular, path, "", 0o644, (0, 0), content.as_bytes())
    }

    /// A folder.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, path, "", mode, (0, 0), b"")
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, target, 0o777, (0, 0), b"")
    }

    /// A hard link.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, target, 0o644, (0, 0), b"")
    }

    /// A PAX record that applies to the next entry.
    pub fn pax(self, key: &str, value: &[u8]) -> Self {
        let body = key.len() + value.len() + 3;
        let digits = |length: usize| length.to_string().len();
        let mut length = body + digits(body);
        length = body + digits(length);
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        self.entry(tar::EntryType::XHeader, "PaxHeaders/x", "", 0o644, (0, 0), &record)
    }

    /// Any entry. Names are written as they are, however wicked; one that is too long gets GNU's long-name entry.
    pub fn entry(
        mut self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) -> Self {
        if path.len() > 100 {
            let mut name = path.as_bytes().to_vec();
            name.push(0);
            self = self.entry(tar::EntryType::GNULongName, "././@LongLink", "", 0o644, (0, 0), &name);
        }
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        let name = &path.as_bytes()[..path.len().min(100)];
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        self.raw(header, content)
    }

    /// A device node.
    pub fn device(self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_device_major(major).expect("GNU header");
        header.set_device_minor(minor).expect("GNU header");
        self.raw(header, b"")
    }

    fn raw(mut self, mut header: tar::Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// The archive, as a gzip layer.
    pub fn gzip(self) -> Layer {
        Layer::gzip(&self.finish())
    }
}

/// A layer as a registry has it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Digest of the plain tar.
    pub diff_id: String,
    /// Media type.
    pub media_type: &'static str,
    /// The blob.
    pub blob: Vec<u8>,
}

impl Layer {
    /// Not compressed.
    pub fn plain(tar: &[u8]) -> Self {
        Self { diff_id: digest(tar), media_type: "application/vnd.oci.image.layer.v1.tar", blob: tar.to_vec() }
    }

    /// gzip.
    pub fn gzip(tar: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(tar).expect("gzip");
        let blob = encoder.finish().expect("gzip");
        Self { diff_id: digest(tar), media_type: "application/vnd.oci.image.layer.v1.tar+gzip", blob }
    }

    /// The layer of the usual test image, read from the real registry's storage.
    pub fn busybox() -> Self {
        let folder = super::registry::images();
        let blob = |digest: &str| {
            let hex = digest.trim_start_matches("sha256:");
            let path = format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
            fs::read(folder.join(path)).expect("a blob")
        };
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("JSON") };
        let listing = json(&fs::read(folder.join("images.json")).expect("images.json"));
        let images = listing.as_array().expect("a list");
        let entry = images.iter().find(|image| image["ref"] == super::BUSYBOX).expect("busybox");
        let manifest = json(&blob(entry["manifest"].as_str().expect("digest")));
        let config = json(&blob(entry["config"].as_str().expect("digest")));
        let diff_id = config["rootfs"]["diff_ids"][0].as_str().expect("diff id").to_owned();
        let layer = manifest["layers"][0]["digest"].as_str().expect("digest");
        Self { diff_id, media_type: "application/vnd.oci.image.layer.v1.tar+gzip", blob: blob(layer) }
    }

    /// zstd.
    pub fn zstd(tar: &[u8]) -> Self {
        let blob = zstd::encode_all(tar, 3).expect("zstd");
        Self { diff_id: digest(tar), media_type: "application/vnd.oci.image.layer.v1.tar+zstd", blob }
    }
}

/// A whole image: manifest, configuration, layers.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's JSON.
    pub manifest: Value,
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The layers' blobs.
    pub layers: Vec<Layer>,
}

/// The architecture of this machine, as images name it.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

impl Image {
    /// An OCI image for this machine with this `config` section.
    pub fn new(layers: Vec<Layer>, config: Value) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let entries: Vec<_> = layers
            .iter()
            .map(|layer| json!({ "mediaType": layer.media_type, "digest": digest(&layer.blob), "size": layer.blob.len() }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
            "layers": entries,
        });
        Self { manifest, config, layers }
    }

    /// The digest of its manifest as it is served.
    pub fn digest(&self) -> String {
        digest(self.manifest.to_string().as_bytes())
    }
}
