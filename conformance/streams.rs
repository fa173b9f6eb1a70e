//! Clients with streams of their own, as the daemon's streaming server has them: over the monitor's own socket, with
//! real containers of each handler.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use podwright::launch::monitor::{LaunchError, Launcher, Line, Monitor};
use podwright::types::{ContainerId, ErrorKind, HasKind, PodId};
use podwright::wire::{AttachSpec, Confinement, Ends, ExecSpec, StreamedExec};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::handlers::{node_with, up};
use crate::harness::{Ctr, Node, Pod, eventually, host, logs, secs, volume, with_each_handler};

/// A second daemon's connection to a pod's monitor.
struct Direct {
    monitor: Monitor,
    pid: i32,
    pod: std::path::PathBuf,
}

/// A client.
struct Client {
    line: Line,
    stdin: Option<File>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

const ALL: Ends = Ends { stdin: true, stdout: true, stderr: true };
const OUT: Ends = Ends { stdin: false, stdout: true, stderr: false };

impl Client {
    fn new(ends: Ends) -> (Self, Vec<OwnedFd>) {
        let (line, theirs) = Line::new().unwrap();
        let mut client = Self { line, stdin: None, stdout: None, stderr: None };
        let mut descriptors = vec![theirs];
        if ends.stdin {
            let (read, write) = std::io::pipe().unwrap();
            client.stdin = Some(OwnedFd::from(write).into());
            descriptors.push(read.into());
        }
        for (wanted, place) in [(ends.stdout, &mut client.stdout), (ends.stderr, &mut client.stderr)] {
            if wanted {
                let (read, write) = std::io::pipe().unwrap();
                *place = Some(pipe::Receiver::from_file(OwnedFd::from(read).into()).unwrap());
                descriptors.push(write.into());
            }
        }
        (client, descriptors)
    }

    fn write(&mut self, text: &str) {
        self.stdin.as_ref().unwrap().write_all(text.as_bytes()).unwrap();
    }

    async fn output(&mut self) -> String {
        let mut text = String::new();
        self.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    async fn errors(&mut self) -> String {
        let mut text = String::new();
        self.stderr.take().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    /// Reads until `text` has come.
    async fn until(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let read = self.stdout.as_mut().unwrap().read_u8();
            let byte = tokio::time::timeout(secs(30), read).await;
            seen.push(byte.unwrap_or_else(|_| panic!("{text:?} in {:?}", String::from_utf8_lossy(&seen))).unwrap());
        }
    }

    async fn code(&mut self) -> i32 {
        tokio::time::timeout(secs(30), self.line.ended()).await.expect("the end in time").unwrap()
    }
}

/// A terminal's master side.
struct Terminal(tokio::io::unix::AsyncFd<OwnedFd>);

impl Terminal {
    async fn of(client: &mut Client) -> Self {
        let master = client.line.terminal().await.unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        Self(podwright::sys::async_fd::readable(master).unwrap())
    }

    fn write(&self, text: &str) {
        assert_eq!(rustix::io::write(self.0.get_ref(), text.as_bytes()), Ok(text.len()));
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.0.get_ref(), size).unwrap();
    }

    /// Reads until `text` has been shown, or to the end if that is empty.
    async fn until(&self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let shown = String::from_utf8_lossy(&seen).into_owned();
            if !text.is_empty() && shown.contains(text) {
                return shown;
            }
            let mut bytes = [0; 1024];
            let read = self.0.async_io(tokio::io::Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut bytes)?));
            match tokio::time::timeout(secs(30), read).await.unwrap_or_else(|_| panic!("{text:?} in {shown:?}")) {
                Ok(count) if count > 0 => seen.extend_from_slice(&bytes[..count]),
                // EIO is a terminal's end.
                _ => return shown,
            }
        }
    }
}

impl Direct {
    async fn to(node: &Node, pod: &Pod) -> Self {
        let launcher = Launcher::new(env!("CARGO_BIN_EXE_podwright-monitor").into());
        let folder = node.dir().join("state/pods").join(&pod.id);
        let (monitor, state, events) = launcher.connect(&PodId::parse(&pod.id).unwrap(), &folder).await.unwrap();
        drop(events);
        Self { monitor, pid: state.pid, pod: folder }
    }

