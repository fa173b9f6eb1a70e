//! Containers by libcontainer, which is called in forked helpers only.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use std::io::Write as _;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::covers;
use super::executor::Confined;
use super::job::{self, Outcome};
use super::late::{self, Late};
use super::listener::Listener;
use super::spec::{self, Own};
use super::users::PodUser;
use super::{ExecStatus, Job, Streams, attempt, failure};
use super::{capture::Capture, cgroup, devices, hierarchies, hygiene, nodes, resources, rootfs, stdio, targets};
use crate::types::{ErrorKind, chain};
use crate::wire::{CreateSpec, Engine, Failure};

/// Folder in the bundle that is libcontainer's bundle: the spec as it can take it.
const BUNDLE: &str = "youki";
/// libcontainer's files in its state folder.
const STATE: &str = "state.json";
const CONFIG: &str = "youki_config.json";
const SOCKET: &str = "notify.sock";

/// See [`super::create`].
pub(super) fn create(spec: &CreateSpec, streams: Streams) -> Result<(Job, ExecStatus), Failure> {
    let (status, write) = attempt(job::result_pipe(), || "a pipe for the start".to_owned())?;
    let mut keep = stdio::descriptors(&streams);
    keep.push(write.as_raw_fd());
    let job = job::spawn(&keep, |result| {
        let own = Own::read()?;
        let mut config = spec::load(&spec.bundle)?;
        let owner = spec::owner(&config)?;
        let targets = targets::of(&config);
        let mut program = spec::for_libcontainer(&mut config, spec, own)?;
        let cwd = program.cwd.clone();
        let blame = |failure| targets::blame(&targets, spec, &cwd, failure);
        let nodes = nodes::take(&mut config)?;
        let inside = nodes::take_inside(&mut config, spec.rootfs.idmap.as_ref())?;
        let user = program.user.take().map(PodUser::open).transpose()?;
        let bundle = spec.bundle.join(BUNDLE);
        attempt(fs::create_dir_all(&bundle), || format!("creating {bundle:?}"))?;
        let (root, systemd) = settings(&spec.engine)?;
        let limits = match config.get_mut("linux") {
            Some(linux) if devices::enforced_here() => resources::take(linux),
            _ => Vec::new(),
        };
        hygiene::shed(program.oom_score_adj, spec.confinement.selinux_label.as_deref())?;
        give(owner, &streams)?;
        rootfs::prepare(spec, &targets).map_err(blame)?;
        let led = targets::settle(&targets, &spec.rootfs.mountpoint)?;
        let late = late::take(&mut config, &led);
        let covers = covers::take(&mut config, &late);
        nodes::make(&nodes, &config, spec.rootfs.idmap.as_ref())?;
        // A folder cannot be mounted there, which is to be told as such.
        let late = late.iter().map(Late::open).collect::<Result<_, _>>()?;
        let rules = config.pointer("/linux/resources/devices").cloned();
        let read_only = spec::read_only_cgroups(&config);
        let hierarchies = hierarchies::enter(&mut config, spec)?;
        spec::save(&bundle.join("config.json"), &config)?;
        let listener = Listener::connect(&spec.confinement, &spec.container, &bundle, "creating")?;
        let executor = Confined::new(program, &spec.confinement, own.bounding, write)?
            .for_init(result, user)
            .with_listener(listener)
            .with_late(late, covers)
            .with_nodes(inside)
            .with_read_only(read_only.filter(|_| hierarchies.is_none()));
        let container = captured(|| {
            let id = spec.container.as_str().to_owned();
            let builder = ContainerBuilder::new(id, SyscallType::Linux).with_root_path(root)?.with_executor(executor);
            with_streams(builder, streams).as_init(&bundle).with_systemd(systemd).as_sibling(true).build()
        })
        .map_err(blame)?;
        devices::restrict(rules.as_ref(), &spec.cgroups)?;
        for folder in &spec.cgroups {
            resources::apply(folder, &limits)?;
        }
        let pid = container.pid().map(|pid| pid.as_raw());
        if let (Some(hierarchies), Some(pid)) = (hierarchies, pid) {
            hierarchies.show(pid)?;
        }
        match pid {
            Some(pid) => Ok(Outcome::Process(pid)),
            None => Err(failure(ErrorKind::Internal, "libcontainer made a container without a process")),
        }
    })?;
    Ok((job, ExecStatus(status)))
}

