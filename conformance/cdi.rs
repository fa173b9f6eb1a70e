//! Devices by their names in the Container Device Interface.

use std::fs;
use std::path::{Path, PathBuf};

use podwright::proto::*;
use tonic::Code;

use crate::harness::wait::eventually;
use crate::harness::{Node, Setup, secs, specs};
use crate::streaming::client::peak;

async fn node_with(extra: &str) -> (Node, PathBuf, PathBuf) {
    // The folders are the test's own; the node's name is not known before it is made.
    let base = PathBuf::from(format!("/run/podwright-cdi-test-{}", std::process::id()));
    let (low, high) = (base.join("etc"), base.join("run"));
    fs::create_dir_all(&low).unwrap();
    let extra = format!("[cdi]\ndirs = [{low:?}, {high:?}]\n{extra}");
    let mut node = Node::with(Setup { extra, ..Setup::default() }).await;
    node.pull(specs::BUSYBOX).await;
    (node, low, high)
}

async fn end(node: Node, low: &Path) {
    node.finish().await;
    fs::remove_dir_all(low.parent().unwrap()).unwrap();
}

fn asked(mut config: ContainerConfig, names: &[&str]) -> ContainerConfig {
    config.cdi_devices = names.iter().map(|name| CdiDevice { name: (*name).to_owned() }).collect();
    config
}

#[tokio::test]
async fn a_device_brings_all_that_its_file_says() {
    let (node, low, _) = node_with("").await;
    let data = low.parent().unwrap().join("data");
    fs::create_dir_all(data.join("lib")).unwrap();
    fs::write(data.join("lib/driver"), "driver\n").unwrap();
    fs::write(data.join("one"), "one file\n").unwrap();
    fs::write(
        low.join("vendor.json"),
        serde_json::json!({
            "cdiVersion": "0.7.0", "kind": "vendor.com/kmsg",
            "containerEdits": {"env": ["ALL=yes"]},
            "devices": [{"name": "0", "containerEdits": {
                "env": ["KMSG=/dev/vendor/k", "PATH=/opt/vendor:/bin"],
                "deviceNodes": [
                    {"path": "/dev/vendor/k", "hostPath": "/dev/kmsg", "permissions": "w"},
                    {"path": "/dev/vendor/r", "hostPath": "/dev/loop-control", "permissions": "r"},
                ],
                "mounts": [
                    {"hostPath": data.join("lib"), "containerPath": "/usr/vendor/lib", "options": ["ro", "rbind", "rprivate", "nosuid"]},
                    {"hostPath": data.join("one"), "containerPath": "/etc/vendor.conf", "options": ["ro", "bind"]},
                    {"hostPath": "tmpfs", "containerPath": "/vendor-scratch", "type": "tmpfs", "options": ["nosuid", "size=64k"]},
                ],
                "additionalGids": [4321],
            }}],
        })
        .to_string(),
    )
    .unwrap();
    let pod = node.up(node.pod("cdi")).await;
    let script = "echo $ALL $KMSG $PATH; cat /usr/vendor/lib/driver /etc/vendor.conf; id -G; \
                  (: >/dev/vendor/k) && echo written; (: <>/dev/vendor/r) 2>/dev/null && echo beyond; \
                  (: >/usr/vendor/lib/x) 2>/dev/null && echo wrote; (: >/vendor-scratch/x) && echo scratch; true";
    let want = "yes /dev/vendor/k /opt/vendor:/bin\ndriver\none file\n0 10 4321\nwritten\nscratch\n";
    let (code, out) = node.outcome(&pod, asked(node.sh("field", script), &["vendor.com/kmsg=0"])).await;
    assert_eq!((code, out.as_str()), (0, want));
    let mut config = node.sh("annotation", script);
    config.annotations = [("cdi.k8s.io/plugin_x".to_owned(), "vendor.com/kmsg=0".to_owned())].into();
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!((code, out.as_str()), (0, want));
    // What runs in it later has the same.
    let ctr = node.launch(&pod, asked(node.sleeper("exec"), &["vendor.com/kmsg=0"])).await;
    node.logged(&ctr, "up").await;
    assert_eq!(node.exec(&ctr, &["sh", "-c", "echo $KMSG; id -G"]).await, "/dev/vendor/k\n0 10 4321\n");
    end(node, &low).await;
}

