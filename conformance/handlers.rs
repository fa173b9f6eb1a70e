//! The same small suite with each runtime handler that is installed. One that is not says so and passes.

use std::path::{Path, PathBuf};

use podwright::proto::*;

use crate::harness::{BUSYBOX, Node, Pod, Setup, args, logs, registry, secs, specs, with_each_handler};

/// A runtime's program, if the machine has it.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let tools = registry::tools().join("usr/bin");
    let folders = path.split(':').map(PathBuf::from).chain(["/usr/sbin".into(), "/usr/bin".into(), tools]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A node with a handler of this name beside the built-in one, or `None` if its runtime is not installed.
pub async fn node_with(name: &str) -> Option<Node> {
    let mut node = Node::with(setup(name)?).await;
    node.pull(BUSYBOX).await;
    Some(node)
}

/// What such a node is made of.
pub fn setup(name: &str) -> Option<Setup> {
    let handlers = if name == "youki" {
        Vec::new()
    } else {
        let Some(binary) = find(name) else {
            println!("SKIPPED: {name} is not installed; conformance/setup.sh test installs what Debian has");
            return None;
        };
        // The handler as it is shipped, but for where this machine has the program.
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime-handlers").join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&shipped).unwrap();
        let text =
            text.replace(&format!("binary = \"{name}\""), &format!("binary = {:?}", binary.display().to_string()));
        vec![(format!("{name}.toml"), network(name, text))]
    };
    Some(Setup { handlers, hide_unified: name == "crun", ..Setup::default() })
}

/// gVisor of before 2025 takes a network namespace in which this file exists for the host's, and gives it no network
/// stack of its own; newer kernels show the file everywhere. It then uses the pod's.
fn network(handler: &str, text: String) -> String {
    let file = ["-n", "test", "-e", "/proc/sys/net/core/rmem_default"];
    let everywhere = || std::process::Command::new("unshare").args(file).status().is_ok_and(|status| status.success());
    if handler != "runsc" || !everywhere() {
        return text;
    }
    println!("NOTE: --network=host is added: this kernel's network namespaces look like the host's to runsc");
    text.replace("\"--overlay2=none\"", "\"--overlay2=none\", \"--network=host\"")
}

/// A pod with a handler.
pub async fn up(node: &Node, handler: &str, name: &str) -> Pod {
    let pod = node
        .run_pod(node.pod(name), handler)
        .await
        .unwrap_or_else(|status| panic!("RunPodSandbox with {handler}: {status}"));
    let status = node.pod_status(&pod.id).await.unwrap().status.unwrap();
    assert_eq!(status.runtime_handler, handler);
    pod
}

async fn life(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "life").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    node.stop_container(&ctr.id, 10).await.unwrap();
    let status = node.status(&ctr).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 0));
    let ctr = node.launch(&pod, node.sh("code", "echo out; echo err >&2; exit 7")).await;
    assert_eq!(node.exited(&ctr).await.exit_code, 7);
    let lines = logs::read(&ctr.log);
    assert_eq!((logs::stream(&lines, "stdout").as_str(), logs::stream(&lines, "stderr").as_str()), ("out\n", "err\n"));
    let ctr = node.launch(&pod, node.sh("deaf", "trap '' TERM; echo up; while true; do sleep 0.1; done")).await;
    node.logged(&ctr, "up").await;
    node.stop_container(&ctr.id, 0).await.unwrap();
    assert_eq!(node.status(&ctr).await.exit_code, 137);
    node.finish().await;
}

async fn inside(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "inside").await;
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mut config =
        node.sh("c", "id -u; id -g; pwd; echo $X; hostname; echo y > /data/out; ip -4 addr show eth0 | grep -c 10.88.");
    config.working_dir = "/tmp".into();
    config.envs = vec![specs::env("X", "1 2")];
    config.mounts = vec![specs::bind(&volume, "/data")];
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 0 });
    security.run_as_group = Some(Int64Value { value: 55 });
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "0\n55\n/tmp\n1 2\ninside\n1\n"));
    assert_eq!(std::fs::read_to_string(volume.join("out")).unwrap(), "y\n");
    let mut config = node.sh("tty", "test -t 1 && echo terminal");
    config.tty = true;
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exited(&ctr).await.exit_code, 0);
    assert!(logs::stream(&logs::read(&ctr.log), "stdout").contains("terminal"));
    node.finish().await;
}

async fn exec(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "exec").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let answer = node.try_exec(&ctr, &["sh", "-c", "echo out; echo err >&2; exit 3"], 20).await.unwrap();
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"out\n"[..], &b"err\n"[..], 3));
    let status = node.try_exec(&ctr, &["sleep", "1000"], 1).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    assert_eq!(node.exec(&ctr, &["echo", "again"]).await, "again\n");
    node.finish().await;
}

