//! AppArmor: which profile processes run under, and that it holds them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use podwright::proto::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
use podwright::proto::*;

use super::{apparmor_is_on, current, profile, refused};
use crate::harness::{BUSYBOX, Ctr, Node, Pod, Setup, specs};

const DEFAULT: &str = "podwright-default (enforce)";

fn ready() -> bool {
    let on = apparmor_is_on();
    if !on {
        println!("SKIPPED: AppArmor is not on in this kernel; make test-node runs this");
    }
    on
}

/// A profile in the kernel, for as long as this lives.
struct Loaded(String);

impl Loaded {
    fn new(name: &str, rules: &str) -> Self {
        let text = format!("profile {name} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}\n");
        parser("--replace", &text);
        Self(text)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        parser("--remove", &self.0);
    }
}

fn parser(action: &str, text: &str) {
    let mut command = Command::new("/usr/sbin/apparmor_parser");
    let mut child = command.args([action, "--skip-cache"]).stdin(Stdio::piped()).spawn().expect("apparmor_parser");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("a profile");
    assert!(child.wait().expect("apparmor_parser").success(), "{text}");
}

/// Prints its own profile, and each exec does.
fn watcher(node: &Node, name: &str) -> ContainerConfig {
    node.sh(name, "cat /proc/self/attr/current; trap 'exit 0' TERM; echo up; sleep 3600 & wait")
}

/// The profile of init and of an exec, as the kernel tells it to themselves.
async fn profiles(node: &Node, pod: &Pod, config: ContainerConfig) -> (String, String, Ctr) {
    let ctr = node.launch(pod, config).await;
    let lines = node.logged(&ctr, "up").await;
    let exec = node.exec(&ctr, &["cat", "/proc/self/attr/current"]).await;
    (lines[0].text.trim().to_owned(), exec.trim().to_owned(), ctr)
}

#[tokio::test]
async fn profiles_are_those_asked_for_in_init_and_exec() {
    if !ready() {
        return;
    }
    let mine = Loaded::new("pwt-mine", "file, signal, capability, network,");
    let node = Node::ready().await;
    let mut config = node.pod("profiles");
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.up(config).await;
    for (index, (new, old, privileged, want)) in [
        (None, "", false, DEFAULT),
        (profile(RuntimeDefault, ""), "", false, DEFAULT),
        (None, "runtime/default", false, DEFAULT),
        (profile(Unconfined, ""), "", false, "unconfined"),
        (None, "unconfined", false, "unconfined"),
        (profile(Localhost, "pwt-mine"), "", false, "pwt-mine (enforce)"),
        (profile(Localhost, "localhost/pwt-mine"), "localhost/none-such", false, "pwt-mine (enforce)"),
        (None, "localhost/pwt-mine", false, "pwt-mine (enforce)"),
        (profile(RuntimeDefault, ""), "", true, "unconfined"),
        (None, "", true, "unconfined"),
    ]
    .into_iter()
    .enumerate()
    {
        for no_new_privs in [false, true] {
            let mut config = watcher(&node, &format!("c{index}-{no_new_privs}"));
            let security = specs::security(&mut config);
            security.no_new_privs = no_new_privs && !privileged;
            security.apparmor = new.clone();
            security.privileged = privileged;
            #[expect(deprecated, reason = "older clients use it")]
            {
                security.apparmor_profile = old.to_owned();
            }
            let case = format!("{new:?} {old:?} {privileged} {no_new_privs}");
            let (init, exec, ctr) = profiles(&node, &pod, config).await;
            assert_eq!((init.as_str(), exec.as_str()), (want, want), "{case}");
            node.stop_container(&ctr.id, 30).await.unwrap();
            assert_eq!(node.exited(&ctr).await.exit_code, 0, "stopped by its signal: {case}");
        }
    }
    for (new, old) in [(profile(Localhost, "none-such"), "localhost/pwt-mine"), (None, "localhost/none-such")] {
        let mut config = node.sh("none", "true");
        let security = specs::security(&mut config);
        security.apparmor = new;
        #[expect(deprecated, reason = "older clients use it")]
        {
            security.apparmor_profile = old.to_owned();
        }
        refused(&node.try_create(&pod, config).await.unwrap_err(), "apparmor", "none-such");
    }
    node.finish().await;
    drop(mine);
}

