//! A process in a container that runs already, without libcontainer, whose exec drops seccomp, does
//! not join user namespaces, and reads mountinfo over and over.
//!
//! ```text
//! monitor ─ fork ─ helper, on the host: streams, cgroup files, filter, limits; not dumpable
//!                    │ setns by pidfd, all namespaces in one call
//!                    └ clone3(CLONE_PARENT) ─ the process, the monitor's child; waits for "go"
//!                        helper tells the pid, then "go", then waits for execve or its failure
//!                          process: cgroups, session, ids, streams, working directory, Executor, execve
//! ```
//!
//! Architecture Invariant: between setns and execve the container may be hostile. No host descriptor
//! but the streams survives execve; no path is opened except inside the joined root; nobody inside can
//! look into the helper or the process (not dumpable), nor at /proc/PID/exe of either.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::ThreadNameSpaceType;
use serde::Deserialize;

use super::executor::Confined;
use super::job::{self, Outcome};
use super::listener::Listener;
use super::spec::{self, Own};
use super::stdio::{self, Source};
use super::{Job, Streams, attempt, failure, hygiene, users};
use crate::sys::{fork, process};
use crate::types::ErrorKind;
use crate::wire::{self, CreateSpec, ExecSpec, Failure};

const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// See [`super::exec`].
pub(super) fn exec(
    create: &CreateSpec,
    init: wire::Process,
    exec: &ExecSpec,
    streams: Streams,
) -> Result<Job, Failure> {
    let keep = stdio::descriptors(&streams);
    job::spawn(&keep, move |result| {
        let own = Own::read()?;
        let program = spec::program(&exec.process)?;
        let identity = Identity::parse(&exec.process)?;
        let target = Target::open(create, init)?;
        let oom_score_adj = target.oom_score_adj.unwrap_or(program.oom_score_adj);
        let (told, tell) = attempt(pipe_with(PipeFlags::CLOEXEC), || "a pipe for the start".to_owned())?;
        let (wait, go) = attempt(pipe_with(PipeFlags::CLOEXEC), || "a pipe for the start".to_owned())?;
        let listener = Listener::connect(&exec.confinement, &create.container, &create.bundle, "running")?;
        let executor = Confined::new(program, &exec.confinement, own.bounding, tell)?.with_listener(listener);
        let owner = stdio::on_host(identity.uid, target.uid_map.iter().copied()).ok_or_else(|| {
            let message = format!("user {} does not exist in the container's user namespace", identity.uid);
            failure(ErrorKind::InvalidArgument, message)
        })?;
        let null = || stdio::null_of(init.pid).or_else(|_| stdio::own_null());
        let streams = attempt(stdio::shelter(streams, null), || "setting up the streams".to_owned())?;
        attempt(stdio::give(&streams, owner), || "giving the streams to the user".to_owned())?;
        let source = attempt(Source::open(streams), || "reaching the console socket".to_owned())?;
        hygiene::shed(oom_score_adj, exec.confinement.selinux_label.as_deref())?;
        identity.limit()?;

        attempt(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable), || "hiding".to_owned())?;
        let inside = attempt(fork::enter(target.pidfd.as_fd(), target.namespaces), || {
            "joining the container's namespaces".to_owned()
        })?;
        let (told_fd, go_fd) = (told.as_raw_fd(), go.as_raw_fd());
        let body = || {
            // The helper's ends: its word must end with it, and its result without this process.
            [result, told_fd, go_fd].into_iter().for_each(fork::close);
            if !matches!(rustix::io::read(&wait, &mut [0u8; 1]), Ok(1)) {
                return 126;
            }
            executor.run(|| {
                target.join_cgroups()?;
                // Not before: inside the namespace, a folder that the helper was not in itself is out of reach.
                if target.own_cgroups {
                    let joined = inside.enter(target.pidfd.as_fd(), ThreadNameSpaceType::CONTROL_GROUP);
                    attempt(joined, || "joining the cgroup namespace".to_owned())?;
                }
                identity.assume(&source)
            })
        };
        let born = match inside.fork_sibling(target.unified.as_ref().map(AsFd::as_fd), body) {
            // Processes in a folder that shares out controllers: the container has made groups of its own.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && target.own_unified.is_some() => {
                inside.fork_sibling(target.own_unified.as_ref().map(AsFd::as_fd), body)
            }
            other => other,
        };
        let child = attempt(born, || "forking in the container".to_owned())?;
        drop(executor);
        // First the pid: whoever gives this exec up must be able to find the process.
        let outcome = Outcome::Process(child.pid.as_raw_nonzero().get());
        attempt(job::report(result, Ok(outcome)), || "telling the pid".to_owned())?;
        attempt(rustix::io::write(&go, &[1]), || "letting the process go on".to_owned())?;
        let mut bytes = Vec::new();
        let read = io::Read::read_to_end(&mut fs::File::from(told), &mut bytes);
        attempt(read, || "waiting for the program to run".to_owned())?;
        job::exec_status(&bytes).map(|()| outcome)
    })
}

