//! System calls behind safe functions: mounts, namespaces, pidfds, pipes, ptys, seccomp load. The only room with `unsafe`.

pub mod bpf;
pub mod caps;
pub mod exec;
pub mod fork;
pub mod mounts;
pub mod seccomp;
