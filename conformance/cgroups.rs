//! Where processes are put, and what holds there: the same with either driver, on cgroup v1 and v2.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use podwright::proto::*;

use crate::harness::{Ctr, Node, Pod, cgroups, eventually, host, secs, specs};

fn pid_of(info: &std::collections::HashMap<String, String>) -> i32 {
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["pid"].as_i64().unwrap() as i32
}

async fn pause_pid(node: &Node, pod: &Pod) -> i32 {
    pid_of(&node.pod_status(&pod.id).await.unwrap().info)
}

async fn pid(node: &Node, ctr: &Ctr) -> i32 {
    let request = ContainerStatusRequest { container_id: ctr.id.clone(), verbose: true };
    pid_of(&node.cri().runtime().container_status(request).await.unwrap().into_inner().info)
}

/// The path of a process's cgroup: that of v2, or of v1's memory controller.
fn cgroup_of(pid: i32) -> String {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let wanted = if cgroups::is_v2() { "0::" } else { ":memory:" };
    let line = table.lines().find(|line| line.contains(wanted)).unwrap();
    line.splitn(3, ':').nth(2).unwrap().to_owned()
}

/// A unit's properties.
fn unit(name: &str, properties: &str) -> BTreeMap<String, String> {
    let text = host::run("systemctl", &["show", "-p", properties, "--", name]);
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn parent_folder(node: &Node) -> PathBuf {
    let root = if cgroups::is_v2() { Path::new("/sys/fs/cgroup") } else { Path::new("/sys/fs/cgroup/memory") };
    root.join(node.cgroup_parent().trim_start_matches('/'))
}

#[tokio::test]
async fn pause_and_containers_have_leaves_of_their_own() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("leaves")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let (pause, init) = (pause_pid(&node, &pod).await, pid(&node, &ctr).await);
    let parent = node.cgroup_parent();
    let leaf = |id: &str| match node.driver() {
        "systemd" => format!("/{parent}/podwright-{id}.scope"),
        _ => format!("{parent}/{id}"),
    };
    assert_eq!((cgroup_of(pause), cgroup_of(init)), (leaf(&pod.id), leaf(&ctr.id)));
    // What runs in a container later is there, too.
    node.exec(&ctr, &["sh", "-c", "sleep 7113 >/dev/null 2>&1 &"]).await;
    // The shell may end before its child has become that program.
    let late = eventually(secs(10), "the process", async || {
        let found = host::descendants().into_iter().find(|p| p.command.starts_with("sleep 7113"));
        found.ok_or("there is none".to_owned())
    })
    .await;
    assert_eq!(cgroup_of(late.pid), leaf(&ctr.id));
    let inside = node.exec(&ctr, &["cat", "/proc/self/cgroup"]).await;
    assert!(!cgroups::is_v2() || inside == "0::/\n", "the container's cgroup namespace: {inside}");
    if cgroups::is_v2() {
        // A limit on the pod, as the kubelet sets, or on any leaf, needs the controllers all the way down.
        let given = fs::read_to_string(parent_folder(&node).join("cgroup.subtree_control")).unwrap();
        for name in ["cpu", "memory", "pids"] {
            assert!(given.split_whitespace().any(|other| other == name), "{name} in {given}");
        }
        assert_eq!(fs::read_to_string(parent_folder(&node).join("cgroup.procs")).unwrap(), "");
    }
    if node.driver() == "systemd" {
        for id in [&pod.id, &ctr.id] {
            let told = unit(&format!("podwright-{id}.scope"), "ActiveState,Slice,Delegate");
            assert_eq!(
                (told["ActiveState"].as_str(), told["Slice"].as_str(), told["Delegate"].as_str()),
                ("active", parent, "yes")
            );
        }
    }
    node.down(&pod).await;
    if node.driver() == "systemd" {
        for id in [&pod.id, &ctr.id] {
            let left =
                host::run("systemctl", &["list-units", "--all", "--no-legend", &format!("podwright-{id}.scope")]);
            assert_eq!(left, "", "systemd still knows it");
        }
    }
    // Nobody but the pod wanted the parent.
    let parent = parent_folder(&node);
    eventually(
        secs(5),
        "the parent's end",
        async || {
            if parent.exists() { Err(format!("{parent:?} is there")) } else { Ok(()) }
        },
    )
    .await;
    node.finish().await;
}

