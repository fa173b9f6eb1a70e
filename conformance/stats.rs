//! Usage: what is told is what stands in the cgroup's files, in /proc and in the writable layer.

use std::collections::HashMap;
use std::fs;

use podwright::proto::*;

use crate::harness::{Ctr, Node, cgroups, host};

async fn one(node: &Node, ctr: &Ctr) -> ContainerStats {
    let request = ContainerStatsRequest { container_id: ctr.id.clone() };
    node.cri().runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap()
}

async fn all(node: &Node, filter: ContainerStatsFilter) -> Vec<String> {
    let request = ListContainerStatsRequest { filter: Some(filter) };
    let stats = node.cri().runtime().list_container_stats(request).await.unwrap().into_inner().stats;
    stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect()
}

async fn pod_stats(node: &Node, id: &str) -> PodSandboxStats {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    node.cri().runtime().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap()
}

async fn info(node: &Node, ctr: &Ctr) -> serde_json::Value {
    let request = ContainerStatusRequest { container_id: ctr.id.clone(), verbose: true };
    let info = node.cri().runtime().container_status(request).await.unwrap().into_inner().info;
    serde_json::from_str(&info["info"]).unwrap()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// A line `KEY VALUE` of a cgroup's table.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).map(number).unwrap()
}

fn near(what: &str, told: Option<UInt64Value>, found: u64, slack: u64) {
    let told = told.unwrap_or_else(|| panic!("{what} is not told")).value;
    assert!(told.abs_diff(found) <= slack, "{what}: told {told}, found {found}");
}

