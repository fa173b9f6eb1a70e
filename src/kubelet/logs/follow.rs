//! Reads a log file as it grows.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use inotify::{Inotify, WatchMask};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Parser, Piece, Stream};

/// A log that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log {path}")]
pub struct LogError {
    /// File.
    pub path: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Sends what stands in the log and what is added to it, until `ended` is cancelled and all is read, or nobody
/// listens. The file's folder must be there; the file may come later.
///
/// # Errors
/// The folder cannot be watched or the file not be read.
pub async fn follow(path: PathBuf, out: mpsc::Sender<Piece>, ended: CancellationToken) -> Result<(), LogError> {
    read_on(&path, &out, &ended).await.map_err(|source| LogError { path: path.to_string_lossy().into_owned(), source })
}

async fn read_on(path: &Path, out: &mpsc::Sender<Piece>, ended: &CancellationToken) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let inotify = Inotify::init()?;
    // Watched before the first look, so that nothing falls between.
    inotify.watches().add(folder, WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MODIFY)?;
    let mut changes = inotify.into_event_stream([0u8; 4096])?;
    let (mut parser, mut file) = (Parser::default(), None);
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        // Asked before the read: what was written before the end is then read for certain.
        let last = ended.is_cancelled();
        if file.is_none() {
            file = match File::open(path).await {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        if let Some(file) = &mut file {
            loop {
                let count = file.read(&mut buffer).await?;
                if count == 0 {
                    break;
                }
                for piece in parser.feed(&buffer[..count]) {
                    if out.send(piece).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        if last {
            return Ok(());
        }
        tokio::select! {
            () = ended.cancelled() => {}
            change = changes.next() => if let Some(Err(error)) = change { return Err(error) },
        }
    }
}

/// The end of a log: up to `lines` lines and `bytes` bytes of content, both streams together.
pub async fn tail(path: &Path, lines: usize, bytes: usize) -> String {
    let read = async {
        let mut file = File::open(path).await?;
        // Each line carries up to about 50 bytes beside its content.
        let window = u64::try_from(bytes + lines * 64).unwrap_or(u64::MAX);
        let length = file.metadata().await?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(window))).await?;
        let mut data = Vec::new();
        file.take(window).read_to_end(&mut data).await?;
        Ok::<_, io::Error>(data)
    };
    let data = read.await.unwrap_or_default();
    let mut text = Vec::new();
    for Piece { bytes, ends_line, stream: Stream::Stdout | Stream::Stderr } in Parser::default().feed(&data) {
        text.extend_from_slice(&bytes);
        if ends_line {
            text.push(b'\n');
        }
    }
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let kept = all[all.len().saturating_sub(lines)..].join("\n");
    let mut start = kept.len().saturating_sub(bytes);
    while !kept.is_char_boundary(start) {
        start += 1;
    }
    kept[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_log_is_followed_from_before_its_first_line_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let (out, mut pieces) = mpsc::channel(8);
        let ended = CancellationToken::new();
        let task = tokio::spawn(follow(path.clone(), out, ended.clone()));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"T stdout F one\nT std").unwrap();
        assert_eq!(pieces.recv().await.unwrap().bytes, b"one");
        file.write_all(b"err F two\n").unwrap();
        assert_eq!(pieces.recv().await.unwrap().bytes, b"two");
        file.write_all(b"T stdout P three\n").unwrap();
        ended.cancel();
        assert_eq!(pieces.recv().await.unwrap().bytes, b"three");
        assert_eq!(pieces.recv().await, None);
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_tail_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let text: String = (0..1000).map(|n| format!("2026-01-01T00:00:00Z stdout F line {n}\n")).collect();
        std::fs::write(&path, text).unwrap();
        assert_eq!(tail(&path, 2, 2048).await, "line 998\nline 999");
        assert_eq!(tail(&path, 80, 10).await, "8\nline 999");
        assert_eq!(tail(Path::new("/nonexistent"), 2, 10).await, "");
    }
}
