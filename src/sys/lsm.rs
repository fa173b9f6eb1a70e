//! What the kernel's security modules say and take: AppArmor's list of profiles, SELinux's policy, labels of files and
//! of the next execve.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// AppArmor's list of loaded profiles.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where SELinux's interface is mounted.
const SELINUX: &str = "/sys/fs/selinux";
const LABEL: &str = "security.selinux";
/// Most bytes read of the list of profiles, and of anything that SELinux answers.
const MAX_PROFILES: u64 = 4 << 20;
const MAX_ANSWER: u64 = 4096;
/// Deepest tree that is labelled: each level is an open file.
const MAX_DEPTH: usize = 512;

/// AppArmor is on in the kernel.
pub fn apparmor_enabled() -> bool {
    read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// Whether a profile of this very name is loaded.
pub fn apparmor_loaded(name: &str) -> io::Result<bool> {
    let mut text = String::new();
    File::open(PROFILES)?.take(MAX_PROFILES).read_to_string(&mut text)?;
    Ok(lists(&text, name))
}

/// The list has lines `NAME (MODE)`; a name may hold blanks and brackets.
fn lists(text: &str, name: &str) -> bool {
    text.lines().filter_map(|line| line.rsplit_once(" (")).any(|(known, _)| known == name)
}

/// The AppArmor profile of this process; `None`: unconfined.
pub fn apparmor_current() -> Option<String> {
    let text = read("/proc/self/attr/apparmor/current").or_else(|_| read("/proc/self/attr/current")).ok()?;
    let name = text.trim_end().rsplit_once(" (").map_or(text.trim_end(), |(name, _)| name);
    (!name.is_empty() && name != "unconfined").then(|| name.to_owned())
}

/// SELinux is on in the kernel, enforcing or not.
pub fn selinux_enabled() -> bool {
    Path::new(SELINUX).join("enforce").exists()
}

/// The SELinux label of this process.
pub fn selinux_current() -> io::Result<String> {
    Ok(read("/proc/self/attr/current")?.trim_end_matches(['\0', '\n']).to_owned())
}

/// Whether the loaded policy knows this label.
pub fn selinux_knows(label: &str) -> io::Result<bool> {
    match fs::OpenOptions::new().write(true).open(Path::new(SELINUX).join("context"))?.write_all(label.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the loaded policy lets a process of label `from` execute a program that then has label `to`.
pub fn selinux_may_become(from: &str, to: &str) -> io::Result<bool> {
    let number = |path: &str| -> io::Result<u32> {
        read(Path::new(SELINUX).join(path))?.trim().parse().map_err(io::Error::other)
    };
    let class = number("class/process/index")?;
    let permission = number("class/process/perms/transition")?;
    let file = fs::OpenOptions::new().read(true).write(true).open(Path::new(SELINUX).join("access"))?;
    // One write is one question, and its answer stands at the file's beginning.
    rustix::io::write(&file, format!("{from} {to} {class}").as_bytes())?;
    let mut answer = String::new();
    file.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let allowed = answer.split(' ').next().and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let allowed = allowed.ok_or_else(|| io::Error::other("an answer of SELinux's that cannot be read"))?;
    Ok(permission > 0 && allowed & (1 << (permission - 1)) != 0)
}

/// Labels of this process's next execve and of the keys it makes, set by way of a /proc that is known to be one.
#[derive(Debug)]
pub struct Attributes(OwnedFd);

impl Attributes {
    /// Keeps hold of this mount namespace's /proc: a container's may be covered by anything.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open("/proc", flags, Mode::empty())?))
    }

    /// The program that is executed next runs under this AppArmor profile.
    pub fn set_apparmor(&self, profile: &str) -> io::Result<()> {
        let text = format!("exec {profile}");
        match self.write("apparmor/exec", &text) {
            // Before Linux 5.8, and where AppArmor was chosen without a folder of its own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write("exec", &text),
            other => other,
        }
    }

    /// The program that is executed next has this SELinux label.
    pub fn set_selinux(&self, label: &str) -> io::Result<()> {
        self.write("exec", label)
    }

    /// Keys and keyrings that this process makes have this SELinux label.
    pub fn set_key_label(&self, label: &str) -> io::Result<()> {
        self.write("keycreate", label)
    }

    /// The descriptor, for whoever closes it by hand.
    pub fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let file =
            rustix::fs::openat(&self.0, format!("self/attr/{name}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // In one piece, or it is taken for several labels.
        match rustix::io::write(&file, text.as_bytes())? {
            length if length == text.len() => Ok(()),
            _ => Err(io::Error::other("a label was taken in part only")),
        }
    }
}

/// Gives one file or folder an SELinux label. A link is not followed.
pub fn set_label(path: &Path, label: &str) -> io::Result<()> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    label_opened(opened.as_fd(), label)
}

/// The same of a file that is open for more than its place. Asks no /proc.
pub fn set_label_of(file: impl AsFd, label: &str) -> io::Result<()> {
    match rustix::fs::fsetxattr(file, LABEL, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// Gives `path` and everything below it an SELinux label. Nothing is reached by name but in a folder that is held open,
/// and no link is followed: whoever can write in there cannot lead the labels elsewhere. What vanishes meanwhile, and
/// file systems that keep no labels, are passed over.
pub fn set_label_below(path: &Path, label: &str) -> io::Result<()> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode).is_dir() {
        descend(opened.as_fd(), label, MAX_DEPTH)?;
    }
    // Last: a tree whose root is labelled is labelled.
    label_opened(opened.as_fd(), label)
}

fn descend(folder: BorrowedFd<'_>, label: &str, depth: usize) -> io::Result<()> {
    let deeper = depth.checked_sub(1).ok_or_else(|| io::Error::other(format!("over {MAX_DEPTH} folders deep")))?;
    let readable = rustix::fs::openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    for entry in rustix::fs::Dir::new(readable?)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(folder, entry.file_name(), flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let meta = rustix::fs::statat(&opened, "", AtFlags::EMPTY_PATH)?;
        if rustix::fs::FileType::from_raw_mode(meta.st_mode).is_dir() {
            descend(opened.as_fd(), label, deeper)?;
        }
        label_opened(opened.as_fd(), label)?;
    }
    Ok(())
}

fn label_opened(file: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    // A descriptor that stands for a place only takes no attributes; its entry in /proc does, for that very file.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut known = [0u8; 512];
    if let Ok(length) = rustix::fs::getxattr(&path, LABEL, &mut known[..])
        && known[..length].strip_suffix(b"\0").unwrap_or(&known[..length]) == label.as_bytes()
    {
        return Ok(());
    }
    match rustix::fs::setxattr(&path, LABEL, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other.map_err(Into::into),
    }
}

fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_ANSWER).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_told_apart_by_their_whole_name() {
        let text = "MongoDB Compass (unconfined)\nrunc (unconfined)\na (b) (enforce)\nx//y (complain)\n";
        for known in ["MongoDB Compass", "runc", "a (b)", "x//y"] {
            assert!(lists(text, known), "{known}");
        }
        for unknown in ["run", "MongoDB", "a", "x", "", "runc (unconfined)"] {
            assert!(!lists(text, unknown), "{unknown}");
        }
    }

    #[test]
    fn labels_do_not_follow_links() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, outside) = (folder.path().join("tree"), folder.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        // Without SELinux the kernel keeps what root says. It keeps nothing on links, and says so.
        match set_label_below(&tree, label) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                println!("SKIPPED: may not write security labels here");
                return;
            }
            other => other.unwrap(),
        }
        let read = |path: &Path| {
            let mut value = [0u8; 128];
            rustix::fs::getxattr(path, LABEL, &mut value[..]).map(|length| value[..length].to_vec())
        };
        for path in [tree.clone(), tree.join("a"), tree.join("a/b")] {
            match read(&path) {
                Ok(value) => assert_eq!(value, label.as_bytes(), "{path:?}"),
                Err(error) => println!("SKIPPED: no labels on this file system: {error}"),
            }
        }
        assert!(read(&outside).map_or(true, |value| value != label.as_bytes()));
    }
}
