//! Daemons and monitors killed at random moments, damaged records, reboots: what is left is found and put right.
//!
//! The moments come from a seed that is printed; `PODWRIGHT_TEST_SEED` repeats a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podwright::proto::*;
use serde_json::{Value, json};

use crate::harness::config::{Cni, install_cni};
use crate::harness::{Ctr, Dice, Node, Pod, Setup, cni, eventually, host, secs, specs};

/// What a client does while the daemon dies; every call may fail.
async fn anything(cri: crate::harness::cri::Cri, what: usize, pod: PodSandboxConfig, ctr: ContainerConfig) {
    let mut runtime = cri.runtime();
    let id = async |runtime: &mut runtime_service_client::RuntimeServiceClient<_>| {
        let request = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
        runtime.run_pod_sandbox(request).await.map(|answer| answer.into_inner().pod_sandbox_id)
    };
    let Ok(id) = id(&mut runtime).await else { return };
    if what > 0 {
        let request =
            CreateContainerRequest { pod_sandbox_id: id.clone(), config: Some(ctr), sandbox_config: Some(pod.clone()) };
        let Ok(made) = runtime.create_container(request).await else { return };
        let container_id = made.into_inner().container_id;
        let _ = runtime.start_container(StartContainerRequest { container_id: container_id.clone() }).await;
        if what > 1 {
            let cmd = vec!["true".to_owned()];
            let _ = runtime.exec_sync(ExecSyncRequest { container_id: container_id.clone(), cmd, timeout: 5 }).await;
            let stop = StopContainerRequest { container_id: container_id.clone(), timeout: 1 };
            let _ = runtime.stop_container(stop).await;
            let _ = runtime.remove_container(RemoveContainerRequest { container_id }).await;
        }
    }
    if what > 2 {
        let _ = runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await;
        let _ = runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await;
    }
}

/// What is listed is true: running containers can be entered, and only they have processes.
async fn truthful(node: &Node, round: u64) {
    for pod in node.pods(PodSandboxFilter::default()).await {
        let status = node.pod_status(&pod.id).await.unwrap().status.unwrap();
        if pod.state() == PodSandboxState::SandboxReady {
            assert_eq!(status.state(), PodSandboxState::SandboxReady, "round {round}");
        }
    }
    for listed in node.containers(ContainerFilter::default()).await {
        let ctr = Ctr { id: listed.id.clone(), log: PathBuf::new() };
        match listed.state() {
            ContainerState::ContainerRunning => {
                assert_eq!(node.exec(&ctr, &["echo", "in"]).await, "in\n", "round {round}");
            }
            ContainerState::ContainerExited => assert_eq!(living(&listed.id), 0, "round {round}: {listed:?}"),
            _ => {}
        }
    }
}

/// Processes in the cgroups of a container or sandbox.
fn living(id: &str) -> usize {
    let inside = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|table| table.contains(id));
    host::descendants().iter().filter(|process| process.state != 'Z' && inside(process.pid)).count()
}

#[tokio::test]
async fn the_daemon_is_killed_at_random_moments() {
    let mut node = Node::ready().await;
    let mut dice = Dice::new();
    for round in 0..20 {
        let (what, moment, other) = (dice.below(4), dice.moment(150), dice.below(3));
        let pod = if other == 0 { node.host_pod("a") } else { node.pod(["", "b", "c"][other]) };
        let call = tokio::spawn(anything(node.cri().clone(), what, pod, node.sleeper("x")));
        tokio::time::sleep(moment).await;
        node.kill9();
        tokio::time::timeout(secs(10), call).await.expect("calls end with their daemon").unwrap();
        let begun = Instant::now();
        node.start_daemon().await;
        node.pods(PodSandboxFilter::default()).await;
        assert!(begun.elapsed() < secs(2), "round {round}: lists took {:?}", begun.elapsed());
        truthful(&node, round).await;
        // Whatever state a name is in, it can be had again.
        if dice.below(3) == 0 {
            for pod in node.pods(PodSandboxFilter::default()).await {
                node.stop_pod(&pod.id).await.unwrap();
                node.remove_pod(&pod.id).await.unwrap();
            }
            let pod = node.up(node.pod("b")).await;
            assert_eq!(node.script(&pod, &format!("c{round}"), "echo runs").await, "runs\n", "round {round}");
        }
    }
    node.finish().await;
}

