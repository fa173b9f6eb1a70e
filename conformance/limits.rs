//! Ends and limits: stop signals, grace, memory, CPU, processes.

use std::fs;
use std::time::Instant;

use podwright::proto::*;

use crate::harness::{HTTPD, Node, cgroups, eventually, host, secs, specs};

fn limited(mut config: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

#[tokio::test]
async fn the_grace_period_is_given_and_then_ends() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("grace")).await;
    let ctr =
        node.launch(&pod, node.sh("deaf", "trap 'echo ignored' TERM; echo up; while true; do sleep 0.1; done")).await;
    node.logged(&ctr, "up").await;
    let start = Instant::now();
    node.stop_container(&ctr.id, 1).await.unwrap();
    let took = start.elapsed();
    assert!(took.as_millis() >= 900 && took < secs(10), "{took:?}");
    let status = node.status(&ctr).await;
    assert_eq!((status.exit_code, status.state()), (137, ContainerState::ContainerExited));
    node.logged(&ctr, "ignored").await;
    let ctr = node
        .launch(&pod, node.sh("slow", "trap 'sleep 0.3; exit 5' TERM; echo up; while true; do sleep 0.1; done"))
        .await;
    node.logged(&ctr, "up").await;
    node.stop_container(&ctr.id, 30).await.unwrap();
    assert_eq!(node.status(&ctr).await.exit_code, 5, "it may end by itself within its grace period");
    let ctr = node.launch(&pod, node.sh("none", "trap '' TERM; echo up; while true; do sleep 0.1; done")).await;
    node.logged(&ctr, "up").await;
    let start = Instant::now();
    node.stop_container(&ctr.id, 0).await.unwrap();
    assert!(start.elapsed() < secs(5), "{:?}", start.elapsed());
    node.finish().await;
}

#[tokio::test]
async fn a_shorter_grace_overtakes_a_longer_one() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("overtake")).await;
    let ctr = node.launch(&pod, node.sh("c", "trap '' TERM; echo up; while true; do sleep 0.1; done")).await;
    node.logged(&ctr, "up").await;
    let start = Instant::now();
    let (patient, hasty) = tokio::join!(node.stop_container(&ctr.id, 50), async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        node.stop_container(&ctr.id, 0).await
    });
    patient.unwrap();
    hasty.unwrap();
    assert!(start.elapsed() < secs(10), "{:?}", start.elapsed());
    node.finish().await;
}

#[tokio::test]
async fn the_stop_signal_of_the_image_or_of_the_config() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("signal")).await;
    let trap =
        "for s in TERM QUIT USR1; do trap \"echo got $s; exit 9\" $s; done; echo up; while true; do sleep 0.1; done";
    let mut config = node.sh("config", trap);
    config.stop_signal = Signal::Sigusr1 as i32;
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    assert_eq!(node.status(&ctr).await.stop_signal(), Signal::Sigusr1);
    node.stop_container(&ctr.id, 20).await.unwrap();
    node.logged(&ctr, "got USR1").await;

    let reference = "gcr.io/k8s-staging-cri-tools/hostnet-nginx-amd64:latest";
    node.pull(reference).await;
    let mut config = node.sh("image", trap);
    config.image = Some(specs::image(reference));
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    node.stop_container(&ctr.id, 20).await.unwrap();
    node.logged(&ctr, "got QUIT").await;
    let ctr = node.launch(&pod, node.sh("default", trap)).await;
    node.logged(&ctr, "up").await;
    node.stop_container(&ctr.id, 20).await.unwrap();
    node.logged(&ctr, "got TERM").await;
    node.pull(HTTPD).await;
    node.finish().await;
}

#[tokio::test]
async fn the_whole_cgroup_is_killed() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("kill")).await;
    // The container's own PID namespace would take all along; the pod's does not.
    let mut config = node.sh("c", "setsid sleep 7654321 & trap 'exit 0' TERM; echo up; wait");
    specs::security(&mut config).namespace_options.as_mut().unwrap().pid = NamespaceMode::Node as i32;
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    node.stop_container(&ctr.id, 5).await.unwrap();
    // Nobody need ask for its end any more; the signal is on its way.
    eventually(secs(10), "the end of all", async || {
        let left: Vec<_> =
            host::descendants().into_iter().filter(|p| p.command.contains("7654321") && p.state != 'Z').collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    node.finish().await;
}

#[tokio::test]
async fn out_of_memory_is_told() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("oom")).await;
    let resources = LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
    let config = limited(node.run("c", &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]), resources);
    let ctr = node.launch(&pod, config).await;
    let status = node.exited(&ctr).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    node.finish().await;
}

#[tokio::test]
async fn limits_reach_the_cgroup() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("limits")).await;
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 900,
        ..Default::default()
    };
    let ctr = node.launch(&pod, limited(node.sleeper("c"), resources)).await;
    node.logged(&ctr, "up").await;
    let pid = node.pid_in(&ctr.id, "sh");
    assert_eq!(cgroups::read(pid, "memory.max", ("memory", "memory.limit_in_bytes")), (64 << 20).to_string());
    if cgroups::is_v2() {
        assert_eq!(cgroups::read(pid, "cpu.max", ("", "")), "25000 100000");
        let weight: u64 = cgroups::read(pid, "cpu.weight", ("", "")).parse().unwrap();
        assert!((18..=80).contains(&weight), "512 shares are a weight below the default of 100: {weight}");
    } else {
        assert_eq!(cgroups::read(pid, "", ("cpu", "cpu.cfs_quota_us")), "25000");
        assert_eq!(cgroups::read(pid, "", ("cpu", "cpu.shares")), "512");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "900");
    let told = node.status(&ctr).await.resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares), (64 << 20, 25_000, 512));
    node.finish().await;
}

#[tokio::test]
async fn the_container_sees_its_own_cgroup_only() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("view")).await;
    let out = node
        .script(&pod, "c", "cat /proc/self/cgroup; touch /sys/fs/cgroup/x 2>&1; mkdir /sys/fs/cgroup/x 2>&1; true")
        .await;
    if cgroups::is_v2() {
        assert!(out.starts_with("0::/\n"), "a cgroup namespace of its own: {out}");
    }
    assert!(!out.contains(node.cgroup_parent().trim_end_matches(".slice")) || !cgroups::is_v2(), "{out}");
    assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
    // v1: each hierarchy is a mount of its own.
    let limit = if cgroups::is_v2() { "cgroup.max.depth" } else { "memory/memory.limit_in_bytes" };
    let out = node.script(&pod, "own", &format!("echo 1 2>&1 >/sys/fs/cgroup/{limit}; true")).await;
    assert!(out.contains("Read-only file system"), "{out}");
    node.finish().await;
}

#[tokio::test]
async fn a_fork_bomb_is_bounded() {
    let node =
        Node::with(crate::harness::Setup { extra: "[container]\npids_limit = 40\n".into(), ..Default::default() })
            .await;
    let mut node = node;
    node.pull(crate::harness::BUSYBOX).await;
    let pod = node.up(node.pod("bomb")).await;
    // The reader is there before the first sleeper is, and the pipe must not wait for the sleepers.
    let script = "mkfifo /tmp/go; \
                  { read x </tmp/go; for i in $(seq 100); do sleep 30 >/dev/null 2>&1 & done; } 2>&1 | \
                  { echo >/tmp/go; exec tail -1; }; echo done";
    let (_, out) = node.outcome(&pod, node.sh("c", script)).await;
    assert!(out.contains("can't fork") && out.ends_with("done\n"), "{out}");
    node.finish().await;
}
