//! What an earlier daemon, or an earlier connection, had asked a monitor for, and takes its time: a runtime binary waits
//! for a file before it does one of its things.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use podwright::proto::*;
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::{Ctr, Node, Pod, Setup, eventually, host, secs, slowness, specs};

const WRAPPER: &str = "#!/bin/sh\n\
    case \" $* \" in *' VERB '*) while [ ! -e FOLDER/go ]; do sleep 0.05; done;; esac\n\
    exec RUNC \"$@\"\n";

/// A runtime binary that does `verb` only once it is told to.
struct Slow {
    folder: tempfile::TempDir,
    verb: &'static str,
}

impl Slow {
    /// A node with it, and a pod; `None`: runc is not installed.
    async fn node(verb: &'static str) -> Option<(Self, Node, Pod)> {
        let Some(runc) = crate::handlers::find("runc") else {
            println!("SKIPPED: runc is not installed; conformance/setup.sh test installs what Debian has");
            return None;
        };
        let folder = tempfile::tempdir_in("/run").unwrap();
        let binary = folder.path().join("runc");
        let text = WRAPPER.replace("VERB", verb).replace("FOLDER", folder.path().to_str().unwrap());
        fs::write(&binary, text.replace("RUNC", runc.to_str().unwrap())).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!("kind = \"oci\"\nbinary = {binary:?}\n");
        let mut node = Node::with(Setup { handlers: vec![("slow.toml".into(), text)], ..Setup::default() }).await;
        node.pull(specs::BUSYBOX).await;
        let pod = crate::handlers::up(&node, "slow", "slow").await;
        Some((Self { folder, verb }, node, pod))
    }

    /// `whom`: a part of what it is called with.
    async fn is_waiting(&self, whom: &str) {
        let (binary, verb) = (format!("{}/runc", self.folder.path().display()), format!(" {} ", self.verb));
        eventually(secs(15), "the runtime's wait", async || {
            let asked = |p: &host::Process| [&*binary, &*verb, whom].iter().all(|part| p.command.contains(part));
            if host::descendants().iter().any(asked) { Ok(()) } else { Err("nobody asked it".to_owned()) }
        })
        .await;
    }

    fn go_on(&self) {
        fs::write(self.folder.path().join("go"), "").unwrap();
    }
}

/// StartContainer, under way.
fn starting(node: &Node, ctr: &Ctr) -> JoinHandle<Result<(), Status>> {
    let (cri, container_id) = (node.cri().clone(), ctr.id.clone());
    tokio::spawn(async move { cri.runtime().start_container(StartContainerRequest { container_id }).await.map(drop) })
}

/// It runs, and ends as it is told to.
async fn lives_and_ends(node: &Node, ctr: &Ctr) {
    eventually(secs(15), "the container's program", async || {
        let status = node.status(ctr).await;
        if status.state() == ContainerState::ContainerRunning { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    node.logged(ctr, "up").await;
    assert_eq!(node.exec(ctr, &["echo", "hello"]).await, "hello\n");
    node.stop_container(&ctr.id, 20).await.unwrap();
    let status = node.status(ctr).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 42), "{status:?}");
}

const PROGRAM: &str = "trap 'exit 42' TERM; echo up; while true; do sleep 0.05; done";

#[tokio::test]
async fn a_start_goes_on_without_its_daemon() {
    let Some((slow, mut node, pod)) = Slow::node("start").await else { return };
    let ctr = node.create(&pod, node.sh("c", PROGRAM)).await;
    let nobody = node.create(&pod, node.sh("nobody", PROGRAM)).await;
    let (first, unheard) = (starting(&node, &ctr), starting(&node, &nobody));
    slow.is_waiting(&ctr.id).await;
    slow.is_waiting(&nobody.id).await;
    node.kill9();
    for call in [first, unheard] {
        call.await.unwrap().expect_err("its daemon is gone");
    }
    node.start_daemon().await;
    for ctr in [&ctr, &nobody] {
        assert_eq!(node.status(ctr).await.state(), ContainerState::ContainerCreated);
    }
    let again = starting(&node, &ctr);
    slow.go_on();
    again.await.unwrap().expect("a retry joins it");
    lives_and_ends(&node, &ctr).await;
    lives_and_ends(&node, &nobody).await;
    node.finish().await;
}

#[tokio::test]
async fn a_start_outlives_its_connection() {
    let Some((slow, node, pod)) = Slow::node("start").await else { return };
    let ctr = node.create(&pod, node.sh("c", PROGRAM)).await;
    let call = starting(&node, &ctr);
    slow.is_waiting(&ctr.id).await;
    cut(monitor().pid);
    // The daemon says so when it has learnt of it.
    eventually(secs(15), "the end of the connection", async || {
        let log = node.daemon_log();
        if log.contains("connection to the monitor lost") { Ok(()) } else { Err("nothing in the log".to_owned()) }
    })
    .await;
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerCreated);
    slow.go_on();
    call.await.unwrap().expect("the answer comes by the next connection");
    lives_and_ends(&node, &ctr).await;
    node.finish().await;
}

/// A client that asks again joins a making that was its last daemon's.
#[tokio::test]
async fn a_making_that_nobody_goes_on_with_is_given_up() {
    let Some((slow, mut node, pod)) = Slow::node("create").await else { return };
    let config = node.sh("c", PROGRAM);
    let creating = |node: &Node| {
        let (cri, config) = (node.cri().clone(), config.clone());
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        tokio::spawn(async move { cri.runtime().create_container(request).await })
    };
    let first = creating(&node);
    slow.is_waiting("--bundle").await;
    node.kill9();
    first.await.unwrap().expect_err("its daemon is gone");
    let monitor = Pid::from_raw(monitor().pid).unwrap();
    kill_process(monitor, Signal::STOP).unwrap();
    node.start_daemon().await;
    let again = creating(&node);
    tokio::time::sleep(Duration::from_millis(500) * slowness()).await;
    assert!(!again.is_finished(), "the monitor is not reached yet");
    kill_process(monitor, Signal::CONT).unwrap();
    let status = tokio::time::timeout(secs(15), again).await.expect("an answer").unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    slow.go_on();
    let ctr = node.launch(&pod, config.clone()).await;
    lives_and_ends(&node, &ctr).await;
    node.finish().await;
}

/// The one there is. Its helpers look the same.
fn monitor() -> host::Process {
    let monitors: Vec<_> = host::descendants().into_iter().filter(|p| p.name == "podwright-monit").collect();
    let helps = |p: &host::Process| monitors.iter().any(|other| other.pid == p.parent);
    let mut first = monitors.iter().filter(|p| !helps(p));
    let (Some(monitor), None) = (first.next(), first.next()) else { panic!("want one monitor: {monitors:?}") };
    monitor.clone()
}

/// Ends the connections of a monitor; what it listens on stays.
fn cut(monitor: i32) {
    let handle = pidfd_open(Pid::from_raw(monitor).unwrap(), PidfdFlags::empty()).unwrap();
    let mut cut = 0;
    for entry in fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().flatten() {
        if !fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
            continue;
        }
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let socket = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()).unwrap();
        if !socket_acceptconn(&socket).unwrap() {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
            cut += 1;
        }
    }
    assert_eq!(cut, 1, "one daemon, one connection");
}
