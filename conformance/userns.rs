//! Pods with user namespaces: root inside is nobody outside.

mod settings;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use podwright::proto::*;
use serde_json::json;
use tonic::Code;

use crate::handlers;
use crate::harness::config::Setup;
use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image as Made, Tar};
use crate::harness::{BUSYBOX, Ctr, Node, Pod, args, logs, specs, with_each_handler};

/// A node whose pods have this handler; `None` if it says that they can have no user namespaces.
pub async fn node_with(handler: &str) -> Option<Node> {
    node_with_more(handler, "").await
}

/// The same, with more configuration.
pub async fn node_with_more(handler: &str, more: &str) -> Option<Node> {
    let extra = format!("[runtime]\ndefault_handler = \"{handler}\"\n{more}");
    let mut setup = handlers::setup(handler)?;
    if is_old_crun(handler) {
        println!("NOTE: this crun leaves out what is mounted below volumes; its file says to use it nevertheless");
        setup.handlers.iter_mut().for_each(|(_, text)| text.push_str("user_namespaces = true\n"));
    }
    let mut node = Node::with(Setup { extra, ..setup }).await;
    if !features(&node, handler).await.user_namespaces {
        let status = node.run_pod(pod(&node, "refused", 100_000), handler).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
        println!("SKIPPED: {}", status.message());
        node.finish().await;
        return None;
    }
    node.pull(BUSYBOX).await;
    Some(node)
}

/// Before 1.9.
fn is_old_crun(handler: &str) -> bool {
    handler == "crun" && !output(handler, "features").contains("mountExtensions")
}

/// What a handler's binary prints.
fn output(handler: &str, argument: &str) -> String {
    let binary = handlers::find(handler).expect("the binary");
    String::from_utf8_lossy(&Command::new(binary).arg(argument).output().unwrap().stdout).into_owned()
}

async fn features(node: &Node, handler: &str) -> RuntimeHandlerFeatures {
    let answer = node.cri().runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let found = answer.runtime_handlers.into_iter().find(|known| known.name == handler);
    found.expect("the handler").features.expect("its features")
}

/// Mappings that begin at this id of the host.
fn mapping(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: 65_536 }]
}

fn options(host_id: u32) -> Option<UserNamespace> {
    Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(host_id), gids: mapping(host_id + 1_000_000) })
}

/// A pod whose root has this number on the host; its group's is a million higher.
pub fn pod(node: &Node, name: &str, host_id: u32) -> PodSandboxConfig {
    let mut config = node.pod(name);
    specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap().userns_options = options(host_id);
    config
}

fn mapped(mount: Mount, host_id: u32) -> Mount {
    Mount { uid_mappings: mapping(host_id), gid_mappings: mapping(host_id + 1_000_000), ..mount }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn upper(node: &Node, pod: &Pod, ctr: &Ctr) -> PathBuf {
    node.dir().join("root/pods").join(&pod.id).join("containers").join(&ctr.id).join("upper")
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    (meta.uid(), meta.gid())
}

fn namespace(pid: i32, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

async fn root_inside_is_nobody_outside(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "root", 100_000)).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    assert_eq!(words(&node.exec(&ctr, &["cat", "/proc/self/uid_map"]).await), "0 100000 65536");
    assert_eq!(words(&node.exec(&ctr, &["cat", "/proc/self/gid_map"]).await), "0 1100000 65536");
    assert_eq!(words(&node.exec(&ctr, &["cat", "/proc/1/uid_map"]).await), "0 100000 65536");
    assert_eq!(node.exec(&ctr, &["sh", "-c", "id -u; id -g"]).await, "0\n0\n");
    let init = node.pid_in(&ctr.id, "sh");
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    assert!(status.contains("Uid:\t100000\t100000\t100000\t100000"), "{status}");
    assert!(status.contains("Gid:\t1100000\t1100000\t1100000\t1100000"), "{status}");
    let pause = node.pid_in(&pod.id, "pause");
    let status = fs::read_to_string(format!("/proc/{pause}/status")).unwrap();
    assert!(status.contains("Uid:\t165535\t"), "{status}");
    for kind in ["user", "ipc", "uts", "net"] {
        assert_eq!(namespace(pause, kind), namespace(init, kind), "{kind}");
        assert_ne!(namespace(std::process::id() as i32, kind), namespace(init, kind), "{kind}");
    }
    node.finish().await;
}

