//! What holds a container in: capabilities, seccomp, paths, mounts. The attacks that other runtimes fell to are below
//! (checkpoint archives: not read by anything yet):
//!
//! | attack | known as | tests |
//! |---|---|---|
//! | the host's binary overwritten | CVE-2019-5736 | `the_runtime_s_own_program_cannot_be_written` |
//! | leaked descriptors and working folders | CVE-2024-21626 | `containers::a_working_directory_in_proc_leads_nowhere`, `containers::` descriptors |
//! | abstract sockets | CVE-2020-15257 | `sandbox::no_abstract_sockets` |
//! | mount and link races | CVE-2021-30465, 2025-31133, 2025-52565, 2025-52881, 2025-62161, 2025-62596 | `races` |
//! | paths in images | CVE-2022-23648, 2024-5154 | `identity`, `bad_images::hostile_layers`, `mounts_through_symlinks_of_the_image_stay_inside` |
//! | users out of bounds | CVE-2024-40635, 2026-46680 | `identity::users_beyond_the_bounds` |
//! | lines smuggled into passwd | CVE-2022-4318, 2026-15809 | `identity::lines_that_are_smuggled_in` |
//! | sysctls and systemd properties | CVE-2022-0811, 2024-3154 | `identity::sysctls_that_carry_others`, `identity::labels_and_annotations_are_no_orders` |
//! | labels of images as orders | CVE-2026-53488 | `identity::labels_and_annotations_are_no_orders` |
//! | exhaustion | CVE-2022-31030, 2022-1708, 2025-64329, 2026-47262, 2025-58183 | `exhaustion`, `layers::sparse_files`, `bad_images` |
//! | permissions | CVE-2024-25621 | `exhaustion::other_users_find_nothing` |
//! | manifests that are two things | CVE-2021-41190 | `bad_images::manifests_that_are_wrong` |

mod exhaustion;
mod fuzz;
mod identity;
mod races;
mod stuck;

use std::fs;

use podwright::proto::*;
use tonic::Code;

use crate::handlers;
use crate::harness::{Node, Pod, logs, specs, with_each_handler};

/// The value of a key in the process status of a container's shell.
async fn proc_status(node: &Node, pod: &Pod, mut config: ContainerConfig, key: &str) -> String {
    config.command = crate::harness::args(&["sh", "-c", &format!("grep ^{key}: /proc/self/status | cut -f2")]);
    let (code, out) = node.outcome(pod, config).await;
    assert_eq!(code, 0, "{out}");
    out.trim().to_owned()
}

/// The fourteen capabilities that containers get by default.
const DEFAULT_CAPS: u64 = 0xa804_25fb;
const NET_ADMIN: u64 = 1 << 12;
const CHOWN: u64 = 1;

#[tokio::test]
async fn capabilities() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("caps")).await;
    let bits = async |name: &str, add: &[&str], drop: &[&str], key: &str| {
        let mut config = node.run(name, &[]);
        let (add_capabilities, drop_capabilities) = (crate::harness::args(add), crate::harness::args(drop));
        specs::security(&mut config).capabilities =
            Some(Capability { add_capabilities, drop_capabilities, ..Default::default() });
        u64::from_str_radix(&proc_status(&node, &pod, config, key).await, 16).unwrap()
    };
    assert_eq!(bits("default", &[], &[], "CapEff").await, DEFAULT_CAPS);
    assert_eq!(bits("bounding", &[], &[], "CapBnd").await, DEFAULT_CAPS);
    assert_eq!(bits("inheritable", &[], &[], "CapInh").await, 0);
    assert_eq!(bits("added", &["NET_ADMIN"], &[], "CapEff").await, DEFAULT_CAPS | NET_ADMIN);
    assert_eq!(bits("prefixed", &["CAP_NET_ADMIN"], &[], "CapEff").await, DEFAULT_CAPS | NET_ADMIN);
    assert_eq!(bits("dropped", &[], &["CHOWN"], "CapBnd").await, DEFAULT_CAPS & !CHOWN);
    assert_eq!(bits("none", &[], &["ALL"], "CapBnd").await, 0);
    assert_eq!(bits("only", &["NET_ADMIN"], &["ALL"], "CapBnd").await, NET_ADMIN);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let own = u64::from_str_radix(own, 16).unwrap();
    assert_eq!(bits("all", &["ALL"], &[], "CapBnd").await, own, "ALL means all that this machine can give");
    let mut config = node.run("user", &[]);
    specs::security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    assert_eq!(proc_status(&node, &pod, config, "CapEff").await, "0000000000000000", "an ordinary user has none");
    node.finish().await;
}

