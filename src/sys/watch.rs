//! A folder of configuration files, watched: a change takes effect at once.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};

/// Room for events read at once, bytes.
const BUFFER: usize = 8 << 10;
/// Most symlinks followed on the way to a folder, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A watch of one folder, which need not exist, of the folders in it, and of each step of the way to it: a step that comes,
/// goes, or is a symlink and leads elsewhere changes what is found there. No change is lost: if the kernel has no room
/// for more events it says so, which counts as a change, and what is watched is looked up anew after each.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    events: EventStream<Vec<u8>>,
    /// What is watched and what counts there.
    watched: HashMap<WatchDescriptor, Interest>,
    #[cfg(test)]
    lost: bool,
}

/// What counts in a folder.
#[derive(Debug, Default)]
struct Interest {
    /// All of it, by its path.
    all: Option<PathBuf>,
    /// Steps of the way to the folder that is watched.
    steps: HashSet<OsString>,
}

impl Watch {
    /// Starts watching an absolute path. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The kernel's limits on inotify instances and watches, mostly.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; BUFFER])?;
        let mut watch = Self {
            folder: folder.to_owned(),
            events,
            watched: HashMap::new(),
            #[cfg(test)]
            lost: false,
        };
        watch.extend()?;
        Ok(watch)
    }

    /// One that ends with an error.
    #[cfg(test)]
    pub fn lost(folder: &Path) -> io::Result<Self> {
        Ok(Self { lost: true, ..Self::new(folder)? })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until something may have changed. What comes in the same moment counts as one change.
    ///
    /// # Errors
    /// Nothing can be watched any longer.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut event = self.next().await?;
            let mut relevant = false;
            loop {
                relevant |= self.is_relevant(&event);
                match self.next().now_or_never() {
                    Some(next) => event = next?,
                    None => break,
                }
            }
            if relevant {
                return self.extend();
            }
        }
    }

    async fn next(&mut self) -> io::Result<EventOwned> {
        #[cfg(test)]
        if self.lost {
            return Err(io::Error::other("lost"));
        }
        self.events.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    fn is_relevant(&self, event: &EventOwned) -> bool {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return true;
        }
        let name = event.name.as_deref();
        match self.watched.get(&event.wd) {
            // What is no longer on the way, and was taken out.
            None => false,
            Some(Interest { all: Some(folder), .. }) => !is_unfinished(folder, event.mask, name.unwrap_or_default()),
            Some(interest) => name.is_none_or(|name| interest.steps.contains(name)),
        }
    }

    /// Puts watches where they belong now, and takes them away elsewhere.
    fn extend(&mut self) -> io::Result<()> {
        let mut watched = HashMap::new();
        if let Some(found) = self.watch_way(&mut watched)? {
            if !self.watch_all(&found, &mut watched)? && found.exists() {
                tracing::warn!(path = %found.display(), "folder may not be watched: its changes take effect at the next start");
            }
            for entry in fs::read_dir(&found).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    self.watch_all(&entry.path(), &mut watched)?;
                }
            }
        }
        let mut watches = self.events.watches();
        for old in self.watched.keys().filter(|old| !watched.contains_key(*old)) {
            // The kernel takes those of what is gone away itself.
            let _ = watches.remove(old.clone());
        }
        self.watched = watched;
        Ok(())
    }

    /// Watches each step of the way, before it is looked at, so that what changes later is told. Gives the folder without
    /// symlinks, or `None` if the way ends before it.
    fn watch_way(&self, watched: &mut HashMap<WatchDescriptor, Interest>) -> io::Result<Option<PathBuf>> {
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        let mut left: Vec<OsString> = steps(&self.folder);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(step) = left.pop() {
            if step == ".." {
                here.pop();
                continue;
            }
            if let Some(watch) = self.add(&here, mask)? {
                watched.entry(watch).or_default().steps.insert(step.clone());
            }
            let next = here.join(&step);
            match fs::symlink_metadata(&next) {
                Ok(found) if found.is_dir() => here = next,
                Ok(found) if found.is_symlink() && links < MAX_LINKS => {
                    links += 1;
                    let Ok(target) = fs::read_link(&next) else { return Ok(None) };
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    left.extend(steps(&target));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// Watches a folder for all that happens in it; whether it can be.
    fn watch_all(&self, folder: &Path, watched: &mut HashMap<WatchDescriptor, Interest>) -> io::Result<bool> {
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        let Some(watch) = self.add(folder, mask)? else { return Ok(false) };
        watched.entry(watch).or_default().all = Some(folder.to_owned());
        Ok(true)
    }

    /// Watches a folder; `None` if it cannot be: it is gone, or others may not look into it.
    fn add(&self, folder: &Path, mask: WatchMask) -> io::Result<Option<WatchDescriptor>> {
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        // The same folder can be a step and what is watched.
        match self.events.watches().add(folder, mask | WatchMask::ONLYDIR | WatchMask::MASK_ADD) {
            Ok(watch) => Ok(Some(watch)),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A file that is only just being made is: it is announced again when its writer closes it.
fn is_unfinished(folder: &Path, mask: EventMask, name: &OsStr) -> bool {
    let unfinished = |metadata: fs::Metadata| metadata.is_file() && metadata.nlink() == 1;
    mask.contains(EventMask::CREATE) && fs::symlink_metadata(folder.join(name)).is_ok_and(unfinished)
}

/// The steps of a path, last first.
fn steps(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut steps: Vec<_> = names.collect();
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn seen(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.is_ok_and(|result| result.is_ok())
    }

    #[tokio::test]
    async fn changes_are_seen_also_in_a_folder_that_comes_later() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/cni/net.d");
        let mut watch = Watch::new(&folder).unwrap();
        fs::create_dir_all(&folder).unwrap();
        assert!(seen(&mut watch).await, "folder made");
        fs::write(folder.join("10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "file written");
        fs::rename(folder.join("10.conf"), root.path().join("away")).unwrap();
        assert!(seen(&mut watch).await, "file moved away");
        fs::create_dir(folder.join("net")).unwrap();
        assert!(seen(&mut watch).await, "folder of a network made");
        fs::write(folder.join("net/10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "plugin of a network written");
        fs::write(folder.join("20-net.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "file of a name that the network has, too");
        std::os::unix::fs::symlink("/nowhere", folder.join("net/20-net.conf")).unwrap();
        assert!(seen(&mut watch).await, "link made in the network's folder");
        std::os::unix::fs::symlink("/nowhere", folder.join("20.conf")).unwrap();
        assert!(seen(&mut watch).await, "link made");
        fs::rename(&folder, root.path().join("old")).unwrap();
        assert!(seen(&mut watch).await, "folder moved away");
        fs::create_dir(&folder).unwrap();
        assert!(seen(&mut watch).await, "folder made anew");
        fs::write(folder.join("10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "file written in the new folder");
    }

    #[tokio::test]
    async fn more_changes_than_the_kernel_keeps_are_a_change() {
        let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let most: usize = most.trim().parse().unwrap();
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = root.path().join("cdi");
        fs::create_dir(&folder).unwrap();
        let mut watch = Watch::new(&folder).unwrap();
        // Two events each, no two alike in a row: those that do not fit are dropped by the kernel.
        for turn in 0..=most / 2 {
            fs::write(folder.join(if turn % 2 == 0 { "a" } else { "b" }), "").unwrap();
        }
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(seen(&mut watch).await);
        fs::write(folder.join("late.json"), "x").unwrap();
        assert!(seen(&mut watch).await, "in the folder that took its place unseen");
    }

    #[tokio::test]
    async fn a_file_counts_when_it_is_written_not_when_it_is_begun() {
        let root = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(root.path()).unwrap();
        let file = fs::File::create(root.path().join("10.conf")).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_err());
        drop(file);
        assert!(seen(&mut watch).await);
    }

    /// What is logged, with all fields.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_folder_that_may_not_be_watched_is_told_of() {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let log = Log::default();
        let writer = log.clone();
        let sink = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let folder = root.path().join("net.d");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o0)).unwrap();
        // Capabilities are the thread's.
        let watching = std::thread::spawn(move || {
            let mut sets = capabilities(None).unwrap();
            sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            set_capabilities(None, sets).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tracing::subscriber::with_default(sink, || runtime.block_on(async { Watch::new(&folder).map(drop) }))
        });
        watching.join().unwrap().unwrap();
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("net.d") && log.contains("may not be watched"), "{log}");
    }

    #[tokio::test]
    async fn a_way_that_leads_elsewhere_is_seen() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for version in ["v1/net.d", "v2/net.d", "v3/net.d"] {
            fs::create_dir_all(at(version)).unwrap();
        }
        fs::create_dir(at("etc")).unwrap();
        symlink("../link", at("etc/cni")).unwrap();
        symlink(at("v1"), at("link")).unwrap();
        let mut watch = Watch::new(&at("etc/cni/net.d")).unwrap();
        fs::write(at("v1/net.d/10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "a file at the way's end");
        // As it is done in one step: another link renamed over it.
        symlink(at("v2"), at("new")).unwrap();
        fs::rename(at("new"), at("link")).unwrap();
        assert!(seen(&mut watch).await, "a link of the way leads elsewhere");
        fs::write(at("v2/net.d/10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "a file at the new end");
        fs::write(at("v1/net.d/11.conf"), "x").unwrap();
        fs::write(at("unrelated"), "x").unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(nothing.is_err(), "neither the old end nor what lies beside the way counts");
        fs::remove_file(at("etc/cni")).unwrap();
        assert!(seen(&mut watch).await, "a link of the way is gone");
        symlink("../v3", at("etc/cni")).unwrap();
        assert!(seen(&mut watch).await, "it is there again");
        fs::write(at("v3/net.d/10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "a file at the third end");
        fs::rename(at("etc"), at("old")).unwrap();
        assert!(seen(&mut watch).await, "a folder of the way moved away");
        fs::create_dir_all(at("etc/cni/net.d")).unwrap();
        assert!(seen(&mut watch).await, "folders in its place");
        fs::write(at("etc/cni/net.d/10.conf"), "x").unwrap();
        assert!(seen(&mut watch).await, "a file in there");
        symlink("loop", at("loop")).unwrap();
        Watch::new(&at("loop/net.d")).unwrap();
    }
}