async fn survival(handler: &str) {
    let Some(mut node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "survival").await;
    let ctr = node
        .launch(
            &pod,
            node.sh("c", "i=0; while [ ! -e /data/stop ]; do i=$((i+1)); echo tick $i; sleep 0.05; done; exit 6"),
        )
        .await;
    node.logged(&ctr, "tick 2").await;
    node.kill9();
    let before = logs::so_far(&ctr.log).len();
    crate::harness::eventually(secs(10), "the log's growth", async || {
        if logs::so_far(&ctr.log).len() > before + 5 { Ok(()) } else { Err(String::new()) }
    })
    .await;
    node.start_daemon().await;
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    assert_eq!(node.exec(&ctr, &["sh", "-c", "mkdir -p /data; touch /data/stop; echo done"]).await, "done\n");
    assert_eq!(node.exited(&ctr).await.exit_code, 6);
    node.finish().await;
}

async fn failure(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "failure").await;
    let mut config = node.run("c", &["/no/such/program"]);
    config.args = args(&["x"]);
    // Some runtimes find out when the container is created, some when it is started.
    let status = match node.try_create(&pod, config).await {
        Err(status) => status,
        Ok(ctr) => node.try_start(&ctr).await.expect_err("a program that does not exist"),
    };
    assert!(status.message().contains("/no/such/program"), "{status}");
    assert_eq!(node.script(&pod, "after", "echo fine").await, "fine\n");
    node.finish().await;
}

with_each_handler!({ life, inside, exec, survival, failure }: youki, runc, crun, runsc);

#[tokio::test]
async fn an_unknown_handler_is_named() {
    let node = Node::start().await;
    let status = node.run_pod(node.pod("unknown"), "no-such-handler").await.unwrap_err();
    assert!(status.message().contains("no-such-handler"), "{status}");
    assert!([tonic::Code::InvalidArgument, tonic::Code::NotFound].contains(&status.code()), "{status}");
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    node.finish().await;
}

#[tokio::test]
async fn a_handler_whose_program_is_missing_takes_no_pods() {
    let handler = |name: &str, binary: &str| (name.to_owned(), format!("kind = \"oci\"\nbinary = {binary:?}\n"));
    let handlers = vec![handler("gone.toml", "/no/such/runtime"), handler("text.toml", "/proc/version")];
    let mut node = Node::prepare(&Setup { handlers, ..Setup::default() });
    node.start_daemon().await;
    for (handler, binary) in [("gone", "/no/such/runtime"), ("text", "/proc/version")] {
        let status = node.run_pod(node.pod(handler), handler).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
        let named = |text: &str| text.contains(&format!("handler {handler:?}")) && text.contains(binary);
        assert!(named(status.message()), "{status}");
        assert!(
            node.daemon_log().lines().any(|line| line.contains("WARN") && named(&line.replace('\\', ""))),
            "told at start"
        );
    }
    let status = node.run_pod(node.pod("unknown"), "unknown").await.unwrap_err();
    let told = format!("known are {:?}; refused is {:?} (its binary", "youki", "gone");
    assert!(status.message().contains(&told), "{status}");
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    let answer = node.cri().runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let told: serde_json::Value = serde_json::from_str(&answer.info["runtimeHandlers"]).unwrap();
    let problem =
        |name: &str| told.as_array().unwrap().iter().find(|it| it["name"] == name).unwrap()["problem"].clone();
    assert!(problem("gone").as_str().unwrap().contains("/no/such/runtime"), "{told}");
    assert!(problem("youki").is_null(), "{told}");
    // Nothing is in the way of a pod of that name once there is a program that makes it.
    node.up(node.pod("gone")).await;
    node.finish().await;
}

/// crun itself would say so only when a container is created, whose pod is up by then.
#[tokio::test]
async fn crun_is_refused_beside_a_hybrid_s_second_tree() {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    if controllers.trim().is_empty() {
        println!("SKIPPED: this machine has no hybrid cgroup set-up with controllers in the v2 tree");
        return;
    }
    // Whatever calls itself so: this machine need not have it.
    let folder = tempfile::tempdir().unwrap();
    let crun = folder.path().join("crun");
    std::fs::write(&crun, "#!/bin/sh\necho crun version 1.8\n").unwrap();
    std::fs::set_permissions(&crun, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = format!("kind = \"oci\"\nbinary = {crun:?}\n");
    let mut node = Node::prepare(&Setup { handlers: vec![("crun.toml".to_owned(), text)], ..Setup::default() });
    node.start_daemon().await;
    let status = node.run_pod(node.pod("crun"), "crun").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("cgroup") && status.message().contains(controllers.trim()), "{status}");
    let config = node.dir().join("config.toml");
    let mut check = std::process::Command::new(crate::harness::daemon::program());
    let out = check.arg("check").arg("--config").arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = said.lines().find(|line| line.contains("\"crun\"")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.starts_with("warn runtime handlers") && line.contains("unified_cgroup_hierarchy"), "{line}");
    node.finish().await;
}
