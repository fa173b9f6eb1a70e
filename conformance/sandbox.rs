//! Sandboxes: what a pod gets from its configuration, and the calls' manners.

use std::collections::HashMap;
use std::fs;

use podwright::proto::*;
use tonic::Code;

use crate::harness::{Node, cgroups, eventually, host, secs, specs};

#[tokio::test]
async fn what_was_asked_comes_back() {
    let node = Node::start().await;
    let mut config = node.pod("fields");
    config.labels = HashMap::from([("app".into(), "web".into()), ("empty".into(), String::new())]);
    config.annotations = HashMap::from([("note".into(), "any \"text\"\nat all".into())]);
    let pod = node.up(config.clone()).await;
    assert_eq!(pod.id.len(), 64);
    let answer = node.pod_status(&pod.id).await.unwrap();
    assert!(!answer.info.is_empty(), "the verbose form adds something");
    let status = answer.status.unwrap();
    assert_eq!((status.id.as_str(), status.state()), (pod.id.as_str(), PodSandboxState::SandboxReady));
    assert_eq!(
        (&status.metadata, &status.labels, &status.annotations),
        (&config.metadata, &config.labels, &config.annotations)
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    assert!((now - status.created_at).abs() < 60_000_000_000, "{}", status.created_at);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!((options.network(), options.ipc()), (NamespaceMode::Pod, NamespaceMode::Pod));
    let listed = &node.pods(PodSandboxFilter::default()).await[0];
    assert_eq!((&listed.id, &listed.metadata, &listed.labels), (&pod.id, &config.metadata, &config.labels));
    assert!(std::path::Path::new(&config.log_directory).is_dir(), "the log directory is made");
    node.finish().await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let node = Node::start().await;
    let mut config = node.host_pod("one");
    config.labels = HashMap::from([("app".into(), "web".into())]);
    let one = node.up(config).await;
    let two = node.up(node.host_pod("two")).await;
    node.stop_pod(&two.id).await.unwrap();
    let ids =
        async |filter: PodSandboxFilter| node.pods(filter).await.into_iter().map(|pod| pod.id).collect::<Vec<_>>();
    let by_state = |state: PodSandboxState| PodSandboxFilter {
        state: Some(PodSandboxStateValue { state: state as i32 }),
        ..Default::default()
    };
    assert_eq!(ids(by_state(PodSandboxState::SandboxReady)).await, [one.id.as_str()]);
    assert_eq!(ids(by_state(PodSandboxState::SandboxNotready)).await, [two.id.as_str()]);
    assert_eq!(ids(PodSandboxFilter { id: one.id.clone(), ..Default::default() }).await, [one.id.as_str()]);
    assert_eq!(ids(PodSandboxFilter { id: one.id[..10].to_owned(), ..Default::default() }).await, [one.id.as_str()]);
    let labelled = |value: &str| PodSandboxFilter {
        label_selector: HashMap::from([("app".into(), value.to_owned())]),
        ..Default::default()
    };
    assert_eq!(ids(labelled("web")).await, [one.id.as_str()]);
    assert!(ids(labelled("other")).await.is_empty());
    assert!(ids(PodSandboxFilter { id: "0".repeat(64), ..Default::default() }).await.is_empty());
    assert_eq!(ids(PodSandboxFilter::default()).await.len(), 2);
    node.finish().await;
}

#[tokio::test]
async fn a_retry_finds_the_same_sandbox() {
    let node = Node::start().await;
    let first = node.up(node.pod("retry")).await;
    assert_eq!(node.up(node.pod("retry")).await.id, first.id);
    let mut other = node.pod("retry");
    other.hostname = "other".into();
    let status = node.run_pod(other, "").await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let mut next = node.pod("retry");
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(node.up(next).await.id, first.id, "another attempt is another sandbox");
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 2);
    node.down(&first).await;
    assert_ne!(node.up(node.pod("retry")).await.id, first.id, "a name is free once its sandbox is removed");
    node.finish().await;
}

