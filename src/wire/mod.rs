//! What daemon and monitor say to each other over the monitor's Unix socket.
//!
//! A frame is a 4-byte little-endian length and that many bytes of JSON ([`codec`]). JSON because a
//! daemon that was upgraded talks to monitors that were not: unknown fields are ignored, new ones
//! have defaults, and [`VERSION`] tells the rest. File descriptors travel beside a frame as
//! SCM_RIGHTS.
//!
//! Architecture Invariant: no I/O policy here, only shapes and their encoding; both binaries
//! compile the very same definitions.

pub mod codec;
pub mod streams;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::pod::{IdMapping, UserNamespace};
use crate::types::{ContainerId, ErrorKind, PodId};
pub use streams::{AttachSpec, Ends, StreamedExec, Told};

/// Version of this protocol; raised when a meaning changes, not when a field is added.
pub const VERSION: u32 = 1;

/// A monitor with this argument and a folder's path only tries out whether pods can have user namespaces there.
pub const PROBE_ARGUMENT: &str = "--probe-user-namespaces";

/// What a failure's message begins with if an image volume cannot be mounted: clients look for it.
pub const IMAGE_VOLUME_FAILED: &str = "ImageVolumeMountFailed";

/// Daemon to monitor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the daemon; the answer carries it back.
    pub id: u64,
    /// What to do.
    pub request: Request,
    /// How many file descriptors come with the first byte of this frame.
    #[serde(default)]
    pub descriptors: usize,
}

/// Requests. Every one is answered by exactly one [`Message::Answer`]; they are carried out
/// concurrently unless they concern the same container.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection. Answered by [`Reply::Hello`] with the whole state, after which
    /// this connection receives events from then on: nothing falls between.
    Hello {
        /// The daemon's [`VERSION`].
        version: u32,
    },
    /// Make the pause process and the pod's namespaces. Answered by [`Reply::Pause`].
    Pause(Box<PauseSpec>),
    /// Create a container up to, not including, its first instruction. [`Reply::Created`].
    Create(Box<CreateSpec>),
    /// Let a created container run. [`Reply::Started`], also if it was started before; an `Err` says why exec failed,
    /// and then init is killed.
    Start {
        /// Which.
        container: ContainerId,
    },
    /// Send a signal to the init process, or with `all` to every process in its cgroup.
    /// [`Reply::Done`], also if it is gone already.
    Kill {
        /// Which.
        container: ContainerId,
        /// Signal number.
        signal: i32,
        /// The whole cgroup.
        all: bool,
    },
    /// Forget a container: kill what is left, remove its cgroup and runtime state. [`Reply::Done`],
    /// also if it is unknown.
    Delete {
        /// Which.
        container: ContainerId,
    },
    /// Run a process in a container and collect what it prints. [`Reply::Exec`].
    Exec(Box<ExecSpec>),
    /// Kill the process of an [`Exec`](Self::Exec) that nobody waits for any more. [`Reply::Done`], also if it has
    /// ended; the exec itself is answered as one whose time was up.
    EndExec {
        /// The exec's container.
        container: ContainerId,
        /// The exec's [`ExecSpec::token`].
        token: u64,
    },
    /// Run a process in a container with streams of the caller's. [`Reply::Done`] once its program
    /// runs; an `Err` says why it cannot. It is killed when the line is hung up.
    ExecStreamed(Box<StreamedExec>),
    /// Copy a running container's output, and take input for it, from now on until the line is hung
    /// up. [`Reply::Done`] once that is so.
    Attach(Box<AttachSpec>),
    /// Close the log file and open its path anew. [`Reply::Done`] once that is so.
    ReopenLog {
        /// Which.
        container: ContainerId,
    },
    /// SIGKILL pause. [`Reply::Done`] once it is reaped.
    KillPause,
    /// Kill and delete whatever is left, answer [`Reply::Done`], exit with 0.
    Shutdown,
}

