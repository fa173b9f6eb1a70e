//! Containers by an OCI runtime binary, which a forked helper runs with runc's command line.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;

use super::job::{self, Outcome};
use super::spec::{self, Own};
use super::way::Way;
use super::{Job, Streams, attempt, cgroup, failure, hygiene, nodes, rootfs, stdio, targets};
use crate::sys::fork;
use crate::types::ErrorKind;
use crate::wire::{CreateSpec, Engine, ExecSpec, Failure};

/// Folder in the bundle for what passes between us and the binary.
const FOLDER: &str = "oci";
/// Most bytes read of a log, a pid file or a table.
const MAX_FILE: u64 = 64 << 10;
/// Most that go with a process of an exec that is killed; each is a run of the binary.
const MOST_CHILDREN: usize = 256;

/// See [`super::create`].
pub(super) fn create(spec: &CreateSpec, streams: Streams) -> Result<Job, Failure> {
    job::spawn(&stdio::descriptors(&streams), |_| {
        let call = Call::new(spec)?;
        let own = Own::read()?;
        let mut config = spec::load(&spec.bundle)?;
        let fitted = config.get_mut("process").is_some_and(|process| spec::fit(process, own));
        if fitted {
            tracing::warn!(container = %spec.container, "the container goes without what this machine does not permit");
        }
        hygiene::shed(own.oom_score_adj, None)?;
        super::youki::give(spec::owner(&config)?, &streams)?;
        let (targets, cwd) = (targets::of(&config), spec::program(config.get("process").unwrap_or(&Value::Null))?.cwd);
        let blame = |failure| targets::blame(&targets, spec, &cwd, failure);
        let nodes = nodes::take(&mut config)?;
        if let Some(node) = nodes.first().filter(|_| call.has_its_own_pids()) {
            let text = format!("config.devices.container_path {:?}: gVisor has devices in /dev only", node.path);
            return Err(failure(ErrorKind::InvalidArgument, text));
        }
        let prepared = match &spec.rootfs.idmap {
            None => rootfs::prepare(spec, &[]),
            Some(maps) => Way::plan(&mut config, spec, maps, call.place()?).and_then(|way| way.open()),
        };
        prepared.map_err(blame)?;
        let root = config.pointer("/root/path").and_then(Value::as_str).unwrap_or_default();
        targets::settle(&targets, Path::new(root))?;
        nodes::make(&nodes, &config, spec.rootfs.idmap.as_ref())?;
        let bundle =
            if fitted || !nodes.is_empty() || spec.rootfs.idmap.is_some() { &call.folder } else { &spec.bundle };
        if *bundle != spec.bundle {
            spec::save(&bundle.join("config.json"), &config)?;
        }
        let pid_file = call.folder.join("init.pid");
        let mut command = call.command("create");
        command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file);
        attempt(set_streams(&mut command, streams), || "setting up the streams".to_owned())?;
        call.run(command.arg(spec.container.as_str())).map_err(blame)?;
        read_pid(&pid_file).map(Outcome::Process)
    })
}

/// See [`super::start`].
pub(super) fn start(spec: &CreateSpec) -> Result<Job, Failure> {
    job::spawn(&[], |_| {
        let call = Call::new(spec)?;
        call.run(quiet(call.command("start")).arg(spec.container.as_str()))?;
        Ok(Outcome::Done)
    })
}

/// See [`super::exec`].
pub(super) fn exec(create: &CreateSpec, exec: &ExecSpec, streams: Streams) -> Result<Job, Failure> {
    job::spawn(&stdio::descriptors(&streams), |_| {
        let call = Call::new(create)?;
        let own = Own::read()?;
        let mut process = exec.process.clone();
        spec::fit(&mut process, own);
        hygiene::shed(own.oom_score_adj, None)?;
        super::youki::give(user_of(create, &process)?, &streams)?;
        let name = |kind| call.folder.join(format!("exec-{}.{kind}", std::process::id()));
        let (process_file, pid_file) = (name("json"), name("pid"));
        spec::save(&process_file, &process)?;
        let mut command = call.command("exec");
        command.arg("--detach").arg("--process").arg(&process_file).arg("--pid-file").arg(&pid_file);
        let inside_file = call.has_its_own_pids().then(|| inside(&call.folder, std::process::id().cast_signed()));
        if let Some(file) = &inside_file {
            command.arg("--internal-pid-file").arg(file);
        }
        attempt(set_streams(&mut command, streams), || "setting up the streams".to_owned())?;
        let result = call.run(command.arg(create.container.as_str())).and_then(|()| read_pid(&pid_file));
        if let (Some(file), Ok(pid)) = (&inside_file, &result) {
            attempt(fs::rename(file, inside(&call.folder, *pid)), || format!("keeping {file:?}"))?;
        }
        for file in [&process_file, &pid_file] {
            let _ = fs::remove_file(file);
        }
        result.map(Outcome::Process)
    })
}