#[tokio::test]
async fn calls_at_once_make_one_sandbox() {
    let node = Node::start().await;
    let calls = (0..6).map(|_| node.up(node.pod("once")));
    let mut ids: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(|pod| pod.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn stop_and_remove_may_be_said_twice() {
    let node = Node::start().await;
    let pod = node.up(node.pod("twice")).await;
    for _ in 0..2 {
        node.stop_pod(&pod.id).await.unwrap();
        assert_eq!(node.pod_status(&pod.id).await.unwrap().status.unwrap().state(), PodSandboxState::SandboxNotready);
    }
    for _ in 0..2 {
        node.remove_pod(&pod.id).await.unwrap();
        assert_eq!(node.pod_status(&pod.id).await.unwrap_err().code(), Code::NotFound);
    }
    let running = node.up(node.pod("running")).await;
    node.remove_pod(&running.id).await.expect("a running sandbox is stopped and removed");
    node.finish().await;
}

#[tokio::test]
async fn stopping_a_sandbox_stops_its_containers() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("stops")).await;
    let ctr = node.launch(&pod, node.sh("c", "trap '' TERM; while true; do sleep 1; done")).await;
    node.stop_pod(&pod.id).await.unwrap();
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerExited);
    node.try_create(&pod, node.sleeper("late")).await.expect_err("no container in a stopped sandbox");
    node.remove_pod(&pod.id).await.unwrap();
    assert_eq!(node.try_status(&ctr.id).await.unwrap_err().code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn hostname_and_resolver() {
    let node = Node::ready().await;
    let mut config = node.pod("names");
    config.hostname = "my-host".into();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.0.0.10".into(), "fd00::10".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into(), "edns0".into()],
    });
    let pod = node.up(config).await;
    let out = node.script(&pod, "c", "hostname; cat /etc/hostname /etc/resolv.conf; echo $HOSTNAME").await;
    assert_eq!(
        out,
        "my-host\nmy-host\nsearch a.example b.example\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5 edns0\nmy-host\n"
            .replace("search a.example b.example\nnameserver 10.0.0.10\nnameserver fd00::10", &resolver_order(&out)),
    );
    let written = node.script(&pod, "w", "echo '# note' >> /etc/resolv.conf; cat /etc/resolv.conf").await;
    assert!(written.contains("# note"), "{written}");
    node.finish().await;
}

/// The lines may come in any order; what they say may not differ.
fn resolver_order(out: &str) -> String {
    let lines: Vec<&str> =
        out.lines().filter(|line| line.starts_with("search ") || line.starts_with("nameserver ")).collect();
    assert!(lines.contains(&"search a.example b.example"), "{out}");
    let servers: Vec<_> = lines.iter().filter(|line| line.starts_with("nameserver")).collect();
    assert_eq!(servers, [&"nameserver 10.0.0.10", &"nameserver fd00::10"], "{out}");
    lines.join("\n")
}

#[tokio::test]
async fn without_dns_settings_the_host_s_apply() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("dns")).await;
    let inside = node.script(&pod, "c", "cat /etc/resolv.conf").await;
    assert_eq!(inside, fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    node.finish().await;
}

#[tokio::test]
async fn a_host_network_pod_is_on_the_host() {
    let node = Node::ready().await;
    let pod = node.up(node.host_pod("hostnet")).await;
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let out = node.script(&pod, "c", "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; hostname").await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], own.to_string_lossy());
    assert_eq!(lines[1], fs::read_link("/proc/self/ns/uts").unwrap().to_string_lossy(), "the host's UTS, too");
    assert_eq!(lines[2], fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    let status = node.pod_status(&pod.id).await.unwrap().status.unwrap();
    assert_eq!(status.network.unwrap_or_default().ip, "", "the host's addresses are not the runtime's to tell");
    node.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_should() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("share")).await;
    let show = "for kind in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$kind; done; echo $$";
    // The first lives on: the names of namespaces that are gone may be given again.
    let first = node.launch(&pod, node.sh("a", &format!("{show}; echo all; while true; do sleep 1; done"))).await;
    let a = crate::harness::logs::stream(&node.logged(&first, "all").await, "stdout");
    let b = node.script(&pod, "b", show).await;
    let (a, b): (Vec<_>, Vec<_>) = (a.lines().collect(), b.lines().collect());
    assert_eq!(a[..3], b[..3], "network, IPC and UTS are the pod's");
    assert_ne!(a[3], b[3], "PID is the container's");
    assert_eq!((a[6], b[6]), ("1", "1"));
    let host =
        |kind: &str| fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap().to_string_lossy().into_owned();
    for (at, kind) in ["net", "ipc", "uts", "pid", "mnt"].iter().enumerate() {
        assert_ne!(a[at], host(kind), "{kind} must not be the host's");
    }
    let shm = node.sleeper("shm");
    let ctr = node.launch(&pod, shm).await;
    node.exec(&ctr, &["sh", "-c", "echo shared > /dev/shm/x"]).await;
    assert_eq!(
        node.script(&pod, "reader", "cat /dev/shm/x; df -m /dev/shm | tail -1 | grep -o ' 64 ' | head -1").await,
        "shared\n 64 \n"
    );
    node.finish().await;
}

