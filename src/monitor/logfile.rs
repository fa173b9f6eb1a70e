//! A container's log file: whole lines are appended to it, or dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Lines lost since the last that could be written.
    dropped: u64,
}

impl LogFile {
    /// Opens `path` for appending, creating it with mode 0640 in a folder that exists.
    ///
    /// # Errors
    /// A symlink or anything that is no regular file is refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, dropped: 0 })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the file and opens its path anew, as after a rotation. On an error the old file stays.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
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

fn open(path: &Path) -> io::Result<File> {
    // NONBLOCK, so that a fifo in the log's place is refused rather than waited for.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
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
        let mut log = LogFile::open(&path).unwrap();
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
        LogFile::open(&path).unwrap().append(b"next\n");
        assert_eq!(fs::read(&path).unwrap(), b"whole\nto\nnext\n");
    }

    #[test]
    fn symlinks_and_fifos_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (link, fifo) = (folder.path().join("link"), folder.path().join("fifo"));
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(LogFile::open(&link).is_err());
        assert!(LogFile::open(&fifo).is_err());
        assert!(!folder.path().join("elsewhere").exists());
    }

    #[test]
    fn a_full_disk_loses_whole_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"kept\n");
        // /dev/full refuses every write, as a full disk does.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut log.file, full);
        log.append(b"lost\nlost too\n");
        assert_eq!(log.dropped, 2);
        log.file = file;
        log.append(b"kept again\n");
        assert_eq!((fs::read(&path).unwrap(), log.dropped), (b"kept\nkept again\n".to_vec(), 0));
    }
}
