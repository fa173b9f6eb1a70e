//! What the driver leaves on the host, and `podwright rm`, which takes it away.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use podwright::proto::*;

use super::{Driver, Outcome, container, node, nothing_left, pod, run};
use crate::harness::{Node, cni, config, daemon, eventually, secs};

/// What stands in one of the driver's folders.
pub(super) fn left(node: &Node, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(node.dir().join("driver").join(folder)) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(super) fn no_folders(node: &Node) {
    assert_eq!((left(node, "pods"), left(node, "logs")), (Vec::new(), Vec::new()));
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let of_driver = node.dir().join("driver");
    let found: Vec<_> = mounts.lines().filter(|line| line.contains(of_driver.to_str().unwrap())).collect();
    assert_eq!(found, [] as [&str; 0]);
}

/// The sandbox's uid, once the pod runs.
pub(super) async fn uid_of(node: &Node, name: &str) -> String {
    let pods = node.pods(PodSandboxFilter::default()).await;
    let metadata = pods.into_iter().filter_map(|pod| pod.metadata).find(|metadata| metadata.name == name);
    metadata.unwrap_or_else(|| panic!("no pod {name}")).uid
}

pub(super) async fn rm(node: &Node, args: &[&str]) -> Outcome {
    let mut all = vec!["rm"];
    all.extend(args);
    Driver::start(node, "rm", &all).ends().await
}

/// Starts a pod, and leaves it to itself once it says "up": the driver is killed.
pub(super) async fn abandoned(node: &Node, name: &str, spec: &str) -> String {
    let path = node.dir().join(format!("{name}.yaml"));
    fs::write(&path, pod(name, spec)).unwrap();
    let driver = Driver::start(node, name, &["run", path.to_str().unwrap()]);
    driver.says("up").await;
    driver.signal(Signal::SIGKILL);
    driver.ends().await;
    uid_of(node, name).await
}

pub(super) const FOREVER: &str = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done";

#[tokio::test]
async fn a_refused_pod_leaves_no_folders() {
    let node = node().await;
    let main = container("c", "true", "");
    let volume = "  volumes: [{name: m, emptyDir: {medium: Memory}}, {name: bad, hostPath: {path: /proc/version, type: Directory}}]\n";
    let class = "  runtimeClassName: no-such-class\n";
    for (spec, word) in [
        (format!("{class}  containers:\n{main}"), "no-such-class"),
        (format!("{class}{volume}  containers:\n{main}"), "/proc/version"),
        (format!("{class}  containers: [{{name: c, image: x/none:1, imagePullPolicy: Never}}]\n"), "no-such-class"),
        (
            format!("  securityContext: {{sysctls: [{{name: kernel.hostname, value: x}}]}}\n  containers:\n{main}"),
            "hostname",
        ),
    ] {
        let outcome = run(&node, &pod("refused", &spec), &[]).await;
        assert!(outcome.code == 125 && outcome.err.contains(word), "{word}: {outcome:?}");
        no_folders(&node);
    }
    nothing_left(&node).await;
    // What stood there before stays, whosever it is.
    let before = node.dir().join("driver/pods/0000-1/volumes");
    fs::create_dir_all(&before).unwrap();
    fs::write(before.join("kept"), "").unwrap();
    let manifest = pod("refused", &format!("{class}  containers:\n{main}"));
    let manifest = manifest.replace("  name: refused", "  name: refused\n  uid: 0000-1");
    assert_eq!(run(&node, &manifest, &[]).await.code, 125);
    assert!(before.join("kept").exists());
    assert_eq!(left(&node, "logs"), [] as [&str; 0]);
    node.finish().await;
}

/// A node whose network makes the file `reached`, waits for the file `go`, and fails.
async fn failing_network() -> Node {
    let node = node().await;
    let list = cni::conflist(&[serde_json::json!({ "type": "slow" })]);
    let steps = format!(
        "touch {0}/reached; until [ -e {0}/go ]; do sleep 0.05; done; echo '{{\"code\": 100, \"msg\": \"no\"}}'; exit 1",
        node.dir().display()
    );
    cni::script(node.dir(), "slow", &cni::on_add(&steps));
    config::install_cni(node.dir(), &list);
    node
}

async fn reached(node: &Node) {
    let reached = node.dir().join("reached");
    eventually(secs(30), "the plugin", async || if reached.exists() { Ok(()) } else { Err(String::new()) }).await;
}

#[tokio::test]
async fn a_pod_that_is_given_up_while_its_network_fails_leaves_no_folders() {
    let node = failing_network().await;
    let path = node.dir().join("pod.yaml");
    fs::write(&path, pod("slow", &format!("  containers:\n{}", container("c", "true", "")))).unwrap();
    let driver = Driver::start(&node, "run", &["run", path.to_str().unwrap()]);
    reached(&node).await;
    driver.signal(Signal::SIGINT);
    fs::write(node.dir().join("go"), "").unwrap();
    let outcome = driver.ends().await;
    assert_ne!(outcome.code, 0, "{outcome:?}");
    nothing_left(&node).await;
    no_folders(&node);
    node.finish().await;
}

/// What the runtime had been asked for is known then, so the next driver has nothing to wait for.
#[tokio::test]
async fn a_driver_that_is_told_to_end_waits_for_the_answer_about_a_sandbox() {
    let node = failing_network().await;
    let folder = node.dir().join("manifests");
    fs::create_dir(&folder).unwrap();
    let manifest = folder.join("slow.yaml");
    fs::write(&manifest, pod("slow", &format!("  containers:\n{}", container("c", "true", "")))).unwrap();
    let args = ["kubelet", "--manifests", folder.to_str().unwrap()];
    let first = Driver::start(&node, "first", &args);
    reached(&node).await;
    first.signal(Signal::SIGTERM);
    fs::write(node.dir().join("go"), "").unwrap();
    first.ends().await;
    fs::remove_file(&manifest).unwrap();
    let next = Driver::start(&node, "next", &args);
    eventually(secs(30), "the folders' end", async || {
        let left = [left(&node, "pods"), left(&node, "logs")].concat();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    next.signal(Signal::SIGTERM);
    next.ends().await;
    nothing_left(&node).await;
    no_folders(&node);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_is_removed_by_its_name_or_its_manifest() {
    let node = node().await;
    let done = format!("  containers:\n{}", container("c", "echo up", ""));
    let outcome = run(&node, &pod("done", &done), &[]).await;
    assert!(outcome.code == 0 && outcome.err.contains("podwright rm default/done"), "{outcome:?}");
    assert_eq!((left(&node, "pods").len(), left(&node, "logs").len()), (1, 1));
    let spec = format!(
        "  terminationGracePeriodSeconds: 20\n  volumes: [{{name: m, emptyDir: {{medium: Memory}}}}, {{name: h, hostPath: {{path: {}}}}}]\n  containers:\n{}",
        node.dir().display(),
        container(
            "c",
            &format!("{FOREVER} "),
            "    volumeMounts: [{name: m, mountPath: /m, subPath: below}, {name: h, mountPath: /h}]\n"
        )
        .replace("echo bye;", "sleep 1; touch /h/graceful;")
    );
    abandoned(&node, "runs", &spec).await;
    let outcome = rm(&node, &["default/done"]).await;
    assert!(outcome.code == 0 && outcome.out.starts_with("default/done "), "{outcome:?}");
    assert_eq!((left(&node, "pods").len(), left(&node, "logs").len()), (1, 1), "the other one stays");
    let outcome = rm(&node, &[node.dir().join("runs.yaml").to_str().unwrap()]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(node.dir().join("graceful").exists(), "stopped with its grace period, and the host path is left alone");
    nothing_left(&node).await;
    no_folders(&node);
    let outcome = rm(&node, &["runs", "other/done"]).await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.err.contains("no pod default/runs") && outcome.err.contains("no pod other/done"), "{outcome:?}");
    node.finish().await;
}

#[tokio::test]
async fn what_a_removed_sandbox_leaves_is_found() {
    let node = node().await;
    let spec = format!(
        "  volumes: [{{name: s, emptyDir: {{medium: Memory}}}}]\n  containers:\n{}",
        container("c", "echo up", "    volumeMounts: [{name: s, mountPath: /s}]\n")
    );
    assert_eq!(run(&node, &pod("gone", &spec), &[]).await.code, 0);
    for pod in node.pods(PodSandboxFilter::default()).await {
        node.remove_pod(&pod.id).await.unwrap();
    }
    assert_eq!(left(&node, "pods").len(), 1, "crictl rmp knows nothing of it");
    assert_eq!(rm(&node, &["gone"]).await.code, 0);
    no_folders(&node);
    node.finish().await;
}

#[tokio::test]
async fn links_in_a_volume_s_place_lead_nowhere() {
    let node = node().await;
    let victim = node.dir().join("victim");
    fs::create_dir_all(victim.join("m")).unwrap();
    nix::mount::mount(Some("pwt"), &victim.join("m"), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    for file in ["file", "m/file"] {
        fs::write(victim.join(file), "kept").unwrap();
    }
    let victim_text = victim.display();
    // It has the driver's own folder, and puts links to a folder of the host into the place of its volumes, of their
    // folder, and of its logs.
    let script = format!(
        "cd /h/pods/* && mv volumes/v v.old && ln -s {victim_text} volumes/v && ln -s {victim_text}/file volumes/m/x && \
         mv volumes away && ln -s {victim_text} volumes && ln -s {victim_text} more && ln -s {victim_text} /h/logs/*/more && {FOREVER}"
    );
    let spec = format!(
        "  terminationGracePeriodSeconds: 1\n  volumes: [{{name: v, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory}}}}, {{name: h, hostPath: {{path: {}}}}}]\n  containers:\n{}",
        node.dir().join("driver").display(),
        container(
            "c",
            &script,
            "    volumeMounts: [{name: h, mountPath: /h, mountPropagation: HostToContainer}, {name: v, mountPath: /v}, {name: m, mountPath: /m}]\n"
        )
    );
    let uid = abandoned(&node, "hostile", &spec).await;
    let folder = node.dir().join("driver/pods").join(uid);
    assert!(fs::symlink_metadata(folder.join("volumes")).unwrap().is_symlink(), "the attack took place");
    let outcome = rm(&node, &["hostile"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for file in ["file", "m/file"] {
        assert_eq!(fs::read_to_string(victim.join(file)).unwrap(), "kept", "{file}");
    }
    nothing_left(&node).await;
    no_folders(&node);
    nix::mount::umount(&victim.join("m")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn only_the_driver_s_own_pods_are_removed() {
    let node = node().await;
    // Of another client, which even says that the driver made it.
    let mut config = node.pod("foreign");
    config.labels.insert("podwright.io/owner".into(), "run".into());
    config.labels.insert("io.kubernetes.pod.name".into(), "foreign".into());
    config.labels.insert("io.kubernetes.pod.namespace".into(), "default".into());
    let foreign = node.up(config).await;
    let outcome = rm(&node, &["foreign"]).await;
    assert!(outcome.code == 1 && outcome.err.contains(&foreign.id), "{outcome:?}");
    let ready = async |id: &str| {
        assert_eq!(node.pod_status(id).await.unwrap().status.unwrap().state(), PodSandboxState::SandboxReady);
    };
    ready(&foreign.id).await;
    node.down(&foreign).await;

    // Of a driver that is at work.
    let path = node.dir().join("busy.yaml");
    let spec = format!("  terminationGracePeriodSeconds: 1\n  containers:\n{}", container("c", FOREVER, ""));
    fs::write(&path, pod("busy", &spec)).unwrap();
    let driver = Driver::start(&node, "busy", &["run", "--rm", path.to_str().unwrap()]);
    driver.says("up").await;
    let outcome = rm(&node, &["busy"]).await;
    let process = format!("process {}", driver.child.id());
    assert!(outcome.code == 1 && outcome.err.contains(&process), "{outcome:?}");
    driver.signal(Signal::SIGTERM);
    assert_eq!(driver.ends().await.code, 143);

    // Of a folder of manifests.
    let folder = node.dir().join("manifests");
    fs::create_dir(&folder).unwrap();
    let manifest = folder.join("static.yaml");
    fs::write(&manifest, pod("static", &spec)).unwrap();
    let driver = Driver::start(&node, "kubelet", &["kubelet", "--manifests", folder.to_str().unwrap()]);
    driver.says("started").await;
    let before = uid_of(&node, "static").await;
    let outcome = rm(&node, &["static"]).await;
    assert!(outcome.code == 1 && outcome.err.contains(manifest.to_str().unwrap()), "{outcome:?}");
    assert_eq!(uid_of(&node, "static").await, before);
    fs::remove_file(&manifest).unwrap();
    eventually(secs(30), "no pod", async || if left(&node, "pods").is_empty() { Ok(()) } else { Err(String::new()) })
        .await;
    driver.signal(Signal::SIGTERM);
    driver.ends().await;
    nothing_left(&node).await;
    no_folders(&node);
    node.finish().await;
}

#[tokio::test]
async fn a_static_pod_without_a_sandbox_leaves_no_folders() {
    let node = node().await;
    let folder = node.dir().join("manifests");
    fs::create_dir(&folder).unwrap();
    let manifest = folder.join("refused.yaml");
    let refused = format!("  runtimeClassName: no-such-class\n  containers:\n{}", container("c", "true", ""));
    fs::write(&manifest, pod("refused", &refused)).unwrap();
    let args = ["kubelet", "--manifests", folder.to_str().unwrap()];
    let mut gone = Driver::start(&node, "gone", &args);
    gone.says("no-such-class").await;
    assert_eq!(left(&node, "pods").len(), 1);
    let removed = async || {
        eventually(secs(30), "the folders' end", async || {
            let left = [left(&node, "pods"), left(&node, "logs")].concat();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    };
    fs::remove_file(&manifest).unwrap();
    removed().await;
    // The same if the manifest goes while no driver runs.
    fs::write(&manifest, pod("refused", &refused)).unwrap();
    eventually(
        secs(30),
        "the folder",
        async || {
            if left(&node, "logs").is_empty() { Err(String::new()) } else { Ok(()) }
        },
    )
    .await;
    gone.signal(Signal::SIGTERM);
    gone.ends().await;
    fs::remove_file(&manifest).unwrap();
    gone = Driver::start(&node, "next", &args);
    removed().await;
    gone.signal(Signal::SIGTERM);
    gone.ends().await;
    no_folders(&node);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_of_another_runtime_is_left_alone() {
    let node = node().await;
    assert_eq!(
        run(&node, &pod("there", &format!("  containers:\n{}", container("c", "echo up", ""))), &[]).await.code,
        0
    );
    // The same runtime by another name: all the same it is not the one the pod was made on.
    let other = node.dir().join("other.sock");
    std::os::unix::fs::symlink(node.dir().join("cri.sock"), &other).unwrap();
    let rm_on = |socket: &Path| {
        let mut command = daemon::command(daemon::program());
        command.args(["rm", "there", "--runtime-endpoint"]).arg(socket);
        let out = command.arg("--root").arg(node.dir().join("driver")).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, err) = rm_on(&other);
    assert!(code == Some(1) && err.contains("cri.sock"), "{err}");
    let (code, err) = rm_on(Path::new("/no/such.sock"));
    assert!(code == Some(1) && err.contains("/no/such.sock"), "{err}");
    let (code, err) = rm_on(&node.dir().join("cri.sock"));
    assert_eq!(code, Some(0), "{err}");
    nothing_left(&node).await;
    no_folders(&node);
    node.finish().await;
}
