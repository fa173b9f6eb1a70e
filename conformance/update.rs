//! Resources that change while a container is there: in its cgroup, its spec, its status, and for good.

use std::fs;

use podwright::proto::*;
use tonic::{Code, Status};

use crate::harness::{Ctr, Node, cgroups, host};

const MI: i64 = 1 << 20;

async fn update(node: &Node, ctr: &Ctr, linux: LinuxContainerResources) -> Result<(), Status> {
    let container_id = ctr.id.clone();
    let request = UpdateContainerResourcesRequest { container_id, linux: Some(linux), ..Default::default() };
    node.cri().runtime().update_container_resources(request).await.map(drop)
}

async fn inspect(node: &Node, ctr: &Ctr) -> serde_json::Value {
    let request = ContainerStatusRequest { container_id: ctr.id.clone(), verbose: true };
    let info = node.cri().runtime().container_status(request).await.unwrap().into_inner().info;
    serde_json::from_str(&info["info"]).unwrap()
}

async fn pid(node: &Node, ctr: &Ctr) -> i32 {
    inspect(node, ctr).await["pid"].as_i64().unwrap() as i32
}

fn memory(limit: i64, with_swap: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: limit,
        memory_swap_limit_in_bytes: with_swap,
        ..Default::default()
    }
}

async fn shown(node: &Node, ctr: &Ctr) -> LinuxContainerResources {
    node.status(ctr).await.resources.unwrap().linux.unwrap()
}

/// What the kernel enforces: memory, memory and swap together, `cpu.max` in v2's form, CPUs.
fn enforced(pid: i32) -> (String, Option<String>, String, String) {
    let limit = cgroups::read(pid, "memory.max", ("memory", "memory.limit_in_bytes"));
    let number = |text: String| text.parse::<i64>().unwrap();
    let total = cgroups::try_read(pid, "memory.swap.max", ("memory", "memory.memsw.limit_in_bytes"))
        .map(|swap| if cgroups::is_v2() { (number(swap) + number(limit.clone())).to_string() } else { swap });
    let cpu = match cgroups::is_v2() {
        true => cgroups::read(pid, "cpu.max", ("", "")),
        false => format!(
            "{} {}",
            cgroups::read(pid, "", ("cpu", "cpu.cfs_quota_us")),
            cgroups::read(pid, "", ("cpu", "cpu.cfs_period_us"))
        ),
    };
    (limit, total, cpu, cgroups::read(pid, "cpuset.cpus", ("cpuset", "cpuset.cpus")))
}

#[tokio::test]
async fn every_field_is_changed_live_and_kept() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("live")).await;
    let mut config = node.sleeper("c");
    let first = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        oom_score_adj: 300,
        cpuset_cpus: "0".into(),
        ..memory(32 * MI, 32 * MI)
    };
    config.linux.get_or_insert_default().resources = Some(first.clone());
    let ctr = node.create(&pod, config).await;
    let init = pid(&node, &ctr).await;
    assert_eq!(shown(&node, &ctr).await, first);
    let swap = enforced(init).1;
    println!("memory and swap together: {swap:?}");
    let of = |bytes: i64| swap.as_ref().map(|_| bytes.to_string());
    assert_eq!(enforced(init), ((32 * MI).to_string(), of(32 * MI), "20000 100000".into(), "0".into()));

    // Before it is started; both memory limits up, of which the first is above what the second was.
    update(&node, &ctr, memory(64 * MI, 64 * MI)).await.unwrap();
    assert_eq!((enforced(init).0, enforced(init).1), ((64 * MI).to_string(), of(64 * MI)));
    node.try_start(&ctr).await.unwrap();
    node.logged(&ctr, "up").await;

    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").unwrap().trim().to_owned();
    let change = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 2048,
        oom_score_adj: 400,
        cpuset_cpus: cpus.clone(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        // Lower, and the swap with it.
        ..memory(48 * MI, 0)
    };
    let weight = || cgroups::read(init, "cpu.weight", ("cpu", "cpu.shares")).parse::<u64>().unwrap();
    let before = weight();
    update(&node, &ctr, change.clone()).await.unwrap();
    assert_eq!(enforced(init), ((48 * MI).to_string(), of(48 * MI), "25000 50000".into(), cpus.clone()));
    assert!(weight() > before, "{before} {}", weight());
    assert_eq!(cgroups::read(init, "cpuset.mems", ("cpuset", "cpuset.mems")), "0");
    if let Some(pages) = cgroups::try_read(init, "hugetlb.2MB.max", ("hugetlb", "hugetlb.2MB.limit_in_bytes")) {
        assert_eq!(pages, "0");
    }
    let score = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    assert_eq!(score(init), "400");
    assert_eq!(node.exec(&ctr, &["cat", "/proc/self/oom_score_adj"]).await, "400\n");
    let now = LinuxContainerResources { memory_swap_limit_in_bytes: 48 * MI, ..change.clone() };
    assert_eq!(shown(&node, &ctr).await, now);
    let spec = inspect(&node, &ctr).await["runtimeSpec"].clone();
    assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 48 * MI);
    assert_eq!(spec["linux"]["resources"]["cpu"]["quota"], 25_000);
    assert_eq!(spec["process"]["oomScoreAdj"], 400);
    assert!(spec["linux"]["resources"]["devices"].is_array(), "{spec}");

    if node.driver() == "systemd" {
        // It writes what it knows of its units into their cgroups again.
        host::run("systemctl", &["daemon-reload"]);
        assert_eq!(enforced(init), ((48 * MI).to_string(), of(48 * MI), "25000 50000".into(), cpus.clone()));
    }
    // Nothing asked is nothing changed, and what a new daemon finds is what was.
    update(&node, &ctr, LinuxContainerResources::default()).await.unwrap();
    node.restart().await;
    assert_eq!(shown(&node, &ctr).await, now);
    update(&node, &ctr, LinuxContainerResources { cpu_quota: -1, ..Default::default() }).await.unwrap();
    let unlimited = if cgroups::is_v2() { "max 50000" } else { "-1 50000" };
    assert_eq!(enforced(init).2, unlimited);
    assert_eq!(node.exec(&ctr, &["cat", "/proc/self/oom_score_adj"]).await, "400\n");
    node.finish().await;
}

