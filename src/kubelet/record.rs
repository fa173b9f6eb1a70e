//! What stands in a pod's own folder beside its volumes: whose it is, so that a later command can remove it; and the
//! claim by which a process keeps others from that folder. Blocking, for some small files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::client::LONG;
use super::teardown::PodRef;
use super::translate::{Dirs, PodJob};
use super::volumes::{VolumeError, io_error, make_dir};

/// Name of the record in the pod's folder; volumes and all else that containers see stand in folders beside it.
pub const FILE: &str = "pod.json";
/// Largest record that is read, bytes.
const MAX_FILE: u64 = 64 << 10;

/// Whose a folder is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The pod.
    #[serde(flatten)]
    pub pod: PodRef,
    /// Grace period, seconds.
    pub grace: u32,
    /// The manifest's file, of a watched folder; else empty.
    pub manifest: String,
    /// The runtime that has the pod; empty: not told.
    pub endpoint: String,
    /// The process that made it, which lives for as long as the folder is claimed.
    pub pid: u32,
    /// When the runtime was asked for a sandbox that its answer has not come for, nanoseconds since the epoch; else 0.
    #[serde(default)]
    pub asked: i64,
}

impl Record {
    /// Of a job of this process.
    fn of(job: &PodJob) -> Self {
        Self {
            pod: PodRef::of(job),
            grace: job.pod.grace_seconds(),
            manifest: job.origin.manifest.clone(),
            endpoint: job.origin.endpoint.clone(),
            pid: std::process::id(),
            asked: 0,
        }
    }

    /// Writes the record of a job into its folder. `asked` is what becomes [`Self::asked`].
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(job: &PodJob, dirs: &Dirs, asked: i64) -> Result<(), VolumeError> {
        make_dir(&dirs.pod(job), 0o750)?;
        let path = dirs.pod(job).join(FILE);
        let draft = path.with_extension("new");
        let record = Self { asked, ..Self::of(job) };
        let text = serde_json::to_vec(&record).map_err(|error| io_error(&path, "write")(error.into()))?;
        // What a writer left that was killed.
        let _ = fs::remove_file(&draft);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
        file.and_then(|mut file| file.write_all(&text)).map_err(io_error(&draft, "write"))?;
        fs::rename(&draft, &path).map_err(io_error(&path, "rename"))
    }

    /// The record of a pod's folder; `None` if there is none that fits the folder's name.
    pub fn read(folder: &Path) -> Option<Self> {
        let mut text = Vec::new();
        // Whoever can write into the folder might put a pipe there.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(folder.join(FILE)).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        file.take(MAX_FILE).read_to_end(&mut text).ok()?;
        let record: Self = serde_json::from_slice(&text).ok()?;
        (record.pod.is_plain() && folder.file_name()? == record.pod.uid.as_str()).then_some(record)
    }

    /// Whose it is, for people.
    pub fn whose(&self) -> String {
        let PodRef { namespace, name, owner, .. } = &self.pod;
        let of = if self.manifest.is_empty() { owner } else { &self.manifest };
        format!("belongs to pod {namespace}/{name} of {of}, process {}", self.pid)
    }

    /// How much longer the runtime may be making a sandbox that was asked for and has not been seen yet; `newest` is when
    /// the youngest of those that were seen was made. Nanoseconds since the epoch.
    pub fn awaited(&self, newest: Option<i64>, now: i64) -> Option<Duration> {
        if self.asked == 0 || newest.is_some_and(|made| made >= self.asked) {
            return None;
        }
        let since = Duration::from_nanos(u64::try_from(now.checked_sub(self.asked)?).ok()?);
        LONG.checked_sub(since)
    }

    /// All records of a driver's folders.
    ///
    /// # Errors
    /// The folder is there and cannot be listed.
    pub fn all(dirs: &Dirs) -> Result<Vec<Self>, VolumeError> {
        let entries = match fs::read_dir(&dirs.pods) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&dirs.pods, "list")(error)),
        };
        Ok(entries.flatten().filter_map(|entry| Self::read(&entry.path())).collect())
    }
}