impl Request {
    /// Whether it brings something to life.
    pub fn begins(&self) -> bool {
        matches!(
            self,
            Self::Pause(_)
                | Self::Create(_)
                | Self::Start { .. }
                | Self::Exec(_)
                | Self::ExecStreamed(_)
                | Self::Attach(_)
        )
    }

    /// Where the descriptors are that go beside the frame; `None`: it takes none.
    pub fn descriptors(&mut self) -> Option<&mut Vec<OwnedFd>> {
        match self {
            Self::ExecStreamed(spec) => Some(&mut spec.descriptors),
            Self::Attach(spec) => Some(&mut spec.descriptors),
            _ => None,
        }
    }
}

/// The pod's own process and namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PauseSpec {
    /// Bind-mounted network namespace to join; `None`: the host's. With a user namespace it is made, owned by
    /// that, and bind-mounted there, where nothing is yet.
    pub netns: Option<PathBuf>,
    /// A new user namespace with these mappings, which owns all other new ones.
    #[serde(default)]
    pub user_namespace: Option<IdMaps>,
    /// A new IPC namespace (else the host's).
    pub new_ipc: bool,
    /// A new PID namespace with pause as its init (shared-PID pods).
    pub new_pid: bool,
    /// A new UTS namespace with this hostname (else the host's).
    pub hostname: Option<String>,
    /// name (dots) to value, set in the new namespaces.
    pub sysctls: Vec<(String, String)>,
    /// cgroup folders to put pause in, absolute paths under the cgroup mounts; empty: none. They
    /// exist, unless there is a scope.
    pub cgroups: Vec<PathBuf>,
    /// systemd makes the cgroup, as this.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Uid and gid pause runs as.
    pub user: (u32, u32),
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Seccomp filter, see [`Confinement::bpf`].
    #[serde(default)]
    pub bpf: Option<PathBuf>,
    /// AppArmor profile to run under.
    #[serde(default)]
    pub apparmor_profile: Option<String>,
    /// SELinux labels of the process and of its root.
    #[serde(default)]
    pub selinux: Option<(String, String)>,
    /// OOM score adjustment; lowering it may be refused by the kernel, which is tolerated.
    pub oom_score_adj: i32,
}

/// A scope: processes that systemd did not start, in a cgroup that it makes for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Name, with `.scope`.
    pub unit: String,
    /// Name of the slice it is in, with `.slice`.
    pub slice: String,
}

/// Which program creates the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// libcontainer in a forked helper of the monitor.
    Youki {
        /// Folder for libcontainer's state.
        root: PathBuf,
        /// systemd cgroup driver.
        systemd_cgroup: bool,
    },
    /// An OCI runtime binary (runc's command line).
    Oci {
        /// Absolute path.
        binary: PathBuf,
        /// `--root`.
        root: PathBuf,
        /// Further global arguments.
        args: Vec<String>,
        /// `--systemd-cgroup`.
        systemd_cgroup: bool,
        /// For a container with a user namespace: an existing folder that everybody can reach, which helpers mount
        /// on in mount namespaces of their own.
        #[serde(default)]
        place: Option<PathBuf>,
    },
}

/// What is applied last thing before execve, in the container's init or in an exec process, because
/// libcontainer 0.7 applies it wrongly or not at all. Engine `Oci` ignores it: its runtime reads
/// all of that from the spec.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// File with the compiled seccomp filter (`struct sock_filter[]`); `None`: unconfined.
    pub bpf: Option<PathBuf>,
    /// Who decides on system calls that the filter does not.
    #[serde(default)]
    pub notify: Option<Notify>,
    /// Capability sets as bit masks.
    pub capabilities: Capabilities,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// SELinux label of the program, and of its session keyring.
    pub selinux_label: Option<String>,
    /// AppArmor profile to change to on exec.
    pub apparmor_profile: Option<String>,
}

/// Who gets the descriptor of a seccomp filter that asks (OCI runtime spec, `seccomp.listenerPath`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// Unix stream socket on the host.
    pub listener: PathBuf,
    /// Handed on to whoever listens.
    pub metadata: String,
}

