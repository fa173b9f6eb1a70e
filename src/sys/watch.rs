//! A folder of configuration files, watched: a change takes effect at once.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};

/// Room for events read at once, bytes.
const BUFFER: usize = 8 << 10;

/// A watch of one folder, which need not exist, and of the folders in it. No change is lost: if the kernel
/// has no room for more events it says so, which counts as a change, and what is watched is looked up anew
/// after each.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    events: EventStream<Vec<u8>>,
}

impl Watch {
    /// Starts watching. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The kernel's limits on inotify instances and watches, mostly.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; BUFFER])?;
        let mut watch = Self { folder: folder.to_owned(), events };
        watch.extend()?;
        Ok(watch)
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
        self.events.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    /// A file that is only just being made is not: it is announced again when its writer closes it.
    fn is_relevant(&self, event: &EventOwned) -> bool {
        let name = event.name.as_deref().unwrap_or(OsStr::new(""));
        let unfinished = |metadata: fs::Metadata| metadata.is_file() && metadata.nlink() == 1;
        !(event.mask.contains(EventMask::CREATE) && fs::symlink_metadata(self.folder.join(name)).is_ok_and(unfinished))
    }

    /// Puts watches where they belong now. A watch that is there already is left as it is.
    fn extend(&mut self) -> io::Result<()> {
        let inside = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let above = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut watches = self.events.watches();
        // The folder, or what there is of the way to it. A step that comes into being between the failed
        // attempt and the watch above it is found by trying anew after each success.
        let mut missing = self.folder.clone();
        loop {
            match watches.add(&missing, if missing == self.folder { inside } else { above }) {
                Ok(_) if missing == self.folder => break,
                Ok(_) => {
                    let below = self.folder.ancestors().find(|path| path.parent() == Some(missing.as_path()));
                    if below.is_none_or(|below| !below.exists()) {
                        return Ok(());
                    }
                    missing.clone_from(&self.folder);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    if !missing.pop() {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                match watches.add(entry.path(), inside) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
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
}
