//! Hardware addresses of bridges in the daemon's own network namespace.
#![expect(unsafe_code, reason = "the interface ioctls have no safe form")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

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

/// Whether there is an interface of this name whose Ethernet address is all zeros. Two system calls that wait for nobody.
pub fn lacks_address(name: &str) -> bool {
    let Ok((socket, mut request)) = open(name) else { return false };
    // SAFETY: the descriptor is open, and SIOCGIFHWADDR reads and writes one ifreq, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return false;
    }
    // SAFETY: SIOCGIFHWADDR succeeded, so the address is the member of the union that is set.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    address.sa_family == libc::ARPHRD_ETHER && address.sa_data[..ADDRESS].iter().all(|byte| *byte == 0)
}

/// Gives a bridge a random address of its own, which it then keeps whatever ports come and go.
///
/// # Errors
/// It is gone, it is no bridge, or the kernel refuses.
pub fn give_address(name: &str) -> io::Result<()> {
    let (socket, mut request) = open(name)?;
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
    let mut address = [0; ADDRESS];
    getrandom::fill(&mut address).map_err(io::Error::other)?;
    // Locally administered, for one station.
    address[0] = address[0] & !1 | 2;
    let mut hardware = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (slot, byte) in hardware.sa_data.iter_mut().zip(address) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: as above; SIOCSIFHWADDR only reads the ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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

    #[test]
    fn only_bridges_that_lost_theirs_get_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns");
        netns::create(&path, || -> io::Result<()> {
            ip("link add b0 type bridge");
            assert!(!lacks_address("b0"), "a new one has a random one");
            ip("link add v0 type veth peer name v1");
            ip("link set v0 master b0");
            ip("link del v0");
            assert!(lacks_address("b0"), "it was the port's");
            give_address("b0")?;
            assert!(!lacks_address("b0"));
            ip("link add v0 type veth peer name v1");
            ip("link set v0 master b0");
            ip("link del v0");
            assert!(!lacks_address("b0"), "it is its own now");
            assert!(!lacks_address("lo"), "no Ethernet");
            assert!(!lacks_address("none") && !lacks_address("") && !lacks_address(&"x".repeat(40)));
            give_address("none").unwrap_err();
            ip("link add v0 type veth peer name v1");
            assert_eq!(give_address("v0").unwrap_err().to_string(), "it is no bridge");
            Ok(())
        })
        .unwrap();
        netns::remove(&path).unwrap();
    }
}