#[tokio::test]
async fn a_containers_numbers_are_its_cgroups() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("numbers")).await;
    // A steady picture: memory in a file of its tmpfs, a file in its layer, three processes that sleep.
    let script = "head -c 8000000 /dev/zero >/dev/shm/x; head -c 3000000 /dev/zero >/file; \
                  sleep 3600 & sleep 3600 & i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; wait";
    let mut config = node.sh("c", script);
    config.labels = HashMap::from([("app".into(), "x".into())]);
    config.linux.get_or_insert_default().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    let shown = info(&node, &ctr).await;
    let init = shown["pid"].as_i64().unwrap() as i32;
    let file = |v2: &str, v1: (&str, &str)| cgroups::read(init, v2, v1);
    let used = || match cgroups::is_v2() {
        true => keyed(&file("cpu.stat", ("", "")), "usage_usec") * 1000,
        false => number(&file("", ("cpuacct", "cpuacct.usage"))),
    };
    // The shell may not wait yet: what is told is what was used by then.
    let before = used();
    let got = one(&node, &ctr).await;
    let after = used();
    let attributes = got.attributes.unwrap();
    assert_eq!((attributes.id.as_str(), attributes.labels["app"].as_str()), (ctr.id.as_str(), "x"));

    let (cpu, memory) = (got.cpu.unwrap(), got.memory.unwrap());
    let told = cpu.usage_core_nano_seconds.unwrap().value;
    assert!(0 < before && (before..=after).contains(&told), "{before} {told} {after}");
    assert!(cpu.timestamp > 0);
    let table = file("memory.stat", ("memory", "memory.stat"));
    let (inactive, rss, faults) = match cgroups::is_v2() {
        true => ("inactive_file", "anon", "pgfault"),
        false => ("total_inactive_file", "total_rss", "total_pgfault"),
    };
    let current = number(&file("memory.current", ("memory", "memory.usage_in_bytes")));
    let slack = 1 << 20;
    assert!(current > 8_000_000, "{current}");
    near("memory", memory.usage_bytes, current, slack);
    near("working set", memory.working_set_bytes, current - keyed(&table, inactive), slack);
    near("rss", memory.rss_bytes, keyed(&table, rss), slack);
    near("faults", memory.page_faults, keyed(&table, faults), 100);
    let set = memory.working_set_bytes.unwrap().value;
    near("available", memory.available_bytes, (64 << 20) - set, 0);
    if let Some(swap) = cgroups::try_read(init, "memory.swap.current", ("memory", "memory.memsw.usage_in_bytes")) {
        let swap = if cgroups::is_v2() { number(&swap) } else { number(&swap).saturating_sub(current) };
        near("swap", got.swap.unwrap().swap_usage_bytes, swap, slack);
    }
    let layer = got.writable_layer.unwrap();
    let bytes = layer.used_bytes.unwrap().value;
    assert!((3_000_000..4_000_000).contains(&bytes), "{bytes}");
    let folder = shown["snapshotDir"].as_str().unwrap();
    let inodes = number(host::run("sh", &["-c", &format!("find {folder} | wc -l")]).trim());
    near("inodes", layer.inodes_used, inodes, 1);
    assert!(folder.starts_with(&layer.fs_id.unwrap().mountpoint));
    if cgroups::is_v2() && fs::metadata("/proc/pressure/cpu").is_ok() {
        let total = file("cpu.pressure", ("", ""));
        let total = total.lines().next().and_then(|line| line.rsplit('=').next()).map(number).unwrap();
        assert!(cpu.psi.unwrap().some.unwrap().total <= total);
    }
    // A rate takes two readings, a second apart at least.
    let from = std::time::Instant::now();
    let rate = loop {
        if let Some(rate) = one(&node, &ctr).await.cpu.unwrap().usage_nano_cores {
            break rate.value;
        }
        assert!(from.elapsed() < crate::harness::secs(30), "no rate");
        node.exec(&ctr, &["true"]).await;
    };
    assert!(rate < 2_000_000_000_000, "{rate}");

    node.stop_container(&ctr.id, 0).await.unwrap();
    let ended = one(&node, &ctr).await;
    assert_eq!((ended.cpu, ended.memory), (None, None));
    assert!(ended.writable_layer.is_some());
    assert!(all(&node, ContainerStatsFilter::default()).await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_sandboxs_numbers_are_its_cgroups_and_its_interfaces() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("sum")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    // Some traffic, which is over when it is told that nobody answers.
    node.exec(
        &ctr,
        &["sh", "-c", "ping -c 3 -i 0.1 -W 1 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p') || true"],
    )
    .await;
    let got = pod_stats(&node, &pod.id).await;
    let linux = got.linux.unwrap();
    let init = info(&node, &ctr).await["pid"].as_i64().unwrap() as i32;
    let interface = linux.network.unwrap().default_interface.unwrap();
    let table = host::run("nsenter", &["-t", &init.to_string(), "-n", "ip", "-s", "-j", "link", "show", "eth0"]);
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    let found = |way: &str, what: &str| table[0]["stats64"][way][what].as_u64().unwrap();
    assert_eq!(interface.name, "eth0");
    // Neighbours are asked about at any time.
    near("received", interface.rx_bytes, found("rx", "bytes"), 2000);
    near("sent", interface.tx_bytes, found("tx", "bytes"), 2000);
    near("receive errors", interface.rx_errors, found("rx", "errors"), 0);
    assert!(found("tx", "bytes") > 0);

    // Pause, and the container's shell with its sleep: all of them below the pod's own cgroup.
    let processes = linux.process.unwrap().process_count.unwrap().value;
    assert_eq!(processes, 3);
    let shown: Vec<_> = linux.containers.iter().map(|it| it.attributes.clone().unwrap().id).collect();
    assert_eq!(shown, std::slice::from_ref(&ctr.id));
    let root = if cgroups::is_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    let folder = format!("{root}/{}", node.cgroup_parent().trim_start_matches('/'));
    let file = if cgroups::is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
    let current = number(fs::read_to_string(format!("{folder}/{file}")).unwrap().trim());
    near("memory", linux.memory.unwrap().usage_bytes, current, 1 << 20);
    assert!(linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);

    let host_pod = node.up(node.host_pod("host")).await;
    assert_eq!(pod_stats(&node, &host_pod.id).await.linux.unwrap().network, None);
    node.finish().await;
}

