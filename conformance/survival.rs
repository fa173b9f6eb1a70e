//! The daemon dies; pods do not. What was under way is finished or undone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podwright::proto::*;

use crate::harness::config::Cni;
use crate::harness::cri::Cri;
use crate::harness::{Node, Pod, Setup, cni, eventually, host, logs, secs, slowness};

const TICKER: &str = "trap 'exit 0' TERM; i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.02; done";

#[tokio::test]
async fn containers_and_logs_go_on_without_the_daemon() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("survive")).await;
    let ctr = node.launch(&pod, node.sh("ticker", TICKER)).await;
    let short =
        node.launch(&pod, node.sh("short", "echo up; while [ ! -e /dev/shm/go ]; do sleep 0.02; done; exit 42")).await;
    node.logged(&short, "up").await;
    let (pid, short_pid) = (node.pid_in(&ctr.id, "sh"), node.pid_of(&short).await);
    node.kill9();

    let ticks = || logs::so_far(&ctr.log).len();
    let before = ticks();
    eventually(
        secs(5),
        "the log's growth",
        async || if ticks() > before + 20 { Ok(()) } else { Err(format!("{before}")) },
    )
    .await;
    // One container ends while nobody is there to see it. /dev/shm is the pod's, reached by the other's root.
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    let ran = now();
    fs::write(format!("/proc/{pid}/root/dev/shm/go"), "").unwrap();
    eventually(secs(5), "the short container's end", async || match host::process(short_pid) {
        None => Ok(()),
        Some(process) => Err(format!("{process:?}")),
    })
    .await;
    // Its monitor, which has reaped it, looks at the clock next.
    tokio::time::sleep(Duration::from_millis(300) * slowness()).await;
    let ended = now();

    node.start_daemon().await;
    let status = node.status(&short).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 42));
    assert!(
        (ran..=ended).contains(&status.finished_at),
        "the end is told as of when it was, {ran} to {ended}: {}",
        status.finished_at
    );
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    assert_eq!(node.pid_in(&ctr.id, "sh"), pid, "the very same process");
    assert_eq!(node.exec(&ctr, &["echo", "hello"]).await, "hello\n");
    assert_eq!(node.pod_status(&pod.id).await.unwrap().status.unwrap().state(), PodSandboxState::SandboxReady);
    let more = node.launch(&pod, node.sleeper("more")).await;
    node.logged(&more, "up").await;
    node.stop_container(&ctr.id, 5).await.unwrap();
    let text = logs::stream(&logs::read(&ctr.log), "stdout");
    for (at, line) in text.lines().enumerate() {
        assert_eq!(line, format!("tick {}", at + 1), "a line is lost or written twice");
    }
    node.finish().await;
}

#[tokio::test]
async fn lists_are_right_within_a_second() {
    let mut node = Node::ready().await;
    let mut expected = Vec::new();
    for number in 0..6 {
        let pod = node.up(node.host_pod(&format!("p{number}"))).await;
        let ctr = node.launch(&pod, node.sleeper("c")).await;
        expected.push((pod, ctr));
    }
    node.stop_pod(&expected[0].0.id).await.unwrap();
    node.kill9();
    let start = Instant::now();
    node.start_daemon().await;
    let pods = node.pods(PodSandboxFilter::default()).await;
    let containers = node.containers(ContainerFilter::default()).await;
    assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
    assert_eq!((pods.len(), containers.len()), (6, 6));
    for (number, (pod, ctr)) in expected.iter().enumerate() {
        let listed = pods.iter().find(|listed| listed.id == pod.id).unwrap();
        let stopped = number == 0;
        assert_eq!(listed.state() == PodSandboxState::SandboxNotready, stopped, "{number}");
        let listed = containers.iter().find(|listed| listed.id == ctr.id).unwrap();
        assert_eq!(listed.state() == ContainerState::ContainerExited, stopped, "{number}");
    }
    node.finish().await;
}

