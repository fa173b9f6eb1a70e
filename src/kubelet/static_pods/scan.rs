//! A folder of manifests to pods.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::manifest::{MAX_BYTES, parse};
use super::super::translate::{Origin, PodJob};
use super::super::uid;

/// Namespace and name of a pod: one of each is run.
pub type Key = (String, String);

/// The pods of a folder.
pub type Pods = BTreeMap<Key, Arc<PodJob>>;

/// The folder as last read.
#[derive(Debug, Default)]
pub struct Folder {
    /// The pods of each file, as of its last readable state.
    files: BTreeMap<PathBuf, Vec<Arc<PodJob>>>,
}

impl Folder {
    /// Reads all `.yaml`, `.yml` and `.json` files but hidden ones. A file that cannot be read or parsed keeps the
    /// pods it had: somebody may be about to write it. The second part are the errors.
    ///
    /// # Errors
    /// The folder itself cannot be read.
    pub fn scan(&mut self, folder: &Path, owner: &str) -> io::Result<(Pods, Vec<String>)> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let known = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
            if known && !name.starts_with('.') {
                paths.push(path);
            }
        }
        paths.sort();
        let mut errors = Vec::new();
        let mut before = std::mem::take(&mut self.files);
        for path in paths {
            match read(&path, owner) {
                Ok(jobs) => drop(self.files.insert(path, jobs)),
                // Gone since it was listed.
                Err(None) => {}
                Err(Some(error)) => {
                    errors.push(error);
                    self.files.extend(before.remove_entry(&path));
                }
            }
        }
        let mut pods = BTreeMap::new();
        for (path, job) in self.files.iter().flat_map(|(path, jobs)| jobs.iter().map(move |job| (path, job))) {
            let metadata = &job.pod.metadata;
            let key = (metadata.namespace.clone(), metadata.name.clone());
            let uid_taken = pods.values().any(|other: &Arc<PodJob>| other.uid == job.uid);
            if pods.contains_key(&key) || uid_taken {
                errors.push(format!("{}: pod {}/{} is there already", path.display(), key.0, key.1));
            } else {
                pods.insert(key, job.clone());
            }
        }
        Ok((pods, errors))
    }
}

/// `Err(None)`: there is no such file.
fn read(path: &Path, owner: &str) -> Result<Vec<Arc<PodJob>>, Option<String>> {
    let shown = path.display().to_string();
    let text = File::open(path).and_then(|file| {
        let mut text = String::new();
        // One byte more than allowed, so that the parser sees what is too large.
        file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text).map(|_| text)
    });
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(Some(format!("{shown}: {error}"))),
    };
    let manifest = parse(&text, &shown).map_err(|error| Some(error.to_string()))?;
    let jobs = manifest.pods.into_iter().map(|document| {
        let metadata = &document.pod.metadata;
        let uid = match metadata.uid.as_str() {
            // The same manifest is the same pod, also for a driver that was restarted.
            "" => uid::derived(&[owner, &metadata.namespace, &metadata.name, &document.hash]),
            uid => uid.to_owned(),
        };
        Arc::new(PodJob {
            uid,
            pod: document.pod,
            objects: manifest.objects.clone(),
            hash: document.hash,
            owner: owner.to_owned(),
            origin: Origin { manifest: shown.clone(), ..Origin::default() },
        })
    });
    Ok(jobs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: a, image: {image}}}]}}\n"
        )
    }

    #[test]
    fn a_folder_is_read_file_by_file() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        put("a.yaml", &pod("one", "i"));
        put("b.json", &pod("two", "i"));
        put(".hidden.yaml", &pod("three", "i"));
        put("notes.txt", "no pod");
        let mut folder = Folder::default();
        let (pods, errors) = folder.scan(root.path(), "o").unwrap();
        let names: Vec<&str> = pods.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!((names, errors.len()), (vec!["one", "two"], 0));
        let uid =
            |pods: &BTreeMap<Key, Arc<PodJob>>, name: &str| pods[&("default".to_owned(), name.to_owned())].uid.clone();
        let (one, two) = (uid(&pods, "one"), uid(&pods, "two"));

        // A broken file keeps its pod, a changed one gets a new uid, a second pod of a name is refused.
        put("a.yaml", "{");
        put("b.json", &pod("two", "other"));
        put("c.yaml", &pod("two", "third"));
        let (pods, errors) = folder.scan(root.path(), "o").unwrap();
        assert_eq!(uid(&pods, "one"), one);
        assert_ne!(uid(&pods, "two"), two);
        assert_eq!(errors.len(), 2);

        fs::remove_file(root.path().join("a.yaml")).unwrap();
        let (pods, _) = folder.scan(root.path(), "o").unwrap();
        assert_eq!(pods.len(), 1);
    }
}