#[tokio::test]
async fn pid_namespace_of_the_pod() {
    let node = Node::ready().await;
    let mut config = node.pod("pidshare");
    specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod as i32;
    let pod = node.up(config).await;
    let shared = |mut container: ContainerConfig| {
        specs::security(&mut container).namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod as i32;
        container
    };
    let other = node.launch(&pod, shared(node.sleeper("other"))).await;
    node.logged(&other, "up").await;
    let (_, out) =
        node.outcome(&pod, shared(node.sh("c", "echo pid $$; grep -l sleep /proc/[0-9]*/comm | wc -l"))).await;
    assert!(!out.starts_with("pid 1\n"), "pause is process 1: {out}");
    assert!(out.trim().ends_with('1'), "the other container's processes are seen: {out}");
    node.finish().await;
}

#[tokio::test]
async fn pid_namespace_of_the_host() {
    let node = Node::ready().await;
    let mut config = node.pod("pidhost");
    let options = specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap();
    (options.pid, options.ipc) = (NamespaceMode::Node as i32, NamespaceMode::Node as i32);
    let pod = node.up(config).await;
    let mut container = node.sh("c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc");
    let options = specs::security(&mut container).namespace_options.as_mut().unwrap();
    (options.pid, options.ipc) = (NamespaceMode::Node as i32, NamespaceMode::Node as i32);
    let (_, out) = node.outcome(&pod, container).await;
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned();
    assert_eq!(out, format!("{}\n{}\n", host("pid"), host("ipc")));
    node.finish().await;
}

#[tokio::test]
async fn pid_namespace_of_another_container() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("target")).await;
    let target = node.launch(&pod, node.sleeper("target")).await;
    node.logged(&target, "up").await;
    let mut debug = node.sh("debug", "cat /proc/1/cmdline | tr '\\0' ' '");
    let options = specs::security(&mut debug).namespace_options.as_mut().unwrap();
    (options.pid, options.target_id) = (NamespaceMode::Target as i32, target.id.clone());
    let (_, out) = node.outcome(&pod, debug).await;
    assert!(out.contains("trap"), "process 1 is the target's: {out}");
    node.finish().await;
}

#[tokio::test]
async fn sysctls_of_the_pod() {
    let node = Node::ready().await;
    let before = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let mut config = node.pod("sysctl");
    config.linux.as_mut().unwrap().sysctls = HashMap::from([
        ("net.ipv4.ip_unprivileged_port_start".into(), "77".into()),
        ("kernel.shmmni".into(), "1234".into()),
    ]);
    let pod = node.up(config).await;
    let out = node.script(&pod, "c", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni").await;
    assert_eq!(out, "77\n1234\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), before, "the host keeps its own");
    node.finish().await;
}

#[tokio::test]
async fn the_pod_lies_below_its_cgroup_parent() {
    let node = Node::start().await;
    let pod = node.up(node.pod("cgroup")).await;
    let parent = node.cgroup_parent().trim_start_matches('/').to_owned();
    let below = cgroups::find(|name| name == parent);
    assert!(!below.is_empty(), "no cgroup {parent}");
    assert!(below.iter().any(|path| path.to_string_lossy().contains(&pod.id)), "{below:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_pod_may_name_no_cgroup_parent() {
    let node = Node::ready().await;
    let mut config = node.pod("noparent");
    config.linux.as_mut().unwrap().cgroup_parent.clear();
    let pod = node.up(config).await;
    assert_eq!(node.script(&pod, "c", "echo runs").await, "runs\n");
    node.finish().await;
}

/// A runtime that cannot be talked to from a pod: no abstract socket leads out of a host-network pod.
#[tokio::test]
async fn no_abstract_sockets() {
    let node = Node::start().await;
    let before = host::abstract_sockets();
    let pod = node.up(node.host_pod("sockets")).await;
    assert_eq!(host::abstract_sockets(), before);
    node.down(&pod).await;
    node.finish().await;
}

#[tokio::test]
async fn pause_is_killed_at_once_and_its_death_is_seen() {
    let node = Node::start().await;
    let pod = node.up(node.host_pod("pause")).await;
    let start = std::time::Instant::now();
    node.stop_pod(&pod.id).await.unwrap();
    assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
    node.remove_pod(&pod.id).await.unwrap();
    // Somebody kills it: the pod is not ready any more.
    let pod = node.up(node.host_pod("killed")).await;
    let inside =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|table| table.contains(&pod.id));
    let pause = host::descendants().into_iter().find(|p| inside(p.pid) && !p.command.contains("podwright-monitor"));
    let pause = nix::unistd::Pid::from_raw(pause.expect("a pause process in the pod's cgroup").pid);
    nix::sys::signal::kill(pause, nix::sys::signal::SIGKILL).unwrap();
    eventually(secs(5), "NotReady", async || match node.pod_status(&pod.id).await.unwrap().status.unwrap().state() {
        PodSandboxState::SandboxNotready => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    node.finish().await;
}