#[tokio::test]
async fn a_change_is_whole_or_not_at_all() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("whole")).await;
    let mut config = node.sleeper("c");
    let first = LinuxContainerResources { cpu_shares: 512, cpuset_cpus: "0".into(), ..memory(32 * MI, 32 * MI) };
    config.linux.get_or_insert_default().resources = Some(first.clone());
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    let init = pid(&node, &ctr).await;
    let (before, weight) = (enforced(init), cgroups::read(init, "cpu.weight", ("cpu", "cpu.shares")));
    // No machine has that CPU.
    let wrong = LinuxContainerResources { cpu_shares: 2048, cpuset_cpus: "4095".into(), ..memory(64 * MI, 64 * MI) };
    let error = update(&node, &ctr, wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("cpuset.cpus") && error.message().contains("4095"), "{error}");
    assert_eq!((enforced(init), cgroups::read(init, "cpu.weight", ("cpu", "cpu.shares"))), (before.clone(), weight));
    assert_eq!(shown(&node, &ctr).await, first);

    let refused = async |resources: LinuxContainerResources, field: &str| {
        let error = update(&node, &ctr, resources).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(field), "{error}");
    };
    refused(LinuxContainerResources { cpu_shares: 1, ..Default::default() }, "linux.cpu_shares").await;
    refused(memory(0, 16 * MI), "linux.memory_swap_limit_in_bytes").await;
    let unified = |file: &str, value: &str| LinuxContainerResources {
        unified: [(file.to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    refused(unified("memory.no_such_file", "1"), "memory.no_such_file").await;
    if cgroups::is_v2() {
        update(&node, &ctr, unified("memory.high", "16777216")).await.unwrap();
        assert_eq!(cgroups::read(init, "memory.high", ("", "")), "16777216");
        refused(unified("memory.high", "plenty"), "memory.high").await;
        assert_eq!(cgroups::read(init, "memory.high", ("", "")), "16777216");
        assert_eq!(shown(&node, &ctr).await.unified["memory.high"], "16777216");
    } else {
        refused(unified("memory.high", "16777216"), "unified").await;
        let mut config = node.sleeper("unified");
        config.linux.get_or_insert_default().resources = Some(unified("memory.high", "1"));
        let error = node.try_create(&pod, config).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains("unified"), "{error}");
    }
    assert_eq!(enforced(init), before);
    node.finish().await;
}

#[tokio::test]
async fn memory_in_use_is_not_taken_away() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("use")).await;
    // A file in a tmpfs with no swap to go to is memory that cannot be reclaimed.
    let mut config = node.sh("c", "head -c 30000000 /dev/zero >/dev/shm/x && echo full; sleep 3600");
    config.linux.get_or_insert_default().resources = Some(memory(64 * MI, 64 * MI));
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "full").await;
    let init = pid(&node, &ctr).await;
    let error = update(&node, &ctr, memory(16 * MI, 16 * MI)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("memory.") && error.message().contains("16777216"), "{error}");
    assert_eq!(enforced(init).0, (64 * MI).to_string());
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    assert_eq!(shown(&node, &ctr).await.memory_limit_in_bytes, 64 * MI);
    node.exec(&ctr, &["rm", "/dev/shm/x"]).await;
    update(&node, &ctr, memory(16 * MI, 16 * MI)).await.unwrap();
    assert_eq!(enforced(init).0, (16 * MI).to_string());
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_be_changed_says_so() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("ended")).await;
    let ctr = node.launch(&pod, node.sh("c", "exit 0")).await;
    node.exited(&ctr).await;
    let shares = LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let error = update(&node, &ctr, shares.clone()).await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains("has ended"), "{error}");
    let nobody = Ctr { id: "f".repeat(64), ..ctr.clone() };
    assert_eq!(update(&node, &nobody, shares).await.unwrap_err().code(), Code::NotFound);
    let windows = Some(WindowsContainerResources::default());
    let request = UpdateContainerResourcesRequest { container_id: ctr.id.clone(), windows, ..Default::default() };
    let error = node.cri().runtime().update_container_resources(request).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("windows"), "{error}");
    node.finish().await;
}

