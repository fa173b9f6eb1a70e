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

/// Images and mounts by which /dev, reached by its name as the host sees it, would be a folder of the host's: one that
/// is there in the image, too.
async fn a_dev_that_leads_away(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let (victim, volume) = (node.dir().join("victim"), node.dir().join("volume"));
    fs::create_dir(&victim).unwrap();
    for name in ["ptmx", "other"] {
        fs::write(victim.join(name), "mine").unwrap();
    }
    let path = victim.to_str().unwrap().trim_start_matches('/');
    let climb = format!("{}{path}", "../".repeat(12));
    let tree = || {
        let above = path.match_indices('/').map(|(end, _)| &path[..end]);
        above.chain([path]).fold(Tar::new(), |tar, folder| tar.dir(folder, 0o755))
    };
    let images = [
        ("absolute", tree().symlink("dev", victim.to_str().unwrap())),
        ("relative", tree().symlink("dev", &climb)),
        ("file", tree().file("dev", "")),
        ("sys", tree().symlink("sys", "/")),
        ("links", tree().symlink("way", "/").symlink("later", "new/..").symlink("devices", "/dev")),
    ];
    let images =
        images.map(|(tag, tar)| registry.push("dev", tag, &Made::new(vec![Layer::busybox(), tar.gzip()], json!({}))));
    for reference in &images {
        node.try_pull(reference, None).await.unwrap();
    }
    // A volume whose /dev leads there, over the root folder; and one in which the way to the other is a link to that.
    fs::create_dir(&volume).unwrap();
    std::os::unix::fs::symlink(&victim, volume.join("dev")).unwrap();
    let shared = node.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    std::os::unix::fs::symlink("/", shared.join("way")).unwrap();
    let pod = up(&node, handler, "away").await;
    let bind = |place: &str| vec![specs::bind(&volume, place)];
    let both = |first: &str, place: &str| vec![specs::bind(&shared, first), specs::bind(&volume, place)];
    let [absolute, relative, file, sys, links] = &images;
    let cases = [
        (absolute, vec![], Some("/dev")),
        (relative, vec![], Some("/dev")),
        (file, vec![], Some("/dev")),
        (sys, vec![], Some("/sys")),
        (links, bind("/"), Some("container_path")),
        (links, bind("/way"), Some("/way")),
        (links, both("/new", "/later"), Some("/later")),
        (links, bind("/devices"), Some("/devices")),
        (links, both("/shared", "/shared/way"), None),
    ];
    for (number, (reference, mounts, told)) in cases.into_iter().enumerate() {
        let mut config = node.sh(&format!("c{number}"), "true");
        config.image = Some(specs::image(reference));
        config.mounts = mounts;
        let answer = attempt(&node, &pod, config).await;
        match told {
            // Runtime binaries find their own way through what is not there yet.
            Some(told) if handler == "youki" || told != "/later" => refused(answer, Code::InvalidArgument, &[told]),
            None if handler == "youki" => assert!(answer.is_err(), "case {number}"),
            _ => {}
        }
        let mut left: Vec<_> = fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other", "ptmx"], "case {number}");
        assert_eq!(fs::read_to_string(victim.join("ptmx")).unwrap(), "mine", "case {number}");
    }
    node.finish().await;
}

/// Nodes are made in the container's own /dev only, and a mount of the client's there has what it has.
async fn devices_and_mounts_at_one_place(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "both").await;
    let (bus, net) = (node.dir().join("bus"), node.dir().join("net"));
    for folder in [&bus, &net] {
        fs::create_dir(folder).unwrap();
    }
    host::run("mknod", &["-m", "666", &net.join("tun").to_string_lossy(), "c", "1", "5"]);
    let null = node.dir().join("null");
    host::run("mknod", &["-m", "666", &null.to_string_lossy(), "c", "1", "3"]);
    // Twice, as what the first one left behind must not be in the way of the next.
    for round in ["one", "two"] {
        let script = "head -c 3 /dev/net/tun | wc -c; echo x > /dev/mine && echo written; head -c 2 /dev/deep/er/zero | wc -c; \
                      stat -c %a /dev/deep/er/zero";
        let mut config = node.sh(round, script);
        config.mounts =
            vec![specs::bind(&bus, "/dev/bus/usb"), specs::bind(&net, "/dev/net"), specs::bind(&null, "/dev/mine")];
        config.devices = vec![
            device("/dev/bus/usb/001/002", "/dev/zero"),
            device("/dev/net/tun", "/dev/zero"),
            device("/dev/mine", "/dev/null"),
            device("/dev/deep/er/zero", "/dev/zero"),
        ];
        if handler == "youki" {
            assert_eq!(node.outcome(&pod, config).await, (0, "3\nwritten\n2\n666\n".to_owned()), "{round}");
            assert_eq!(fs::read_dir(&bus).unwrap().count(), 0, "nothing is made in the volume");
        } else {
            let _ = attempt(&node, &pod, config).await;
        }
    }
    for (number, path) in ["/dev", "/dev/"].into_iter().enumerate() {
        let mut config = node.sh(&format!("dev{number}"), "true");
        config.devices = vec![device(path, "/dev/null")];
        refused(attempt(&node, &pod, config).await, Code::InvalidArgument, &["container_path", "/dev"]);
    }
    // The host's own places beside all of its devices, as agents of devices have it.
    let mut config = node.sh("privileged", "[ -c /dev/kmsg ] && [ -d /dev/net ] && echo there");
    config.mounts = vec![specs::bind("/dev/kmsg", "/dev/kmsg"), specs::bind(&net, "/dev/net")];
    specs::security(&mut config).privileged = true;
    if handler == "youki" {
        assert_eq!(node.outcome(&privileged(&node, handler).await, config).await, (0, "there\n".to_owned()));
    }
    node.finish().await;
}