#[tokio::test]
async fn the_default_profile_holds() {
    if !ready() {
        return;
    }
    let node = Node::ready().await;
    let mut config = node.pod("hold");
    specs::sandbox_security(&mut config).namespace_options =
        Some(NamespaceOption { pid: NamespaceMode::Node as i32, ..Default::default() });
    let pod = node.up(config).await;
    let host = std::process::id();
    // All that else would stop a container is away.
    let try_all = async |name: &str, apparmor| {
        let script = format!(
            "try() {{ if sh -c \"$2\" 2>/dev/null; then echo $1 yes; else echo $1 no; fi; }}\n\
             mkdir -p /place; try mount 'mount -t tmpfs x /place'\n\
             try remount 'mount -o remount,bind,ro /etc/hosts'\n\
             try core 'f=/proc/sys/kernel/core_pattern; v=$(cat $f); echo \"$v\" > $f'\n\
             try net 'f=/proc/sys/net/ipv4/ip_forward; v=$(cat $f); echo $v > $f'\n\
             try shm 'f=/proc/sys/kernel/shm_rmid_forced; v=$(cat $f); echo $v > $f'\n\
             try sem 'f=/proc/sys/kernel/sem; v=$(cat $f); echo $v > $f'\n\
             try kcore 'head -c 1 /proc/kcore > /dev/null'\n\
             try sysrq ': > /proc/sysrq-trigger'\n\
             try signal 'kill -0 {host}'\n\
             try peek 'cat /proc/{host}/environ > /dev/null'\n\
             try own 'sleep 9 & kill $! && cat /proc/$$/environ > /dev/null'\n\
             try write 'echo x > /tmp/x && echo 5 > /proc/self/oom_score_adj'"
        );
        let mut config = node.sh(name, &script);
        let security = specs::security(&mut config);
        security.apparmor = apparmor;
        security.seccomp = profile(Unconfined, "");
        security.masked_paths.clear();
        security.readonly_paths.clear();
        security.namespace_options = Some(NamespaceOption { pid: NamespaceMode::Node as i32, ..Default::default() });
        let add_capabilities = vec!["ALL".to_owned()];
        security.capabilities = Some(Capability { add_capabilities, ..Default::default() });
        let (code, out) = node.outcome(&pod, config).await;
        assert_eq!(code, 0, "{out}");
        out.lines().filter_map(|line| line.strip_suffix(" yes")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        try_all("free", profile(Unconfined, "")).await,
        "mount remount core net shm sem kcore sysrq signal peek own write",
        "without a profile all of it is possible, so that it is the profile that forbids"
    );
    assert_eq!(try_all("held", profile(RuntimeDefault, "")).await, "shm sem own write");
    node.finish().await;
}

#[tokio::test]
async fn a_named_profile_is_enforced_and_outlives_the_daemon() {
    if !ready() {
        return;
    }
    let deny = Loaded::new("pwt-deny-write", "file, signal, capability, network, deny /tmp/** w,");
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("named")).await;
    let mut config =
        node.sh("c", "touch /tmp/a || echo denied; touch /b && echo up; trap 'exit 0' TERM; sleep 3600 & wait");
    specs::security(&mut config).apparmor = profile(Localhost, "pwt-deny-write");
    let ctr = node.launch(&pod, config).await;
    let lines = node.logged(&ctr, "up").await;
    assert!(lines.iter().any(|line| line.text == "denied"), "{lines:?}");
    for restarted in [false, true] {
        if restarted {
            node.restart().await;
        }
        let answer = node.try_exec(&ctr, &["touch", "/tmp/c"], 30).await.unwrap();
        assert_ne!(answer.exit_code, 0, "restarted: {restarted}");
        node.exec(&ctr, &["touch", "/d"]).await;
    }
    node.finish().await;
    drop(deny);
}

#[tokio::test]
async fn pause_runs_as_its_sandbox_asks() {
    if !ready() {
        return;
    }
    let mine = Loaded::new("pwt-pause", "file, signal, capability,");
    let node = Node::ready().await;
    for (name, asked, want) in [
        ("unset", None, "unconfined"),
        ("default", profile(RuntimeDefault, ""), DEFAULT),
        ("mine", profile(Localhost, "pwt-pause"), "pwt-pause (enforce)"),
    ] {
        let mut config = node.pod(name);
        specs::sandbox_security(&mut config).apparmor = asked;
        let pod = node.up(config).await;
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let mut client = node.cri().runtime();
        let info = client.pod_sandbox_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        let pid = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
        assert_eq!(current(pid), want);
        let filter = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(filter.contains("Seccomp:\t2"), "the sandbox asks for the default filter: {filter}");
    }
    let mut config = node.pod("none");
    specs::sandbox_security(&mut config).apparmor = profile(Localhost, "none-such");
    refused(&node.run_pod(config, "").await.unwrap_err(), "apparmor", "none-such");
    node.finish().await;
    drop(mine);
}

async fn other_runtime(name: &str) {
    let path = |folder: &str| format!("{folder}/{name}");
    let Some(binary) = ["/usr/sbin", "/usr/bin"].map(path).into_iter().find(|path| Path::new(path).is_file()) else {
        println!("SKIPPED: {name} is not installed");
        return;
    };
    let handlers = vec![(format!("{name}.toml"), format!("kind = \"oci\"\nbinary = {binary:?}\n"))];
    let mut node = Node::with(Setup { handlers, hide_unified: name == "crun", ..Setup::default() }).await;
    node.pull(BUSYBOX).await;
    let pod = node.run_pod(node.pod("other"), name).await.unwrap();
    let (init, exec, ctr) = profiles(&node, &pod, watcher(&node, "c")).await;
    assert_eq!((init.as_str(), exec.as_str()), (DEFAULT, DEFAULT));
    node.stop_container(&ctr.id, 30).await.unwrap();
    assert_eq!(node.exited(&ctr).await.exit_code, 0, "stopped by its signal");
    node.finish().await;
}

#[tokio::test]
async fn runc_confines_as_well() {
    if ready() {
        other_runtime("runc").await;
    }
}

#[tokio::test]
async fn crun_confines_as_well() {
    if ready() {
        other_runtime("crun").await;
    }
}
