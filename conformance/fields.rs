//! Fields of requests that no other topic proves: `fields.md` has the list of all.

use std::fs;

use podwright::proto::*;
use tonic::Code;

use crate::harness::{Node, Setup, cgroups, host, specs};

fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

#[tokio::test]
async fn files_are_mounted_over_files_and_where_nothing_is() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("files")).await;
    let log = node.dir().join("termination-log");
    fs::write(&log, "").unwrap();
    let mut config =
        node.sh("c", "cat /etc/passwd; echo why >/dev/termination-log; cat /new/file; mount | grep -c termination");
    let passwd = node.dir().join("passwd");
    fs::write(&passwd, "root:x:0:0::/:/bin/sh\n").unwrap();
    config.mounts = vec![
        specs::bind(&log, "/dev/termination-log"),
        specs::bind(&passwd, "/etc/passwd"),
        specs::bind(&passwd, "/new/file"),
    ];
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "root:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n1\n"));
    assert_eq!(fs::read_to_string(log).unwrap(), "why\n");
    node.finish().await;
}

#[tokio::test]
async fn mount_options_hold() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("options")).await;
    let folder = node.dir().join("data");
    fs::create_dir(&folder).unwrap();
    let mut config = node.sh("c", "cp /bin/busybox /data/; /data/busybox true 2>&1; grep ' /data ' /proc/self/mounts");
    config.mounts = vec![Mount {
        mount_options: ["noexec", "nodev", "nosuid"].map(str::to_owned).into(),
        ..specs::bind(&folder, "/data")
    }];
    let out = node.outcome(&pod, config.clone()).await.1;
    assert!(out.contains("ermission denied"), "{out}");
    for option in ["noexec", "nodev", "nosuid", "rw"] {
        assert!(out.contains(option), "{option}: {out}");
    }
    config.metadata.as_mut().unwrap().name = "shown".into();
    let ctr = node.create(&pod, config.clone()).await;
    let status = node.status(&ctr).await;
    assert_eq!(status.mounts, config.mounts);
    node.finish().await;
}

#[tokio::test]
async fn a_folder_of_devices_and_whose_they_are() {
    let extra = "[container]\ndevice_ownership_from_security_context = true\n".to_owned();
    let mut node = Node::with(Setup { extra, ..Setup::default() }).await;
    node.pull(specs::BUSYBOX).await;
    let pod = node.up(node.pod("devices")).await;
    let folder = node.dir().join("dev");
    fs::create_dir_all(folder.join("sub")).unwrap();
    let make = |name: &str, minor: &str| {
        host::run("mknod", &["-m", "600", &folder.join(name).to_string_lossy(), "c", "1", minor]);
    };
    make("null", "3");
    make("sub/zero", "5");
    let mut config =
        node.sh("c", "stat -c '%n %u %g %t:%T' /dev/x/null /dev/x/sub/zero; head -c 2 /dev/x/sub/zero | wc -c");
    config.devices = vec![Device {
        container_path: "/dev/x".into(),
        host_path: folder.to_string_lossy().into_owned(),
        permissions: "r".into(),
    }];
    specs::security(&mut config).run_as_user = Some(Int64Value { value: 1234 });
    specs::security(&mut config).run_as_group = Some(Int64Value { value: 5678 });
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, "/dev/x/null 1234 5678 1:3\n/dev/x/sub/zero 1234 5678 1:5\n2\n"));
    node.finish().await;
}

#[tokio::test]
async fn nothing_is_masked_when_nothing_is_asked_to_be() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("proc")).await;
    let script = "wc -c </proc/version; (: >>/proc/sys/kernel/shmmax) 2>/dev/null && echo writable; grep -c ' /proc/' /proc/self/mounts";
    let mut config = node.sh("masked", script);
    specs::security(&mut config).masked_paths = vec!["/proc/version".into()];
    specs::security(&mut config).readonly_paths = vec!["/proc/sys".into()];
    assert_eq!(node.outcome(&pod, config).await.1, "0\n2\n");
    let out = node.outcome(&pod, node.sh("unmasked", script)).await.1;
    assert!(out.ends_with("\nwritable\n0\n") && !out.starts_with("0\n"), "{out}");
    node.finish().await;
}

#[tokio::test]
async fn ports_and_pings_take_no_privilege() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("low")).await;
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; \
                  nc -l -p 80 </dev/null >/dev/null 2>&1 & \
                  i=0; until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':0050 '; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done; \
                  echo listens";
    let mut config = node.sh("c", script);
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    assert_eq!(node.outcome(&pod, config).await.1, "0\n0\t2147483647\nlistens\n");
    let mut strict = node.pod("strict");
    strict.linux.as_mut().unwrap().sysctls =
        [("net.ipv4.ip_unprivileged_port_start".to_owned(), "512".to_owned())].into();
    let pod = node.up(strict).await;
    assert_eq!(node.script(&pod, "c", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "512\n");
    node.finish().await;
}

