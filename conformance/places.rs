//! Mounts and devices where one would not look for any, with each handler.

use std::collections::HashSet;
use std::fs;

use podwright::proto::*;
use serde_json::json;
use tonic::Code;

use crate::bad_input::refused;
use crate::handlers::{node_with, up};
use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image as Made, Layer, Tar};
use crate::harness::{Node, Pod, host, specs, with_each_handler};

/// Creates and starts; the answer of what failed.
async fn attempt(node: &Node, pod: &Pod, config: ContainerConfig) -> Result<(), tonic::Status> {
    let ctr = node.try_create(pod, config).await?;
    node.try_start(&ctr).await
}

async fn the_hosts_sys(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "sys").await;
    let script = "ls -d /sys/class/net/lo /sys/fs/cgroup; grep ' /sys ' /proc/self/mounts | tail -n 1 | cut -d' ' -f4 | cut -c1-2; \
                  ls /sys/fs/cgroup";
    let groups = || -> HashSet<_> {
        fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let before = groups();
    for (name, readonly, recursive) in [("rw", false, false), ("ro", true, false), ("rro", true, true)] {
        let mut config = node.sh(name, script);
        config.mounts = vec![Mount { readonly, recursive_read_only: recursive, ..specs::bind("/sys", "/sys") }];
        if let Err(status) = node.try_create(&pod, config.clone()).await
            && recursive
            && status.code() == Code::Unimplemented
        {
            continue;
        }
        config.metadata.as_mut().unwrap().name = format!("{name}-out");
        let (code, out) = node.outcome(&pod, config).await;
        let access = if readonly { "ro" } else { "rw" };
        let listed = out.strip_prefix(&format!("/sys/class/net/lo\n/sys/fs/cgroup\n{access}\n")).unwrap_or_default();
        let listed: HashSet<_> = listed.lines().map(str::to_owned).collect();
        // Others come and go on this machine.
        let stayed: HashSet<_> = before.intersection(&groups()).cloned().collect();
        assert!(code == 0 && stayed.is_subset(&listed), "{name}: {code} {out}");
    }
    node.finish().await;
}

async fn files_over_the_links_in_dev(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "links").await;
    let folder = node.dir().join("volume");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("file"), "mine\n").unwrap();
    let file = folder.join("file");
    let script = "cat /dev/stdin /dev/stderr; ls /dev/fd; echo more >> /dev/stdout; [ -L /dev/stdout ] && echo link; cat /dev/fd/sub/x";
    let mut config = node.sh("c", script);
    config.mounts = vec![
        specs::bind(&file, "/dev/stdin"),
        specs::bind(&file, "/dev/stdout"),
        Mount { readonly: true, ..specs::bind(&file, "/dev/stderr") },
        specs::bind(&folder, "/dev/fd"),
        specs::bind(&file, "/dev/fd/sub/x"),
    ];
    let before = fs::read_link("/dev/stdout").ok();
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "mine\nmine\nfile\nsub\nmine\nmore\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine\nmore\n");
    assert_eq!(fs::read_link("/dev/stdout").ok(), before);
    // One alone leaves the others what they are.
    let mut config = node.sh("one", "cat /dev/fd/3; echo x > /dev/stdout; ls -A /dev/fd");
    config.mounts = vec![specs::bind(&file, "/dev/fd/3")];
    if handler == "runsc" {
        println!("NOTE: runsc makes its links before its mounts, and nothing below them");
    } else {
        assert_eq!(node.outcome(&pod, config).await, (0, "mine\nmore\nx\n3\n".to_owned()));
    }
    node.finish().await;
}