async fn the_root_file_system_belongs_to_root_inside(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let registry = FakeRegistry::start(Access::Anonymous).await;
    // An upper layer with a folder of another user's, over the usual one.
    let layer = Tar::new()
        .entry(tar::EntryType::Directory, "home/u", "", 0o700, (1000, 1000), b"")
        .entry(tar::EntryType::Regular, "home/u/file", "", 0o600, (1000, 1000), b"secret\n")
        .gzip();
    let image = Made::new(vec![crate::harness::image::Layer::busybox(), layer], json!({}));
    let reference = registry.push("owned", "1", &image);
    node.try_pull(&reference, None).await.unwrap();
    let pod = node.up(pod(&node, "rootfs", 200_000)).await;
    let script = "set -e; touch /new /home/u/more; mkdir -p /d/e; echo x >> /etc/passwd; chown 7:8 /d/e; cat /home/u/file; \
                  stat -c %u:%g / /bin /etc/passwd /etc /home/u /home/u/file /new /d/e /etc/hosts /etc/resolv.conf /dev/shm /dev/mqueue | tr '\\n' ' '; \
                  touch /dev/shm/x; echo end >> /etc/hosts; mknod /dev/mine c 1 3 2>/dev/null || echo no nodes; sleep 1000";
    let mut config = node.sh("c", script);
    config.image = Some(specs::image(&reference));
    let ctr = node.launch(&pod, config).await;
    let out = logs::stream(&node.logged(&ctr, "no nodes").await, "stdout");
    let all = "secret\n0:0 0:0 0:0 0:0 1000:1000 1000:1000 0:0 7:8 0:0 0:0 0:0 0:0 no nodes\n";
    assert_eq!(out, all);
    let upper = upper(&node, &pod, &ctr);
    assert_eq!(owner(&upper.join("new")), (200_000, 1_200_000));
    assert_eq!(owner(&upper.join("d/e")), (200_007, 1_200_008));
    assert_eq!(owner(&upper.join("etc/passwd")), (200_000, 1_200_000));
    assert_eq!(owner(&upper.join("home/u")), (201_000, 1_201_000));
    // Nothing the runtime itself makes in there is the host's root's.
    for entry in fs::read_dir(&upper).unwrap().chain(fs::read_dir(upper.join("etc")).unwrap()) {
        let path = entry.unwrap().path();
        assert_ne!(owner(&path).0, 0, "{path:?}");
    }
    // As another user, and by name.
    let mut config =
        node.sh("user", "id -u; id -G; cat /home/u/file; touch /home/u/mine; cat /proc/self/status | grep ^CapEff");
    config.image = Some(specs::image(&reference));
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.run_as_group = Some(Int64Value { value: 1000 });
    security.supplemental_groups = vec![1234];
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "1000\n1000 1234\nsecret\nCapEff:\t0000000000000000\n"));
    node.finish().await;
}