#[tokio::test]
async fn sigterm_drains_and_containers_live_on() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("drain")).await;
    let ctr = node.launch(&pod, node.sh("ticker", TICKER)).await;
    node.logged(&ctr, "tick 2").await;
    // A call that is under way when the signal comes is answered.
    let exec = node.try_exec(&ctr, &["sh", "-c", "sleep 0.5; echo answered"], 10);
    let daemon = node.daemon().pid();
    let term = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::SIGTERM).unwrap();
    };
    let (answer, ()) = tokio::join!(exec, term);
    assert_eq!(&answer.unwrap().stdout[..], b"answered\n");
    eventually(secs(10), "the daemon's end", async || match host::process(daemon) {
        Some(process) if process.state != 'Z' => Err(format!("{process:?}")),
        _ => Ok(()),
    })
    .await;
    let before = logs::so_far(&ctr.log).len();
    eventually(secs(5), "the log's growth", async || {
        if logs::so_far(&ctr.log).len() > before { Ok(()) } else { Err(String::new()) }
    })
    .await;
    node.forget_daemon();
    node.start_daemon().await;
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    node.finish().await;
}

#[tokio::test]
async fn everything_works_after_restarts() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("often")).await;
    let ctr = node.launch(&pod, node.sh("ticker", TICKER)).await;
    for round in 0..4 {
        node.restart().await;
        assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning, "round {round}");
        assert_eq!(node.exec(&ctr, &["echo", "x"]).await, "x\n");
        assert_eq!(node.up(node.pod("often")).await.id, pod.id, "a retried RunPodSandbox finds it");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_dies_takes_its_pod_only() {
    let mut node = Node::ready().await;
    let (one, two) = (node.up(node.host_pod("one")).await, node.up(node.host_pod("two")).await);
    let a = node.launch(&one, node.sleeper("a")).await;
    let b = node.launch(&two, node.sleeper("b")).await;
    node.logged(&b, "up").await;
    let monitor = host::process(parent_of(node.pid_in(&a.id, "sh"))).unwrap();
    assert!(monitor.command.contains("podwright-monitor"), "{monitor:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor.pid), nix::sys::signal::SIGKILL).unwrap();
    eventually(secs(10), "the end of the pod without a monitor", async || {
        let status = node.status(&a).await;
        let pod = node.pod_status(&one.id).await.unwrap().status.unwrap().state();
        if status.state() == ContainerState::ContainerExited && pod == PodSandboxState::SandboxNotready {
            Ok(())
        } else {
            Err(format!("{status:?} {pod:?}"))
        }
    })
    .await;
    assert_eq!(node.status(&b).await.state(), ContainerState::ContainerRunning);
    node.down(&one).await;
    // The same while the daemon is down.
    let monitor = parent_of(node.pid_in(&b.id, "sh"));
    node.kill9();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::SIGKILL).unwrap();
    node.start_daemon().await;
    eventually(secs(10), "the end of the other", async || {
        let status = node.status(&b).await;
        if status.state() == ContainerState::ContainerExited { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    node.finish().await;
}

/// Changes the body of a record.
fn rewrite(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut record["body"]);
    fs::write(path, record.to_string()).unwrap();
}

fn entries(folder: PathBuf) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// An image that was pulled before a reboot, and removed under its containers after it.
#[tokio::test]
async fn layers_of_an_earlier_boot_stay_under_containers() {
    let mut node = Node::ready().await;
    let (images, layers) = (node.dir().join("root/images"), node.dir().join("root/layers"));
    let is_synced = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("\"synced\":true");
    eventually(secs(30), "the sync", async || match entries(images.clone()).iter().all(is_synced) {
        true => Ok(()),
        false => Err(String::new()),
    })
    .await;
    node.kill9();
    for record in entries(images) {
        rewrite(&record, |body| body["boot_id"] = "earlier".into());
    }
    let found = entries(layers.join("sha256"));
    for layer in &found {
        rewrite(&layer.join("layer.json"), |body| body["boot_id"] = "earlier".into());
    }
    node.start_daemon().await;
    let pod = node.up(node.host_pod("p")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.remove_image(crate::harness::BUSYBOX).await.unwrap();
    node.restart().await;
    assert_eq!(entries(layers.join("sha256")), found);
    assert_eq!(node.exec(&ctr, &["ls", "/bin/busybox"]).await, "/bin/busybox\n");
    node.down(&pod).await;
    assert_eq!(entries(layers.join("sha256")), BTreeSet::new());
    // It stays until the next boot.
    fs::remove_file(layers.join("boot.json")).unwrap();
    node.finish().await;
}

/// What cannot be read now, as on a node that is short of something, may be another time.
#[tokio::test]
async fn a_sandbox_with_a_record_that_cannot_be_read_is_left_alone() {
    let mut node = Node::ready().await;
    let pod = node.up(node.host_pod("p")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let pid = node.pid_in(&ctr.id, "sh");
    let layers = node.dir().join("root/layers/sha256");
    let found = entries(layers.clone());
    let record = node.dir().join("root/pods").join(&pod.id).join("containers").join(&ctr.id).join("container.json");
    node.kill9();
    let text = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    node.start_daemon().await;
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    node.remove_image(crate::harness::BUSYBOX).await.unwrap();
    assert_eq!(entries(layers.clone()), found, "nobody knows whether it needs them");
    node.kill9();
    fs::remove_dir(&record).unwrap();
    fs::write(&record, text).unwrap();
    node.start_daemon().await;
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    assert_eq!(node.pid_in(&ctr.id, "sh"), pid, "the very same process");
    assert_eq!(node.exec(&ctr, &["ls", "/bin/busybox"]).await, "/bin/busybox\n");
    node.down(&pod).await;
    assert_eq!(entries(layers), BTreeSet::new());
    node.finish().await;
}

fn parent_of(pid: i32) -> i32 {
    host::process(pid).unwrap().parent
}

/// `kill -9` at any moment of a sandbox's making: afterwards it either is there, whole, or is not there at all.
#[tokio::test]
async fn killed_while_a_sandbox_is_made() {
    let mut node = Node::ready().await;
    for round in 0..12_u64 {
        let config = node.pod(&format!("crash{round}"));
        kill_during(&mut node, Duration::from_millis(round * 7), |cri, _| {
            let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            tokio::spawn(async move { cri.runtime().run_pod_sandbox(request).await.map(drop) })
        })
        .await;
        consistent(&node).await;
        let pod = node.up(config.clone()).await;
        assert_eq!(node.script(&pod, "c", "echo runs").await, "runs\n", "round {round}");
        node.down(&pod).await;
        assert!(node.pods(PodSandboxFilter::default()).await.is_empty(), "round {round}");
    }
    node.finish().await;
}

#[tokio::test]
async fn killed_while_a_container_is_made() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("crash")).await;
    for round in 0..12_u64 {
        let config = node.sh(&format!("c{round}"), "echo runs");
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        kill_during(&mut node, Duration::from_millis(round * 3), |cri, _| {
            tokio::spawn(async move { cri.runtime().create_container(request).await.map(drop) })
        })
        .await;
        consistent(&node).await;
        let (code, out) = node.outcome(&pod, config).await;
        assert_eq!((code, out.as_str()), (0, "runs\n"), "round {round}");
    }
    assert_eq!(node.containers(ContainerFilter::default()).await.len(), 12);
    node.finish().await;
}

#[tokio::test]
async fn killed_while_a_sandbox_is_stopped_or_removed() {
    let mut node = Node::ready().await;
    for round in 0..10_u64 {
        let pod = node.up(node.pod(&format!("down{round}"))).await;
        node.launch(&pod, node.sleeper("c")).await;
        let id = pod.id.clone();
        kill_during(&mut node, Duration::from_millis(round * 6), |cri, _| {
            tokio::spawn(async move {
                cri.runtime().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
                cri.runtime().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await.map(drop)
            })
        })
        .await;
        node.down(&pod).await;
        assert!(node.pods(PodSandboxFilter::default()).await.is_empty(), "round {round}");
    }
    node.finish().await;
}

#[tokio::test]
async fn killed_while_an_image_is_pulled() {
    let mut node = Node::start().await;
    node.serve_images().await;
    for round in 0..8_u64 {
        kill_during(&mut node, Duration::from_millis(round * 12), |cri, _| {
            let request = PullImageRequest {
                image: Some(crate::harness::specs::image(crate::harness::BUSYBOX)),
                ..Default::default()
            };
            tokio::spawn(async move { cri.images().pull_image(request).await.map(drop) })
        })
        .await;
        node.pull(crate::harness::BUSYBOX).await;
        let pod = node.up(node.host_pod(&format!("p{round}"))).await;
        assert_eq!(node.script(&pod, "c", "ls /bin/busybox").await, "/bin/busybox\n", "round {round}");
        node.down(&pod).await;
        node.remove_image(crate::harness::BUSYBOX).await.unwrap();
    }
    node.finish().await;
}

/// Starts a call, kills the daemon a moment later (stretched on a slow machine, where the call takes longer), and
/// starts a new one.
async fn kill_during<F>(node: &mut Node, moment: Duration, call: F)
where
    F: FnOnce(Cri, &Node) -> tokio::task::JoinHandle<Result<(), tonic::Status>>,
{
    let call = call(node.cri().clone(), node);
    tokio::time::sleep(moment * slowness()).await;
    node.kill9();
    // The call is answered, if only by the connection's end.
    let _ = tokio::time::timeout(secs(10), call).await.expect("the call ends with its daemon");
    node.start_daemon().await;
}

/// Every listed sandbox and container can be looked at, and a sandbox that is ready has its pause process.
async fn consistent(node: &Node) {
    for pod in node.pods(PodSandboxFilter::default()).await {
        let status = node.pod_status(&pod.id).await.unwrap().status.unwrap();
        assert_eq!(status.state, pod.state);
    }
    for container in node.containers(ContainerFilter::default()).await {
        node.try_status(&container.id).await.unwrap();
    }
}

/// A call whose client went away goes on, and its retry joins it.
#[tokio::test]
async fn a_retry_joins_the_call_under_way() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let log = node.dir().join("slow.log");
    let body = cni::on_add(&format!("echo ADD >> {}; sleep 2", log.display()));
    cni::script(node.dir(), "slow", &body);
    crate::harness::config::install_cni(node.dir(), &cni::conflist(&[serde_json::json!({ "type": "slow" })]));
    node.start_daemon().await;
    let request = || RunPodSandboxRequest { config: Some(node.pod("slow")), runtime_handler: String::new() };
    let hasty = Cri::with_timeout(&node.dir().join("cri.sock"), Duration::from_millis(500));
    let mut first = tonic::Request::new(request());
    first.set_timeout(Duration::from_millis(500));
    hasty.runtime().run_pod_sandbox(first).await.expect_err("the deadline passes");
    let pod = node.up(node.pod("slow")).await;
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    let adds = fs::read_to_string(&log).unwrap().lines().count();
    assert_eq!(adds, 1, "one sandbox, one ADD");
    // Its connection is an open file of the daemon.
    drop(hasty);
    node.down(&pod).await;
    node.finish().await;
}

/// A stop that comes while the sandbox is being made ends it.
#[tokio::test]
async fn removal_of_what_is_being_made() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    cni::script(node.dir(), "slow", &cni::on_add("sleep 3"));
    crate::harness::config::install_cni(node.dir(), &cni::conflist(&[serde_json::json!({ "type": "slow" })]));
    node.start_daemon().await;
    let cri = node.cri().clone();
    let config = node.pod("early");
    let making = tokio::spawn(async move {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        cri.runtime().run_pod_sandbox(request).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    // A sandbox under way may be listed; if so it can be removed.
    let listed: Vec<Pod> = node
        .pods(PodSandboxFilter::default())
        .await
        .into_iter()
        .map(|pod| Pod { id: pod.id, config: PodSandboxConfig::default() })
        .collect();
    for pod in &listed {
        node.down(pod).await;
    }
    let answer = making.await.unwrap();
    if !listed.is_empty() {
        answer.expect_err("it was removed before it was made");
    }
    node.finish().await;
}