async fn a_dev_of_the_hosts(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "dev").await;
    let dev = node.dir().join("dev");
    fs::create_dir(&dev).unwrap();
    for (name, target) in [("fd", "/proc/self/fd"), ("stdout", "/proc/self/fd/1"), ("stdin", "../../outside")] {
        std::os::unix::fs::symlink(target, dev.join(name)).unwrap();
    }
    // Two runtimes want this much of it.
    host::run("mknod", &["-m", "666", &dev.join("null").to_string_lossy(), "c", "1", "3"]);
    let file = node.dir().join("file");
    fs::write(&file, "mine\n").unwrap();
    for (number, place) in ["/dev/stdout", "/dev/fd", "/dev/fd/1"].into_iter().enumerate() {
        let mut config = node.sh(&format!("c{number}"), "grep -c mine /proc/self/mounts");
        config.mounts = vec![specs::bind(&dev, "/dev"), specs::bind(&file, place)];
        let answer = attempt(&node, &pod, config).await;
        if handler != "runsc" {
            refused(answer, Code::InvalidArgument, &["config.mounts", place]);
        }
    }
    // Nothing of the runtime's is made in a folder of the client's, but for what is to be mounted there.
    let mut config = node.sh("c", "ls -A /dev; cat /dev/log/mine; echo x > /dev/shm/x; cat /dev/shm/x");
    config.mounts = vec![specs::bind(&dev, "/dev"), specs::bind(&file, "/dev/log/mine")];
    let (code, out) = node.outcome(&pod, config).await;
    let mut left: Vec<_> = fs::read_dir(&dev).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    if handler != "runsc" {
        assert_eq!((code, out.as_str()), (0, "fd\nlog\nnull\nshm\nstdin\nstdout\nmine\nx\n"));
        assert_eq!(left, ["fd", "log", "null", "shm", "stdin", "stdout"]);
    }
    // The host's own, as agents of devices have it.
    let mut config = node
        .sh("whole", "ls -d /dev/null /dev/pts; echo bye > /dev/termination-log; echo x > /dev/shm/of-the-pod; tty");
    config.mounts = vec![specs::bind("/dev", "/dev"), specs::bind(&file, "/dev/termination-log")];
    // runc opens the terminal by a name that its /dev lacks.
    config.tty = handler == "youki";
    let links = fs::read_link("/dev/stdout").ok();
    let out = node.outcome(&pod, config).await.1;
    if handler != "runsc" {
        assert!(out.starts_with("/dev/null") && out.contains("/dev/pts"), "{out}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "bye\n");
        assert!(!std::path::Path::new("/dev/shm/of-the-pod").exists());
    }
    assert_eq!(fs::read_link("/dev/stdout").ok(), links);
    let _ = fs::remove_file("/dev/termination-log");
    let mut config = node.sh("ptmx", "true");
    config.mounts = vec![specs::bind(&file, "/dev/ptmx")];
    let answer = attempt(&node, &pod, config).await;
    if ["youki", "runc"].contains(&handler) {
        refused(answer, Code::InvalidArgument, &["config.mounts", "/dev/ptmx"]);
    }
    node.finish().await;
}

fn device(path: &str, host: &str) -> Device {
    Device { container_path: path.into(), host_path: host.into(), permissions: "rw".into() }
}

async fn devices_outside_dev(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "devices").await;
    let folder = node.dir().join("dev");
    fs::create_dir(&folder).unwrap();
    host::run("mknod", &["-m", "600", &folder.join("full").to_string_lossy(), "c", "1", "7"]);
    let script = "stat -c '%n %F %t:%T' /mydev /opt/dev/null /tmp/many/full; head -c 3 /mydev | wc -c; echo x > /opt/dev/null && echo written";
    let mut config = node.sh("c", script);
    config.devices = vec![
        device("/mydev", "/dev/zero"),
        device("/opt/dev/null", "/dev/null"),
        device("/tmp/many", &folder.to_string_lossy()),
    ];
    specs::security(&mut config).readonly_rootfs = true;
    if handler == "runsc" {
        refused(attempt(&node, &pod, config).await, Code::InvalidArgument, &["container_path", "/mydev", "gVisor"]);
        return node.finish().await;
    }
    let (code, out) = node.outcome(&pod, config).await;
    let files: String = [("/mydev", "1:5"), ("/opt/dev/null", "1:3"), ("/tmp/many/full", "1:7")]
        .map(|(path, numbers)| format!("{path} character special file {numbers}\n"))
        .concat();
    assert_eq!((code, out), (0, format!("{files}3\nwritten\n")));
    node.finish().await;
}

/// Images and mounts that would take a node elsewhere.
async fn devices_that_would_land_elsewhere(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = Tar::new()
        .symlink("abs", outside.to_str().unwrap())
        .symlink("up", "../../../../../../../../tmp")
        .symlink("proc1", "/proc/1/root")
        .symlink("self", "/proc/self/fd")
        .symlink("dev2", "/dev")
        .symlink("leaf", "/etc/new")
        .dir("real", 0o755)
        .symlink("real/link", "/etc");
    let image = Made::new(vec![Layer::busybox(), layer.gzip()], json!({}));
    let reference = registry.push("links", "1", &image);
    node.try_pull(&reference, None).await.unwrap();
    let pod = up(&node, handler, "attack").await;
    let paths = [
        "/abs/x",
        "/up/x",
        "/proc1/x",
        "/self/x",
        "/self/0",
        "/dev2/x",
        "/leaf",
        "/real/link/x",
        "/etc/passwd",
        "/etc/passwd/x",
        "/bin",
        "/proc/x",
        "/proc/sys/x",
        "/sys/x",
        "/etc/hosts",
        "/etc/hosts/x",
        "/volume/x",
        "/volume",
        "/etc",
    ];
    for (number, path) in paths.into_iter().enumerate() {
        let mut config = node.sh(&format!("c{number}"), "true");
        config.image = Some(specs::image(&reference));
        config.mounts = vec![specs::bind(&outside, "/volume")];
        config.devices = vec![device(path, "/dev/null")];
        let answer = attempt(&node, &pod, config).await;
        refused(answer, Code::InvalidArgument, &["container_path", path]);
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "the host's folder is untouched");
    assert!(!std::path::Path::new("/tmp/x").exists());
    node.finish().await;
}

with_each_handler!({
    the_hosts_sys,
    files_over_the_links_in_dev,
    a_dev_of_the_hosts,
    devices_outside_dev,
    devices_that_would_land_elsewhere
}: youki, runc, crun, runsc);
