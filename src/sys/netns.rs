//! Network namespaces: made, pinned by a bind mount, entered, removed.
//!
//! Every entry into another namespace happens on a thread made for it, which ends with the work:
//! a thread of a pool would carry the namespace on to whatever it runs next.
#![expect(unsafe_code, reason = "unshare and the interface ioctls have no safe form")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Stack of the short-lived threads, bytes.
const STACK: usize = 256 << 10;

/// Makes a network namespace with `lo` up, runs `setup` inside, and pins it at `path`, which must not
/// exist while its folder must. On an error nothing is left. Blocks for about a millisecond.
pub fn create<E>(path: &Path, setup: impl FnOnce() -> Result<(), E> + Send) -> Result<(), E>
where
    E: From<io::Error> + Send,
{
    on_own_thread(|| {
        // SAFETY: CLONE_NEWNET changes nothing but this thread's network namespace. The thread was
        // made for this call and ends with it, so no other code ever runs in that namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)?;
        loopback_up()?;
        setup()?;
        Ok(pin("/proc/thread-self/ns/net", path)?)
    })
}

/// Pins the network namespace of a process that runs at `path`, which must not exist while its folder must.
pub fn pin_of(pid: i32, path: &Path) -> io::Result<()> {
    pin(&format!("/proc/{pid}/ns/net"), path)
}

/// Sets `lo` up in the namespace pinned at `path` and runs `setup` inside. Blocks for about a millisecond.
pub fn prepare<E>(path: &Path, setup: impl FnOnce() -> Result<(), E> + Send) -> Result<(), E>
where
    E: From<io::Error> + Send,
{
    within(path, || {
        loopback_up()?;
        setup()
    })
}

/// Unpins the namespace at `path`. One that is missing or was never mounted is fine. The kernel
/// frees the namespace when its last process and mount are gone.
pub fn remove(path: &Path) -> io::Result<()> {
    loop {
        // More than one mount can be stacked there if a creation was repeated.
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread of its own inside the network namespace pinned at `path`.
pub fn within<T: Send, E>(path: &Path, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    E: From<io::Error> + Send,
{
    let namespace = File::open(path)?;
    on_own_thread(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)?;
        work()
    })
}

/// Runs `work` on a fresh thread and waits for it.
fn on_own_thread<T: Send, E>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    E: From<io::Error> + Send,
{
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).stack_size(STACK).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Binds a namespace to a new file at `path`.
fn pin(namespace: &str, path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    mount_bind(namespace, path).map_err(|error| {
        let _ = fs::remove_file(path);
        io::Error::from(error)
    })
}

/// Sets `lo` up in the calling thread's namespace; the kernel then adds 127.0.0.1 and ::1 itself.
fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed();
    }
    // SAFETY: the descriptor is open, and SIOCGIFFLAGS reads and writes one ifreq, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS succeeded, so the flags are the member of the union that is set.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    #[expect(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
    let up = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above; SIOCSIFFLAGS only reads it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    fn is_mounted(path: &Path) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&path.display().to_string())
    }

    #[test]
    fn a_namespace_has_loopback_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        create(&path, || Ok::<_, io::Error>(())).unwrap();
        assert!(is_mounted(&path));
        assert_ne!(fs::metadata(&path).unwrap().ino(), own);
        for address in ["127.0.0.1:0", "[::1]:0"] {
            within(&path, || {
                let listener = TcpListener::bind(address)?;
                TcpStream::connect(listener.local_addr()?)
            })
            .unwrap();
        }
        assert_eq!(fs::metadata("/proc/thread-self/ns/net").unwrap().ino(), own, "this thread stayed");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!is_mounted(&path) && !path.exists());
    }

    #[test]
    fn a_failing_setup_or_a_taken_path_leaves_no_mount() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        create(&path, || Err::<(), _>(io::Error::other("no"))).unwrap_err();
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        let error = create(&path, || Ok::<_, io::Error>(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(!is_mounted(&path));
    }
}