/// Capability sets, bit n for capability n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bounding.
    pub bounding: u64,
    /// Permitted.
    pub permitted: u64,
    /// Effective.
    pub effective: u64,
    /// Inheritable.
    pub inheritable: u64,
    /// Ambient.
    pub ambient: u64,
}

/// The root file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rootfs {
    /// Layer folders, topmost first.
    pub lower: Vec<PathBuf>,
    /// Writable layer and its work folder, on one file system; `None`: read-only, `lower` only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where the spec's `root.path` points; an existing empty folder in the bundle.
    pub mountpoint: PathBuf,
    /// SELinux label that all files in it have.
    #[serde(default)]
    pub label: Option<String>,
    /// Whom the files of `lower` belong to inside: layers are shared by pods with different mappings. `upper`
    /// holds the owners as the host numbers them.
    #[serde(default)]
    pub idmap: Option<IdMaps>,
}

/// A mount that is prepared in the helper's private mount namespace, because libcontainer cannot
/// give a single mount its own propagation or id mapping. The spec's mount has `staged` as source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StagedMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Existing file or folder that it is mounted on.
    pub staged: PathBuf,
    /// `private`, `slave`, `shared`.
    pub propagation: StagedPropagation,
    /// User namespace mappings for an idmapped mount.
    #[serde(default)]
    pub idmap: Option<IdMaps>,
    /// What is mounted is not `source` but (a part of) an image; `staged` does not exist yet.
    #[serde(default)]
    pub image: Option<ImageTree>,
}

/// An image's files, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTree {
    /// As the client named it, for messages.
    pub name: String,
    /// Layer folders, topmost first.
    pub lower: Vec<PathBuf>,
    /// Relative path of the folder or file in it; empty: all of it.
    pub sub_path: PathBuf,
}

/// Propagation of a staged mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StagedPropagation {
    /// rprivate
    Private,
    /// rslave
    Slave,
    /// rshared
    Shared,
}

/// Uid and gid mappings as (container id, host id, length).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// uids
    pub uids: Vec<(u32, u32, u32)>,
    /// gids
    pub gids: Vec<(u32, u32, u32)>,
}

impl IdMaps {
    /// The host's number of a user inside; `None`: he does not exist there.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        on_host(&self.uids, inside)
    }

    /// The host's number of a group inside.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        on_host(&self.gids, inside)
    }

    /// The host's numbers of root inside, which is always mapped.
    pub fn root(&self) -> (u32, u32) {
        (self.uid(0).unwrap_or(0), self.gid(0).unwrap_or(0))
    }

    /// What uid_map or gid_map of a process is to hold, for one of the two lists.
    pub fn text(map: &[(u32, u32, u32)]) -> String {
        map.iter().map(|(inside, outside, length)| format!("{inside} {outside} {length}\n")).collect()
    }
}

fn on_host(maps: &[(u32, u32, u32)], inside: u32) -> Option<u32> {
    maps.iter().find_map(|(first, host, length)| {
        let offset = inside.checked_sub(*first).filter(|offset| offset < length)?;
        host.checked_add(offset)
    })
}

impl From<&UserNamespace> for IdMaps {
    fn from(from: &UserNamespace) -> Self {
        Self { uids: triples(&from.uids), gids: triples(&from.gids) }
    }
}

/// Mappings in the order of [`IdMaps`].
pub fn triples(from: &[IdMapping]) -> Vec<(u32, u32, u32)> {
    from.iter().map(|map| (map.container_id, map.host_id, map.length)).collect()
}

/// Input and output of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StdioSpec {
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep a pipe (or the terminal) for input; else stdin is /dev/null.
    pub stdin: bool,
    /// Close stdin once the first attached client leaves.
    pub stdin_once: bool,
    /// CRI log file, absolute; `None`: discard.
    pub log_path: Option<PathBuf>,
    /// An existing folder above the log file. Folders between the two are made, and links there are
    /// not followed: others than the node's root may have put them there.
    #[serde(default)]
    pub log_root: Option<PathBuf>,
}