/// A pod's folder, held by this process for as long as this value lives: no other that asks gets it.
#[derive(Debug)]
pub struct Claim {
    folder: OwnedFd,
    made: Vec<PathBuf>,
}

/// What came of a claim to a folder that was there.
#[derive(Debug)]
pub enum Held {
    /// It is ours.
    Mine(Claim),
    /// Another process has it.
    Others,
    /// There is no folder any more.
    Gone,
}

impl Claim {
    /// Makes the folders of a job, those that are missing, and claims them. `None`: another process has the claim, or
    /// they are another pod's.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn take(job: &PodJob, dirs: &Dirs) -> Result<Option<Self>, VolumeError> {
        let (folder, logs) = (dirs.pod(job), dirs.pod_logs(job));
        make_dir(&dirs.logs, 0o755)?;
        let Some(mut claim) = Self::of(&PodRef::of(job), dirs)? else { return Ok(None) };
        // A sandbox that an earlier process asked for may be on its way still.
        let asked = Record::read(&folder).map_or(0, |record| record.asked);
        // Before anything else is made: by the record it is found should this process end in between.
        Record::write(job, dirs, asked)?;
        claim.made.extend(make(&logs, 0o755)?.then_some(logs));
        Ok(Some(claim))
    }

    /// Claims a pod's own folder, which is made if it is missing. `None`: another process has the claim, or it is another
    /// pod's.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn of(pod: &PodRef, dirs: &Dirs) -> Result<Option<Self>, VolumeError> {
        let folder = dirs.pods.join(&pod.uid);
        make_dir(&dirs.pods, 0o750)?;
        // A process that removes the folder has its claim: one that is gone once the claim is ours is made anew.
        let (lock, new) = loop {
            let new = make(&folder, 0o750)?;
            match lock(&folder) {
                Ok(Some(lock)) => break (lock, new),
                Ok(None) => return Ok(None),
                Err(error) if error.is_gone() => {}
                // A link, or whatever else a container has put there: it goes alone.
                Err(VolumeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
                    fs::remove_file(&folder).map_err(io_error(&folder, "replace"))?;
                }
                Err(error) => return Err(error),
            }
        };
        if Record::read(&folder).is_some_and(|record| record.pod != *pod) {
            return Ok(None);
        }
        Ok(Some(Self { folder: lock, made: new.then_some(folder).into_iter().collect() }))
    }

    /// Claims a folder if it is there.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn hold(folder: &Path) -> Result<Held, VolumeError> {
        match lock(folder) {
            Ok(Some(folder)) => Ok(Held::Mine(Self { folder, made: Vec::new() })),
            Ok(None) => Ok(Held::Others),
            Err(error) if error.is_gone() => Ok(Held::Gone),
            Err(error) => Err(error),
        }
    }

    /// The folder itself, wherever it has been moved.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The folders that were not there before.
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }
}

/// Makes a folder; false if it was there.
fn make(path: &Path, mode: u32) -> Result<bool, VolumeError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error(path, "make folder")(error)),
    }
}

