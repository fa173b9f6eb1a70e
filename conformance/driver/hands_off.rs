//! What the driver must leave alone, whatever a pod's containers or other drivers do: the host's files and mounts, and
//! what is another driver's.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

use super::leftovers::{FOREVER, abandoned, left, no_folders, rm};
use super::{Driver, container, node, nothing_left, pod};
use crate::harness::{Node, cni, config, eventually, host, secs};

/// A file system with a file in it.
fn mounted(path: &Path) {
    fs::create_dir_all(path).unwrap();
    mount(Some("pwt"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(path.join("file"), "kept").unwrap();
}

fn is_kept(folder: &Path) {
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "kept", "{}", folder.display());
}

#[tokio::test]
async fn links_in_the_place_of_a_pod_s_folders_lead_nowhere() {
    let node = node().await;
    let victim = node.dir().join("victim");
    mounted(&victim.join("m"));
    fs::write(victim.join("file"), "kept").unwrap();
    // It has all of the driver's folders. When it is stopped, links to a folder of the host take the place of its own.
    let swap = |folder: &str, to: &str| {
        format!("cd /h/{folder}; for n in *; do mv $n /h/{to}; ln -s {} $n; done", victim.display())
    };
    let script = format!(
        "trap '{}; {}; exit 0' TERM; echo up; while true; do sleep 0.1; done",
        swap("logs", "old-logs"),
        swap("pods", "old-pod")
    );
    let spec = format!(
        "  volumes: [{{name: m, emptyDir: {{medium: Memory}}}}, {{name: h, hostPath: {{path: {}}}}}]\n  containers:\n{}",
        node.dir().join("driver").display(),
        container(
            "c",
            &script,
            "    volumeMounts: [{name: h, mountPath: /h, mountPropagation: HostToContainer}, {name: m, mountPath: /m}]\n"
        )
    );
    abandoned(&node, "hostile", &spec).await;
    let outcome = rm(&node, &["hostile"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let old = node.dir().join("driver/old-pod");
    assert!(old.exists() && node.dir().join("driver/old-logs").exists(), "the attack took place");
    is_kept(&victim);
    is_kept(&victim.join("m"));
    assert!(!old.join("volumes").exists(), "its own content is gone");
    nothing_left(&node).await;
    no_folders(&node);
    umount(&victim.join("m")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn mounts_of_the_host_below_a_sub_path_stay() {
    let node = node().await;
    let disks = node.dir().join("h/disks");
    mounted(&disks.join("d"));
    // Started again, its subPath is mounted again. What is mounted later is seen by both sides all the same.
    let script = format!(
        "trap 'exit 0' TERM; if [ ! -e /v/once ]; then touch /v/once; exit 1; fi; cat /v/d/file; echo up; \
         until [ -e /v/late/file ]; do sleep 0.1; done; mount -t tmpfs x /v/back && echo seen; {FOREVER}"
    );
    let spec = format!(
        "  volumes: [{{name: h, hostPath: {{path: {}}}}}]\n  containers:\n{}",
        node.dir().join("h").display(),
        container(
            "c",
            &script,
            "    securityContext: {privileged: true}\n    volumeMounts: [{name: h, mountPath: /v, subPath: disks, mountPropagation: Bidirectional}]\n"
        )
    );
    fs::create_dir(disks.join("back")).unwrap();
    let manifest = pod("disks", &spec).replace("restartPolicy: Never", "restartPolicy: OnFailure");
    let path = node.dir().join("disks.yaml");
    fs::write(&path, manifest).unwrap();
    let driver = Driver::start(&node, "disks", &["run", "--rm", path.to_str().unwrap()]);
    driver.says("up").await;
    is_kept(&disks.join("d"));
    mounted(&disks.join("late"));
    driver.says("seen").await;
    driver.signal(Signal::SIGTERM);
    let outcome = driver.ends().await;
    assert!(outcome.out.contains("kept"), "{outcome:?}");
    nothing_left(&node).await;
    no_folders(&node);
    let mounts = host::mounts();
    for name in ["d", "late", "back"] {
        let point = disks.join(name);
        assert!(mounts.iter().any(|mount| Path::new(mount) == point), "{name}: {mounts:?}");
        if name != "back" {
            is_kept(&point);
        }
        umount(&point).unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn a_uid_belongs_to_one_driver_at_a_time() {
    let node = node().await;
    let spec = format!(
        "  terminationGracePeriodSeconds: 1\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n{}",
        container("c", FOREVER, "    volumeMounts: [{name: v, mountPath: /v}]\n")
    );
    let manifest = |name: &str, uid: &str| {
        pod(name, &spec).replace(&format!("  name: {name}\n"), &format!("  name: {name}\n  uid: {uid}\n"))
    };
    let path = node.dir().join("one.yaml");
    fs::write(&path, manifest("one", "u-1")).unwrap();
    let running = Driver::start(&node, "running", &["run", path.to_str().unwrap()]);
    running.says("up").await;
    let folder = node.dir().join("driver/pods/u-1");
    fs::write(folder.join("volumes/v/data"), "").unwrap();
    let record = fs::read_to_string(folder.join("pod.json")).unwrap();

    // The same pod among the manifests of a watched folder.
    let manifests = node.dir().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::copy(&path, manifests.join("one.yaml")).unwrap();
    let kubelet = Driver::start(&node, "kubelet", &["kubelet", "--manifests", manifests.to_str().unwrap()]);
    kubelet.says("belongs to pod default/one of run").await;
    fs::remove_file(manifests.join("one.yaml")).unwrap();
    fs::write(manifests.join("two.yaml"), manifest("two", "u-2")).unwrap();
    kubelet.says("started").await;
    assert_eq!(fs::read_to_string(folder.join("pod.json")).unwrap(), record);

    // Nor does a second watched folder get what the first has.
    let others = node.dir().join("others");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("two.yaml"), manifest("two", "u-2")).unwrap();
    let other = Driver::start(&node, "other", &["kubelet", "--manifests", others.to_str().unwrap()]);
    other.says("belongs to pod default/two").await;
    fs::remove_file(others.join("two.yaml")).unwrap();
    fs::write(others.join("three.yaml"), manifest("three", "u-3")).unwrap();
    other.says("started").await;
    let mut pods = left(&node, "pods");
    pods.sort();
    assert_eq!((pods, left(&node, "logs").len()), (vec!["u-1".into(), "u-2".into(), "u-3".into()], 3));
    assert!(folder.join("volumes/v/data").exists() && node.dir().join("driver/pods/u-2/volumes/v").exists());

    // They go to whom they belong.
    fs::remove_file(manifests.join("two.yaml")).unwrap();
    fs::remove_file(others.join("three.yaml")).unwrap();
    eventually(secs(30), "one pod", async || {
        let pods = left(&node, "pods");
        if pods == ["u-1"] { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
    for driver in [kubelet, other] {
        driver.signal(Signal::SIGTERM);
        driver.ends().await;
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ends().await.code, 143);
    assert_eq!(rm(&node, &["one"]).await.code, 0);
    nothing_left(&node).await;
    no_folders(&node);
    node.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_comes_after_its_driver_s_end_is_found() {
    let node = slow_network().await;
    let path = node.dir().join("pod.yaml");
    fs::write(&path, pod("slow", &format!("  containers:\n{}", container("c", "true", "")))).unwrap();
    let driver = Driver::start(&node, "run", &["run", path.to_str().unwrap()]);
    let reached = node.dir().join("reached");
    eventually(secs(30), "the plugin", async || if reached.exists() { Ok(()) } else { Err(String::new()) }).await;
    driver.signal(Signal::SIGKILL);
    driver.ends().await;
    let outcome = rm(&node, &["slow"]).await;
    assert!(outcome.code == 1 && outcome.err.contains("try again"), "{outcome:?}");
    assert_eq!(left(&node, "pods").len(), 1);
    fs::write(node.dir().join("go"), "").unwrap();
    eventually(secs(30), "the sandbox", async || {
        if node.pods(Default::default()).await.is_empty() { Err(String::new()) } else { Ok(()) }
    })
    .await;
    let outcome = rm(&node, &["slow"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    nothing_left(&node).await;
    no_folders(&node);
    node.finish().await;
}

/// A node with the registry up whose network waits for the file `go`, once it has made `reached`.
async fn slow_network() -> Node {
    let node = node().await;
    let list = cni::conflist(&[serde_json::json!({ "type": "slow" })]);
    let steps = format!("touch {0}/reached; until [ -e {0}/go ]; do sleep 0.05; done", node.dir().display());
    cni::script(node.dir(), "slow", &cni::on_add(&steps));
    config::install_cni(node.dir(), &list);
    node
}