#[tokio::test]
async fn a_sandbox_without_a_cgroup_of_its_own_is_the_sum_of_its_parts() {
    let node = Node::ready().await;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let mut config = node.pod(name);
        config.linux.get_or_insert_default().cgroup_parent.clear();
        let pod = node.up(config).await;
        let script = "head -c 8000000 /dev/zero >/dev/shm/x; sleep 3600 & echo up; wait";
        let ctr = node.launch(&pod, node.sh("c", script)).await;
        node.logged(&ctr, "up").await;
        pods.push((pod, ctr));
    }
    let (pod, ctr) = &pods[0];
    let second = node.launch(pod, node.sh("second", "sleep 3600 & echo up; wait")).await;
    node.logged(&second, "up").await;
    let linux = pod_stats(&node, &pod.id).await.linux.unwrap();
    // Pause, a shell and its sleep twice; the other pod's, below the same parent, are not among them.
    assert_eq!(linux.process.unwrap().process_count.unwrap().value, 5);
    let (mut memory, mut cpu) = (0, 0);
    for part in [ctr, &second] {
        let part = one(&node, part).await;
        memory += part.memory.unwrap().usage_bytes.unwrap().value;
        cpu += part.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
    }
    assert!(memory > 8_000_000, "{memory}");
    let told = linux.memory.unwrap();
    near("memory", told.usage_bytes, memory, 1 << 20);
    assert!(told.working_set_bytes.unwrap().value > 8_000_000);
    assert!(linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value > cpu / 2);
    assert_eq!(linux.containers.len(), 2);

    node.stop_container(&second.id, 0).await.unwrap();
    let linux = pod_stats(&node, &pod.id).await.linux.unwrap();
    assert_eq!((linux.process.unwrap().process_count.unwrap().value, linux.containers.len()), (3, 1));
    node.finish().await;
}

#[tokio::test]
async fn lists_of_usage_are_filtered() {
    let node = Node::ready().await;
    let mut config = node.host_pod("one");
    config.labels = HashMap::from([("tier".into(), "front".into())]);
    let (one, two) = (node.up(config).await, node.up(node.host_pod("two")).await);
    let mut config = node.sleeper("a");
    config.labels = HashMap::from([("app".into(), "web".into())]);
    let a = node.launch(&one, config).await;
    let b = node.launch(&two, node.sleeper("b")).await;
    let labels = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let of = |filter: ContainerStatsFilter| all(&node, filter);
    assert_eq!(of(ContainerStatsFilter { id: b.id[..12].to_owned(), ..Default::default() }).await, [b.id.as_str()]);
    let pod_sandbox_id = one.id.clone();
    assert_eq!(of(ContainerStatsFilter { pod_sandbox_id, ..Default::default() }).await, [a.id.as_str()]);
    let label_selector = labels("app", "web");
    assert_eq!(of(ContainerStatsFilter { label_selector, ..Default::default() }).await, [a.id.as_str()]);
    let label_selector = labels("app", "db");
    assert!(of(ContainerStatsFilter { label_selector, ..Default::default() }).await.is_empty());
    assert_eq!(of(ContainerStatsFilter::default()).await.len(), 2);

    let pods = async |filter: PodSandboxStatsFilter| {
        let request = ListPodSandboxStatsRequest { filter: Some(filter) };
        let stats = node.cri().runtime().list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
        stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(
        pods(PodSandboxStatsFilter { id: two.id[..9].to_owned(), ..Default::default() }).await,
        [two.id.as_str()]
    );
    let label_selector = labels("tier", "front");
    assert_eq!(pods(PodSandboxStatsFilter { label_selector, ..Default::default() }).await, [one.id.as_str()]);
    assert_eq!(pods(PodSandboxStatsFilter::default()).await.len(), 2);
    node.stop_pod(&two.id).await.unwrap();
    assert_eq!(pods(PodSandboxStatsFilter::default()).await, [one.id.as_str()]);
    let request = ContainerStatsRequest { container_id: "f".repeat(64) };
    let error = node.cri().runtime().container_stats(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    node.finish().await;
}