/// See [`super::kill_inside`].
pub(super) fn kill_inside(create: &CreateSpec, pid: i32) -> Option<Result<Job, Failure>> {
    let number = read_pid(&inside(&create.bundle.join(FOLDER), pid)).ok()?;
    Some(job::spawn(&[], |_| {
        let call = Call::new(create)?;
        let id = create.container.as_str();
        // Asked before it is killed: its children are somebody else's then.
        let table = output(call.command("ps").arg(id)).unwrap_or_default();
        let kill = |number: i32| {
            call.run(quiet(call.command("kill")).arg("--pid").arg(number.to_string()).arg(id).arg("KILL"))
        };
        let killed = kill(number);
        for child in below(&table, number).into_iter().take(MOST_CHILDREN) {
            // It may have ended.
            let _ = kill(child);
        }
        killed.map(|()| Outcome::Done)
    }))
}

/// What descends from a process, by the table that `ps` of a runtime prints: the second and third words of a line are a
/// process and its parent.
fn below(table: &str, top: i32) -> Vec<i32> {
    let pair = |line: &str| {
        let mut words = line.split_whitespace().skip(1).map(str::parse::<i32>);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    };
    let pairs: Vec<_> = table.lines().filter_map(pair).collect();
    let mut found = vec![top];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        let children = pairs.iter().filter(|(child, of)| *of == parent && !found.contains(child));
        let children: Vec<_> = children.map(|(child, _)| *child).collect();
        found.extend(children);
        at += 1;
    }
    found.split_off(1)
}

/// The beginning of what a command prints.
fn output(command: &mut Command) -> io::Result<String> {
    fork::die_with_parent(command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_FILE).read_to_end(&mut bytes)?;
    }
    child.wait()?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// See [`super::exec_ended`].
pub(super) fn exec_ended(create: &CreateSpec, pid: i32) {
    // Most runtimes have none.
    let _ = fs::remove_file(inside(&create.bundle.join(FOLDER), pid));
}

/// See [`super::exec_given_up`].
pub(super) fn exec_given_up(create: &CreateSpec, helper: i32) -> Option<i32> {
    let folder = create.bundle.join(FOLDER);
    let name = |kind| folder.join(format!("exec-{helper}.{kind}"));
    let pid = read_pid(&name("pid")).ok();
    for file in [name("json"), name("pid"), folder.join(format!("log-{helper}.json"))] {
        // It may not have come that far.
        let _ = fs::remove_file(file);
    }
    pid
}

/// Where the number stands that an exec's process has in a kernel of its own. `pid`: of what stands for it on the host,
/// or of the helper as long as that is not known.
fn inside(folder: &Path, pid: i32) -> PathBuf {
    folder.join(format!("exec-{pid}.inside"))
}

/// See [`super::delete`].
pub(super) fn delete(spec: &CreateSpec) -> Result<Job, Failure> {
    job::spawn(&[], |_| {
        // First ours: the binaries wait in steps of 100 ms for what they have killed.
        let killed = cgroup::destroy(&spec.cgroups);
        let call = Call::new(spec)?;
        let known = call.root.join(spec.container.as_str()).exists() || call.has_state_by_other_names(spec);
        let deleted = match known {
            true => call.run(quiet(call.command("delete")).arg("--force").arg(spec.container.as_str())),
            false => Ok(()),
        };
        let removed = cgroup::destroy(&spec.cgroups);
        let _ = fs::remove_dir_all(&call.folder);
        deleted.and(killed.or(removed)).map(|()| Outcome::Done)
    })
}

/// One run of the binary.
struct Call<'a> {
    binary: &'a Path,
    root: &'a Path,
    args: &'a [String],
    systemd_cgroup: bool,
    place: Option<&'a Path>,
    folder: PathBuf,
    log: PathBuf,
}

impl<'a> Call<'a> {
    fn new(spec: &'a CreateSpec) -> Result<Self, Failure> {
        let Engine::Oci { binary, root, args, systemd_cgroup, place } = &spec.engine else {
            return Err(failure(ErrorKind::Internal, "the container has no runtime binary"));
        };
        let folder = spec.bundle.join(FOLDER);
        attempt(fs::create_dir_all(&folder), || format!("creating {folder:?}"))?;
        let log = folder.join(format!("log-{}.json", std::process::id()));
        Ok(Self { binary, root, args, systemd_cgroup: *systemd_cgroup, place: place.as_deref(), folder, log })
    }

