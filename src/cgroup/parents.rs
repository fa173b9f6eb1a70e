//! Parents that did not exist before a pod asked for them: taken away with the last pod that did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which pods need which of the folders that were made for pods.
#[derive(Debug, Default)]
pub struct Parents(Mutex<BTreeMap<PathBuf, BTreeSet<String>>>);

impl Parents {
    /// `pod` will lie at `relative` below each of `roots`. Returns the folders from there upwards that do
    /// not exist yet, or exist because another pod needed them; deepest first.
    pub(super) fn claim(&self, pod: &str, roots: &[PathBuf], relative: &Path) -> Vec<PathBuf> {
        let mut users = self.lock();
        let mut claimed = Vec::new();
        for root in roots {
            let parent = root.join(relative);
            for folder in parent.ancestors().take_while(|folder| *folder != root && folder.starts_with(root)) {
                if users.contains_key(folder) || !folder.exists() {
                    users.entry(folder.to_owned()).or_default().insert(pod.to_owned());
                    claimed.push(folder.to_owned());
                }
            }
        }
        claimed
    }

    /// `pod`, found by its record, had claimed `folders`.
    pub fn hold(&self, pod: &str, folders: &[PathBuf]) {
        let mut users = self.lock();
        for folder in folders {
            users.entry(folder.clone()).or_default().insert(pod.to_owned());
        }
    }

    /// `pod` has no cgroup any more: removes those of `folders` that no other pod needs and that are
    /// empty. May be repeated. Blocks.
    pub fn release(&self, pod: &str, folders: &[PathBuf]) {
        // Under the lock, so that no pod that claims a folder finds it vanish.
        let mut users = self.lock();
        for folder in folders {
            let others = users.get_mut(folder).is_some_and(|pods| {
                pods.remove(pod);
                !pods.is_empty()
            });
            if !others {
                users.remove(folder);
                // Somebody else's cgroups may lie in it by now: then it stays, and is theirs.
                let _ = fs::remove_dir(folder);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, BTreeSet<String>>> {
        // Every change of an entry is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_pod_takes_the_parents_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cpuset");
        fs::create_dir_all(root.join("old")).unwrap();
        let parents = Parents::default();
        let roots = [root.clone()];
        let relative = Path::new("old/new/newer");
        let first = parents.claim("a", &roots, relative);
        assert_eq!(first, [root.join("old/new/newer"), root.join("old/new")]);
        fs::create_dir_all(root.join(relative)).unwrap();
        let second = parents.claim("b", &roots, relative);
        assert_eq!(second, first, "it was made for pods");
        assert!(parents.claim("c", &roots, Path::new("old")).is_empty(), "it was there before");
        parents.release("a", &first);
        assert!(root.join(relative).exists(), "another pod lives there");
        parents.release("b", &second);
        parents.release("b", &second);
        assert!(!root.join("old/new").exists() && root.join("old").exists());
    }

    proptest! {
        #[test]
        fn whatever_the_order_nothing_is_left_and_nothing_vanishes_early(
            steps in prop::collection::vec((0..4_usize, prop::bool::ANY, prop::sample::select(vec!["a", "a/b", "c", "a/b/d"])), 0..40)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let roots = [folder.path().join("x"), folder.path().join("y")];
            roots.iter().for_each(|root| fs::create_dir(root).unwrap());
            let mut parents = Parents::default();
            let mut live: BTreeMap<String, (Vec<PathBuf>, &str)> = BTreeMap::new();
            for (pod, restart, place) in steps {
                let pod = pod.to_string();
                if restart {
                    parents = Parents::default();
                    live.iter().for_each(|(pod, (claimed, _))| parents.hold(pod, claimed));
                }
                if let Some((claimed, place)) = live.remove(&pod) {
                    roots.iter().for_each(|root| fs::remove_dir(root.join(place).join(&pod)).unwrap());
                    parents.release(&pod, &claimed);
                } else {
                    let claimed = parents.claim(&pod, &roots, Path::new(place));
                    roots.iter().for_each(|root| fs::create_dir_all(root.join(place).join(&pod)).unwrap());
                    live.insert(pod, (claimed, place));
                }
                for (pod, (_, place)) in &live {
                    prop_assert!(roots.iter().all(|root| root.join(place).join(pod).exists()));
                }
            }
            for (pod, (claimed, place)) in live {
                roots.iter().for_each(|root| fs::remove_dir(root.join(place).join(&pod)).unwrap());
                parents.release(&pod, &claimed);
            }
            prop_assert!(roots.iter().all(|root| fs::read_dir(root).unwrap().next().is_none()));
        }
    }
}