    async fn exec(&self, ctr: &Ctr, command: &[&str], ends: Ends, terminal: bool) -> Result<Client, LaunchError> {
        let bundle = self.pod.join("containers").join(&ctr.id).join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle).unwrap()).unwrap();
        let mut process = config["process"].take();
        process["args"] = serde_json::json!(command);
        process["terminal"] = serde_json::json!(terminal);
        let exec = ExecSpec {
            container: ContainerId::parse(&ctr.id).unwrap(),
            process,
            confinement: Confinement::default(),
            timeout_ms: 0,
            token: 0,
            output_limit: 0,
            drain_ms: 0,
        };
        let (client, descriptors) = Client::new(ends);
        self.monitor.exec_streamed(StreamedExec { exec, terminal, ends, descriptors }).await.map(|()| client)
    }

    async fn attach(&self, ctr: &Ctr, ends: Ends, terminal: bool) -> Result<Client, LaunchError> {
        let (client, descriptors) = Client::new(ends);
        let container = ContainerId::parse(&ctr.id).unwrap();
        self.monitor.attach(AttachSpec { container, terminal, ends, descriptors }).await.map(|()| client)
    }

    fn open_files(&self) -> usize {
        host::open_files(self.pid).len()
    }

    /// Most memory it ever had, KiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Waits until it holds as many descriptors as it did.
    async fn census(&self, before: usize) {
        eventually(secs(10), "the monitor's descriptors", async || {
            let now = self.open_files();
            if now <= before { Ok(()) } else { Err(format!("{now}, {before} before")) }
        })
        .await;
    }
}

fn running(command: &str) -> Vec<host::Process> {
    host::descendants().into_iter().filter(|p| p.command.starts_with(command) && p.state != 'Z').collect()
}

/// A process that was forked has its own arguments a moment later.
async fn there(command: &str) {
    eventually(secs(10), command, async || if running(command).len() == 1 { Ok(()) } else { Err(String::new()) }).await;
}

