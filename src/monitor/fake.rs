//! An engine for tests: containers are shell scripts without any namespaces.
//!
//! The bundle holds `run`, the script. With a file `hang` the helper that creates never ends; with
//! `fail` it says so; with `slow` the helper outlives the process it has made. With `refuse` a start fails once init was
//! told, with `endless` it never ends, with `ready`, a fifo, it waits for that. With `stuck`, a fifo, a removal never ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

pub use super::engine::{ExecStatus, Outcome, Streams};
use super::failure;
use crate::sys::rights;
use crate::types::ErrorKind;
use crate::wire::{CreateSpec, ExecSpec, Failure, Process};

pub struct Job {
    pub helper: Option<i32>,
    pub result: OwnedFd,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({:?})", self.helper)
    }
}

impl Job {
    pub fn process(bytes: &[u8]) -> Option<i32> {
        serde_json::from_slice::<Result<i32, Failure>>(bytes).ok()?.ok().filter(|pid| *pid != 0)
    }

    pub fn conclude(self, bytes: &[u8], status: Option<i32>) -> Result<Outcome, Failure> {
        assert_eq!(status.is_some(), self.helper.is_some());
        let pid: Result<i32, Failure> = serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Err(failure(ErrorKind::Internal, format!("helper ended with {status:?}"))));
        Ok(match pid? {
            0 => Outcome::Done,
            pid => Outcome::Process(pid),
        })
    }
}

pub fn create(spec: &CreateSpec, streams: Streams) -> Result<(Job, Option<ExecStatus>), Failure> {
    let bundle = &spec.bundle;
    let has = |name: &str| bundle.join(name).exists();
    if !has("go") {
        mknodat(CWD, bundle.join("go"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    if has("hang") {
        return Ok((job(Ok(1), Some("exec sleep 1000")), None));
    }
    if has("fail") {
        return Ok((job(Err(failure(ErrorKind::Internal, "no luck")), None), None));
    }
    let mut command = Command::new("sh");
    command.arg("-c").arg("read x < \"$0/go\"; exec sh \"$0/run\"").arg(bundle);
    let terminal = attach(&mut command, streams);
    let pid = i32::try_from(command.spawn().unwrap().id()).unwrap();
    drop(terminal);
    Ok((job(Ok(pid), has("slow").then_some("sleep 0.2")), None))
}

pub fn start(spec: &CreateSpec, _: Option<ExecStatus>) -> Result<Job, Failure> {
    // Read and write, so that it does not wait for a reader that was killed.
    let mut go = OpenOptions::new().read(true).write(true).open(spec.bundle.join("go")).unwrap();
    go.write_all(b"x\n").unwrap();
    // Keeps the pipe alive until the reader has come.
    std::mem::forget(go);
    let has = |name: &str| spec.bundle.join(name).exists();
    if has("refuse") {
        return Ok(job(Err(failure(ErrorKind::Internal, "no luck")), None));
    }
    let wait = format!("read x < {}/ready", spec.bundle.display());
    let helper = [("endless", "exec sleep 1000"), ("ready", &wait)].into_iter().find(|(name, _)| has(name));
    Ok(job(Ok(0), helper.map(|(_, script)| script)))
}

/// See the engine's.
pub fn kill_inside(_: &CreateSpec, _: i32) -> Option<Result<Job, Failure>> {
    None
}

/// See the engine's.
pub fn exec_ended(_: &CreateSpec, _: i32) {}

/// See the engine's.
pub fn exec_given_up(_: &CreateSpec, _: i32) -> Option<i32> {
    None
}

pub fn exec(spec: &CreateSpec, _: Process, exec: &ExecSpec, streams: Streams) -> Result<Job, Failure> {
    let arguments: Vec<String> = serde_json::from_value(exec.process["args"].clone()).unwrap();
    if arguments[0] == "fail" {
        return Err(failure(ErrorKind::Internal, "no luck"));
    }
    let mut command = Command::new(&arguments[0]);
    command.args(&arguments[1..]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    attach(&mut command, streams);
    let exhausted = |error: &dyn std::fmt::Display| failure(ErrorKind::ResourceExhausted, error.to_string());
    let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|error| exhausted(&error))?;
    let pid = i32::try_from(command.spawn().map_err(|error| exhausted(&error))?.id()).unwrap();
    Ok(job_by(pipe, Ok(pid), spec.bundle.join("slow").exists().then_some("sleep 0.2")))
}

pub fn delete(spec: &CreateSpec) -> Result<Job, Failure> {
    fs::write(spec.bundle.join("deleted"), "").unwrap();
    let _ = fs::remove_file(spec.bundle.join("go"));
    // It tells of a process of its child's, then, some time later, of itself.
    let stuck = format!(
        "cd {}; sh -c 'sleep 1000 & echo $! > stuck; wait' & sleep 0.6; echo $$ > helper; wait",
        spec.bundle.display()
    );
    Ok(job(Ok(0), spec.bundle.join("stuck").exists().then_some(&stuck)))
}

fn job(outcome: Result<i32, Failure>, helper: Option<&str>) -> Job {
    job_by(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap(), outcome, helper)
}

#[expect(clippy::zombie_processes, reason = "the monitor under test reaps it")]
fn job_by((result, tell): (OwnedFd, OwnedFd), outcome: Result<i32, Failure>, helper: Option<&str>) -> Job {
    rustix::io::write(&tell, &serde_json::to_vec(&outcome).unwrap()).unwrap();
    let helper = helper.map(|script| {
        // Its own child is adopted by the monitor, and holds the pipe on.
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::from(tell)).spawn().unwrap();
        i32::try_from(child.id()).unwrap()
    });
    Job { helper, result }
}

fn attach(command: &mut Command, streams: Streams) -> Option<File> {
    match streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
            None
        }
        Streams::Terminal { console_socket } => {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
            grantpt(&master).unwrap();
            unlockpt(&master).unwrap();
            let name = ptsname(&master, Vec::new()).unwrap();
            let slave =
                rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let slave = File::from(slave);
            for set in [Command::stdin, Command::stdout, Command::stderr] {
                set(command, slave.try_clone().unwrap());
            }
            send(&console_socket, &master);
            Some(slave)
        }
    }
}

fn send(path: &Path, master: &OwnedFd) {
    let stream = UnixStream::connect(path).unwrap();
    rights::send(&stream, b"/dev/pts/0", &[master.as_fd()]).unwrap();
}