/// Everything the monitor needs to create a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateSpec {
    /// Which.
    pub container: ContainerId,
    /// Who creates it.
    pub engine: Engine,
    /// OCI bundle: holds `config.json`, written by the daemon.
    pub bundle: PathBuf,
    /// Root file system to mount (in the helper's mount namespace for `Youki`, in the monitor's own for `Oci`).
    pub rootfs: Rootfs,
    /// Mounts to prepare.
    pub mounts: Vec<StagedMount>,
    /// Folders that are to exist in the root file system: made, root's with mode 0755, where they do not.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
    /// Applied before execve.
    pub confinement: Confinement,
    /// Input and output.
    pub stdio: StdioSpec,
    /// The container's cgroup folders (v1: one per controller; v2: one), for kill and OOM detection.
    pub cgroups: Vec<PathBuf>,
    /// Milliseconds until the creation is given up and undone.
    pub timeout_ms: u64,
}

/// A process to run in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Which container; it must be running.
    pub container: ContainerId,
    /// The OCI `process` object in JSON: args, env, cwd, user, rlimits, capabilities.
    pub process: serde_json::Value,
    /// Applied before execve.
    pub confinement: Confinement,
    /// Milliseconds until the process is killed; 0: never.
    pub timeout_ms: u64,
    /// Names it among those of its container, for [`Request::EndExec`]; 0: nothing does.
    #[serde(default)]
    pub token: u64,
    /// Most bytes collected of stdout and stderr together; what is over is read and dropped.
    pub output_limit: usize,
    /// Milliseconds to go on reading after exit while grandchildren hold the pipes.
    pub drain_ms: u64,
}

/// Monitor to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The answer to the call with this id.
    Answer {
        /// As in [`Call`].
        id: u64,
        /// Result.
        result: Result<Reply, Failure>,
    },
    /// Something happened by itself.
    Event(Event),
}

/// Answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done; nothing to tell.
    Done,
    /// The monitor's state at the moment events begin.
    Hello(State),
    /// Pause runs.
    Pause(Process),
    /// The container waits for Start.
    Created(Process),
    /// The container's program runs.
    Started {
        /// When, nanoseconds since the epoch.
        at_ns: i64,
    },
    /// The process ended, or was killed after its time limit.
    Exec(ExecOutcome),
}

/// A process, safe against pid reuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Host pid.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot.
    pub start_time: u64,
}

/// Result of an exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// Exit code; 128+n for a signal.
    pub exit_code: i32,
    /// The time limit passed and the process was killed.
    pub timed_out: bool,
    /// Bytes, base64 on the wire.
    #[serde(with = "codec::base64_bytes")]
    pub stdout: Vec<u8>,
    /// Bytes, base64 on the wire.
    #[serde(with = "codec::base64_bytes")]
    pub stderr: Vec<u8>,
}

/// Happenings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// A container's init process ended.
    Exited(Exit),
    /// Pause ended although nobody asked.
    PauseExited,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Which.
    pub container: ContainerId,
    /// Exit code; 128+n for a signal.
    pub exit_code: i32,
    /// The kernel's OOM killer took a process of its cgroup.
    pub oom_killed: bool,
    /// When, nanoseconds since the epoch.
    pub at_ns: i64,
}

/// The whole of a monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The monitor's [`VERSION`].
    pub version: u32,
    /// Which pod.
    pub pod: PodId,
    /// The monitor's own pid.
    pub pid: i32,
    /// Pause, while it lives.
    pub pause: Option<Process>,
    /// Containers that are not deleted.
    pub containers: Vec<ContainerState>,
}

/// One container of [`State`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    /// Which.
    pub container: ContainerId,
    /// Init.
    pub process: Process,
    /// When it was started; `None`: created only.
    pub started_ns: Option<i64>,
    /// A start is under way: nobody but who asked for it is told of its end. Who asks again is, too.
    #[serde(default)]
    pub starting: bool,
    /// How it ended; `None`: it lives.
    pub exit: Option<Exit>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Class.
    pub kind: ErrorKind,
    /// For people: names what was attempted, and on what.
    pub message: String,
}