#[tokio::test]
async fn a_dev_of_a_device_hides_nothing_that_goes_into_it() {
    let (node, low, _) = node_with("").await;
    let base = low.parent().unwrap();
    let (dev, file) = (base.join("dev"), base.join("file"));
    fs::create_dir(&dev).unwrap();
    fs::write(dev.join("mark"), "").unwrap();
    fs::write(&file, "mine\n").unwrap();
    let edits = serde_json::json!({"mounts": [{"hostPath": dev, "containerPath": "/dev", "options": ["rbind"]}]});
    let devices = serde_json::json!([{"name": "0", "containerEdits": edits}]);
    let text = serde_json::json!({"cdiVersion": "0.7.0", "kind": "vendor.com/dev", "devices": devices});
    fs::write(low.join("dev.json"), text.to_string()).unwrap();
    let pod = node.up(node.pod("dev")).await;
    let mut config = node.sh("c", "ls -A /dev; echo x > /dev/shm/x; cat /dev/shm/x /dev/mine");
    config.mounts = vec![specs::bind(&file, "/dev/mine")];
    let (code, out) = node.outcome(&pod, asked(config, &["vendor.com/dev=0"])).await;
    assert_eq!((code, out.as_str()), (0, "mark\nmine\nshm\nx\nmine\n"));
    assert!(!dev.join("shm/x").exists(), "it is the pod's");
    end(node, &low).await;
}

#[tokio::test]
async fn files_may_come_and_go_and_be_bad() {
    let (node, low, high) = node_with("").await;
    let file = |value: &str| {
        format!(
            "cdiVersion: \"0.6.0\"\nkind: vendor.com/x\ndevices:\n- name: a\n  containerEdits: {{env: [\"X={value}\"]}}\n"
        )
    };
    let pod = node.up(node.pod("files")).await;
    let missing = node.try_create(&pod, asked(node.sh("no", "true"), &["vendor.com/x=a"])).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    assert!(missing.message().contains("vendor.com/x=a"), "{missing}");
    let x = async |name: &str| node.outcome(&pod, asked(node.sh(name, "echo $X"), &["vendor.com/x=a"])).await.1;
    fs::write(low.join("x.yaml"), file("1")).unwrap();
    assert_eq!(x("one").await, "1\n");
    fs::write(low.join("x.yaml"), file("two")).unwrap();
    fs::write(low.join("bad.yaml"), "{{{").unwrap();
    assert_eq!(x("two").await, "two\n");
    fs::create_dir_all(&high).unwrap();
    fs::write(high.join("x.yaml"), file("3")).unwrap();
    assert_eq!(x("three").await, "3\n");
    fs::write(high.join("same.yaml"), file("4")).unwrap();
    let both = node.try_create(&pod, asked(node.sh("both", "true"), &["vendor.com/x=a"])).await.unwrap_err();
    assert!(both.code() == Code::FailedPrecondition && both.message().contains("same.yaml"), "{both}");
    let unknown = node.try_create(&pod, asked(node.sh("b", "true"), &["vendor.com/x=b"])).await.unwrap_err();
    assert!(unknown.message().contains("vendor.com/x=b") && unknown.message().contains("bad.yaml"), "{unknown}");
    let mut config = node.sh("annotation", "true");
    config.annotations = [("cdi.k8s.io/y".to_owned(), "nonsense".to_owned())].into();
    let wrong = node.try_create(&pod, config).await.unwrap_err();
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("cdi.k8s.io/y"), "{wrong}");
    end(node, &low).await;
}