#[tokio::test]
async fn swap_is_none_or_some_or_as_it_comes() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("swap")).await;
    for (name, limit, want) in [("none", 32 << 20, Some(0)), ("some", 40 << 20, Some(8 << 20)), ("any", -1, None)] {
        let mut config = node.sleeper(name);
        resources(&mut config).memory_limit_in_bytes = 32 << 20;
        resources(&mut config).memory_swap_limit_in_bytes = limit;
        let ctr = node.launch(&pod, config).await;
        let pid = node.pid_of(&ctr).await;
        let Some(found) = cgroups::try_read(pid, "memory.swap.max", ("memory", "memory.memsw.limit_in_bytes")) else {
            println!("this kernel does not account for swap");
            break;
        };
        match want {
            None => assert!(found == "max" || found.parse::<u64>().unwrap() > 1 << 50, "{name}: {found}"),
            Some(swap) if cgroups::is_v2() => assert_eq!(found, swap.to_string(), "{name}"),
            Some(swap) => assert_eq!(found, (swap + (32 << 20)).to_string(), "{name}"),
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn huge_pages_are_limited_where_there_are_any() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("huge")).await;
    let mut config = node.sleeper("c");
    resources(&mut config).hugepage_limits = vec![
        HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 },
        HugepageLimit { page_size: "3MB".into(), limit: 0 },
    ];
    let ctr = node.launch(&pod, config).await;
    let pid = node.pid_of(&ctr).await;
    match cgroups::try_read(pid, "hugetlb.2MB.max", ("hugetlb", "hugetlb.2MB.limit_in_bytes")) {
        Some(limit) => assert_eq!(limit, (4 << 20).to_string()),
        None => println!("this node has no hugetlb controller for its containers"),
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_cannot_leave_its_sandboxs_namespaces() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("stay")).await;
    for field in ["network", "ipc"] {
        let mut config = node.sh("c", "true");
        let options = specs::security(&mut config).namespace_options.as_mut().unwrap();
        match field {
            "network" => options.network = NamespaceMode::Node as i32,
            _ => options.ipc = NamespaceMode::Node as i32,
        }
        let error = node.try_create(&pod, config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(&format!("namespace_options.{field}")), "{error}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_sandboxs_status_tells_of_its_containers() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("told")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let got = node.cri().runtime().pod_sandbox_status(request).await.unwrap().into_inner();
    let mut own = node.status(&ctr).await;
    own.image.as_mut().unwrap().image = got.containers_statuses[0].image.as_ref().unwrap().image.clone();
    assert_eq!(got.containers_statuses, [own]);
    assert!(got.timestamp >= got.containers_statuses[0].started_at && got.info.is_empty());
    let options = got.status.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(
        (options.network(), options.pid(), options.ipc()),
        (NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Pod)
    );
    node.finish().await;
}

#[tokio::test]
async fn pause_runs_as_it_is_told() {
    let node = Node::ready().await;
    let mut config = node.pod("who");
    let security = specs::sandbox_security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1111 });
    security.run_as_group = Some(Int64Value { value: 2222 });
    security.supplemental_groups = vec![3333];
    let pod = node.up(config).await;
    let info = node.pod_status(&pod.id).await.unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", info["pid"])).unwrap();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    assert_eq!((line("Uid:").as_str(), line("Gid:").as_str()), ("1111\t1111\t1111\t1111", "2222\t2222\t2222\t2222"));
    assert!(line("Groups:").split(' ').any(|group| group == "3333"), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn ambient_capabilities_are_a_users_own() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("ambient")).await;
    for (name, add, ambient, want) in
        [("none", vec!["NET_RAW"], vec![], "0\n0\n"), ("some", vec![], vec!["NET_RAW"], "2000\n2000\n")]
    {
        let show = "for set in CapEff CapAmb; do grep $set /proc/self/status | cut -f2 | sed 's/^0*\\(.\\)/\\1/'; done";
        let mut config = node.sh(name, show);
        let security = specs::security(&mut config);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.capabilities = Some(Capability {
            add_capabilities: add.into_iter().map(str::to_owned).collect(),
            add_ambient_capabilities: ambient.into_iter().map(str::to_owned).collect(),
            ..Default::default()
        });
        assert_eq!(node.outcome(&pod, config).await, (0, want.to_owned()), "{name}");
    }
    node.finish().await;
}

/// Clients of before 1.20 name profiles in another field.
#[tokio::test]
#[expect(deprecated, reason = "older clients still send it")]
async fn seccomp_profiles_by_their_older_names() {
    let node = Node::ready().await;
    let file = node.dir().join("no-mkdir.json");
    let rule = r#"{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}"#;
    fs::write(&file, format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#)).unwrap();
    let local = format!("localhost/{}", file.display());
    for (number, (name, mode, mkdir)) in
        [("runtime/default", "2", true), ("unconfined", "0", true), (local.as_str(), "2", false)]
            .into_iter()
            .enumerate()
    {
        let mut config = node.pod(&format!("pod{number}"));
        let security = specs::sandbox_security(&mut config);
        (security.seccomp, security.seccomp_profile_path) = (None, name.to_owned());
        let pod = node.up(config).await;
        let pause = fs::read_to_string(format!("/proc/{}/status", node.pid_in(&pod.id, "pause"))).unwrap();
        assert!(pause.contains(&format!("Seccomp:\t{mode}\n")), "{name}: {pause}");
        let mut config =
            node.sh("c", "grep Seccomp: /proc/self/status | cut -f2; mkdir /tmp/x 2>/dev/null && echo made");
        let security = specs::security(&mut config);
        (security.seccomp, security.seccomp_profile_path) = (None, name.to_owned());
        let out = node.outcome(&pod, config).await.1;
        assert_eq!(out, format!("{mode}\n{}", if mkdir { "made\n" } else { "" }), "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn pause_has_the_filter_that_its_sandbox_asks_for() {
    let node = Node::ready().await;
    for (kind, mode) in
        [(security_profile::ProfileType::RuntimeDefault, "2"), (security_profile::ProfileType::Unconfined, "0")]
    {
        let mut config = node.pod(kind.as_str_name());
        config.hostname = "pause".into();
        specs::sandbox_security(&mut config).seccomp =
            Some(SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() });
        let pod = node.up(config).await;
        let pause = fs::read_to_string(format!("/proc/{}/status", node.pid_in(&pod.id, "pause"))).unwrap();
        assert!(pause.contains(&format!("Seccomp:\t{mode}\n")), "{kind:?}: {pause}");
    }
    node.finish().await;
}