async fn volumes_with_and_without_mapping(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "volumes", 300_000)).await;
    let [with, without] = ["with", "without"].map(|name| {
        let folder = node.dir().join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(folder.join("user"), "").unwrap();
        chown(folder.join("user"), Some(5), Some(6)).unwrap();
        folder
    });
    let mut config = node.sh("c", "touch /with/new /without/new; stat -c %u:%g /with /with/user /with/new /without /without/user /without/new /with/nested");
    let config_folder = node.dir().join("config");
    fs::create_dir(&config_folder).unwrap();
    config.mounts = vec![
        mapped(specs::bind(&with, "/with"), 300_000),
        specs::bind(&without, "/without"),
        // A place in a volume that is not there yet.
        mapped(specs::bind(&config_folder, "/with/nested/deep"), 300_000),
    ];
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "0:0\n5:6\n0:0\n65534:65534\n65534:65534\n0:0\n0:0\n"));
    assert_eq!(owner(&with.join("new")), (0, 0), "as root inside sees it");
    assert_eq!(owner(&without.join("new")), (300_000, 1_300_000), "as the host sees it");
    assert_eq!(owner(&with.join("nested")), (0, 0));
    // Idmapped mounts need no user namespace of the pod's.
    let plain = node.up(node.pod("plain")).await;
    let mut config = node.sh("c", "stat -c %u:%g /v/user");
    config.mounts = vec![mapped(specs::bind(&with, "/v"), 10)];
    assert_eq!(node.outcome(&plain, config).await.1, "15:1000016\n");
    node.finish().await;
}

async fn image_volumes_belong_to_those_whom_the_image_names(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let one = Tar::new().entry(tar::EntryType::Regular, "a", "", 0o600, (0, 0), b"root's\n").gzip();
    let two = Tar::new().entry(tar::EntryType::Regular, "d/b", "", 0o600, (3, 4), b"another's\n").gzip();
    let reference = registry.push("volume", "1", &Made::new(vec![one, two], json!({})));
    node.try_pull(&reference, None).await.unwrap();
    let pod = node.up(pod(&node, "images", 400_000)).await;
    let mut config = node
        .sh("c", "cat /v/a /v/d/b /part /single/bin/true | head -c 30; stat -c %u:%g /v/a /v/d/b /part /single/bin");
    let volume = |reference: &str, path: &str, sub_path: &str| Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(specs::image(reference)),
        image_sub_path: sub_path.into(),
        ..Default::default()
    };
    config.mounts =
        vec![volume(&reference, "/v", ""), volume(&reference, "/part", "d/b"), volume(BUSYBOX, "/single", "")];
    let out = node.outcome(&pod, config).await.1;
    assert!(out.starts_with("root's\nanother's\nanother's\n"), "{out}");
    assert!(out.ends_with("0:0\n3:4\n3:4\n0:0\n"), "{out}");
    node.finish().await;
}

async fn pods_with_different_mappings_share_layers(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let layers = || fs::read_dir(node.dir().join("root/layers/sha256")).unwrap().count();
    let before = layers();
    let mut pids = Vec::new();
    for host_id in [500_000, 600_000, 0] {
        let config = match host_id {
            0 => node.pod("plain"),
            _ => pod(&node, &format!("p{host_id}"), host_id),
        };
        let pod = node.up(config).await;
        let ctr = node
            .launch(&pod, node.sh("c", "stat -c %u /bin/sh; touch /x; trap 'exit 0' TERM; sleep 1000 & wait"))
            .await;
        assert_eq!(logs::stream(&node.logged(&ctr, "0").await, "stdout"), "0\n");
        pids.push(node.pid_in(&ctr.id, "sh"));
        assert_eq!(owner(&upper(&node, &pod, &ctr)).0, host_id);
    }
    assert_eq!(layers(), before, "no copy of a layer");
    assert_ne!(namespace(pids[0], "user"), namespace(pids[1], "user"));
    node.finish().await;
}

async fn capabilities_reach_no_further_than_the_namespace(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let mut config = pod(&node, "caps", 700_000);
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.up(config).await;
    // In a mount namespace of its own root may mount, but undo nothing that the runtime did.
    let script = "mkdir -p /m && mount -t tmpfs x /m && echo mounted; hostname changed && hostname; umount /proc/kcore 2>/dev/null || umount /etc/hosts || echo locked; \
                  echo 1 > /proc/sys/net/ipv4/ip_forward && echo forwarding; echo 0 > /proc/sys/kernel/panic || echo not the host; ip link set lo mtu 1400 && echo link";
    let mut config = node.sh("c", script);
    specs::security(&mut config).privileged = true;
    let (_, out) = node.outcome(&pod, config).await;
    // A binary makes its mounts as that same root.
    let locked = if handler == "youki" { "locked\n" } else { "" };
    assert_eq!(out, format!("mounted\nchanged\n{locked}forwarding\nnot the host\nlink\n"));
    let mut config = node.sh("ro", "touch /v/x || echo read-only; mount -o remount,rw,bind /v || echo locked");
    specs::security(&mut config).privileged = true;
    config.mounts = vec![Mount { readonly: true, ..mapped(specs::bind("/usr", "/v"), 700_000) }];
    // crun copies mounts from outside, which takes the locks off: with that capability, and no other, they are root's.
    let locked = if handler == "crun" { "" } else { "locked\n" };
    assert_eq!(node.outcome(&pod, config).await.1, format!("read-only\n{locked}"));
    node.finish().await;
}

