//! Descriptors that the tokio reactor waits for.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open; for an owned one it does")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for `fd` (a pidfd, for instance) to become readable. Must be called in a tokio runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open for as long as it lives, always gives the same number, and is given away
    // whole, so it lives as long as the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Waits for `fd` to take more bytes. Must be called in a tokio runtime.
pub fn writable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in [`readable`].
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?)
}