/// What a bridge plugin leaves that was killed with its daemon: it fixes the bridge's address after all else, and until
/// then the bridge loses it with its last port.
const TORN: &str = "ip link add pwt0 type bridge && ip link set pwt0 up && ip link add torn0 type veth peer name torn1 \
    && ip link set torn0 master pwt0 && ip link del torn0";

fn bridge_address() -> String {
    let link = host::run("ip", &["-o", "link", "show", cni::BRIDGE]);
    link.split_once("link/ether ").expect("an Ethernet interface").1.split(' ').next().unwrap().to_owned()
}

/// A node whose bridge plugin, which is $REAL, notes its calls in the file, and on the first ADD takes these steps before.
async fn with_bridge_plugin(steps: &str) -> (Node, PathBuf) {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let real = cni::machine_plugins().into_iter().map(|folder| folder.join("bridge")).find(|path| path.exists());
    let (log, real) = (node.dir().join("calls"), real.expect("the bridge plugin"));
    let body = format!(
        "REAL={1}; echo $CNI_COMMAND >> {0}; if [ \"$(cat {0})\" = ADD ]; then {steps}; fi; exec $REAL",
        log.display(),
        real.display()
    );
    cni::script(node.dir(), "bridge", &body);
    install_cni(node.dir(), &cni::conflist(&[cni::bridge(node.dir())]));
    node.start_daemon().await;
    (node, log)
}

#[tokio::test]
async fn a_bridge_that_its_plugin_did_not_finish_gets_an_address() {
    let (node, log) = with_bridge_plugin(":").await;
    host::run("sh", &["-c", TORN]);
    assert_eq!(bridge_address(), "00:00:00:00:00:00", "the kernel takes it with the port");
    let pod = node.up(node.pod("first")).await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "ADD\n", "the first one succeeds");
    let address = bridge_address();
    assert_ne!(address, "00:00:00:00:00:00");
    let other = node.up(node.pod("second")).await;
    node.down(&pod).await;
    node.down(&other).await;
    assert_eq!(bridge_address(), address, "it stays, as after a plugin that finished");
    node.finish().await;
}

/// The same when the address goes after the plugin was called, with a pod that ends in the same moment.
#[tokio::test]
async fn a_bridge_that_loses_its_address_under_the_plugin_is_tried_once_more() {
    let (node, log) = with_bridge_plugin(TORN).await;
    node.up(node.pod("p")).await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "ADD\nDEL\nADD\n");
    node.finish().await;
}

/// The same when the ADD of another pod, that is under way, gives the bridge an address before the failure is looked at:
/// by mending it, or with its port, whose address goes with it unless the bridge is made to keep it.
#[tokio::test]
async fn a_bridge_that_another_pod_gives_an_address_is_tried_once_more() {
    for other in [
        "ip link set pwt0 address 02:00:00:00:00:01",
        "ip link add other0 address 02:00:00:00:00:01 type veth peer name other1 && ip link set other0 master pwt0",
    ] {
        let (node, log) = with_bridge_plugin(&format!("{TORN}; $REAL; code=$?; {other}; exit $code")).await;
        let pod = node.up(node.pod("p")).await;
        assert_eq!(fs::read_to_string(&log).unwrap(), "ADD\nDEL\nADD\n", "{other}");
        if other.contains("other0") {
            host::run("ip", &["link", "del", "other0"]);
        }
        node.down(&pod).await;
        assert_eq!(bridge_address(), "02:00:00:00:00:01", "{other}");
        node.finish().await;
    }
}

fn monitor_of(id: &str) -> Option<Pid> {
    let is_monitor =
        |p: &host::Process| p.command.contains("podwright-monitor") && p.command.contains(id) && p.state != 'Z';
    let all = host::descendants();
    let found = all.iter().filter(|p| is_monitor(p));
    // Its helpers have the same command line: the monitor is the parent.
    let pids: Vec<i32> = found.clone().map(|p| p.pid).collect();
    found.filter(|p| !pids.contains(&p.parent)).map(|p| Pid::from_raw(p.pid)).next()
}