/// The container as seen from the host.
struct Target {
    pidfd: OwnedFd,
    namespaces: ThreadNameSpaceType,
    /// It has a cgroup namespace of its own: in a user namespace the host's cannot be joined, not even to stay.
    own_cgroups: bool,
    uid_map: Vec<(u32, u32, u32)>,
    oom_score_adj: Option<i64>,
    /// The cgroup v2 folder to be born in: joining one takes a lock that all processes of the host share.
    unified: Option<OwnedFd>,
    /// The folder that init has moved itself to, if another.
    own_unified: Option<OwnedFd>,
    /// cgroup v1: open `tasks` files. Writing 0 to them moves the one writing thread without that lock.
    tasks: Vec<fs::File>,
}

impl Target {
    fn open(create: &CreateSpec, init: wire::Process) -> Result<Self, Failure> {
        let gone = || failure(ErrorKind::FailedPrecondition, format!("container {} has ended", create.container));
        let pidfd = process::pidfd(init.pid).map_err(|_| gone())?;
        // The descriptor pins the process; only now its start can be compared.
        if init.start_time != 0 && process::start_time(init.pid) != Some(init.start_time) {
            return Err(gone());
        }
        let proc = PathBuf::from(format!("/proc/{}", init.pid));
        let read = |name: &str| fs::read_to_string(proc.join(name));
        let mut target = Self {
            pidfd,
            namespaces: attempt(namespaces(&proc), || "looking at the container's namespaces".to_owned())?,
            own_cgroups: attempt(differs(&proc, "cgroup"), || "looking at its cgroup namespace".to_owned())?,
            uid_map: stdio::parse_map(&attempt(read("uid_map"), || "reading the container's uid_map".to_owned())?),
            // As likely a victim of the OOM killer as the container is.
            oom_score_adj: read("oom_score_adj").ok().and_then(|text| text.trim().parse().ok()),
            unified: None,
            own_unified: None,
            tasks: Vec::new(),
        };
        for folder in &create.cgroups {
            attempt(target.add_cgroup(folder, &proc), || format!("opening cgroup {folder:?}"))?;
        }
        Ok(target)
    }

    fn add_cgroup(&mut self, folder: &Path, proc: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(folder, flags, Mode::empty()) {
            // A controller that this container's runtime did without.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        if rustix::fs::fstatfs(&opened)?.f_type != CGROUP2_SUPER_MAGIC {
            self.tasks.push(OpenOptions::new().write(true).open(folder.join("tasks"))?);
            return Ok(());
        }
        // Only below the container's own folder.
        let text = fs::read_to_string(proc.join("cgroup"))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((_, below)) = path.split_once(&format!("/{name}/")) {
            self.own_unified = rustix::fs::open(folder.join(below), flags, Mode::empty()).ok();
        }
        self.unified = Some(opened);
        Ok(())
    }

    /// For the process itself.
    fn join_cgroups(&self) -> Result<(), Failure> {
        self.tasks.iter().try_for_each(|mut file| attempt(file.write_all(b"0"), || "joining the cgroups".to_owned()))
    }
}

