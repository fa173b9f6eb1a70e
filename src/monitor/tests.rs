//! Tests of the whole monitor with an engine of shell scripts ([`super::fake`]).

mod given_up;
mod streams;

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Options, run, socket};
use crate::sys::fork;
use crate::types::{ContainerId, ErrorKind, PodId};
use crate::wire::{
    Call, Confinement, CreateSpec, Engine, Event, ExecOutcome, ExecSpec, Exit, Failure, Message, PauseSpec, Reply,
    Request, Rootfs, State, StdioSpec, VERSION, codec,
};

/// A monitor in a forked child, and the folder it lives in.
struct Pod {
    folder: tempfile::TempDir,
    pid: Pid,
    peer: Peer,
}

/// A connection.
struct Peer {
    stream: UnixStream,
    buffer: Vec<u8>,
    last: u64,
    events: VecDeque<Event>,
    answers: Vec<(u64, Result<Reply, Failure>)>,
}

impl Pod {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let options = Options { pod: PodId::generate(), dir: folder.path().to_owned() };
        let pid = fork::fork_unchecked(|| match run(&options, Some(theirs)) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("monitor: {error}");
                1
            }
        })
        .unwrap();
        let mut pod = Self { folder, pid: Pid::from_raw(pid).unwrap(), peer: Peer::new(ours) };
        pod.peer.hello();
        pod
    }

    /// A container that runs `script`; `flags` are files in its bundle.
    fn spec(&self, script: &str, flags: &[&str]) -> CreateSpec {
        let container = ContainerId::generate();
        let bundle = self.folder.path().join("containers").join(&container);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("run"), script).unwrap();
        for flag in flags {
            fs::write(bundle.join(flag), "").unwrap();
        }
        CreateSpec {
            container,
            engine: Engine::Youki { root: "/none".into(), systemd_cgroup: false },
            rootfs: Rootfs {
                lower: Vec::new(),
                upper: None,
                mountpoint: bundle.join("rootfs"),
                label: None,
                idmap: None,
            },
            mounts: Vec::new(),
            confinement: Confinement::default(),
            stdio: StdioSpec { log_path: Some(bundle.join("log")), ..StdioSpec::default() },
            bundle,
            folders: Vec::new(),
            cgroups: Vec::new(),
            timeout_ms: 5000,
        }
    }

    fn run(&mut self, script: &str) -> CreateSpec {
        let spec = self.spec(script, &[]);
        self.peer.ok(Request::Create(Box::new(spec.clone())));
        self.peer.ok(Request::Start { container: spec.container.clone() });
        spec
    }

    /// The daemon dies; waits for the monitor's end.
    fn abandon(self) -> i32 {
        self.peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty()).unwrap().unwrap();
        assert!(!self.folder.path().join(socket::NAME).exists());
        status.exit_status().unwrap()
    }

    fn end(mut self) -> i32 {
        self.peer.ok(Request::Shutdown);
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty()).unwrap().unwrap();
        assert!(!self.folder.path().join(socket::NAME).exists());
        status.exit_status().unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Only a test that failed leaves it alive.
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, buffer: Vec::new(), last: 0, events: VecDeque::new(), answers: Vec::new() }
    }

    fn hello(&mut self) -> State {
        match self.ok(Request::Hello { version: VERSION }) {
            Reply::Hello(state) => state,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, request: Request) -> u64 {
        self.last += 1;
        self.stream.write_all(&codec::encode(&Call { id: self.last, request, descriptors: 0 }).unwrap()).unwrap();
        self.last
    }

    fn receive(&mut self) {
        loop {
            if let Some((message, used)) = codec::decode::<Message>(&self.buffer).unwrap() {
                self.buffer.drain(..used);
                match message {
                    Message::Answer { id, result } => self.answers.push((id, result)),
                    Message::Event(event) => self.events.push_back(event),
                }
                return;
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the monitor hung up");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    fn wait(&mut self, id: u64) -> Result<Reply, Failure> {
        loop {
            if let Some(index) = self.answers.iter().position(|(answered, _)| *answered == id) {
                return self.answers.remove(index).1;
            }
            self.receive();
        }
    }

    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let id = self.send(request);
        self.wait(id)
    }

    fn ok(&mut self, request: Request) -> Reply {
        self.call(request).unwrap()
    }

    fn exit(&mut self) -> Exit {
        loop {
            match self.events.pop_front() {
                Some(Event::Exited(exit)) => return exit,
                Some(other) => panic!("{other:?}"),
                None => self.receive(),
            }
        }
    }

    fn exec(&mut self, container: &ContainerId, arguments: &[&str], timeout_ms: u64) -> u64 {
        self.send(Request::Exec(Box::new(ExecSpec {
            container: container.clone(),
            process: serde_json::json!({ "args": arguments }),
            confinement: Confinement::default(),
            timeout_ms,
            token: 7,
            output_limit: 1000,
            drain_ms: 100,
        })))
    }

    fn outcome(&mut self, id: u64) -> ExecOutcome {
        match self.wait(id).unwrap() {
            Reply::Exec(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }
}

fn fifo(spec: &CreateSpec, name: &str) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, spec.bundle.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn log(spec: &CreateSpec) -> Vec<String> {
    let text = fs::read_to_string(spec.bundle.join("log")).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn exit_file(folder: &Path, container: &ContainerId) -> Exit {
    let path: PathBuf = folder.join("containers").join(container).join("exit.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_container_lives_and_its_end_is_recorded() {
    let mut pod = Pod::new();
    let spec = pod.spec("echo out; echo err >&2; printf rest; exit 3", &[]);
    let Reply::Created(init) = pod.peer.ok(Request::Create(Box::new(spec.clone()))) else { panic!() };
    assert!(init.start_time > 0);
    let started = pod.peer.ok(Request::Start { container: spec.container.clone() });
    let exit = pod.peer.exit();
    assert!(matches!(started, Reply::Started { at_ns } if at_ns <= exit.at_ns));
    assert_eq!((exit.exit_code, exit.oom_killed), (3, false));
    assert_eq!(exit_file(pod.folder.path(), &spec.container), exit);
    let mut lines = log(&spec);
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P rest"]);
    let state = pod.peer.hello();
    assert_eq!(state.containers[0].exit, Some(exit));
    pod.peer.ok(Request::Delete { container: spec.container.clone() });
    assert!(spec.bundle.join("deleted").exists());
    pod.peer.ok(Request::Delete { container: spec.container });
    assert!(pod.peer.hello().containers.is_empty());
    assert_eq!(pod.end(), 0);
}

#[test]
fn requests_for_one_container_wait_for_each_other() {
    let mut pod = Pod::new();
    let spec = pod.spec("sleep 100", &["slow"]);
    let id = &spec.container;
    let create = pod.peer.send(Request::Create(Box::new(spec.clone())));
    let start = pod.peer.send(Request::Start { container: id.clone() });
    let exec = pod.peer.exec(id, &["echo", "hi"], 0);
    let again = pod.peer.send(Request::Create(Box::new(spec.clone())));
    assert_eq!(pod.peer.wait(again).unwrap_err().kind, ErrorKind::AlreadyExists);
    assert!(pod.peer.answers.is_empty(), "nothing else is done while the helper works");
    pod.peer.wait(create).unwrap();
    pod.peer.wait(start).unwrap();
    assert_eq!(pod.peer.outcome(exec).stdout, b"hi\n");
    assert!(matches!(pod.peer.ok(Request::Start { container: id.clone() }), Reply::Started { .. }), "it was");
    pod.peer.ok(Request::Kill { container: id.clone(), signal: 15, all: false });
    assert_eq!(pod.peer.exit().exit_code, 143);
    pod.peer.ok(Request::Kill { container: id.clone(), signal: 15, all: true });
    let late = pod.peer.exec(id, &["true"], 0);
    assert_eq!(pod.peer.wait(late).unwrap_err().kind, ErrorKind::FailedPrecondition);
    assert_eq!(pod.end(), 0);
}

#[test]
fn an_init_that_ends_before_its_helper_is_not_lost() {
    let mut pod = Pod::new();
    // The helper goes on for a while; until then nobody knows whose process it was that ended.
    let spec = pod.spec("", &["slow"]);
    fifo(&spec, "go");
    let create = pod.peer.send(Request::Create(Box::new(spec.clone())));
    fs::write(spec.bundle.join("go"), "x\n").unwrap();
    assert!(matches!(pod.peer.wait(create), Ok(Reply::Created(_))));
    assert_eq!(pod.peer.exit().exit_code, 0);
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_failed_or_late_creation_is_undone() {
    let mut pod = Pod::new();
    let spec = pod.spec("", &["fail"]);
    let failure = pod.peer.call(Request::Create(Box::new(spec.clone()))).unwrap_err();
    assert!(failure.message.contains("no luck"), "{failure}");
    assert!(spec.bundle.join("deleted").exists());

    let spec = CreateSpec { timeout_ms: 100, ..pod.spec("", &["hang"]) };
    let failure = pod.peer.call(Request::Create(Box::new(spec.clone()))).unwrap_err();
    assert_eq!(failure.kind, ErrorKind::DeadlineExceeded);
    assert!(spec.bundle.join("deleted").exists());

    let mut spec = pod.spec("", &[]);
    spec.stdio.log_path = Some("/none/such/log".into());
    assert_eq!(pod.peer.call(Request::Create(Box::new(spec))).unwrap_err().kind, ErrorKind::NotFound);
    assert!(pod.peer.hello().containers.is_empty());
    assert_eq!(pod.end(), 0);
}

#[test]
fn execs_run_side_by_side() {
    let mut pod = Pod::new();
    let id = pod.run("sleep 100").container;
    let started = Instant::now();
    let slow = pod.peer.exec(&id, &["sh", "-c", "sleep 0.3; echo slow; exit 7"], 0);
    let execs: Vec<u64> = (0..100).map(|n| pod.peer.exec(&id, &["echo", &n.to_string()], 0)).collect();
    for (n, exec) in execs.into_iter().enumerate() {
        assert_eq!(pod.peer.outcome(exec).stdout, format!("{n}\n").into_bytes());
    }
    let outcome = pod.peer.outcome(slow);
    assert_eq!((outcome.exit_code, outcome.stdout.as_slice()), (7, &b"slow\n"[..]));
    let big = pod.peer.exec(&id, &["sh", "-c", "head -c 3000000 /dev/zero; head -c 10 /dev/zero >&2"], 0);
    let outcome = pod.peer.outcome(big);
    assert_eq!((outcome.stdout.len() + outcome.stderr.len(), outcome.exit_code), (1000, 0), "one limit for both");
    let failed = pod.peer.exec(&id, &["fail"], 0);
    assert!(pod.peer.wait(failed).is_err());
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(pod.end(), 0);
}

#[test]
fn execs_end_in_time_whoever_holds_their_pipes() {
    let mut pod = Pod::new();
    let spec = pod.run("sleep 100");
    let id = spec.container.clone();
    let started = Instant::now();
    let orphan = pod.peer.exec(&id, &["sh", "-c", "sleep 50 & echo done"], 0);
    let outcome = pod.peer.outcome(orphan);
    assert_eq!((outcome.exit_code, outcome.stdout.as_slice()), (0, &b"done\n"[..]));
    let late = pod.peer.exec(&id, &["sh", "-c", "echo begun; sleep 50; echo never"], 2000);
    let outcome = pod.peer.outcome(late);
    assert!(outcome.timed_out);
    assert_eq!((outcome.exit_code, outcome.stdout.as_slice()), (137, &b"begun\n"[..]));
    assert!(started.elapsed() < Duration::from_secs(10));
    // Nobody waits for it any more; another token is another's.
    let given_up = pod.peer.exec(&id, &["sleep", "50"], 0);
    for token in [8, 7, 7] {
        pod.peer.ok(Request::EndExec { container: id.clone(), token });
    }
    assert!(pod.peer.outcome(given_up).timed_out);
    assert!(started.elapsed() < Duration::from_secs(10));
    // Deleting the container does not leave an exec unanswered.
    fifo(&spec, "said");
    let said = spec.bundle.join("said");
    let exec = pod.peer.exec(&id, &["sh", "-c", "echo x > \"$0\"; sleep 50", said.to_str().unwrap()], 0);
    fs::read(said).unwrap();
    let delete = pod.peer.send(Request::Delete { container: id });
    // It was killed, or was still on its way to being known.
    match pod.peer.wait(exec) {
        Ok(Reply::Exec(outcome)) => assert_eq!(outcome.exit_code, 137),
        Ok(other) => panic!("{other:?}"),
        Err(failure) => assert_eq!(failure.kind, ErrorKind::Aborted),
    }
    pod.peer.wait(delete).unwrap();
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_terminal_is_one_stream() {
    let mut pod = Pod::new();
    let mut spec = pod.spec("tty >/dev/null && echo yes; echo err >&2", &[]);
    spec.stdio.tty = true;
    pod.peer.ok(Request::Create(Box::new(spec.clone())));
    pod.peer.ok(Request::Start { container: spec.container.clone() });
    pod.peer.exit();
    assert_eq!(log(&spec), ["stdout F yes", "stdout F err"]);
    let sockets = fs::read_dir(pod.folder.path()).unwrap().flatten();
    assert_eq!(sockets.filter(|entry| entry.file_name().to_string_lossy().starts_with("console")).count(), 0);
    assert_eq!(pod.end(), 0);
}

#[test]
fn stdin_stays_open_only_if_asked_for() {
    let mut pod = Pod::new();
    pod.run("cat; echo eof");
    assert_eq!(pod.peer.exit().exit_code, 0);
    let mut spec = pod.spec("cat; echo eof", &[]);
    spec.stdio.stdin = true;
    pod.peer.ok(Request::Create(Box::new(spec.clone())));
    pod.peer.ok(Request::Start { container: spec.container.clone() });
    pod.peer.ok(Request::Kill { container: spec.container.clone(), signal: 9, all: false });
    assert_eq!(pod.peer.exit().exit_code, 137);
    assert!(log(&spec).is_empty());
    assert_eq!(pod.end(), 0);
}

#[test]
fn output_of_grandchildren_is_logged_after_init_ended() {
    let mut pod = Pod::new();
    let spec = pod.spec("cd \"$(dirname \"$0\")\"; (read x < late; echo late; echo x > said) & echo early", &[]);
    fifo(&spec, "late");
    fifo(&spec, "said");
    pod.peer.ok(Request::Create(Box::new(spec.clone())));
    pod.peer.ok(Request::Start { container: spec.container.clone() });
    pod.peer.exit();
    assert_eq!(log(&spec), ["stdout F early"]);
    fs::write(spec.bundle.join("late"), "x\n").unwrap();
    fs::read(spec.bundle.join("said")).unwrap();
    pod.peer.ok(Request::Delete { container: spec.container.clone() });
    assert_eq!(log(&spec), ["stdout F early", "stdout F late"]);
    assert_eq!(pod.end(), 0);
}

#[test]
fn logs_are_reopened() {
    let mut pod = Pod::new();
    let spec = pod.spec("read x < \"$(dirname \"$0\")/go\"; echo after", &[]);
    pod.peer.ok(Request::Create(Box::new(spec.clone())));
    pod.peer.ok(Request::Start { container: spec.container.clone() });
    fs::rename(spec.bundle.join("log"), spec.bundle.join("log.1")).unwrap();
    pod.peer.ok(Request::ReopenLog { container: spec.container.clone() });
    fs::write(spec.bundle.join("go"), "x\n").unwrap();
    pod.peer.exit();
    assert_eq!(log(&spec), ["stdout F after"]);
    assert_eq!(fs::read(spec.bundle.join("log.1")).unwrap(), b"");
    let unknown = pod.peer.call(Request::ReopenLog { container: ContainerId::generate() });
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_second_daemon_learns_everything_and_bad_peers_hurt_nobody() {
    let mut pod = Pod::new();
    let spec = pod.run("sleep 100");
    let path = pod.folder.path().join(socket::NAME);
    let mut bad = UnixStream::connect(&path).unwrap();
    bad.write_all(&[0xff; 64]).unwrap();
    assert_eq!(bad.read(&mut [0; 8]).unwrap(), 0, "it is hung up on");
    let mut second = Peer::new(UnixStream::connect(&path).unwrap());
    let state = second.hello();
    assert_eq!(state.containers.len(), 1);
    assert!(state.containers[0].started_ns.is_some());
    // The first daemon dies; the end of the container reaches the second.
    pod.peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    second.ok(Request::Kill { container: spec.container, signal: 9, all: true });
    assert_eq!(second.exit().exit_code, 137);
    pod.peer = second;
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_failed_pause_says_why() {
    // The test's child has one thread, so that pause can be forked; it is refused before that.
    let mut pod = Pod::new();
    let spec = PauseSpec {
        user_namespace: None,
        netns: Some("/none/such/netns".into()),
        new_ipc: true,
        new_pid: false,
        hostname: None,
        sysctls: vec![("kernel.core_pattern".into(), "|/bin/sh".into())],
        cgroups: Vec::new(),
        scope: None,
        user: (65535, 65535),
        groups: Vec::new(),
        bpf: None,
        apparmor_profile: None,
        selinux: None,
        oom_score_adj: 0,
    };
    let failure = pod.peer.call(Request::Pause(Box::new(spec.clone()))).unwrap_err();
    assert_eq!(failure.kind, ErrorKind::InvalidArgument);
    let failure = pod.peer.call(Request::Pause(Box::new(PauseSpec { sysctls: Vec::new(), ..spec }))).unwrap_err();
    assert_eq!(failure.kind, ErrorKind::NotFound);
    assert!(failure.message.contains("/none/such/netns"));
    assert!(matches!(pod.peer.ok(Request::KillPause), Reply::Done));
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_monitor_that_looks_after_nothing_ends_with_its_daemon() {
    assert_eq!(Pod::new().abandon(), 0);
    let mut pod = Pod::new();
    let spec = pod.run("true");
    pod.peer.exit();
    pod.peer.ok(Request::Delete { container: spec.container });
    assert_eq!(pod.abandon(), 0);
}

#[test]
fn what_a_dead_daemon_asked_for_is_not_begun() {
    let mut pod = Pod::new();
    let spec = pod.spec("sleep 100", &[]);
    let stop = |signal| rustix::process::kill_process(pod.pid, signal).unwrap();
    stop(rustix::process::Signal::STOP);
    pod.peer.send(Request::Create(Box::new(spec)));
    pod.peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    stop(rustix::process::Signal::CONT);
    assert_eq!(pod.abandon(), 0);
}