#[tokio::test]
async fn an_unknown_capability_is_refused() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("cap")).await;
    let mut config = node.sh("c", "true");
    specs::security(&mut config).capabilities =
        Some(Capability { add_capabilities: vec!["FLY".into()], ..Default::default() });
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("FLY"), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn seccomp() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("seccomp")).await;
    let profile = |kind: security_profile::ProfileType, localhost_ref: String| {
        let mut config = node.sh("x", "true");
        specs::security(&mut config).seccomp = Some(SecurityProfile { profile_type: kind as i32, localhost_ref });
        config
    };
    let named = |mut config: ContainerConfig, name: &str| {
        config.metadata.as_mut().unwrap().name = name.to_owned();
        config.log_path = format!("{name}/0.log");
        config
    };
    use security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    assert_eq!(
        proc_status(&node, &pod, named(profile(RuntimeDefault, String::new()), "default"), "Seccomp").await,
        "2"
    );
    assert_eq!(proc_status(&node, &pod, named(profile(Unconfined, String::new()), "unconfined"), "Seccomp").await, "0");
    // A profile of the client's: mkdir is forbidden.
    let file = node.dir().join("no-mkdir.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}"#;
    fs::write(&file, text).unwrap();
    let mut config = named(profile(Localhost, file.to_string_lossy().into_owned()), "localhost");
    config.command = crate::harness::args(&["sh", "-c", "mkdir /tmp/x 2>&1; touch /tmp/y && echo fine"]);
    let (_, out) = node.outcome(&pod, config).await;
    assert!(out.contains("supported") && out.contains("fine"), "{out}");
    let config = named(profile(Localhost, "/no/such/profile.json".into()), "missing");
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert!(status.message().contains("/no/such/profile.json"), "{status}");
    // The default profile forbids what a container has no business with.
    let (_, out) =
        node.outcome(&pod, node.sh("forbidden", "unshare -U true 2>&1; mount -t tmpfs x /tmp 2>&1; true")).await;
    assert!(out.contains("denied") || out.contains("not permitted"), "{out}");
    node.finish().await;
}

#[tokio::test]
async fn no_new_privileges() {
    let mut node = Node::ready().await;
    let reference = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";
    node.pull(reference).await;
    let pod = node.up(node.pod("nnp")).await;
    for (name, set, wanted) in [("with", true, "Effective uid: 1000\n"), ("without", false, "Effective uid: 0\n")] {
        let mut config = node.run(name, &[]);
        config.image = Some(specs::image(reference));
        let security = specs::security(&mut config);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.no_new_privs = set;
        assert_eq!(node.outcome(&pod, config).await.1, wanted);
    }
    node.finish().await;
}

#[tokio::test]
async fn masked_and_readonly_paths() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("paths")).await;
    let mut config = node.sh("c", "wc -c < /bin/cat; ls /usr | wc -l; touch /var/x 2>&1; echo end");
    let security = specs::security(&mut config);
    security.masked_paths = crate::harness::args(&["/bin/cat", "/no/such/path", "/usr"]);
    security.readonly_paths = crate::harness::args(&["/var"]);
    let (_, out) = node.outcome(&pod, config).await;
    assert_eq!(out, "0\n0\ntouch: /var/x: Read-only file system\nend\n");
    // A kubelet sends the usual lists; a client that sends none gets none, except what the kernel insists on.
    // Not every kernel has each of them.
    let secret = ["/proc/kcore", "/proc/timer_list"].into_iter().find(|path| fs::metadata(path).is_ok()).unwrap();
    let mut config = node.sh("usual", &format!("wc -c < {secret}; echo b > /proc/sysrq-trigger; echo end"));
    let security = specs::security(&mut config);
    security.masked_paths = crate::harness::args(&["/proc/kcore", "/proc/keys", "/proc/timer_list"]);
    security.readonly_paths =
        crate::harness::args(&["/proc/sysrq-trigger", "/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq"]);
    // A profile would refuse what is behind the mask, too.
    security.apparmor =
        Some(SecurityProfile { profile_type: security_profile::ProfileType::Unconfined.into(), ..Default::default() });
    assert_eq!(node.outcome(&pod, config).await.1, "0\nend\n");
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_root() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("ro")).await;
    let mut config = node.sh("c", "touch /x 2>&1; touch /dev/shm/x && touch /etc/resolv.conf 2>&1; echo end");
    specs::security(&mut config).readonly_rootfs = true;
    let (_, out) = node.outcome(&pod, config).await;
    assert!(out.starts_with("touch: /x: Read-only file system\n") && out.ends_with("end\n"), "{out}");
    node.finish().await;
}

