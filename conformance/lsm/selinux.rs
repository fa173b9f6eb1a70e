//! SELinux: labels of processes, files and mounts, and that they keep pods apart.

use std::fs;
use std::path::Path;

use podwright::proto::*;

use super::{current, refused, selinux_is_on};
use crate::harness::{BUSYBOX, Ctr, Node, Pod, Setup, specs, with_each_handler};
use crate::userns;

fn ready() -> bool {
    let on = selinux_is_on();
    if !on {
        println!("SKIPPED: SELinux is not on in this kernel; conformance/node/test-node.sh --selinux runs this");
    }
    on
}

fn enforcing() -> bool {
    fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1")
}

async fn node() -> Node {
    let mut node = Node::with(Setup { extra: "[selinux]\nenabled = true\n".into(), ..Setup::default() }).await;
    node.pull(BUSYBOX).await;
    node
}

fn options(kind: &str, level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { r#type: kind.to_owned(), level: level.to_owned(), ..Default::default() })
}

/// The label of a file, as the host sees it.
fn label(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let mut value = [0u8; 256];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value[..])
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned()
}

/// `s0:c1,c2` of a label.
fn level(label: &str) -> String {
    label.splitn(4, ':').nth(3).unwrap_or_default().to_owned()
}

fn kind(label: &str) -> &str {
    label.split(':').nth(2).unwrap_or_default()
}

fn is_pair(level: &str) -> bool {
    level
        .strip_prefix("s0:c")
        .and_then(|pair| pair.split_once(",c"))
        .is_some_and(|(first, second)| first.parse::<u16>().is_ok() && second.parse::<u16>().is_ok() && first != second)
}

async fn verbose(node: &Node, pod: &Pod) -> serde_json::Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri().runtime().pod_sandbox_status(request).await.unwrap().into_inner().info;
    serde_json::from_str(&info["info"]).unwrap()
}

async fn up(node: &Node, pod: &Pod, config: ContainerConfig) -> Ctr {
    let ctr = node.launch(pod, config).await;
    node.logged(&ctr, "up").await;
    ctr
}

async fn own_label(node: &Node, ctr: &Ctr) -> String {
    node.exec(ctr, &["cat", "/proc/self/attr/current"]).await.trim_end_matches(['\0', '\n']).to_owned()
}