#[tokio::test]
async fn changes_from_all_sides_follow_each_other() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("many")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let changes = (1..=8).map(|n| {
        let limit = 32 * MI * n;
        update(&node, &ctr, LinuxContainerResources { cpu_quota: 10_000 * n, ..memory(limit, limit) })
    });
    for result in futures_util::future::join_all(changes).await {
        result.unwrap();
    }
    let shown = shown(&node, &ctr).await;
    assert_eq!(shown.memory_limit_in_bytes / 32 / MI, shown.cpu_quota / 10_000, "all of one change: {shown:?}");
    assert_eq!(enforced(pid(&node, &ctr).await).0, shown.memory_limit_in_bytes.to_string());
    node.finish().await;
}

#[tokio::test]
async fn a_sandboxs_resources_are_noted() {
    let mut node = Node::ready().await;
    let mut config = node.pod("pod");
    let linux = |shares| LinuxContainerResources { cpu_shares: shares, ..Default::default() };
    config.linux.as_mut().unwrap().overhead = Some(linux(10));
    config.linux.as_mut().unwrap().resources = Some(linux(20));
    let pod = node.up(config.clone()).await;
    let shares = async |node: &Node| {
        let info = node.pod_status(&pod.id).await.unwrap().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        (info["overhead"]["cpu_shares"].as_i64().unwrap(), info["resources"]["cpu_shares"].as_i64().unwrap())
    };
    assert_eq!(shares(&node).await, (10, 20));
    let request = |resources| UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: None,
        resources: Some(resources),
    };
    node.cri().runtime().update_pod_sandbox_resources(request(linux(40))).await.unwrap();
    assert_eq!(shares(&node).await, (10, 40));
    node.restart().await;
    assert_eq!(shares(&node).await, (10, 40));
    // The sandbox is still the one that was asked for.
    assert_eq!(node.up(config).await.id, pod.id);
    let error = node.cri().runtime().update_pod_sandbox_resources(request(linux(1))).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("resources.cpu_shares"), "{error}");
    node.stop_pod(&pod.id).await.unwrap();
    let error = node.cri().runtime().update_pod_sandbox_resources(request(linux(50))).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    node.finish().await;
}

#[tokio::test]
async fn a_runtime_binarys_container_is_changed_as_any() {
    let Some(node) = crate::handlers::node_with("runc").await else { return };
    let pod = node.run_pod(node.pod("runc"), "runc").await.unwrap();
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    update(&node, &ctr, LinuxContainerResources { cpu_quota: 30_000, ..memory(64 * MI, 64 * MI) }).await.unwrap();
    assert_eq!(enforced(pid(&node, &ctr).await).0, (64 * MI).to_string());
    assert_eq!(inspect(&node, &ctr).await["runtimeSpec"]["linux"]["resources"]["cpu"]["quota"], 30_000);
    node.finish().await;
}
