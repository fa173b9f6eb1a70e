//! Fields of requests that hold in a user namespace as without one.

use std::fs;
use std::os::unix::fs::chown;

use podwright::proto::*;

use super::{mapped, node_with, options, owner, pod};
use crate::harness::{cgroups, host, logs, specs, with_each_handler};

async fn a_working_directory_in_a_volume(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "cwd", 1_600_000)).await;
    for (name, with) in [("mapped", true), ("plain", false)] {
        let volume = node.dir().join(name);
        fs::create_dir(&volume).unwrap();
        let root = if with { (0, 0) } else { (1_600_000, 2_600_000) };
        chown(&volume, Some(root.0), Some(root.1)).unwrap();
        let mut config = node.sh(name, "pwd; stat -c %u:%g .; touch new && stat -c %u:%g new");
        let mount = specs::bind(&volume, "/v");
        config.mounts = vec![if with { mapped(mount, 1_600_000) } else { mount }];
        config.working_dir = "/v/made/deep".into();
        assert_eq!(node.outcome(&pod, config).await, (0, "/v/made/deep\n0:0\n0:0\n".to_owned()), "{name}");
        for made in ["made", "made/deep", "made/deep/new"] {
            assert_eq!(owner(&volume.join(made)), root, "{name}/{made}");
        }
    }
    node.finish().await;
}

/// A volume in /dev's place, which root inside owns: what has to be made in it is his.
async fn a_dev_of_the_clients(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "dev", 1_800_000)).await;
    for (name, with) in [("mapped", true), ("plain", false)] {
        let volume = node.dir().join(name);
        fs::create_dir(&volume).unwrap();
        let root = if with { (0, 0) } else { (1_800_000, 2_800_000) };
        chown(&volume, Some(root.0), Some(root.1)).unwrap();
        // Runtime binaries want this much of it.
        host::run("mknod", &["-m", "666", &volume.join("null").to_string_lossy(), "c", "1", "3"]);
        let file = node.dir().join(format!("{name}.txt"));
        fs::write(&file, "mine\n").unwrap();
        let mut config = node.sh(name, "cat /dev/log/mine; touch /dev/new && stat -c %u:%g /dev /dev/new /dev/log");
        let mount = specs::bind(&volume, "/dev");
        config.mounts = vec![if with { mapped(mount, 1_800_000) } else { mount }, specs::bind(&file, "/dev/log/mine")];
        assert_eq!(node.outcome(&pod, config).await, (0, "mine\n0:0\n0:0\n0:0\n".to_owned()), "{name}");
        for made in ["new", "log", "log/mine"] {
            assert_eq!(owner(&volume.join(made)), root, "{name}/{made}");
        }
    }
    node.finish().await;
}

/// What a container's config says beside the user namespace holds as without one, inside and as it is told.
async fn all_else_holds_as_well(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = node.up(pod(&node, "else", 1_700_000)).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::copy("/bin/true", volume.join("true")).unwrap();
    let script = "id; touch /x 2>&1; for v in /mapped /plain; do cp /bin/busybox $v/busybox$$ 2>/dev/null; $v/true 2>&1; done; \
                  for v in /mapped /plain; do grep \" $v \" /proc/self/mounts | cut -d' ' -f4 | tr , '\\n' | \
                  grep -E '^(noexec|nodev|nosuid)$' | sort | tr '\\n' ' '; done; echo all up; sleep 3600";
    let mut config = node.sh("c", script);
    let mount_options: Vec<_> = ["noexec", "nodev", "nosuid"].map(str::to_owned).into();
    config.mounts = vec![
        Mount { mount_options: mount_options.clone(), ..mapped(specs::bind(&volume, "/mapped"), 1_700_000) },
        Mount { mount_options, ..specs::bind(&volume, "/plain") },
    ];
    let resources = config.linux.as_mut().unwrap().resources.get_or_insert_default();
    (resources.memory_limit_in_bytes, resources.oom_score_adj) = (64 << 20, 500);
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 12 });
    security.run_as_group = Some(Int64Value { value: 34 });
    security.supplemental_groups = vec![56];
    security.readonly_rootfs = true;
    let ctr = node.launch(&pod, config.clone()).await;
    let text = logs::stream(&node.logged(&ctr, "all up").await, "stdout");
    assert!(text.contains("uid=12 gid=34 groups=34,56") && text.contains("Read-only"), "{text}");
    assert_eq!(text.matches("ermission denied").count(), 2, "{text}");
    assert!(text.contains("nodev noexec nosuid nodev noexec nosuid all up"), "{text}");
    let status = node.status(&ctr).await;
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (12, 34, vec![34, 56]));
    assert_eq!(status.mounts, config.mounts);
    let init = node.pid_of(&ctr).await;
    let limit = cgroups::read(init, "memory.max", ("memory", "memory.limit_in_bytes"));
    assert_eq!(limit, (64 << 20).to_string());
    assert_eq!(fs::read_to_string(format!("/proc/{init}/oom_score_adj")).unwrap().trim(), "500");
    // An exec is the same user, by a terminal, too, and none of the host's.
    let answer = node.try_exec(&ctr, &["sh", "-c", "id; touch /x"], 10).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains("uid=12 gid=34 groups=34,56"), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stderr).contains("Read-only") && answer.exit_code != 0, "{answer:?}");
    let told = node.pod_status(&pod.id).await.unwrap().status.unwrap().linux.unwrap().namespaces.unwrap();
    assert_eq!(told.options.unwrap().userns_options, options(1_700_000));
    node.finish().await;
}

with_each_handler!({ a_working_directory_in_a_volume, a_dev_of_the_clients, all_else_holds_as_well }: youki, runc, crun, runsc);