/// See [`super::start`]. Without hooks all it takes is a word on init's socket and a change of
/// libcontainer's state, which is not worth a helper.
pub(super) fn start(spec: &CreateSpec, root: &Path, status: ExecStatus) -> Result<Job, Failure> {
    let folder = root.join(spec.container.as_str());
    let what = || format!("starting {}", spec.container);
    let config: Value = attempt(read_json(&folder.join(CONFIG)), what)?;
    if config.get("hooks").is_none_or(Value::is_null) {
        let mut state: Value = attempt(read_json(&folder.join(STATE)), what)?;
        if state.get("status") != Some(&json!("created")) {
            let was = state.get("status").cloned().unwrap_or_default();
            return Err(failure(ErrorKind::FailedPrecondition, format!("the container is {was}, not created")));
        }
        if let Some(state) = state.as_object_mut() {
            state.insert("status".into(), json!("running"));
        }
        attempt(notify(&folder), what)?;
        spec::save(&folder.join(STATE), &state)?;
        return Ok(Job::exec_status(status.0));
    }
    let read = status.0;
    job::spawn(&[read.as_raw_fd()], |_| {
        captured(|| Container::load(folder)?.start())?;
        conclude_exec(&read).map(|()| Outcome::Done)
    })
}

/// See [`super::delete`].
pub(super) fn delete(spec: &CreateSpec) -> Result<Job, Failure> {
    job::spawn(&[], |_| {
        let (root, _) = settings(&spec.engine)?;
        let folder = root.join(spec.container.as_str());
        let killed = cgroup::destroy(&spec.cgroups);
        let hooks = read_json(&folder.join(CONFIG)).is_ok_and(|config| !config["hooks"].is_null());
        let forgotten = if hooks { forget_by_libcontainer(&folder) } else { Ok(()) };
        let removed = match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failure(ErrorKind::Internal, format!("removing {folder:?}: {error}")))
            }
            _ => Ok(()),
        };
        killed.and(forgotten).and(removed).map(|()| Outcome::Done)
    })
}

/// Runs the poststop hooks.
fn forget_by_libcontainer(folder: &Path) -> Result<(), Failure> {
    if !folder.join(STATE).exists() {
        return Ok(());
    }
    captured(|| {
        let mut container = Container::load(folder.to_owned())?;
        // Its processes are gone; a pid that looks alive is somebody else's by now.
        container.state.pid = None;
        container.delete(true)
    })
}

fn settings(engine: &Engine) -> Result<(&PathBuf, bool), Failure> {
    match engine {
        Engine::Youki { root, systemd_cgroup } => Ok((root, *systemd_cgroup)),
        Engine::Oci { binary, .. } => Err(failure(ErrorKind::Internal, format!("{binary:?} is not built in"))),
    }
}

fn with_streams(builder: ContainerBuilder, streams: Streams) -> ContainerBuilder {
    match streams {
        Streams::Pipes { stdin, stdout, stderr } => builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr),
        Streams::Terminal { console_socket } => builder.with_console_socket(Some(console_socket)),
    }
}

/// Calls libcontainer; its error is told with the cause that it logged.
fn captured<T>(work: impl FnOnce() -> Result<T, LibcontainerError>) -> Result<T, Failure> {
    let (capture, sink) = attempt(Capture::new(), || "a file for errors".to_owned())?;
    tracing::subscriber::with_default(sink, work).map_err(|error| {
        let plain = chain(&error);
        let kind = match error {
            LibcontainerError::NoDirectory => ErrorKind::NotFound,
            LibcontainerError::Exist => ErrorKind::AlreadyExists,
            LibcontainerError::IncorrectStatus(_) => ErrorKind::FailedPrecondition,
            LibcontainerError::InvalidSpec(_) | LibcontainerError::InvalidInput(_) => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        let message = match capture.cause() {
            Some(cause) if !plain.contains(&cause) => format!("{cause}: {plain}"),
            _ => plain,
        };
        failure(kind, message)
    })
}

/// Waits for the Executor's last word.
fn conclude_exec(status: &OwnedFd) -> Result<(), Failure> {
    let read = (|| {
        rustix::fs::fcntl_setfl(status, OFlags::empty())?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut fs::File::from(status.try_clone()?), &mut bytes)?;
        Ok::<_, io::Error>(bytes)
    })();
    job::exec_status(&attempt(read, || "waiting for the program to run".to_owned())?)
}

/// Gives the pipes to the container's user.
pub(super) fn give(owner: u32, streams: &Streams) -> Result<(), Failure> {
    attempt(stdio::give(streams, owner), || "giving the streams to the container's user".to_owned())
}

/// Tells init to go on. By a descriptor of the folder, as a socket's path has room for 107 bytes.
fn notify(folder: &Path) -> io::Result<()> {
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    UnixStream::connect(path)?.write_all(b"start container")
}

fn read_json(path: &Path) -> io::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