async fn privileged(node: &Node, handler: &str) -> Pod {
    let mut config = node.pod("privileged");
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    node.run_pod(config, handler).await.unwrap()
}

/// A /dev of the client's that may not be written to, with mounts for which nothing is there.
async fn a_read_only_dev(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "read-only").await;
    let (file, inner) = (node.dir().join("file"), node.dir().join("inner"));
    fs::write(&file, "").unwrap();
    fs::create_dir(&inner).unwrap();
    for (name, recursive) in [("ro", false), ("rro", true)] {
        let dev = node.dir().join(name);
        fs::create_dir(&dev).unwrap();
        host::run("mknod", &["-m", "666", &dev.join("null").to_string_lossy(), "c", "1", "3"]);
        std::os::unix::fs::symlink("elsewhere", inner.join("fd")).unwrap();
        let script = "(: > /dev/x) 2>&1 | grep -c 'ead-only'; echo bye > /dev/termination-log; echo x > /dev/shm/x; echo x > /dev/in/x; cat /dev/in/x";
        let mut config = node.sh(name, script);
        config.mounts = vec![
            Mount { readonly: true, recursive_read_only: recursive, ..specs::bind(&dev, "/dev") },
            specs::bind(&file, "/dev/termination-log"),
            specs::bind(&inner, "/dev/in"),
        ];
        if handler == "youki" {
            assert_eq!(node.outcome(&pod, config).await, (0, "1\nx\n".to_owned()), "{name}");
            assert_eq!(fs::read_to_string(&file).unwrap(), "bye\n");
        }
        fs::remove_file(inner.join("fd")).unwrap();
    }
    // A link in a volume at a link's place is the client's own.
    std::os::unix::fs::symlink("elsewhere", inner.join("fd")).unwrap();
    let mut config = node.sh("fd", "true");
    config.mounts = vec![specs::bind(&inner, "/dev/fd"), specs::bind(&file, "/dev/fd/fd")];
    let answer = attempt(&node, &pod, config).await;
    if handler == "youki" {
        assert!(answer.is_err(), "a link is in the way");
        assert!(inner.join("fd").is_symlink());
    }
    node.finish().await;
}

/// Mounts that lie in others, and a program that works in one.
async fn mounts_within_mounts(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "within").await;
    let (outer, inner, file) = (node.dir().join("outer"), node.dir().join("inner"), node.dir().join("file"));
    for folder in [&outer, &inner] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(&file, "file\n").unwrap();
    fs::write(inner.join("mark"), "inner\n").unwrap();
    let mut config =
        node.sh("c", "pwd; cat mark; cat /outer/file; (echo x > /outer/in/y) 2>/dev/null || echo kept; ls /etc/hosts");
    config.working_dir = "/outer/in".to_owned();
    config.mounts = vec![
        Mount { readonly: true, ..specs::bind(&inner, "/outer/in") },
        specs::bind(&outer, "/outer"),
        specs::bind(&file, "/outer/file"),
    ];
    specs::security(&mut config).readonly_rootfs = true;
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "/outer/in\ninner\nfile\nkept\n/etc/hosts\n"));
    assert!(!inner.join("y").exists());
    node.finish().await;
}

/// What is masked or read-only is so in mounts of the client's, too, wherever these lie.
async fn covered_paths_in_mounts(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "covered").await;
    let [outer, inner] = ["outer", "inner"].map(|name| node.dir().join(name));
    fs::create_dir(&outer).unwrap();
    for folder in ["hidden", "kept"] {
        fs::create_dir_all(inner.join(folder)).unwrap();
        fs::write(inner.join(folder).join("file"), "mine\n").unwrap();
    }
    fs::write(inner.join("secret"), "mine\n").unwrap();
    let script = "for at in /outer/in /dev/in; do cat $at/secret; ls $at/hidden; cat $at/kept/file; \
                  (echo x > $at/kept/new) 2>/dev/null || echo read-only; echo x > $at/new && cat $at/new; done";
    let mut config = node.sh("c", script);
    config.mounts =
        vec![specs::bind(&outer, "/outer"), specs::bind(&inner, "/outer/in"), specs::bind(&inner, "/dev/in")];
    let below = |names: &[&str]| {
        ["/outer/in", "/dev/in"].iter().flat_map(|at| names.iter().map(move |name| format!("{at}/{name}"))).collect()
    };
    let security = specs::security(&mut config);
    security.masked_paths = below(&["secret", "hidden", "missing"]);
    security.readonly_paths = below(&["kept"]);
    let (code, out) = node.outcome(&pod, config).await;
    // gVisor masks and covers nothing of the client's.
    if handler != "runsc" {
        assert_eq!((code, out.as_str()), (0, "mine\nread-only\nx\n".repeat(2).as_str()));
    }
    assert_eq!(fs::read_to_string(inner.join("secret")).unwrap(), "mine\n");
    node.finish().await;
}

with_each_handler!({
    covered_paths_in_mounts,
    a_dev_that_leads_away,
    devices_and_mounts_at_one_place,
    a_read_only_dev,
    mounts_within_mounts,
    the_hosts_sys,
    files_over_the_links_in_dev,
    a_dev_of_the_hosts,
    devices_outside_dev,
    devices_that_would_land_elsewhere
}: youki, runc, crun, runsc);