#[tokio::test]
async fn a_pod_has_a_level_of_its_own_everywhere() {
    if !ready() {
        return;
    }
    let mut node = node().await;
    let pod = node.up(node.pod("first")).await;
    let mut config = node.sleeper("one");
    specs::security(&mut config).masked_paths = vec!["/sys/firmware".into(), "/proc/timer_list".into()];
    let (one, two) = (up(&node, &pod, config).await, up(&node, &pod, node.sleeper("two")).await);
    let init = current(node.pid_in(&one.id, "sh"));
    let own = level(&init);
    assert!(kind(&init) == "container_t" && is_pair(&own), "{init}");
    assert_eq!(current(node.pid_in(&two.id, "sh")), init, "containers of a pod share it");
    assert_eq!(own_label(&node, &one).await, init, "an exec has it, too");
    let info = verbose(&node, &pod).await;
    assert_eq!(current(i32::try_from(info["pid"].as_i64().unwrap()).unwrap()), init, "pause has it, too");

    // Files and mounts.
    let root = format!("/proc/{}/root", node.pid_in(&one.id, "sh"));
    let file = init.replace("system_r:container_t", "object_r:container_file_t");
    let labelled = ["/bin/sh", "/dev", "/dev/null", "/dev/shm", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
    // What libcontainer mounts without one: the pod's message queues, and the folder over a masked one.
    for path in labelled.into_iter().chain(["/dev/mqueue", "/sys/firmware"]) {
        assert_eq!(label(format!("{root}{path}")), file, "{path}");
    }
    assert_eq!(node.exec(&one, &["sh", "-c", "ls -A /sys/firmware; touch /sys/firmware/x || true"]).await, "");
    node.exec(&one, &["sh", "-c", "echo x > /new && echo y > /dev/shm/new && cat /etc/hosts > /dev/null"]).await;
    assert_eq!(label(format!("{root}/new")), file);
    let mounts = node.exec(&one, &["cat", "/proc/self/mountinfo"]).await;
    let line = mounts.lines().find(|line| line.contains(" / / ")).unwrap();
    assert!(line.contains(&format!("context=\"{file}\"")) || line.contains(&file), "{line}");

    // Another pod has another one, also if the daemon that gave the first is gone.
    node.restart().await;
    assert_eq!(own_label(&node, &one).await, init);
    let other = node.up(node.pod("second")).await;
    let three = up(&node, &other, node.sleeper("three")).await;
    let second = own_label(&node, &three).await;
    assert!(is_pair(&level(&second)) && level(&second) != own, "{second}");
    let four = up(&node, &pod, node.sleeper("four")).await;
    assert_eq!(own_label(&node, &four).await, init, "the first pod keeps its level");
    node.finish().await;
}

#[tokio::test]
async fn levels_keep_pods_apart() {
    if !ready() {
        return;
    }
    let node = node().await;
    let volume = node.dir().join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    fs::write(volume.join("below/file"), "data").unwrap();
    let (first, second) = (node.up(node.pod("first")).await, node.up(node.pod("second")).await);
    let with = |name: &str, relabel: bool| {
        let mut config = node.sleeper(name);
        config.mounts = vec![Mount { selinux_relabel: relabel, ..specs::bind(&volume, "/v") }];
        config
    };
    let owner = up(&node, &first, with("owner", true)).await;
    let friend = up(&node, &first, with("friend", false)).await;
    let stranger = up(&node, &second, with("stranger", false)).await;
    let own = level(&own_label(&node, &owner).await);
    for path in ["", "below", "below/file"] {
        let label = label(volume.join(path));
        assert!(kind(&label) == "container_file_t" && level(&label) == own, "{path}: {label}");
    }
    node.exec(&owner, &["sh", "-c", "echo more >> /v/below/file"]).await;
    assert!(node.exec(&friend, &["cat", "/v/below/file"]).await.contains("more"));
    if enforcing() {
        for script in ["cat /v/below/file", "echo x >> /v/below/file", "ls /v/below"] {
            let answer = node.try_exec(&stranger, &["sh", "-c", script], 30).await.unwrap();
            let errors = String::from_utf8_lossy(&answer.stderr).into_owned();
            assert!(answer.exit_code != 0 && errors.contains("ermission denied"), "{script}: {errors}");
        }
    } else {
        println!("NOTE: SELinux is permissive: nothing is denied; setenforce 1");
    }
    for path in ["/etc", "/usr/lib", "/"] {
        let mut config = node.sleeper("greedy");
        config.mounts = vec![Mount { selinux_relabel: true, readonly: true, ..specs::bind(path, "/v") }];
        let before = label(path);
        refused(&node.try_create(&first, config).await.unwrap_err(), "selinux_relabel", path);
        assert_eq!(label(path), before);
    }
    node.finish().await;
}

#[tokio::test]
async fn labels_are_those_asked_for() {
    if !ready() {
        return;
    }
    let node = node().await;
    let mut config = node.pod("asked");
    specs::sandbox_security(&mut config).selinux_options = options("", "s0:c5,c9");
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.up(config).await;
    let run = async |name: &str, selinux_options: Option<SeLinuxOption>, privileged: bool, no_new_privs: bool| {
        let mut config = node.sleeper(name);
        let security = specs::security(&mut config);
        (security.selinux_options, security.privileged) = (selinux_options, privileged);
        security.no_new_privs = no_new_privs;
        let ctr = up(&node, &pod, config).await;
        let (exec, init) = (own_label(&node, &ctr).await, current(node.pid_in(&ctr.id, "sh")));
        assert_eq!(exec, init);
        init
    };
    assert_eq!(run("plain", None, false, false).await, "system_u:system_r:container_t:s0:c5,c9");
    assert_eq!(run("nnp", None, false, true).await, "system_u:system_r:container_t:s0:c5,c9");
    assert_eq!(run("level", options("", "s0"), false, false).await, "system_u:system_r:container_t:s0");
    assert_eq!(run("kind", options("spc_t", ""), false, false).await, "system_u:system_r:spc_t:s0:c5,c9");
    let privileged = run("privileged", None, true, false).await;
    assert!(privileged.starts_with("system_u:system_r:spc_t:s0"), "{privileged}");
    let mut config = node.sleeper("unknown");
    specs::security(&mut config).selinux_options = options("none_such_t", "");
    refused(&node.try_create(&pod, config).await.unwrap_err(), "selinux_options", "none_such_t");
    let mut config = node.pod("unknown");
    specs::sandbox_security(&mut config).selinux_options = options("none_such_t", "");
    refused(&node.run_pod(config, "").await.unwrap_err(), "selinux_options", "none_such_t");
    node.finish().await;
}

#[tokio::test]
async fn other_runtimes_label_as_well() {
    if !ready() {
        return;
    }
    let Some(binary) = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| Path::new(path).is_file()) else {
        println!("SKIPPED: runc is not installed");
        return;
    };
    let handlers = vec![("runc.toml".to_owned(), format!("kind = \"oci\"\nbinary = {binary:?}\n"))];
    let extra = "[selinux]\nenabled = true\n".to_owned();
    let mut node = Node::with(Setup { handlers, extra, ..Setup::default() }).await;
    node.pull(BUSYBOX).await;
    let pod = node.run_pod(node.pod("other"), "runc").await.unwrap();
    let ctr = up(&node, &pod, node.sleeper("c")).await;
    let init = current(node.pid_in(&ctr.id, "sh"));
    assert!(kind(&init) == "container_t" && is_pair(&level(&init)), "{init}");
    assert_eq!(own_label(&node, &ctr).await, init);
    let file = label(format!("/proc/{}/root/bin/sh", node.pid_in(&ctr.id, "sh")));
    assert!(kind(&file) == "container_file_t" && level(&file) == level(&init), "{file}");
    node.finish().await;
}