#[tokio::test]
async fn privileged() {
    let node = Node::ready().await;
    let mut config = node.pod("privileged");
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.up(config).await;
    let privileged = |mut config: ContainerConfig| {
        let security = specs::security(&mut config);
        (security.privileged, security.seccomp) = (true, None);
        config
    };
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    assert_eq!(proc_status(&node, &pod, privileged(node.sh("caps", "")), "CapEff").await, own);
    assert_eq!(proc_status(&node, &pod, privileged(node.sh("seccomp", "")), "Seccomp").await, "0");
    let out = node.outcome(&pod, privileged(node.sh("mounts", "mount -t tmpfs x /tmp && echo mounted; ls /dev | wc -l; touch /sys/fs/cgroup/x 2>&1; grep ' /sys ' /proc/mounts"))).await.1;
    assert!(out.starts_with("mounted\n") && out.contains("sysfs rw"), "{out}");
    // Without the sandbox's leave it is refused.
    let plain = node.up(node.pod("plain")).await;
    node.try_create(&plain, privileged(node.sh("c", "true")))
        .await
        .expect_err("a privileged container in an ordinary sandbox");
    node.finish().await;
}

#[tokio::test]
async fn bind_mounts() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("mounts")).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("in"), "from the host").unwrap();
    let mut config = node.sh("rw", "cat /data/in; echo out > /data/out; cat /etc/one");
    config.mounts = vec![specs::bind(&volume, "/data"), specs::bind(volume.join("in"), "/etc/one")];
    assert_eq!(node.outcome(&pod, config).await.1.trim(), "from the hostfrom the host");
    assert_eq!(fs::read_to_string(volume.join("out")).unwrap(), "out\n");
    let mut config = node.sh("ro", "touch /data/x 2>&1; cat /data/in");
    config.mounts = vec![Mount { readonly: true, ..specs::bind(&volume, "/data") }];
    let ctr = node.launch(&pod, config).await;
    node.exited(&ctr).await;
    assert!(logs::stream(&logs::read(&ctr.log), "stdout").contains("Read-only file system"));
    let told = &node.status(&ctr).await.mounts[0];
    assert_eq!(
        (told.container_path.as_str(), told.host_path.as_str(), told.readonly),
        ("/data", volume.to_str().unwrap(), true)
    );
    node.finish().await;
}

#[tokio::test]
async fn a_host_path_that_is_missing() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("missing")).await;
    let mut config = node.sh("c", "ls -d /data");
    let path = node.dir().join("no/such");
    config.mounts = vec![specs::bind(&path, "/data")];
    // A folder is made, as clients of the incumbents rely on.
    assert_eq!(node.outcome(&pod, config).await.1, "/data\n");
    assert!(path.is_dir());
    node.finish().await;
}

async fn mount_propagation(handler: &str) {
    let Some(node) = handlers::node_with(handler).await else { return };
    let mut config = node.pod("propagation");
    specs::sandbox_security(&mut config).privileged = true;
    let pod = node.run_pod(config, handler).await.unwrap();
    let volume = node.dir().join("volume");
    for name in ["seen", "made"] {
        fs::create_dir_all(volume.join(name)).unwrap();
    }
    let with = |name: &str, propagation: MountPropagation| {
        let mut config = node.sleeper(name);
        specs::security(&mut config).privileged = true;
        specs::security(&mut config).seccomp = None;
        config.mounts = vec![Mount { propagation: propagation as i32, ..specs::bind(&volume, "/data") }];
        config
    };
    let private = node.launch(&pod, with("private", MountPropagation::PropagationPrivate)).await;
    let slave = node.launch(&pod, with("slave", MountPropagation::PropagationHostToContainer)).await;
    let both = node.launch(&pod, with("both", MountPropagation::PropagationBidirectional)).await;
    let none = None::<&str>;
    nix::mount::mount(Some("x"), &volume.join("seen"), Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    fs::write(volume.join("seen/file"), "x").unwrap();
    let sees = async |ctr| node.exec(ctr, &["ls", "/data/seen"]).await;
    assert_eq!(
        (sees(&private).await.as_str(), sees(&slave).await.as_str(), sees(&both).await.as_str()),
        ("", "file\n", "file\n")
    );
    for (ctr, reaches) in [(&private, false), (&slave, false), (&both, true)] {
        node.exec(ctr, &["sh", "-c", "mount -t tmpfs x /data/made && touch /data/made/file"]).await;
        assert_eq!(volume.join("made/file").exists(), reaches);
        node.exec(ctr, &["umount", "/data/made"]).await;
    }
    nix::mount::umount(&volume.join("seen")).unwrap();
    node.finish().await;
}

// In gVisor mounts of a container stay in its own kernel.
with_each_handler!({ mount_propagation }: youki, runc, crun);

#[tokio::test]
async fn recursive_read_only() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("rro")).await;
    let volume = node.dir().join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some("x"), &volume.join("sub"), Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let with = |name: &str, mount: Mount| {
        let mut config = node.sh(name, "touch /data/sub/x 2>&1 && echo written");
        config.mounts = vec![mount];
        config
    };
    let plain = Mount { readonly: true, ..specs::bind(&volume, "/data") };
    let recursive = Mount { recursive_read_only: true, ..plain.clone() };
    assert_eq!(node.outcome(&pod, with("plain", plain)).await.1, "written\n");
    assert!(node.outcome(&pod, with("recursive", recursive.clone())).await.1.contains("Read-only"));
    for wrong in [
        Mount { readonly: false, ..recursive.clone() },
        Mount { propagation: MountPropagation::PropagationHostToContainer as i32, ..recursive.clone() },
        Mount { propagation: MountPropagation::PropagationBidirectional as i32, ..recursive },
    ] {
        node.try_create(&pod, with("wrong", wrong)).await.expect_err("not with recursive read-only");
    }
    nix::mount::umount(&volume.join("sub")).unwrap();
    node.finish().await;
}

