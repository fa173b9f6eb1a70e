//! Hardware addresses of bridges in the daemon's own network namespace.
#![expect(unsafe_code, reason = "the interface ioctls have no safe form")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Names of interfaces are shorter than this, bytes.
const NAME: usize = libc::IFNAMSIZ;
/// Bytes of an Ethernet address.
const ADDRESS: usize = 6;
/// Asks for the name of a driver.
const ETHTOOL_GDRVINFO: u32 = 3;

/// What `SIOCETHTOOL` answers to [`ETHTOOL_GDRVINFO`].
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// One bridge at a time: whoever waited for this finds an address.
static TURN: Mutex<()> = Mutex::new(());

/// Gives a bridge whose address is all zeros a random one of its own, which it then keeps whatever ports come and go;
/// whether it did. One that is not there needs none. Blocks.
///
/// # Errors
/// It is no bridge, or the kernel refuses.
pub fn give_address(name: &str) -> io::Result<bool> {
    set_address(name, false)
}

/// Has a bridge keep the address that it has now, whatever ports come and go, or else a random one; false if it is not
/// there. Blocks.
///
/// # Errors
/// It is no bridge, or the kernel refuses.
pub fn keep_address(name: &str) -> io::Result<bool> {
    set_address(name, true)
}

fn set_address(name: &str, keep: bool) -> io::Result<bool> {
    if !exists(name) {
        return Ok(false);
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (socket, mut request) = open(name)?;
    // SAFETY: the descriptor is open, and SIOCGIFHWADDR reads and writes one ifreq, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            error => Err(error),
        };
    }
    // SAFETY: SIOCGIFHWADDR succeeded, so the address is the member of the union that is set.
    let mut hardware = unsafe { request.ifr_ifru.ifru_hwaddr };
    let is_ethernet = hardware.sa_family == libc::ARPHRD_ETHER;
    let lacks = is_ethernet && hardware.sa_data[..ADDRESS].iter().all(|byte| *byte == 0);
    if !lacks && !keep {
        return Ok(false);
    }
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the descriptor is open; SIOCETHTOOL reads the ifreq and writes at most the 196 bytes of an ethtool_drvinfo
    // where it points, which DriverInfo has; both live through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if info.driver.split(|byte| *byte == 0).next() != Some(b"bridge") {
        return Err(io::Error::other("it is no bridge"));
    }
    if lacks {
        let mut address = [0; ADDRESS];
        getrandom::fill(&mut address).map_err(io::Error::other)?;
        // Locally administered, for one station.
        address[0] = address[0] & !1 | 2;
        for (slot, byte) in hardware.sa_data.iter_mut().zip(address) {
            *slot = libc::c_char::from_ne_bytes([byte]);
        }
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: as above; SIOCSIFHWADDR only reads the ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

/// Whether this thread's network namespace has such an interface. The ioctls must not be asked that: for a name that it
/// does not know the kernel runs modprobe, and waits for it.
fn exists(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && Path::new("/proc/sys/net/ipv4/conf").join(name).exists()
}

/// A socket to ask by, and a request about the interface.
fn open(name: &str) -> io::Result<(OwnedFd, libc::ifreq)> {
    if name.is_empty() || name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: ifreq is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    Ok((socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?, request))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;
    use std::process::Command;

    fn ip(words: &str) {
        assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "ip {words}");
    }

    fn address(name: &str) -> String {
        let text = Command::new("ip").args(["-o", "link", "show", name]).output().unwrap().stdout;
        let text = String::from_utf8(text).unwrap();
        text.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned()
    }

    fn in_a_namespace(work: impl FnOnce() -> io::Result<()> + Send) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        netns::create(&path, work).unwrap();
        netns::remove(&path).unwrap();
    }

    const NONE: &str = "00:00:00:00:00:00";

    #[test]
    fn only_bridges_that_lost_theirs_get_an_address() {
        in_a_namespace(|| {
            ip("link add b0 type bridge");
            assert!(!give_address("b0")?, "a new one has a random one");
            ip("link add v0 type veth peer name v1");
            ip("link set v0 master b0");
            ip("link del v0");
            assert_eq!(address("b0"), NONE, "it was the port's");
            assert!(give_address("b0")?);
            let given = address("b0");
            assert_ne!(given, NONE);
            assert!(!give_address("b0")?, "who comes second changes nothing");
            assert_eq!(address("b0"), given);
            ip("link add v0 type veth peer name v1");
            ip("link set v0 master b0");
            ip("link del v0");
            assert_eq!(address("b0"), given, "it is its own now");
            for name in ["lo", "none", "", ".", "..", "../conf/b0", &"x".repeat(40)] {
                assert!(!give_address(name)?, "{name}");
            }
            Ok(())
        });
    }

    #[test]
    fn a_bridge_keeps_the_address_that_it_has() {
        in_a_namespace(|| {
            ip("link add b0 type bridge");
            ip("link add v0 type veth peer name v1");
            ip("link set v0 master b0");
            let of_port = address("v0");
            assert!(keep_address("b0")?);
            ip("link del v0");
            assert_eq!(address("b0"), of_port);
            assert!(!keep_address("none")?);
            ip("link add v0 type veth peer name v1");
            assert_eq!(keep_address("v0").unwrap_err().to_string(), "it is no bridge");
            Ok(())
        });
    }

    #[test]
    fn the_kernel_is_asked_for_no_driver() {
        in_a_namespace(|| {
            assert!(exists("lo") && !exists("none"), "of this thread's namespace");
            ip("link add b0 type bridge");
            assert!(exists("b0"));
            Ok(())
        });
        assert!(!exists("b0") && !exists("") && !exists("../conf/lo"));
    }
}