async fn hidden_paths_and_kernel_file_systems(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let mut config = pod(&node, "paths", 800_000);
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls =
        [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_local_port_range", "2000 3000"), ("kernel.msgmax", "9000")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let pod = node.up(config).await;
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/msgmax; cat /proc/sys/net/ipv4/ip_local_port_range; \
                  cat /secret/x 2>&1; touch /usr/x 2>&1; ls /sys/class/net; ls /proc | grep -cx 1; cat /proc/self/mountinfo | grep -q ' /sys/fs/cgroup' && echo cgroups; \
                  echo x > /dev/null && head -c 2 /dev/zero | wc -c; hostname; cat /etc/hostname; ls -d /dev/pts /dev/mqueue";
    let mut config = node.sh("c", script);
    let security = specs::security(&mut config);
    security.masked_paths = args(&["/not/there", "/secret"]);
    security.readonly_paths = args(&["/usr"]);
    let secret = node.dir().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("x"), "told\n").unwrap();
    config.mounts = vec![mapped(specs::bind(&secret, "/secret"), 800_000)];
    let (_, out) = node.outcome(&pod, config).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..2], ["1", "9000"], "{out}");
    assert_eq!(words(lines[2]), "2000 3000", "{out}");
    assert!(!out.contains("told") && out.contains("Read-only"), "{out}");
    assert!(out.contains("eth0\nlo\n1\n"), "{out}");
    assert!(out.contains("\n2\npaths\npaths\n/dev/mqueue\n/dev/pts\n"), "{out}");
    node.finish().await;
}

async fn exec_joins_with_the_containers_identity(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "exec", 900_000)).await;
    let mut config = node.sleeper("c");
    specs::security(&mut config).run_as_user = Some(Int64Value { value: 33 });
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exec(&ctr, &["id", "-u"]).await, "33\n");
    let script = "for ns in user mnt pid net ipc uts cgroup; do [ $(readlink /proc/self/ns/$ns) = $(readlink /proc/1/ns/$ns) ] || echo $ns; done; grep -E '^(CapBnd|Seccomp):' /proc/self/status";
    let first = node.exec(&ctr, &["sh", "-c", "grep -E '^(CapBnd|Seccomp):' /proc/1/status"]).await;
    assert_eq!(node.exec(&ctr, &["sh", "-c", script]).await, first, "the same namespaces and limits");
    assert!(first.contains("Seccomp:\t2"), "{first}");
    let answer = node.try_exec(&ctr, &["sh", "-c", "touch /x; cat /etc/shadow-of-nobody"], 10).await.unwrap();
    assert_ne!(answer.exit_code, 0);
    // A daemon that comes later does the same.
    let mut node = node;
    node.restart().await;
    assert_eq!(words(&node.exec(&ctr, &["cat", "/proc/self/uid_map"]).await), "0 900000 65536");
    let stats =
        node.cri().runtime().container_stats(ContainerStatsRequest { container_id: ctr.id.clone() }).await.unwrap();
    let stats = stats.into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().usage_bytes.is_some() && stats.writable_layer.is_some());
    node.stop_container(&ctr.id, 5).await.unwrap();
    assert_eq!(node.status(&ctr).await.exit_code, 0, "the stop signal arrived");
    node.finish().await;
}

