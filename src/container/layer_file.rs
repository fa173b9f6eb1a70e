//! Reads one file out of stacked layers without mounting them.
//!
//! The image is untrusted: components are opened one by one beneath the layer's own folder,
//! symlinks are followed by hand inside the merged view, and sizes are bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat};

/// Largest file read, bytes: a passwd beyond this is an attack, not a user list.
const MAX_SIZE: u64 = 4 << 20;
/// As the kernel's own limit for symlinks on the way.
const MAX_LINKS: usize = 40;

/// What a path is in one layer.
enum Found {
    /// Nothing here: look below.
    Below,
    /// Hidden by a whiteout, or below an opaque folder: look no further.
    Hidden,
    Symlink(PathBuf),
    Folder,
    File(File),
}

/// The content of `path` (absolute) in the merged view of `lower`, topmost layer first; `None`:
/// there is no such regular file.
///
/// # Errors
/// An I/O error; `FileTooLarge` past the bound.
pub fn read(lower: &[PathBuf], path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut todo: Vec<String> = parts(path);
    todo.reverse();
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(part);
        match look(lower, &done, todo.is_empty())? {
            Found::Symlink(target) if links < MAX_LINKS => {
                links += 1;
                done.pop();
                if target.is_absolute() {
                    done.clear();
                }
                let mut more = parts(&target);
                more.reverse();
                todo.extend(more);
            }
            Found::Folder if !todo.is_empty() => {}
            Found::File(file) if todo.is_empty() => {
                let mut content = Vec::new();
                file.take(MAX_SIZE + 1).read_to_end(&mut content)?;
                if content.len() as u64 > MAX_SIZE {
                    return Err(io::Error::new(
                        io::ErrorKind::FileTooLarge,
                        format!("{} in the image is larger than {MAX_SIZE} bytes", path.display()),
                    ));
                }
                return Ok(Some(content));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn parts(path: &Path) -> Vec<String> {
    let text = path.to_string_lossy();
    text.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

fn look(lower: &[PathBuf], at: &[String], open: bool) -> io::Result<Found> {
    for layer in lower {
        match look_in(layer, at, open)? {
            Found::Below => {}
            found => return Ok(found),
        }
    }
    Ok(Found::Below)
}

fn look_in(layer: &Path, at: &[String], open: bool) -> io::Result<Found> {
    let Some((name, folders)) = at.split_last() else { return Ok(Found::Folder) };
    let mut folder: OwnedFd = File::open(layer)?.into();
    let mut opaque = false;
    for part in folders {
        match statat(&folder, part.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(if opaque { Found::Hidden } else { Found::Below }),
            Err(error) => return Err(error.into()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => return Ok(Found::Hidden),
            Ok(_) => {}
        }
        folder = openat2(
            &folder,
            part.as_str(),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )?;
        opaque |= is_opaque(&folder);
    }
    let stat = match statat(&folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => return Ok(if opaque { Found::Hidden } else { Found::Below }),
        other => other?,
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&folder, name.as_str(), Vec::new())?;
            Found::Symlink(PathBuf::from(target.to_string_lossy().into_owned()))
        }
        FileType::Directory => Found::Folder,
        FileType::RegularFile if open => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = openat2(
                &folder,
                name.as_str(),
                flags,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            )?;
            Found::File(File::from(file))
        }
        _ => Found::Hidden,
    })
}

fn is_opaque(folder: &OwnedFd) -> bool {
    // An O_PATH descriptor has no fgetxattr; its /proc name leads to the same inode.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(folder));
    let mut value = [0u8; 1];
    matches!(rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value), Ok(1)) && value == *b"y"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn layers() -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let lower: Vec<PathBuf> = ["top", "bottom"].iter().map(|name| folder.path().join(name)).collect();
        for layer in &lower {
            fs::create_dir_all(layer.join("etc")).unwrap();
        }
        (folder, lower)
    }

    fn text(lower: &[PathBuf], path: &str) -> Option<String> {
        read(lower, Path::new(path)).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_topmost_wins_and_whiteouts_hide() {
        let (_folder, lower) = layers();
        fs::write(lower[1].join("etc/passwd"), "bottom").unwrap();
        assert_eq!(text(&lower, "/etc/passwd").as_deref(), Some("bottom"));
        fs::write(lower[0].join("etc/passwd"), "top").unwrap();
        assert_eq!(text(&lower, "/etc/passwd").as_deref(), Some("top"));
        fs::remove_file(lower[0].join("etc/passwd")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, lower[0].join("etc/passwd"), FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
        assert_eq!(text(&lower, "/etc/passwd"), None);
    }

    #[test]
    fn symlinks_stay_inside() {
        let (folder, lower) = layers();
        fs::write(folder.path().join("secret"), "host").unwrap();
        fs::write(lower[1].join("etc/real"), "inside").unwrap();
        for (link, target) in [("a", "/etc/real"), ("b", "../../../../etc/real"), ("c", "c")] {
            symlink(target, lower[0].join("etc").join(link)).unwrap();
        }
        symlink(folder.path().join("secret"), lower[0].join("etc/out")).unwrap();
        assert_eq!(text(&lower, "/etc/a").as_deref(), Some("inside"));
        assert_eq!(text(&lower, "/etc/b").as_deref(), Some("inside"));
        assert_eq!(text(&lower, "/etc/c"), None);
        assert_eq!(text(&lower, "/etc/out"), None);
    }

    #[test]
    fn a_giant_file_is_refused() {
        let (_folder, lower) = layers();
        File::create(lower[0].join("etc/passwd")).unwrap().set_len(MAX_SIZE + 1).unwrap();
        assert!(read(&lower, Path::new("/etc/passwd")).is_err());
    }
}