#[tokio::test]
async fn the_monitor_is_killed_at_random_moments() {
    let node = Node::ready().await;
    let mut dice = Dice::new();
    for round in 0..10 {
        let pod = node.up(node.pod("m")).await;
        let ctr = node.launch(&pod, node.sleeper("first")).await;
        let (what, moment) = (dice.below(3), dice.moment(40));
        let monitor = monitor_of(&pod.id).expect("a monitor");
        let busy = async {
            match what {
                0 => drop(node.try_create(&pod, node.sleeper("second")).await),
                1 => drop(node.try_exec(&ctr, &["sleep", "20"], 20).await),
                _ => drop(node.stop_container(&ctr.id, 10).await),
            }
        };
        let death = async {
            tokio::time::sleep(moment).await;
            kill(monitor, Signal::SIGKILL).unwrap();
        };
        tokio::time::timeout(secs(15), async { tokio::join!(busy, death) }).await.expect("calls end with the monitor");
        eventually(secs(10), "the pod's end", async || {
            let state = node.pod_status(&pod.id).await.unwrap().status.unwrap().state();
            let containers = node.containers(ContainerFilter::default()).await;
            let over = containers.iter().all(|listed| listed.state() == ContainerState::ContainerExited);
            let left = living(&pod.id) + containers.iter().map(|listed| living(&listed.id)).sum::<usize>();
            if state == PodSandboxState::SandboxNotready && over && left == 0 {
                Ok(())
            } else {
                Err(format!("{state:?} {containers:?} {left} processes"))
            }
        })
        .await;
        let status = node.status(&ctr).await;
        assert!(!status.reason.is_empty() && status.finished_at > 0, "round {round}: {status:?}");
        node.down(&pod).await;
    }
    node.finish().await;
}

/// The same for what leaves more behind: user namespaces, image volumes, attached clients; monitors may die, too.
#[tokio::test]
async fn daemon_and_monitors_are_killed_amid_user_namespaces_and_image_volumes() {
    let mut node = Node::ready().await;
    let mut dice = Dice::new();
    let ids = |first| vec![IdMapping { host_id: first, container_id: 0, length: 65_536 }];
    for round in 0..10 {
        let (what, moment, monitors) = (1 + dice.below(3), dice.moment(250), dice.below(2) == 0);
        let mut pod = node.pod(["a", "b"][round % 2]);
        specs::sandbox_security(&mut pod).namespace_options.as_mut().unwrap().userns_options = Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: ids(100_000 * (round as u32 % 2 + 1)),
            gids: ids(1_000_000),
        });
        let mut ctr = node.sleeper("x");
        ctr.mounts = vec![Mount {
            container_path: "/volume".into(),
            readonly: true,
            image: Some(specs::image(specs::BUSYBOX)),
            image_sub_path: "bin".into(),
            ..Default::default()
        }];
        let call = tokio::spawn(anything(node.cri().clone(), what, pod, ctr));
        tokio::time::sleep(moment).await;
        if monitors {
            let alive = host::descendants().into_iter().filter(|p| p.name == "podwright-monit" && p.state != 'Z');
            for process in alive {
                // Helpers among them may have ended meanwhile.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        node.kill9();
        tokio::time::timeout(secs(10), call).await.expect("calls end with their daemon").unwrap();
        node.start_daemon().await;
        for pod in node.pods(PodSandboxFilter::default()).await {
            node.stop_pod(&pod.id).await.unwrap();
            node.remove_pod(&pod.id).await.unwrap();
        }
    }
    node.finish().await;
}

fn record_of(node: &Node, pod: &Pod) -> PathBuf {
    node.dir().join("root/pods").join(&pod.id)
}

fn cut(path: &Path) {
    let length = fs::metadata(path).unwrap().len();
    fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
}

fn pod_folders(node: &Node) -> usize {
    fs::read_dir(node.dir().join("root/pods")).unwrap().count()
}