async fn gone(command: &str) {
    eventually(secs(10), &format!("the end of {command:?}"), async || {
        let left = running(command);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

async fn exec(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "exec").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let direct = Direct::to(&node, &pod).await;
    let before = direct.open_files();
    let mut client = direct.exec(&ctr, &["sh", "-c", "cat; echo err >&2; kill -9 $$"], ALL, false).await.unwrap();
    client.write("in");
    drop(client.stdin.take());
    assert_eq!((client.output().await.as_str(), client.errors().await.as_str()), ("in", "err\n"));
    assert_eq!(client.code().await, 137);
    drop(client);
    let refused = direct.exec(&ctr, &["no-such-program"], ALL, false).await.err().unwrap();
    assert!(refused.to_string().contains("no-such-program"), "{refused}");
    direct.census(before).await;

    let script = "trap 'stty size' WINCH; test -t 0 && test -t 2 && tty; echo up; while ! read x; do :; done; exit 6";
    let mut client = direct.exec(&ctr, &["sh", "-c", script], Ends::default(), true).await.unwrap();
    let terminal = Terminal::of(&mut client).await;
    let shown = terminal.until("up\r\n").await;
    assert!(shown.starts_with("/dev/pts/"), "a terminal of the container's own: {shown:?}");
    terminal.resize(33, 44);
    terminal.until("33 44\r\n").await;
    terminal.write("go\n");
    assert!(terminal.until("").await.contains("go\r\n"));
    assert_eq!(client.code().await, 6);
    drop((terminal, client));
    direct.census(before).await;
    node.finish().await;
}

async fn hang_up(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "hang-up").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let direct = Direct::to(&node, &pod).await;
    let before = direct.open_files();
    let mut client = direct.exec(&ctr, &["sh", "-c", "sleep 4321 & echo up; wait"], OUT, false).await.unwrap();
    client.until("up\n").await;
    there("sleep 4321").await;
    drop(client);
    gone("sleep 4321").await;
    // Job control makes groups of their own in the session.
    let mut client = direct.exec(&ctr, &["sh", "-i"], Ends::default(), true).await.unwrap();
    let terminal = Terminal::of(&mut client).await;
    terminal.write("trap '' HUP; sleep 4322 & sleep 4323 & echo u''p\n");
    terminal.until("up").await;
    there("sleep 4322").await;
    there("sleep 4323").await;
    drop((client, terminal));
    gone("sleep 4322").await;
    gone("sleep 4323").await;
    direct.census(before).await;
    assert_eq!(node.exec(&ctr, &["echo", "unharmed"]).await, "unharmed\n");
    node.finish().await;
}

async fn attach(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "attach").await;
    let mut config = node.sh("c", "while read x; do echo \"out $x\"; echo \"err $x\" >&2; done; echo eof; exit 8");
    (config.stdin, config.stdin_once) = (true, true);
    let ctr = node.launch(&pod, config).await;
    let direct = Direct::to(&node, &pod).await;
    let mut looker = direct.attach(&ctr, OUT, false).await.unwrap();
    let mut client = direct.attach(&ctr, ALL, false).await.unwrap();
    client.write("1\n");
    client.until("out 1\n").await;
    drop(client.stdin.take());
    assert_eq!((client.output().await.as_str(), client.errors().await.as_str()), ("eof\n", "err 1\n"));
    assert_eq!((looker.output().await.as_str(), client.code().await, looker.code().await), ("out 1\neof\n", 8, 8));
    assert_eq!(node.exited(&ctr).await.exit_code, 8);
    assert_eq!(logs::stream(&logs::read(&ctr.log), "stdout"), "out 1\neof\n");

    let mut config =
        node.sh("tty", "trap 'stty size' WINCH; echo up; while ! read x; do :; done; echo \"got $x\"; exit 9");
    (config.stdin, config.tty) = (true, true);
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    let refused = direct.attach(&ctr, OUT, false).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    let mut client = direct.attach(&ctr, Ends { stderr: false, ..ALL }, true).await.unwrap();
    let terminal = Terminal::of(&mut client).await;
    terminal.resize(21, 43);
    client.until("21 43\r\n").await;
    client.write("word\n");
    assert!(client.output().await.contains("got word"));
    assert_eq!(client.code().await, 9);
    assert_eq!(node.exited(&ctr).await.exit_code, 9);
    node.finish().await;
}

with_each_handler!({ exec, hang_up, attach }: youki, runc, crun);

#[tokio::test]
async fn much_output_is_whole_in_little_memory() {
    let much = volume(64 << 20);
    let node = Node::ready().await;
    let pod = node.up(node.pod("much")).await;
    let script = format!("read x; yes 'a line of a container' | head -c {much}");
    let mut config = node.sh("c", &script);
    config.stdin = true;
    let ctr = node.launch(&pod, config).await;
    let direct = Direct::to(&node, &pod).await;
    let expected = "a line of a container\n".repeat(much / 22 + 1);
    // By exec, nothing of it passes through the monitor.
    let script = format!("yes 'a line of a container' | head -c {much}");
    let mut client = direct.exec(&ctr, &["sh", "-c", &script], OUT, false).await.unwrap();
    let output = client.output().await;
    assert_eq!((output.len(), client.code().await), (much, 0));
    assert!(expected.starts_with(&output));
    let mut client = direct.attach(&ctr, ALL, false).await.unwrap();
    let mut idle = direct.attach(&ctr, OUT, false).await.unwrap();
    client.write("go\n");
    let (output, other) = tokio::join!(client.output(), idle.output());
    assert_eq!((output.len(), other.len(), client.code().await), (much, much, 0));
    assert!(expected.starts_with(&output) && output == other);
    assert!(logs::stream(&logs::read(&ctr.log), "stdout") == output, "the log has it, too");
    assert!(direct.peak() < 24 << 10, "{} KiB", direct.peak());
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("stuck")).await;
    let mut config = node.sh("c", "read x; yes 'a line of a container' | head -c 4000000; read y");
    config.stdin = true;
    let ctr = node.launch(&pod, config).await;
    let direct = Direct::to(&node, &pod).await;
    let mut stuck = direct.attach(&ctr, OUT, false).await.unwrap();
    let mut client = direct.attach(&ctr, ALL, false).await.unwrap();
    client.write("go\n");
    let started = Instant::now();
    let mut output = vec![0; 4_000_000];
    client.stdout.as_mut().unwrap().read_exact(&mut output).await.unwrap();
    let took = started.elapsed();
    assert!(took > Duration::from_secs(5) && took < secs(25), "it was waited for, and not for ever: {took:?}");
    assert!(stuck.line.ended().await.is_err(), "it is told that it was let go");
    assert_eq!(node.status(&ctr).await.state(), podwright::proto::ContainerState::ContainerRunning);
    client.write("end\n");
    assert_eq!(client.code().await, 0);
    assert_eq!(logs::stream(&logs::read(&ctr.log), "stdout").len(), 4_000_000);
    node.finish().await;
}