    /// See [`Engine::Oci`].
    fn place(&self) -> Result<&'a Path, Failure> {
        self.place
            .ok_or_else(|| failure(ErrorKind::Internal, "there is no place for a container with a user namespace"))
    }

    /// Global flags come before the subcommand.
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(self.binary);
        command.arg("--root").arg(self.root).arg("--log").arg(&self.log).arg("--log-format").arg("json");
        command.args(self.args);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        // Nothing of the node's environment, but what a binary needs to find its helpers.
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.arg(subcommand).current_dir("/");
        command
    }

    /// Whether processes of execs are gVisor's, of which the host sees a stand-in that takes nothing along when it is
    /// killed.
    fn has_its_own_pids(&self) -> bool {
        self.binary.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"runsc"))
    }

    /// Runs to the end; a failure tells what the binary logged.
    fn run(&self, command: &mut Command) -> Result<(), Failure> {
        // A helper that is killed for its time limit takes the binary with it.
        fork::die_with_parent(command);
        let status = command.status();
        let log = read_start(&self.log).unwrap_or_default();
        let _ = fs::remove_file(&self.log);
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(explain(self.binary, status, &log)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(failure(ErrorKind::FailedPrecondition, format!("the runtime {:?} is not installed", self.binary)))
            }
            Err(error) => Err(failure(ErrorKind::Internal, format!("running {:?}: {error}", self.binary))),
        }
    }

    /// gVisor keeps its state in files named after the container.
    fn has_state_by_other_names(&self, spec: &CreateSpec) -> bool {
        let entries = fs::read_dir(self.root).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(spec.container.as_str()))
    }
}

/// The user that an exec runs as, as the host numbers it.
fn user_of(create: &CreateSpec, process: &Value) -> Result<u32, Failure> {
    let uid = spec::program(process)?.uid;
    let Some(maps) = &create.rootfs.idmap else { return Ok(uid) };
    maps.uid(uid).ok_or_else(|| {
        let message = format!("user {uid} does not exist in the container's user namespace");
        failure(ErrorKind::InvalidArgument, message)
    })
}

fn explain(binary: &Path, status: ExitStatus, log: &str) -> Failure {
    let name = binary.file_name().and_then(OsStr::to_str).unwrap_or("the runtime");
    let messages = || log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let text = |entry: Value| Some(entry.get("msg")?.as_str()?.trim().to_owned());
    let errors = messages().filter(|entry| matches!(entry["level"].as_str(), Some("error" | "fatal")));
    match errors.filter_map(text).next_back().or_else(|| messages().filter_map(text).next_back()) {
        Some(message) => {
            let kind = match &message {
                m if m.contains("executable file") && m.contains("not found") => ErrorKind::NotFound,
                m if m.contains("no such file or directory") => ErrorKind::NotFound,
                m if m.contains("permission denied") || m.contains("Permission denied") => ErrorKind::PermissionDenied,
                m if m.contains("does not exist") => ErrorKind::NotFound,
                m if m.contains("not a directory") || m.contains("Not a directory") => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            };
            failure(kind, format!("{name}: {message}"))
        }
        None => failure(ErrorKind::Internal, format!("{name} failed without saying why ({status})")),
    }
}

fn set_streams(command: &mut Command, streams: Streams) -> io::Result<()> {
    match stdio::shelter(streams, stdio::own_null)? {
        Streams::Pipes { stdin, stdout, stderr } => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        Streams::Terminal { console_socket } => {
            let null = stdio::own_null()?;
            command.stdin(null.try_clone()?).stdout(null.try_clone()?).stderr(null);
            command.arg("--console-socket").arg(console_socket);
        }
    }
    Ok(())
}

fn quiet(mut command: Command) -> Command {
    quiet_streams(&mut command);
    command
}

fn quiet_streams(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

fn read_pid(path: &Path) -> Result<i32, Failure> {
    let text = attempt(read_start(path), || format!("reading {path:?}"))?;
    attempt(text.trim().parse(), || format!("reading {path:?}"))
}

fn read_start(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_descends_from_a_process() {
        let table = "UID       PID       PPID      C         TTY       STIME     TIME      CMD\n\
                     0         1         0         0         ?         10:00     0s        pause\n\
                     0         7         0         0         ?         10:00     0s        sh\n\
                     0         8         7         0         ?         10:00     0s        sleep\n\
                     0         9         8         0         ?         10:00     0s        sleep\n\
                     0         3         1         0         ?         10:00     0s        sleep\n\
                     nonsense 7\n0 10 10 x\n";
        assert_eq!(below(table, 7), [8, 9]);
        assert!(below(table, 9).is_empty());
        assert_eq!(below("0 7 9\n0 9 7\n", 7), [9]);
    }

    #[test]
    fn the_log_tells_the_reason() {
        let log = "{\"level\":\"warning\",\"msg\":\"w\"}\nnonsense\n\
                   {\"level\":\"error\",\"msg\":\"exec: \\\"nope\\\": executable file not found in $PATH\"}\n";
        let got = explain(Path::new("/usr/bin/runc"), ExitStatus::from_raw(256), log);
        assert_eq!(got.message, "runc: exec: \"nope\": executable file not found in $PATH");
        assert_eq!(got.kind, ErrorKind::NotFound);
        let got = explain(Path::new("/usr/bin/runc"), ExitStatus::from_raw(256), "");
        assert!(got.message.starts_with("runc failed without saying why"), "{got}");
    }
}
