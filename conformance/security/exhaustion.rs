//! Memory stays bounded, and state closed, whatever containers and images do (CVE-2022-31030, CVE-2022-1708,
//! CVE-2025-64329, CVE-2026-47262, CVE-2025-58183, CVE-2024-25621).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use podwright::proto::{ContainerStatsRequest, Int64Value};
use serde_json::json;
use tonic::Code;

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image, Layer, Tar};
use crate::harness::{Node, eventually, host, secs, specs};

/// Most memory that either of our processes may ever have taken, kB: outputs are 16 MB, and copied on their way.
const MOST: u64 = 200_000;

/// The most memory that a process ever had, kB.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn peaks(node: &Node) -> Vec<(String, u64)> {
    let monitors = host::descendants().into_iter().filter(|process| process.name.starts_with("podwright"));
    monitors
        .filter(|process| process.state != 'Z')
        .map(|process| (process.name, peak(process.pid)))
        .chain([("daemon".into(), peak(node.daemon().pid()))])
        .collect()
}

#[tokio::test]
async fn an_exec_that_never_stops_writing() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("endless")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let endless = ["sh", "-c", "cat /dev/zero & cat /dev/zero >&2"];
    for _ in 0..3 {
        let status = node.try_exec(&ctr, &endless, 2).await.expect_err("it is killed after its time");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    }
    let peaks = peaks(&node);
    assert!(peaks.iter().all(|(_, kb)| *kb < MOST), "{peaks:?}");
    assert_eq!(node.exec(&ctr, &["echo", "well"]).await, "well\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_never_stops_writing() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("noise")).await;
    // No line breaks: a line is cut, never collected.
    let mut config = node.sh("c", "echo up; head -c 300000000 /dev/zero; echo; echo done");
    config.log_path = String::new();
    let ctr = node.launch(&pod, config).await;
    let status = node.exited(&ctr).await;
    assert_eq!(status.exit_code, 0);
    let peaks = peaks(&node);
    assert!(peaks.iter().all(|(_, kb)| *kb < MOST), "{peaks:?}");
    node.finish().await;
}

/// A passwd or group file of hundreds of megabytes is refused or read in part; never held.
#[tokio::test]
async fn giant_passwd_and_group_files() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let pod = node.up(node.pod("giant")).await;
    let giant = "x:x:1:\n".repeat(40 << 20 >> 3);
    let line = format!("one:x:1:{}\n", "a,".repeat(20 << 20));
    for (name, tar) in [
        ("group", Tar::new().dir("etc", 0o755).file("etc/group", &giant)),
        ("passwd", Tar::new().dir("etc", 0o755).file("etc/passwd", &giant)),
        ("line", Tar::new().dir("etc", 0o755).file("etc/group", &line)),
    ] {
        let layers = vec![Layer::busybox(), tar.gzip()];
        let reference = registry.push("giant", name, &Image::new(layers, json!({ "User": "nobody-here" })));
        node.try_pull(&reference, None).await.unwrap();
        let mut config = node.sh(name, "true");
        config.image = Some(specs::image(&reference));
        node.try_create(&pod, config.clone()).await.expect_err("no such user");
        specs::security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        let _ = node.try_create(&pod, config).await;
    }
    let peaks = peaks(&node);
    assert!(peaks.iter().all(|(_, kb)| *kb < MOST), "{peaks:?}");
    node.finish().await;
}

/// Nobody but root finds anything in our folders, also while a container runs.
#[tokio::test]
async fn other_users_find_nothing() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("closed")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    // The test's own folder would keep them out.
    fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    for folder in ["root", "state"] {
        let found = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "find"])
            .arg(node.dir().join(folder))
            .args(["-mindepth", "1", "(", "-readable", "-o", "-writable", ")", "-print"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "{folder}");
    }
    for path in [
        format!("state/pods/{}", pod.id),
        format!("root/pods/{}", pod.id),
        "root/layers".into(),
        "root/images".into(),
        format!("state/pods/{}/containers/{}", pod.id, ctr.id),
    ] {
        let mode = fs::metadata(node.dir().join(&path)).unwrap().permissions().mode() & 0o077;
        let above = fs::metadata(node.dir().join(&path).parent().unwrap()).unwrap().permissions().mode() & 0o077;
        assert!(mode == 0 || above == 0, "{path}: {mode:o}");
    }
    node.finish().await;
}

/// Whoever counts or removes folders by calling itself for each level runs out of stack at some thousands.
#[tokio::test]
async fn folders_nested_by_the_thousand() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("deep")).await;
    let script = "p=$(printf 'd/%.0s' $(seq 1000)); \
                  for i in $(seq 12); do mkdir -p $p; cd -P $p; done 2>/dev/null; echo made";
    for dies in [false, true] {
        let ctr = node.launch(&pod, node.sleeper(&format!("dies-{dies}"))).await;
        assert_eq!(node.exec(&ctr, &["sh", "-c", script]).await, "made\n");
        let request = ContainerStatsRequest { container_id: ctr.id.clone() };
        let stats = node.cri().runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap();
        // AppArmor lets nobody go deeper than a path of 8 KiB.
        let inodes = stats.writable_layer.unwrap().inodes_used.unwrap().value;
        assert!(inodes >= 3500, "{inodes}");
        let daemon = node.daemon().pid();
        node.remove_container(&ctr.id).await.unwrap();
        if dies {
            node.kill9();
            node.start_daemon().await;
        }
        eventually(secs(60), "the layer's end", async || {
            match fs::read_dir(node.dir().join("root/trash")).unwrap().count() {
                0 => Ok(()),
                left => Err(format!("{left} in the trash")),
            }
        })
        .await;
        assert_eq!(node.daemon().pid() == daemon, !dies);
    }
    node.finish().await;
}