#[tokio::test]
async fn a_sandbox_with_a_damaged_record_is_removed() {
    let mut node = Node::ready().await;
    let (lost, kept) = (node.up(node.pod("lost")).await, node.up(node.pod("kept")).await);
    let ctr = node.launch(&lost, node.sleeper("c")).await;
    let other = node.launch(&kept, node.sleeper("c")).await;
    for empty in [false, true] {
        node.kill9();
        let path = record_of(&node, &lost).join("pod.json");
        if empty {
            fs::create_dir_all(record_of(&node, &lost)).unwrap();
            fs::write(&path, "").unwrap();
        } else {
            cut(&path);
        }
        node.start_daemon().await;
        assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
        eventually(secs(10), "the removal of what is left", async || match (pod_folders(&node), living(&ctr.id)) {
            (1, 0) => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .await;
    }
    assert_eq!(cni::leases(node.dir()).len(), 2, "one address of each family, of the other sandbox");
    assert_eq!(node.status(&other).await.state(), ContainerState::ContainerRunning);
    node.up(node.pod("lost")).await;
    node.finish().await;
}

#[tokio::test]
async fn a_container_with_a_damaged_record_is_removed() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("p")).await;
    let (lost, kept) = (node.launch(&pod, node.sleeper("l")).await, node.launch(&pod, node.sleeper("k")).await);
    node.kill9();
    cut(&record_of(&node, &pod).join("containers").join(&lost.id).join("container.json"));
    node.start_daemon().await;
    node.try_status(&lost.id).await.expect_err("nothing is known of it");
    eventually(secs(10), "the container's end", async || match living(&lost.id) {
        0 => Ok(()),
        left => Err(format!("{left} processes")),
    })
    .await;
    assert_eq!(node.exec(&kept, &["echo", "x"]).await, "x\n");
    node.launch(&pod, node.sleeper("l")).await;
    node.finish().await;
}

#[tokio::test]
async fn a_damaged_network_record_costs_no_address() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("net")).await;
    node.kill9();
    cut(&record_of(&node, &pod).join("network.json"));
    node.start_daemon().await;
    node.down(&pod).await;
    assert_eq!(cni::leases(node.dir()), Vec::<String>::new());
    node.finish().await;
}

/// A record of another boot stands for a reboot; that its processes live shows that they are not asked.
#[tokio::test]
async fn after_a_reboot() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("boot")).await;
    let ran = node.launch(&pod, node.sleeper("ran")).await;
    let made = node.create(&pod, node.sleeper("made")).await;
    let ended = node.launch(&pod, node.sh("ended", "exit 3")).await;
    node.exited(&ended).await;
    node.kill9();
    let path = record_of(&node, &pod).join("pod.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["body"]["boot_id"] = json!("another");
    fs::write(&path, record.to_string()).unwrap();
    node.start_daemon().await;
    let pods = node.pods(PodSandboxFilter::default()).await;
    assert_eq!(pods.iter().map(PodSandbox::state).collect::<Vec<_>>(), [PodSandboxState::SandboxNotready]);
    for (ctr, code, reason) in [(&ran, 255, "Unknown"), (&made, 255, "Unknown"), (&ended, 3, "Error")] {
        let status = node.status(ctr).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, code), "{status:?}");
        assert_eq!(status.reason, reason, "{status:?}");
    }
    eventually(secs(10), "DEL", async || match cni::leases(node.dir()) {
        leases if leases.is_empty() => Ok(()),
        leases => Err(format!("{leases:?}")),
    })
    .await;
    let status = node.run_pod(node.pod("boot"), "").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
    let mut next = node.pod("boot");
    next.metadata.as_mut().unwrap().attempt = 1;
    node.up(next).await;
    node.finish().await;
}

/// A sandbox that could not be made and whose DEL fails is undone later, by itself, and keeps no name.
#[tokio::test]
async fn a_failed_undo_is_repeated_in_the_background() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let broken = node.dir().join("broken");
    let body = format!("if [ -e {} ]; then exit 1; fi; {}", broken.display(), cni::on_add(":"));
    cni::script(node.dir(), "moody", &body);
    install_cni(node.dir(), &cni::conflist(&[cni::bridge(node.dir()), json!({ "type": "moody" })]));
    node.start_daemon().await;
    fs::write(&broken, "").unwrap();
    let status = node.run_pod(node.pod("x"), "").await.unwrap_err();
    assert!(status.message().contains("undoing it failed"), "{status}");
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    assert!(!cni::leases(node.dir()).is_empty(), "the address is still held");
    fs::remove_file(&broken).unwrap();
    let pod = node.up(node.pod("x")).await;
    eventually(secs(10), "the undo", async || match pod_folders(&node) {
        1 => Ok(()),
        more => Err(format!("{more} sandboxes")),
    })
    .await;
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    node.down(&pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_stop_at_once_overtakes_a_patient_one() {
    let node = Node::ready().await;
    let pod = node.up(node.host_pod("p")).await;
    let ctr = node.launch(&pod, node.sh("deaf", "trap '' TERM; echo up; while true; do sleep 0.1; done")).await;
    node.logged(&ctr, "up").await;
    let begun = Instant::now();
    let patient = node.stop_container(&ctr.id, 50);
    let hasty = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.stop_container(&ctr.id, 0).await
    };
    let (patient, hasty) = tokio::join!(patient, hasty);
    patient.unwrap();
    hasty.unwrap();
    assert!(begun.elapsed() < secs(5), "{:?}", begun.elapsed());
    assert_eq!(node.status(&ctr).await.exit_code, 137);
    node.finish().await;
}