#[tokio::test]
async fn a_broken_file_is_told_when_it_comes() {
    let (node, low, high) = node_with("").await;
    let told = async |path: &Path| {
        let wanted = format!("{}", path.display());
        eventually(secs(10), "the log tells of it", async || {
            let log = node.daemon_log();
            let line = log.lines().any(|line| line.contains("cdi file cannot be used") && line.contains(&wanted));
            if line { Ok(()) } else { Err(log) }
        })
        .await;
        let answer = node.cri().runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        let info: serde_json::Value = serde_json::from_str(&answer.info["cdi"]).unwrap();
        assert!(info["problems"][&wanted].is_string(), "{info}");
    };
    let bad = low.join("bad.yaml");
    fs::write(&bad, "{{{").unwrap();
    told(&bad).await;
    // In a folder that was not there.
    fs::create_dir_all(&high).unwrap();
    fs::rename(&bad, high.join("moved.json")).unwrap();
    told(&high.join("moved.json")).await;
    let config = node.dir().join("config.toml");
    let out = std::process::Command::new(crate::harness::daemon::program())
        .args(["check", "--config", config.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = said.lines().find(|line| line.contains("moved.json")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.starts_with("warn cdi") && line.contains("cure"), "{line}");
    end(node, &low).await;
}

#[tokio::test]
async fn hooks_run_when_they_should() {
    let (node, low, _) = node_with("").await;
    let base = low.parent().unwrap().to_owned();
    let log = base.join("hooks.log");
    let hook = base.join("hook");
    // Its container's state is on its standard input. What the last but one makes is seen by the program.
    fs::write(&hook, format!("#!/bin/sh\necho \"$1 $(grep -c ociVersion)\" >>{}\n", log.display())).unwrap();
    std::os::unix::fs::chown(&hook, Some(0), Some(0)).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let of = |kind: &str| serde_json::json!({"hookName": kind, "path": hook, "args": ["hook", kind], "timeout": 20});
    let spec = |hooks: serde_json::Value| {
        serde_json::json!({
            "cdiVersion": "0.6.0", "kind": "vendor.com/hook",
            "devices": [{"name": "a", "containerEdits": {"hooks": hooks}}],
        })
        .to_string()
    };
    let mut hooks: Vec<_> = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"].map(of).into();
    // This one runs with the container's own files.
    hooks.push(serde_json::json!({
        "hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "grep -c ociVersion >/tmp/started"],
    }));
    fs::write(low.join("hook.json"), spec(hooks.into())).unwrap();
    let pod = node.up(node.pod("hooks")).await;
    let ctr = node.create(&pod, asked(node.sh("c", "cat /tmp/started; sleep 3600"), &["vendor.com/hook=a"])).await;
    let lines = || fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(lines(), "prestart 1\ncreateRuntime 1\ncreateContainer 1\n");
    node.try_start(&ctr).await.unwrap();
    node.logged(&ctr, "1").await;
    assert_eq!(lines(), "prestart 1\ncreateRuntime 1\ncreateContainer 1\npoststart 1\n");
    node.stop_container(&ctr.id, 0).await.unwrap();
    node.remove_container(&ctr.id).await.unwrap();
    assert!(lines().ends_with("poststart 1\npoststop 1\n"), "{}", lines());
    // A container whose hook fails is none.
    let failing = serde_json::json!([{"hookName": "createRuntime", "path": "/bin/false"}]);
    fs::write(low.join("hook.json"), spec(failing)).unwrap();
    let error = node.try_create(&pod, asked(node.sh("bad", "true"), &["vendor.com/hook=a"])).await.unwrap_err();
    println!("{error}");
    assert!(error.message().contains("hook"), "{error}");
    end(node, &low).await;
}

/// A vendor's hook looks up the root file system as every hook does, and finds the devices there that came with it.
#[tokio::test]
async fn hooks_find_the_devices() {
    let (node, low, _) = node_with("").await;
    let base = low.parent().unwrap().to_owned();
    let (log, hook) = (base.join("hook.log"), base.join("hook"));
    let script = format!(
        "#!/bin/sh\nexec >>{} 2>&1\nbundle=$(grep -o '\"bundle\":\"[^\"]*' | cut -d '\"' -f 4)\n\
         root=$(grep -o '\"root\":{{[^}}]*' $bundle/config.json | grep -o '\"path\":\"[^\"]*' | cut -d '\"' -f 4)\n\
         stat -c %t:%T:%a $root/dev/vendor/z && chmod 711 $root/dev/vendor\n",
        log.display()
    );
    fs::write(&hook, script).unwrap();
    std::os::unix::fs::chown(&hook, Some(0), Some(0)).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let spec = serde_json::json!({
        "cdiVersion": "0.6.0", "kind": "vendor.com/dir",
        "devices": [{"name": "a", "containerEdits": {
            "deviceNodes": [{"path": "/dev/vendor/z", "hostPath": "/dev/zero", "permissions": "rw", "fileMode": 0o640}],
            "hooks": [{"hookName": "createContainer", "path": hook}],
        }}],
    });
    fs::write(low.join("dir.json"), spec.to_string()).unwrap();
    let pod = node.up(node.pod("dir")).await;
    let script = "stat -c %a /dev/vendor; head -c 3 /dev/vendor/z | wc -c";
    let (code, out) = node.outcome(&pod, asked(node.sh("c", script), &["vendor.com/dir=a"])).await;
    let said = fs::read_to_string(&log).unwrap_or_default();
    assert_eq!((code, out.as_str(), said.as_str()), (0, "711\n3\n", "1:5:640\n"));
    end(node, &low).await;
}

#[tokio::test]
async fn a_node_may_have_none_of_it() {
    let (node, low, _) = node_with("enabled = false\n").await;
    let pod = node.up(node.pod("off")).await;
    let error = node.try_create(&pod, asked(node.sh("c", "true"), &["vendor.com/x=a"])).await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains("cdi.enabled"), "{error}");
    end(node, &low).await;
}

/// Whoever may write such a file is trusted, but may err: the daemon's memory stays within bounds, and other devices can
/// be had.
#[tokio::test]
async fn large_and_swelling_files_are_bounded() {
    let (node, low, _) = node_with("").await;
    let pod = node.up(node.pod("large")).await;
    let head = |name: &str| format!("cdiVersion: \"0.6.0\"\nkind: v.com/{name}\n");
    let devices = |kind: &str, devices: &str| format!("{}devices:\n{devices}", head(kind));
    let one = |n: usize| format!("- {{name: \"{n}\", containerEdits: {{env: [\"D{n}=1\"]}}}}\n");
    let many: String = (0..20_000).map(one).collect();
    let list: String = (0..60_000).map(|n| format!("\"V{n}=1\", ")).collect();
    let mut laughs = "x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..12 {
        let again = vec![format!("*x{}", n - 1); 9].join(", ");
        laughs.push_str(&format!("x{n}: &x{n} [{again}]\n"));
    }
    let alias = "env: &e [".to_owned() + &"\"AAAAAAAAAAAAAAAA=1\", ".repeat(20_000) + "]";
    let aliases: String = (0..2000).map(|n| format!("- {{name: \"{n}\", containerEdits: {{env: *e}}}}\n")).collect();
    let files = [
        ("many", devices("many", &many)),
        ("list", devices("list", &format!("- {{name: \"0\", containerEdits: {{env: [{list}]}}}}\n"))),
        ("laughs", format!("{laughs}{}", devices("laughs", &one(0)))),
        ("aliases", format!("{}containerEdits:\n  {alias}\ndevices:\n{aliases}", head("aliases"))),
        ("deep", format!("{}x: {}{}\n", devices("deep", &one(0)), "[".repeat(200_000), "]".repeat(200_000))),
        ("flow", format!("{}x: {}1{}\n", devices("flow", &one(0)), "{a: ".repeat(100_000), "}".repeat(100_000))),
    ];
    let before = peak(node.daemon().pid());
    fs::write(low.join("good.yaml"), devices("good", &one(0))).unwrap();
    for (name, text) in files {
        let size = text.len();
        fs::write(low.join(format!("{name}.yaml")), text).unwrap();
        let start = std::time::Instant::now();
        let config = asked(node.sh(name, "echo $D0"), &["v.com/good=0"]);
        assert_eq!(node.outcome(&pod, config).await, (0, "1\n".to_owned()), "{name}");
        let grown = (peak(node.daemon().pid()) - before) >> 10;
        println!("{name}: {size} bytes, {:?}, {grown} MiB more", start.elapsed());
        assert!(grown < 384, "{name}: the daemon has grown by {grown} MiB");
    }
    let config = asked(node.sh("last", "echo $D19999"), &["v.com/many=19999"]);
    assert_eq!(node.outcome(&pod, config).await, (0, "1\n".to_owned()));
    end(node, &low).await;
}