/// Locks the folder that is at this path now.
fn lock(path: &Path) -> Result<Option<OwnedFd>, VolumeError> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io_error(path, "open"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(io_error(path, "lock")(errno.into())),
    }
    let held = file.metadata().map_err(io_error(path, "look up"))?;
    let there = fs::symlink_metadata(path).map_err(io_error(path, "look up"))?;
    if (held.dev(), held.ino()) == (there.dev(), there.ino()) {
        Ok(Some(file.into()))
    } else {
        Err(io_error(path, "lock")(io::ErrorKind::NotFound.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::parse;
    use super::super::translate::Origin;
    use super::*;

    fn job(uid: &str, name: &str) -> PodJob {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 7, \
             containers: [{{name: a, image: i}}]}}\n"
        );
        let mut manifest = parse(&text, "f").unwrap();
        let document = manifest.pods.remove(0);
        let origin = Origin { endpoint: "unix:///e".to_owned(), ..Origin::default() };
        let (uid, hash, owner) = (uid.to_owned(), document.hash, "run".to_owned());
        PodJob { pod: document.pod, objects: manifest.objects, uid, hash, owner, origin }
    }

    #[test]
    fn a_folder_has_one_master_and_tells_whose_it_is() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let dirs = Dirs { pods: at("pods"), logs: at("logs"), seccomp: at("seccomp") };
        let one = job("u1", "one");
        let claim = Claim::take(&one, &dirs).unwrap().unwrap();
        assert_eq!(claim.made(), [dirs.pod(&one), dirs.pod_logs(&one)]);
        assert!(Claim::take(&one, &dirs).unwrap().is_none());
        assert!(matches!(Claim::hold(&dirs.pod(&one)).unwrap(), Held::Others));
        assert!(matches!(Claim::hold(&dirs.pods.join("u9")).unwrap(), Held::Gone), "another has removed it");
        drop(claim);
        assert!(Claim::take(&job("u1", "two"), &dirs).unwrap().is_none(), "another pod's");
        let other = PodRef { owner: "dir-1".to_owned(), ..PodRef::of(&one) };
        assert!(Claim::of(&other, &dirs).unwrap().is_none(), "another driver's");
        std::os::unix::fs::symlink(root.path(), dirs.pods.join("u2")).unwrap();
        drop(Claim::of(&PodRef { uid: "u2".to_owned(), ..other }, &dirs).unwrap().unwrap());
        assert!(fs::symlink_metadata(dirs.pods.join("u2")).unwrap().is_dir(), "the link went alone");
        assert_eq!(Claim::take(&one, &dirs).unwrap().unwrap().made(), [] as [PathBuf; 0]);
        let records = Record::all(&dirs).unwrap();
        assert_eq!((records.len(), records[0].grace, records[0].endpoint.as_str()), (1, 7, "unix:///e"));
        assert_eq!(records[0].pod, PodRef::of(&one));
    }

    #[test]
    fn records_that_do_not_fit_are_none() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs { pods: root.path().join("pods"), logs: root.path().join("l"), seccomp: root.path().join("s") };
        drop(Claim::take(&job("u1", "one"), &dirs).unwrap());
        fs::rename(dirs.pods.join("u1"), dirs.pods.join("u2")).unwrap();
        assert_eq!(Record::read(&dirs.pods.join("u2")), None, "another folder's record");
        fs::create_dir(dirs.pods.join("u3")).unwrap();
        std::os::unix::fs::symlink(dirs.pods.join("u2").join(FILE), dirs.pods.join("u3").join(FILE)).unwrap();
        // Nobody writes into it: to wait for that would be to wait for ever.
        fs::create_dir(dirs.pods.join("u4")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = dirs.pods.join("u4").join(FILE);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(Record::all(&dirs).unwrap(), []);
    }

    #[test]
    fn a_sandbox_that_was_asked_for_is_awaited_until_it_is_seen() {
        let second = 1_000_000_000;
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs { pods: root.path().join("pods"), logs: root.path().join("l"), seccomp: root.path().join("s") };
        let one = job("u1", "one");
        Record::write(&one, &dirs, 1000 * second).unwrap();
        // The next process does not forget it.
        drop(Claim::take(&one, &dirs).unwrap());
        let record = Record::read(&dirs.pod(&one)).unwrap();
        assert_eq!(record.awaited(None, 1010 * second), Some(LONG - Duration::from_secs(10)));
        assert_eq!(record.awaited(Some(999 * second), 1010 * second), Some(LONG - Duration::from_secs(10)), "an older");
        assert_eq!(record.awaited(Some(1001 * second), 1010 * second), None);
        assert_eq!(record.awaited(None, 2000 * second), None, "it never will be");
        assert_eq!(record.awaited(None, 999 * second), None, "a clock that was set back");
        assert_eq!(Record { asked: 0, ..record }.awaited(None, 1010 * second), None);
    }
}