async fn the_hosts_network_and_shared_pids(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let mut config = node.host_pod("hostnet");
    specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap().userns_options = options(1_000_000);
    let pod = node.up(config).await;
    let out = node
        .script(&pod, "c", "cat /proc/self/uid_map; ls -d /sys/class/net/lo; ip link set lo mtu 1000 2>&1; true")
        .await;
    assert!(words(&out).starts_with("0 1000000 65536") && out.contains("/sys/class/net/lo"), "{out}");
    assert!(out.contains("not permitted"), "the host's network is not root's inside: {out}");
    let mut config = self::pod(&node, "pids", 1_100_000);
    specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    let pod = node.up(config).await;
    let mut config = node.sh("c", "cat /proc/1/cmdline | tr '\\0' ' '; echo; ls /proc | grep -c '^[0-9]'");
    specs::security(&mut config).namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    assert!(node.outcome(&pod, config).await.1.starts_with("/pause"));
    node.finish().await;
}

async fn devices_are_those_that_were_asked_for(handler: &str) {
    let more = "[container]\ndevice_ownership_from_security_context = true\n";
    let Some(node) = node_with_more(handler, more).await else { return };
    let pod = node.up(pod(&node, "devices", 1_200_000)).await;
    let zero =
        |path: &str| Device { host_path: "/dev/zero".into(), container_path: path.into(), permissions: "rwm".into() };
    // The host has a /dev/kmsg of its own.
    let script = "stat -c '%n %t:%T %u:%g' /dev/kmsg /dev/mine/zero /opt/mine; head -c 2 /opt/mine | wc -c; head -c 3 /dev/kmsg | wc -c";
    let mut config = node.sh("c", script);
    config.devices = vec![zero("/dev/kmsg"), zero("/dev/mine/zero"), zero("/opt/mine")];
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 7 });
    security.run_as_group = Some(Int64Value { value: 8 });
    assert_eq!(
        node.outcome(&pod, config).await.1,
        "/dev/kmsg 1:5 7:8\n/dev/mine/zero 1:5 7:8\n/opt/mine 1:5 7:8\n2\n3\n"
    );
    // What nobody asked for by name is the host's root's, of whom this root is no relative.
    let mut config = self::pod(&node, "privileged", 1_200_000);
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.up(config).await;
    let script =
        "disk=$(find /dev -type b | head -n 1); stat -c %u $disk; head -c 1 $disk 2>&1 | grep -o 'Permission denied'";
    let mut config = node.sh("disk", script);
    specs::security(&mut config).privileged = true;
    assert_eq!(node.outcome(&pod, config).await.1, "65534\nPermission denied\n");
    node.finish().await;
}

/// What Status tells, against what the binary does.
async fn features_are_those_of_the_runtime(handler: &str) {
    let Some(setup) = handlers::setup(handler) else { return };
    let node = Node::with(setup).await;
    let told = features(&node, handler).await;
    let (has_users, has_recursion) = match handler {
        "youki" => (true, true),
        "runsc" => (false, false),
        _ => match serde_json::from_str::<serde_json::Value>(&output(handler, "features")) {
            Ok(features) => {
                let lists = |list: &serde_json::Value, word: &str| list.as_array().unwrap().iter().any(|it| it == word);
                let recent = handler == "runc" || features["linux"]["mountExtensions"]["idmap"]["enabled"] == true;
                (recent && lists(&features["linux"]["namespaces"], "user"), lists(&features["mountOptions"], "rro"))
            }
            Err(_) => {
                println!("NOTE: {handler} tells no features; this is {}", output(handler, "--version"));
                (false, handler == "crun")
            }
        },
    };
    assert_eq!((told.user_namespaces, told.recursive_read_only_mounts), (has_users, has_recursion));
    node.finish().await;
}

