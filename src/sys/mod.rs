//! System calls behind safe functions: mounts, namespaces, pidfds, pipes, ptys, seccomp load. The only room with `unsafe`.

pub mod async_fd;
pub mod netns;
pub mod probe;