/// In a user namespace the labels are the same, of nodes and mounts that the engine brings along, too.
async fn in_user_namespaces(handler: &str) {
    if !ready() {
        return;
    }
    let Some(node) = userns::node_with_more(handler, "[selinux]\nenabled = true\n").await else { return };
    let pod = node.up(userns::pod(&node, "mapped", 100_000)).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "data\n").unwrap();
    let mut config = node.sleeper("c");
    config.mounts = vec![
        Mount { selinux_relabel: true, ..specs::bind(&volume, "/v") },
        specs::bind(volume.join("file"), "/dev/stdin"),
    ];
    let device =
        |path: &str| Device { container_path: path.into(), host_path: "/dev/zero".into(), permissions: "r".into() };
    config.devices = vec![device("/dev/mine"), device("/opt/mine")];
    specs::security(&mut config).masked_paths = vec!["/sys/firmware".into()];
    let ctr = up(&node, &pod, config).await;
    let init = current(node.pid_in(&ctr.id, "sh"));
    assert!(kind(&init) == "container_t" && is_pair(&level(&init)), "{init}");
    assert_eq!(own_label(&node, &ctr).await, init, "an exec has it, too");
    let root = format!("/proc/{}/root", node.pid_in(&ctr.id, "sh"));
    let file = init.replace("system_r:container_t", "object_r:container_file_t");
    // Runtime binaries bind the host's usual devices into such a container, with the host's labels.
    let own = if handler == "youki" { "/dev/null" } else { "/bin/sh" };
    for path in
        ["/bin/sh", own, "/dev/shm", "/dev/mqueue", "/etc/hosts", "/dev/mine", "/opt/mine", "/v/file", "/dev/stdin"]
    {
        assert_eq!(label(format!("{root}{path}")), file, "{path}");
    }
    let script = "cat /proc/self/uid_map; cat /v/file /dev/stdin; head -c 2 /opt/mine | wc -c; echo x > /x && cat /x";
    let out = node.exec(&ctr, &["sh", "-c", script]).await;
    assert!(out.contains("100000") && out.ends_with("data\ndata\n2\nx\n"), "{out}");
    let other = node.up(userns::pod(&node, "other", 300_000)).await;
    let second = up(&node, &other, node.sleeper("d")).await;
    assert_ne!(level(&own_label(&node, &second).await), level(&init), "pods have levels of their own");
    node.finish().await;
}

with_each_handler!({ in_user_namespaces }: youki, runc, crun);