async fn recursive_read_only_volumes(handler: &str) {
    if handlers::find(handler).is_some() && is_old_crun(handler) {
        println!("SKIPPED: this crun leaves out what is mounted below volumes, which Status says");
        return;
    }
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "recursive", 1_300_000)).await;
    let volume = node.dir().join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some("pwt"), &volume.join("below"), Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let script = "touch /v/x 2>/dev/null && echo above; touch /v/below/x 2>/dev/null && echo below; true";
    for (name, recursive, want) in [("plain", false, "below\n"), ("recursive", true, "")] {
        let mut config = node.sh(name, script);
        let mount = Mount { readonly: true, recursive_read_only: recursive, ..specs::bind(&volume, "/v") };
        config.mounts = vec![mount];
        fs::set_permissions(volume.join("below"), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(node.outcome(&pod, config).await.1, want, "{name}");
    }
    nix::mount::umount(&volume.join("below")).unwrap();
    node.finish().await;
}

async fn mounts_of_the_host_arrive_where_asked(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "propagation", 1_400_000)).await;
    let volume = node.dir().join("volume");
    fs::create_dir_all(volume.join("seen")).unwrap();
    let with = |name: &str, propagation: MountPropagation| {
        let mut config = node.sleeper(name);
        config.mounts = vec![Mount { propagation: propagation.into(), ..specs::bind(&volume, "/data") }];
        config
    };
    let private = node.launch(&pod, with("private", MountPropagation::PropagationPrivate)).await;
    let slave = node.launch(&pod, with("slave", MountPropagation::PropagationHostToContainer)).await;
    let none = None::<&str>;
    nix::mount::mount(Some("x"), &volume.join("seen"), Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    fs::write(volume.join("seen/file"), "x").unwrap();
    assert_eq!(node.exec(&private, &["ls", "/data/seen"]).await, "");
    assert_eq!(node.exec(&slave, &["ls", "/data/seen"]).await, "file\n");
    nix::mount::umount(&volume.join("seen")).unwrap();
    node.finish().await;
}

async fn the_hosts_processes_and_ipc(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let mut config = pod(&node, "hostpid", 1_500_000);
    let options = specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap();
    (options.pid, options.ipc) = (NamespaceMode::Node.into(), NamespaceMode::Node.into());
    let pod = node.up(config).await;
    let own = std::process::id();
    let script = format!(
        "head -n 1 /proc/{own}/status; cat /proc/self/uid_map; readlink /proc/self/ns/ipc; ls -d /dev/mqueue; \
                          cat /proc/{own}/environ 2>&1 | grep -o denied; echo 1 > /proc/sys/kernel/panic || echo read-only"
    );
    let mut config = node.sh("c", &script);
    let options = specs::security(&mut config).namespace_options.get_or_insert_default();
    (options.pid, options.ipc) = (NamespaceMode::Node.into(), NamespaceMode::Node.into());
    let out = words(&node.outcome(&pod, config).await.1);
    let name = fs::read_to_string("/proc/self/status").unwrap().lines().next().map(words).unwrap();
    let ipc = namespace(own.cast_signed(), "ipc");
    let want = format!("{name} 0 1500000 65536 {} /dev/mqueue denied read-only", ipc.display());
    assert_eq!(out, want);
    node.finish().await;
}

with_each_handler!({
    root_inside_is_nobody_outside,
    the_root_file_system_belongs_to_root_inside,
    volumes_with_and_without_mapping,
    image_volumes_belong_to_those_whom_the_image_names,
    pods_with_different_mappings_share_layers,
    capabilities_reach_no_further_than_the_namespace,
    hidden_paths_and_kernel_file_systems,
    exec_joins_with_the_containers_identity,
    the_hosts_network_and_shared_pids,
    a_terminal_belongs_to_the_user_inside,
    devices_are_those_that_were_asked_for,
    features_are_those_of_the_runtime,
    recursive_read_only_volumes,
    mounts_of_the_host_arrive_where_asked,
    the_hosts_processes_and_ipc
}: youki, runc, crun, runsc);