#[tokio::test]
async fn a_parent_that_was_there_stays() {
    let node = Node::ready().await;
    match node.driver() {
        "systemd" => drop(host::run("systemctl", &["start", node.cgroup_parent()])),
        _ => fs::create_dir(parent_folder(&node)).unwrap(),
    }
    let pod = node.up(node.pod("stays")).await;
    assert_eq!(node.script(&pod, "c", "echo ran").await, "ran\n");
    node.down(&pod).await;
    assert!(parent_folder(&node).exists());
    let pod = node.up(node.pod("again")).await;
    node.down(&pod).await;
    assert!(parent_folder(&node).exists());
    if node.driver() == "systemd" {
        assert_eq!(unit(node.cgroup_parent(), "ActiveState")["ActiveState"], "active");
    }
    node.finish().await;
}

#[tokio::test]
async fn two_pods_share_a_parent_and_the_last_one_takes_it_away() {
    let node = Node::ready().await;
    let (first, second) = (node.up(node.pod("first")).await, node.up(node.pod("second")).await);
    node.down(&first).await;
    assert_eq!(node.script(&second, "c", "echo ran").await, "ran\n");
    assert!(parent_folder(&node).exists());
    node.down(&second).await;
    node.finish().await;
}

#[tokio::test]
async fn every_limit_is_seen_from_outside() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("limits")).await;
    let mut resources = LinuxContainerResources {
        cpu_shares: 2048,
        // No whole number of microseconds per second, which is how systemd counts.
        cpu_period: 70_000,
        cpu_quota: 20_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 96 << 20,
        ..Default::default()
    };
    if cgroups::is_v2() {
        resources.memory_swap_limit_in_bytes = 128 << 20;
        resources.unified = [("memory.oom.group", "1"), ("memory.high", "83886080")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    }
    let mut config = node.sleeper("c");
    config.linux.get_or_insert_default().resources = Some(resources);
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    let pid = pid(&node, &ctr).await;
    if node.driver() == "systemd" {
        // It writes what it knows of its units into their cgroups again.
        host::run("systemctl", &["daemon-reload"]);
    }
    assert_eq!(cgroups::read(pid, "memory.max", ("memory", "memory.limit_in_bytes")), (96 << 20).to_string());
    assert_eq!(cgroups::read(pid, "cpuset.cpus", ("cpuset", "cpuset.cpus")), "0");
    if cgroups::is_v2() {
        assert_eq!(cgroups::read(pid, "cpu.max", ("", "")), "20000 70000");
        let weight: u64 = cgroups::read(pid, "cpu.weight", ("", "")).parse().unwrap();
        assert!((79..=200).contains(&weight), "2048 shares are more than 1024: {weight}");
        assert_eq!(cgroups::read(pid, "memory.swap.max", ("", "")), (32 << 20).to_string());
        assert_eq!(cgroups::read(pid, "memory.oom.group", ("", "")), "1");
        assert_eq!(cgroups::read(pid, "memory.high", ("", "")), "83886080");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_opens_the_devices_it_was_given() {
    let node = Node::ready().await;
    let mut config = node.pod("devices");
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.up(config).await;
    // The kernel's log: a device that no container gets by itself.
    let script = "mknod /dev/k c 1 11 2>&1; (: >/dev/k) 2>&1 && echo opened; echo x >/dev/null && echo null; \
                  head -c1 /dev/zero | wc -c; true";
    let out = node.script(&pod, "plain", script).await;
    assert!(!out.contains("opened") && out.contains("null\n1\n"), "{out}");
    let mut config = node.sh("given", "(: >/dev/k) 2>&1 && echo opened; true");
    config.devices =
        vec![Device { container_path: "/dev/k".into(), host_path: "/dev/kmsg".into(), permissions: "rw".into() }];
    assert_eq!(node.script(&pod, "plain-again", script).await, out);
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "opened\n"));
    let mut config = node.sh("privileged", script);
    specs::security(&mut config).privileged = true;
    specs::security(&mut config).seccomp = None;
    let out = node.outcome(&pod, config).await.1;
    assert!(out.contains("opened\n"), "{out}");
    node.finish().await;
}

#[tokio::test]
async fn the_oom_killer_in_a_child_takes_the_group_where_asked() {
    let node = Node::ready().await;
    if !cgroups::is_v2() {
        println!("cgroup v1 knows no oom groups");
        return node.finish().await;
    }
    let pod = node.up(node.pod("group")).await;
    let mut config = node.sh("c", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived; sleep 3600");
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        memory_swap_limit_in_bytes: 16 << 20,
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    });
    let ctr = node.launch(&pod, config).await;
    let status = node.exited(&ctr).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    node.finish().await;
}