/// All that a container may have, but for the cgroup namespace, which comes last; joining one that is shared with the host changes nothing, but for
/// the user namespace, which cannot be joined twice.
fn namespaces(proc: &Path) -> io::Result<ThreadNameSpaceType> {
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK;
    for (name, flag) in [("user", ThreadNameSpaceType::USER), ("time", ThreadNameSpaceType::TIME)] {
        all.set(flag, differs(proc, name)?);
    }
    Ok(all)
}

/// Whether a process's namespace is another than ours; not on a kernel without that kind.
fn differs(proc: &Path, name: &str) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let file = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    match file(&Path::new("/proc/self/ns").join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        ours => Ok(ours? != file(&proc.join("ns").join(name))?),
    }
}

/// Who the process is and what it may use.
struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: Option<Mode>,
    limits: Vec<(Resource, Rlimit)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    #[serde(default)]
    user: User,
    #[serde(default)]
    rlimits: Option<Vec<Limit>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    umask: Option<u32>,
    additional_gids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Limit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
    soft: u64,
}

impl Identity {
    fn parse(process: &serde_json::Value) -> Result<Self, Failure> {
        let invalid = |why: String| failure(ErrorKind::InvalidArgument, format!("the process to execute: {why}"));
        let Process { user, rlimits } = Process::deserialize(process).map_err(|error| invalid(error.to_string()))?;
        let limit = |limit: Limit| {
            let resource = resource(&limit.kind).ok_or_else(|| invalid(format!("unknown limit {:?}", limit.kind)))?;
            let value = |number: u64| (number != u64::MAX).then_some(number);
            Ok((resource, Rlimit { current: value(limit.soft), maximum: value(limit.hard) }))
        };
        Ok(Self {
            uid: user.uid,
            gid: user.gid,
            groups: user.additional_gids.unwrap_or_default(),
            umask: user.umask.map(|mask| Mode::from_raw_mode(mask & 0o777)),
            limits: rlimits.unwrap_or_default().into_iter().map(limit).collect::<Result<_, _>>()?,
        })
    }

    /// On the host still: raising a limit needs a capability of its user namespace.
    fn limit(&self) -> Result<(), Failure> {
        for (resource, limit) in &self.limits {
            let set = rustix::process::setrlimit(*resource, *limit);
            attempt(set, || format!("setting the limit {resource:?} to {limit:?}"))?;
        }
        Ok(())
    }

    /// In the process: session, ids, streams. All capabilities stay, for the Executor to take.
    fn assume(&self, source: &Source) -> Result<(), Failure> {
        attempt(rustix::process::setsid(), || "a session of its own".to_owned())?;
        let taken = users::assume(self.uid, self.gid, &self.groups);
        attempt(taken, || format!("becoming user {} and group {}", self.uid, self.gid))?;
        // After that: a terminal made by the host's root, whom a user namespace does not know, could not be given away.
        attempt(source.take(self.uid), || "taking the streams".to_owned())?;
        attempt(fork::close_others_on_exec(), || "marking descriptors".to_owned())?;
        if let Some(mask) = self.umask {
            rustix::process::umask(mask);
        }
        Ok(())
    }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_process_is_read_strictly() {
        let read = |value| Identity::parse(&value);
        let all = read(json!({
            "user": {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o27},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}, {"type": "RLIMIT_CORE", "hard": u64::MAX, "soft": 0}],
        }))
        .unwrap();
        assert_eq!((all.uid, all.gid, all.groups.len(), all.umask), (5, 6, 1, Some(Mode::from_raw_mode(0o27))));
        assert_eq!(all.limits[1], (Resource::Core, Rlimit { current: Some(0), maximum: None }));
        assert!(read(json!({})).is_ok());
        for bad in [
            json!({"user": {"uid": -1}}),
            json!({"user": {"gid": 1u64 << 33}}),
            json!({"rlimits": [{"type": "RLIMIT_FUN", "hard": 1, "soft": 1}]}),
            json!({"rlimits": [{"type": "RLIMIT_CPU"}]}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
