//! System calls behind safe functions: mounts, namespaces, pidfds, pipes, ptys, seccomp load. The only room with `unsafe`.

pub mod async_fd;
pub mod bpf;
pub mod caps;
pub mod exec;
pub mod fork;
pub mod link;
pub mod lsm;
pub mod mounts;
pub mod netns;
pub mod probe;
pub mod process;
pub mod rights;
pub mod seccomp;
pub mod tcp;
pub mod tree;
pub mod watch;