#[tokio::test]
async fn what_is_refused() {
    let handlers = vec![("other.toml".to_owned(), "kind = \"oci\"\nbinary = \"/bin/true\"\n".to_owned())];
    let mut node = Node::with(Setup { handlers, ..Setup::default() }).await;
    node.pull(BUSYBOX).await;
    let status = node.run_pod(pod(&node, "other", 100_000), "other").await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(status.message().contains("other") && status.message().contains("userns_options"), "{status}");
    let plain = node.run_pod(node.pod("plain"), "other").await.unwrap();
    let mut config = node.sleeper("rro");
    config.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..specs::bind("/usr", "/v") }];
    let status = node.try_create(&plain, config).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(status.message().contains("other") && status.message().contains("recursive_read_only"), "{status}");
    let answer = node.cri().runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    for handler in answer.runtime_handlers {
        assert_eq!(handler.features.unwrap().user_namespaces, handler.name != "other", "{}", handler.name);
    }
    let pod = node.up(pod(&node, "small", 100_000)).await;
    let refused = async |change: &dyn Fn(&mut ContainerConfig), field: &str| {
        let mut config = node.sh("c", "true");
        change(&mut config);
        let status = node.try_create(&pod, config).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(field), "{status}");
    };
    refused(&|config| specs::security(config).run_as_user = Some(Int64Value { value: 65_536 }), "65536").await;
    refused(&|config| specs::security(config).supplemental_groups = vec![70_000], "70000").await;
    refused(
        &|config| specs::security(config).namespace_options.as_mut().unwrap().userns_options = options(200_000),
        "userns_options",
    )
    .await;
    let node_mode = UserNamespace { mode: NamespaceMode::Node as i32, ..Default::default() };
    refused(
        &|config| {
            specs::security(config).namespace_options.as_mut().unwrap().userns_options = Some(node_mode.clone());
        },
        "NODE",
    )
    .await;
    refused(&|config| config.mounts = vec![Mount { propagation: 2, ..specs::bind("/tmp", "/v") }], "propagation").await;
    let (one, two) = (mapping(1000), mapping(1000));
    refused(
        &|config| config.mounts = vec![Mount { uid_mappings: one.clone(), ..specs::bind("/tmp", "/v") }],
        "uidMappings",
    )
    .await;
    refused(
        &|config| {
            let gid_mappings = vec![IdMapping { length: 0, ..two[0] }];
            config.mounts = vec![Mount { uid_mappings: two.clone(), gid_mappings, ..specs::bind("/tmp", "/v") }];
        },
        "gidMappings[0].length",
    )
    .await;
    // A file system whose owners cannot be mapped.
    let mut config = node.sh("proc", "true");
    config.mounts = vec![mapped(specs::bind("/proc/sys", "/v"), 100_000)];
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert!(status.message().contains("/proc/sys") && status.message().contains("idmapped"), "{status}");
    node.finish().await;
}

async fn a_terminal_belongs_to_the_user_inside(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "tty", 100_000)).await;
    for (name, user) in [("root", 0), ("other", 1000)] {
        let mut config = node.sh(name, "stat -c %u $(tty); echo written > $(tty)");
        config.tty = true;
        specs::security(&mut config).run_as_user = Some(Int64Value { value: user });
        let out = node.outcome(&pod, config).await.1;
        assert_eq!(words(&out), format!("{user} written"));
    }
    node.finish().await;
}

#[tokio::test]
async fn a_node_whose_file_system_cannot_map_owners() {
    let mut node = Node::prepare(&Setup::default());
    let none = None::<&str>;
    nix::mount::mount(none, &node.dir().join("root"), Some("ramfs"), nix::mount::MsFlags::empty(), none).unwrap();
    node.start_daemon().await;
    let answer = node.cri().runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    assert!(!answer.features.unwrap().user_namespaces_host_network);
    assert!(answer.runtime_handlers.iter().all(|handler| !handler.features.unwrap().user_namespaces));
    let status = node.run_pod(pod(&node, "p", 100_000), "").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("userns_options") && status.message().contains("owners mapped"), "{status}");
    node.finish().await;
}
