//! Which images are here, by id and by name: an immutable value that is replaced as a whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::error::ImageError;
use super::layers::LayerHold;
use super::record::{Image, ImageRecord};
use super::reference::Reference;
use crate::types::Digest;

/// An image and what keeps its layers.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The image.
    pub image: Arc<Image>,
    /// Boot in which it was pulled, or after the sync that made it durable.
    pub boot_id: String,
    /// Survives power loss.
    pub synced: bool,
    /// When a tag last moved here, ns.
    pub tagged_ns: i64,
    /// Its layers.
    pub hold: Arc<LayerHold>,
}

impl Entry {
    /// As it is stored.
    pub fn record(&self) -> ImageRecord {
        ImageRecord {
            image: (*self.image).clone(),
            boot_id: self.boot_id.clone(),
            synced: self.synced,
            tagged_ns: self.tagged_ns,
        }
    }
}

/// All images.
#[derive(Debug, Clone, Default)]
pub struct Index {
    images: BTreeMap<Digest, Entry>,
    names: HashMap<String, Digest>,
}

impl Index {
    /// All images, by id.
    pub fn images(&self) -> impl Iterator<Item = &Entry> {
        self.images.values()
    }

    /// By id.
    pub fn get(&self, id: Digest) -> Option<&Entry> {
        self.images.get(&id)
    }

    /// By whatever a CRI client may write: a whole id, a name (completed as in a pull), or an id's beginning.
    pub fn resolve(&self, text: &str) -> Result<Option<&Entry>, ImageError> {
        if let Some(id) = Digest::parse(text).ok().or_else(|| Digest::from_hex(text)) {
            return Ok(self.images.get(&id));
        }
        if let Ok(reference) = Reference::parse(text)
            && let Some(id) = self.names.get(&reference.to_string())
        {
            return Ok(self.images.get(id));
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Ok(None);
        }
        let mut fitting = self.images.values().filter(|entry| entry.image.id.hex().starts_with(prefix));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(ImageError::Ambiguous { value: text.to_owned() }),
            (found, _) => Ok(found),
        }
    }

    /// Puts an image in, in place of one with the same id. Names that it has are taken from others, whose ids are
    /// returned: their records have changed.
    pub fn put(&mut self, entry: Entry) -> Vec<Digest> {
        let id = entry.image.id;
        self.take(id);
        let mut robbed = Vec::new();
        for name in entry.image.tags.iter().chain(&entry.image.digests) {
            let Some(other) = self.names.insert(name.clone(), id).filter(|other| *other != id) else { continue };
            if let Some(other) = self.images.get_mut(&other) {
                let mut image = (*other.image).clone();
                image.tags.retain(|tag| tag != name);
                image.digests.retain(|digest| digest != name);
                other.image = Arc::new(image);
                robbed.push(other.image.id);
            }
        }
        self.images.insert(id, entry);
        robbed
    }

    /// Takes an image out.
    pub fn take(&mut self, id: Digest) -> Option<Entry> {
        let entry = self.images.remove(&id)?;
        self.names.retain(|_, owner| *owner != id);
        Some(entry)
    }
}