/// Host binaries stay what they are, whatever a container does to /proc/self/exe.
#[tokio::test]
async fn the_runtime_s_own_program_cannot_be_written() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let node = Node::ready().await;
    let program = crate::harness::daemon::program();
    let monitor = program.with_file_name("podwright-monitor");
    let look = |path: &std::path::Path| {
        let meta = fs::metadata(path).unwrap();
        let hash = crate::harness::image::digest(&fs::read(path).unwrap());
        (hash, meta.mode() & 0o7777, meta.uid(), meta.mtime())
    };
    let before = (look(&program), look(&monitor));
    let pod = node.up(node.pod("exe")).await;
    // The program itself in a container, where it waits for a daemon; its own links may be used there.
    let mut config = node.run("c", &["/proc/self/exe", "--pod", &"a".repeat(64), "--dir", "/"]);
    config.log_path = "c.log".into();
    // What a program that is not static is loaded with.
    config.mounts = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
        .into_iter()
        .filter(|path| fs::metadata(path).is_ok())
        .map(|path| Mount { readonly: true, ..specs::bind(path, path) })
        .collect();
    if let Ok(ctr) = node.try_create(&pod, config).await
        && node.try_start(&ctr).await.is_ok()
    {
        let script =
            "for p in /proc/[0-9]*; do chmod 4777 $p/exe; chown 1000 $p/exe; touch $p/exe; echo x > $p/exe; done";
        let _ = node.try_exec(&ctr, &["sh", "-c", script], 10).await;
    }
    let _ = node.outcome(&pod, node.sh("w", "for p in /proc/[0-9]*; do echo x > $p/exe; done 2>/dev/null; true")).await;
    let after = (look(&program), look(&monitor));
    fs::set_permissions(&monitor, fs::Permissions::from_mode(before.1.1)).unwrap();
    std::os::unix::fs::chown(&monitor, Some(before.1.2), None).unwrap();
    assert_eq!(after, before);
    node.finish().await;
}

#[tokio::test]
async fn mounts_through_symlinks_of_the_image_stay_inside() {
    use crate::harness::fake_registry::{Access, FakeRegistry};
    use crate::harness::image::{Image as Made, Layer, Tar};
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = Tar::new().symlink("data", outside.to_str().unwrap()).symlink("up", "../../../../../../tmp");
    let reference =
        registry.push("links", "1", &Made::new(vec![Layer::busybox(), layer.gzip()], serde_json::json!({})));
    node.try_pull(&reference, None).await.unwrap();
    let pod = node.up(node.pod("links")).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    for (name, target) in [("abs", "/data/in"), ("rel", "/up/in")] {
        let mut config = node.sh(name, &format!("echo x > {target}/file; ls {target}"));
        config.image = Some(specs::image(&reference));
        config.mounts = vec![specs::bind(&volume, target)];
        assert_eq!(node.outcome(&pod, config).await.1, "file\n", "the link is followed within the container");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "the host's folder is untouched");
    assert!(!std::path::Path::new("/tmp/in").exists());
    node.finish().await;
}