fn slow_network() -> Node {
    let node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    cni::script(node.dir(), "slow", &cni::on_add("sleep 1"));
    install_cni(node.dir(), &cni::conflist(&[json!({ "type": "slow" })]));
    node
}

#[tokio::test]
async fn a_stop_waits_for_the_making_and_then_stops() {
    let mut node = slow_network();
    node.start_daemon().await;
    let stop = async {
        let id = eventually(secs(5), "a record", async || {
            let mut entries = fs::read_dir(node.dir().join("root/pods")).unwrap().flatten();
            entries.next().map(|entry| entry.file_name().into_string().unwrap()).ok_or_else(String::new)
        })
        .await;
        node.stop_pod(&id).await.unwrap();
    };
    let (pod, ()) = tokio::join!(node.up(node.pod("p")), stop);
    assert_eq!(node.pod_status(&pod.id).await.unwrap().status.unwrap().state(), PodSandboxState::SandboxNotready);
    node.finish().await;
}

/// Killed in the middle of an ADD: the plugin of the dead daemon is ended, then DEL gives back what it took.
#[tokio::test]
async fn killed_in_the_middle_of_an_add() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let log = node.dir().join("calls");
    let body = format!(
        "echo $CNI_COMMAND >> {0}; case $CNI_COMMAND in ADD) sleep 30; echo LATE >> {0} ;; esac",
        log.display()
    );
    cni::script(node.dir(), "slow", &body);
    install_cni(node.dir(), &cni::conflist(&[cni::bridge(node.dir()), json!({ "type": "slow" })]));
    node.start_daemon().await;
    let cri = node.cri().clone();
    let config = node.pod("p");
    let making = tokio::spawn(async move {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        cri.runtime().run_pod_sandbox(request).await.map(drop)
    });
    let calls = || fs::read_to_string(&log).unwrap_or_default();
    eventually(secs(5), "ADD", async || if calls().contains("ADD") { Ok(()) } else { Err(calls()) }).await;
    node.kill9();
    making.await.unwrap().unwrap_err();
    node.start_daemon().await;
    eventually(secs(10), "the undo", async || match pod_folders(&node) {
        0 => Ok(()),
        more => Err(format!("{more} sandboxes: {}", calls())),
    })
    .await;
    assert!(calls().contains("DEL") && !calls().contains("LATE"), "{}", calls());
    assert_eq!(cni::leases(node.dir()), Vec::<String>::new());
    node.finish().await;
}

/// A sysctl that the kernel does not know fails the sandbox at once, with its name.
#[tokio::test]
async fn a_namespace_that_cannot_be_made_is_no_reason_to_wait() {
    let node = Node::start().await;
    let mut config = node.pod("p");
    config.linux.as_mut().unwrap().sysctls.insert("net.ipv4.there_is_none".into(), "1".into());
    let run = tokio::time::timeout(secs(10), node.run_pod(config, "")).await.expect("an answer");
    assert!(run.unwrap_err().message().contains("there_is_none"));
    node.finish().await;
}

/// A cgroup parent that nobody had made goes with the last sandbox in it, in every hierarchy.
#[tokio::test]
async fn made_parents_go_with_their_last_sandbox() {
    let mut node = Node::ready().await;
    if node.driver() == "systemd" {
        // There slices come and go with systemd.
        return node.finish().await;
    }
    let parent = format!("{}/deep/er", node.cgroup_parent());
    let nested = |mut config: PodSandboxConfig| {
        config.linux.as_mut().unwrap().cgroup_parent = parent.clone();
        config
    };
    let (one, two) = (node.up(nested(node.pod("one"))).await, node.up(nested(node.host_pod("two"))).await);
    for pod in [&one, &two] {
        node.script(pod, "c", "true").await;
    }
    let name = node.cgroup_parent().trim_start_matches('/').to_owned();
    node.down(&one).await;
    node.restart().await;
    node.script(&two, "d", "true").await;
    node.down(&two).await;
    let left = crate::harness::cgroups::find(|part| part == name);
    assert_eq!(left, Vec::<PathBuf>::new());
    node.finish().await;
}
