//! A container's log file: whole lines are appended to it, or dropped and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tracing::warn;

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    root: Option<PathBuf>,
    file: File,
    /// Lines lost since the last that could be written.
    dropped: u64,
}

impl LogFile {
    /// Opens `path` for appending, creating it with mode 0640. Below `root`, missing folders are made
    /// and no symlink is followed; else its folder must exist.
    ///
    /// # Errors
    /// A symlink or anything that is no regular file is refused.
    pub fn open(root: Option<&Path>, path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), root: root.map(Path::to_owned), file: open(root, path)?, dropped: 0 })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the file and opens its path anew, as after a rotation. On an error the old file stays.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(self.root.as_deref(), &self.path)?;
        Ok(())
    }

    /// Appends `lines`, all whole. What cannot be written, as on a full disk, is dropped and counted;
    /// no part of a line stays in the file.
    pub fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut written = 0;
        let error = loop {
            match self.file.write(&lines[written..]) {
                Ok(0) => break io::Error::from(io::ErrorKind::WriteZero),
                Ok(count) if written + count == lines.len() => {
                    if self.dropped > 0 {
                        warn!(log = %self.path.display(), dropped = self.dropped, "log lines were lost");
                        self.dropped = 0;
                    }
                    return;
                }
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if self.dropped == 0 {
            warn!(log = %self.path.display(), %error, "log lines are being lost");
        }
        self.dropped += lines[whole..].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.cut((written - whole) as u64);
    }

    /// Takes the last `bytes` off the file again: this process is the only one that writes to it.
    fn cut(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let cut = self.file.metadata().and_then(|meta| self.file.set_len(meta.size().saturating_sub(bytes)));
        if let Err(error) = cut {
            warn!(log = %self.path.display(), %error, "a torn line stays in the log");
        }
    }
}

fn open(root: Option<&Path>, path: &Path) -> io::Result<File> {
    let (root, name) = match root.and_then(|root| Some((root, path.strip_prefix(root).ok()?))) {
        Some(below) => below,
        None => (path.parent().unwrap_or(path), Path::new(path.file_name().unwrap_or_default())),
    };
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let root = rustix::fs::open(root, folder, Mode::empty())?;
    let mut parent = None;
    for part in name.parent().unwrap_or(Path::new("")).components() {
        let within = parent.as_ref().unwrap_or(&root);
        let part = Path::new(part.as_os_str());
        match rustix::fs::mkdirat(within, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        parent = Some(rustix::fs::openat2(within, part, folder, Mode::empty(), resolve)?);
    }
    let name = Path::new(name.file_name().ok_or(Errno::ISDIR)?);
    // NONBLOCK, so that a fifo in the log's place is refused rather than waited for.
    let flags = OFlags::RDWR
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let within = parent.as_ref().unwrap_or(&root);
    let file = File::from(rustix::fs::openat2(within, name, flags, Mode::from_raw_mode(0o640), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    mend(&file)?;
    Ok(file)
}

/// A monitor that was killed in the middle of a write left a torn line: ends it, so that the next
/// line stands alone.
fn mend(file: &File) -> io::Result<()> {
    let size = file.metadata()?.size();
    if size == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.read_exact_at(&mut last, size - 1)?;
    let mut file = file;
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lines_are_appended_and_rotation_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("0.log"), folder.path().join("0.log.1"));
        let mut log = LogFile::open(None, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
        log.append(b"a\n");
        fs::rename(&path, &rotated).unwrap();
        log.append(b"b\n");
        log.reopen().unwrap();
        log.append(b"c\n");
        assert_eq!((fs::read(&rotated).unwrap(), fs::read(&path).unwrap()), (b"a\nb\n".to_vec(), b"c\n".to_vec()));
    }

    #[test]
    fn a_torn_line_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        fs::write(&path, "whole\nto").unwrap();
        LogFile::open(None, &path).unwrap().append(b"next\n");
        assert_eq!(fs::read(&path).unwrap(), b"whole\nto\nnext\n");
    }

    #[test]
    fn symlinks_and_fifos_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (link, fifo) = (folder.path().join("link"), folder.path().join("fifo"));
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(LogFile::open(None, &link).is_err());
        assert!(LogFile::open(None, &fifo).is_err());
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn folders_below_the_root_are_made_and_links_there_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("logs"), folder.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&root).unwrap();
        // The way to the root may have links: it is the node's own.
        std::os::unix::fs::symlink(&root, folder.path().join("way")).unwrap();
        let root = folder.path().join("way");
        LogFile::open(Some(&root), &root.join("a/b/0.log")).unwrap().append(b"x\n");
        assert_eq!(fs::read(root.join("a/b/0.log")).unwrap(), b"x\n");
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        std::os::unix::fs::symlink("a", root.join("near")).unwrap();
        for bad in ["link/0.log", "near/0.log", "../outside/0.log", "a/../../outside/0.log", "."] {
            assert!(LogFile::open(Some(&root), &root.join(bad)).is_err(), "{bad}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_loses_whole_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(None, &path).unwrap();
        log.append(b"kept\n");
        // /dev/full refuses every write, as a full disk does.
        let full = File::options().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut log.file, full);
        log.append(b"lost\nlost too\n");
        assert_eq!(log.dropped, 2);
        log.file = file;
        log.append(b"kept again\n");
        assert_eq!((fs::read(&path).unwrap(), log.dropped), (b"kept\nkept again\n".to_vec(), 0));
    }
}