#[tokio::test]
async fn hundreds_at_once() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("hundreds")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let direct = Direct::to(&node, &pod).await;
    let before = direct.open_files();
    let calls = (0..300).map(|n| {
        let (direct, ctr) = (&direct, &ctr);
        async move {
            let mut client = direct.exec(ctr, &["cat"], ALL, false).await.unwrap();
            client.write(&n.to_string());
            client
        }
    });
    let clients = futures_util::future::join_all(calls).await;
    assert!(direct.open_files() >= before + 600, "they are there at once");
    let ends = clients.into_iter().enumerate().map(async |(n, mut client)| {
        if n % 3 == 0 {
            return drop(client);
        }
        drop(client.stdin.take());
        assert_eq!((client.output().await, client.code().await), (n.to_string(), 0));
    });
    futures_util::future::join_all(ends).await;
    direct.census(before).await;
    gone("cat").await;
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_is_out_of_descriptors_says_so_and_goes_on() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("limit")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let direct = Direct::to(&node, &pod).await;
    let before = direct.open_files();
    let pid = Pid::from_raw(direct.pid);
    let usual = prlimit(pid, Resource::Nofile, Rlimit { current: Some(before as u64), maximum: None });
    let usual = usual.unwrap_or_else(|_| {
        // Without CAP_SYS_RESOURCE the hard limit stays.
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(before as u64), maximum: hard }).unwrap()
    });
    assert_eq!(usual.current, usual.maximum, "it takes what it may have");
    let mut refusals = 0;
    for most in before as u64..before as u64 + 16 {
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(most), maximum: usual.maximum }).unwrap();
        for terminal in [false, true] {
            let ends = if terminal { Ends::default() } else { OUT };
            match direct.exec(&ctr, &["true"], ends, terminal).await {
                Ok(mut client) if terminal => {
                    // The terminal may be what there is no room for on its way; then nothing runs.
                    let _ = client.line.terminal().await;
                }
                Ok(mut client) => assert_eq!(client.code().await, 0),
                Err(refused) => {
                    refusals += 1;
                    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted, "{most} {terminal}: {refused}");
                }
            }
        }
    }
    assert!(refusals > 0);
    prlimit(pid, Resource::Nofile, usual).unwrap();
    let mut client = direct.exec(&ctr, &["echo", "again"], OUT, false).await.unwrap();
    assert_eq!((client.output().await.as_str(), client.code().await), ("again\n", 0));
    drop(client);
    direct.census(before).await;
    node.finish().await;
}

/// What a container makes of its own /dev/pts must not reach us.
#[tokio::test]
async fn a_container_that_fakes_its_terminals_gets_none() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("fake")).await;
    let mut config = node.sh(
        "c",
        "umount /dev/pts; mknod /dev/pts/ptmx c 1 5 || mkdir -p /dev/pts; echo x > /dev/pts/ptmx2; echo up; sleep 1000",
    );
    crate::harness::specs::security(&mut config).capabilities =
        Some(podwright::proto::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    let direct = Direct::to(&node, &pod).await;
    let before = direct.open_files();
    let started = Instant::now();
    let refused = direct.exec(&ctr, &["true"], Ends::default(), true).await.err().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(!Path::new("/dev/pts/ptmx2").exists());
    println!("{refused}");
    direct.census(before).await;
    node.finish().await;
}
