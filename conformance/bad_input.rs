//! Wrong requests, a full disk: a clear error with the right code, and nothing left behind.

use std::fs;
use std::path::Path;

use podwright::proto::*;
use serde_json::json;
use tonic::{Code, Status};

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image as Made, Layer, Tar};
use crate::harness::{Node, Setup, specs};

/// Insists on an error with this code, whose message holds these words.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &[&str]) {
    let status = answer.expect_err("it should have been refused");
    assert_eq!(status.code(), code, "{status}");
    for word in words {
        assert!(status.message().to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in {status}");
    }
}

/// What makes a good request a bad one.
type Change<'a, T> = &'a dyn Fn(&mut T);

#[tokio::test]
async fn sandbox_names() {
    let node = Node::start().await;
    let with = |change: &dyn Fn(&mut PodSandboxMetadata)| {
        let mut config = node.host_pod("names");
        change(config.metadata.as_mut().unwrap());
        config
    };
    let long = "n".repeat(300);
    let wrong: [(&str, Change<'_, PodSandboxMetadata>); 7] = [
        ("name", &|m| m.name.clear()),
        ("namespace", &|m| m.namespace.clear()),
        ("uid", &|m| m.uid.clear()),
        ("name", &|m| m.name = long.clone()),
        ("name", &|m| m.name = "../../etc".into()),
        ("namespace", &|m| m.namespace = "a/b".into()),
        ("uid", &|m| m.uid = "a\nb".into()),
    ];
    for (word, change) in wrong {
        refused(node.run_pod(with(change), "").await, Code::InvalidArgument, &[word]);
    }
    let mut config = node.host_pod("none");
    config.metadata = None;
    refused(node.run_pod(config, "").await, Code::InvalidArgument, &["metadata"]);
    let empty = node.cri().runtime().run_pod_sandbox(RunPodSandboxRequest::default()).await;
    refused(empty, Code::InvalidArgument, &["config"]);
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    node.finish().await;
}

#[tokio::test]
async fn sandbox_settings() {
    let node = Node::start().await;
    let cases: [(&str, Change<'_, PodSandboxConfig>); 11] = [
        ("hostname", &|c| c.hostname = "h".repeat(65)),
        ("hostname", &|c| c.hostname = "a/b".into()),
        ("log", &|c| c.log_directory = "relative/path".into()),
        ("log", &|c| c.log_directory = "/var/log/../../etc".into()),
        ("log_directory", &|c| c.log_directory = "/etc/passwd".into()),
        ("log_directory", &|c| c.log_directory = "/etc/passwd/logs".into()),
        ("sysctl", &|c| {
            c.linux.as_mut().unwrap().sysctls.insert("kernel.shm_rmid_forced\nkernel.core_pattern".into(), "1".into());
        }),
        ("sysctl", &|c| {
            c.linux
                .as_mut()
                .unwrap()
                .sysctls
                .insert("kernel.shm_rmid_forced".into(), "1+kernel.core_pattern=|/evil".into());
        }),
        ("sysctl", &|c| {
            c.linux.as_mut().unwrap().sysctls.insert("../../../etc/passwd".into(), "x".into());
        }),
        ("port", &|c| {
            c.port_mappings = vec![PortMapping { container_port: 70_000, host_port: 80, ..Default::default() }];
        }),
        ("dns", &|c| {
            c.dns_config = Some(DnsConfig { searches: vec!["a\nnameserver 6.6.6.6".into()], ..Default::default() });
        }),
    ];
    for (number, (word, change)) in cases.iter().enumerate() {
        let mut config = node.pod(&format!("settings{number}"));
        change(&mut config);
        refused(node.run_pod(config, "").await, Code::InvalidArgument, &[word]);
    }
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    node.finish().await;
}

#[tokio::test]
async fn user_namespaces_that_make_no_sense() {
    let node = Node::start().await;
    let mapping = |host_id, container_id, length| IdMapping { host_id, container_id, length };
    let pod = |mode: NamespaceMode, uids: Vec<IdMapping>| {
        let mut config = node.pod("userns");
        let options = specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap();
        options.userns_options = Some(UserNamespace { mode: mode as i32, gids: uids.clone(), uids });
        config
    };
    let one = mapping(100_000, 0, 65_536);
    for config in [
        pod(NamespaceMode::Pod, vec![one, mapping(300_000, 65_536, 10)]),
        pod(NamespaceMode::Pod, vec![mapping(100_000, 1, 65_536)]),
        pod(NamespaceMode::Pod, vec![]),
        pod(NamespaceMode::Container, vec![one]),
        pod(NamespaceMode::Target, vec![one]),
    ] {
        let status = node.run_pod(config, "").await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("userns_options"), "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn cgroup_parents_of_the_wrong_driver() {
    let node = Node::start().await;
    let wrong = if node.driver() == "systemd" { "/kubepods/pod1" } else { "kubepods-pod1.slice" };
    for parent in [wrong, "/a/../../b", "relative/path", "a.slice/b"] {
        let mut config = node.host_pod("cgroup");
        config.linux.as_mut().unwrap().cgroup_parent = parent.to_owned();
        refused(node.run_pod(config, "").await, Code::InvalidArgument, &["cgroup"]);
    }
    node.finish().await;
}

#[tokio::test]
async fn ids_that_nobody_gave_out() {
    let node = Node::start().await;
    let long = "a".repeat(5000);
    for id in ["", "unknown", "../../../etc", "/etc/passwd", "a b", "%2e%2e", &"0".repeat(64), &long] {
        let wanted = if id.is_empty() { Code::InvalidArgument } else { Code::NotFound };
        let either =
            |status: Status| assert!([wanted, Code::InvalidArgument].contains(&status.code()), "{id:?}: {status}");
        either(node.pod_status(id).await.unwrap_err());
        either(node.try_status(id).await.unwrap_err());
        let ghost = crate::harness::Ctr { id: id.to_owned(), log: Default::default() };
        either(node.try_start(&ghost).await.unwrap_err());
        either(node.try_exec(&ghost, &["true"], 1).await.unwrap_err());
        either(
            node.cri()
                .runtime()
                .reopen_container_log(ReopenContainerLogRequest { container_id: id.to_owned() })
                .await
                .unwrap_err(),
        );
        let nowhere = crate::harness::Pod { id: id.to_owned(), config: node.pod("ghost") };
        either(node.try_create(&nowhere, node.sleeper("c")).await.unwrap_err());
        if !id.is_empty() && id.len() <= 128 {
            node.stop_pod(id).await.expect("stopping what is not there succeeds");
            node.remove_pod(id).await.expect("removing what is not there succeeds");
            node.stop_container(id, 0).await.expect("stopping what is not there succeeds");
            node.remove_container(id).await.expect("removing what is not there succeeds");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn an_ambiguous_prefix_names_nothing() {
    let node = Node::start().await;
    // Seventeen sandboxes: two begin with the same digit.
    let mut pods = Vec::new();
    for number in 0..17 {
        pods.push(node.up(node.host_pod(&format!("p{number}"))).await);
    }
    let twice = (0..17).find(|&at| pods.iter().filter(|pod| pod.id[..1] == pods[at].id[..1]).count() > 1).unwrap();
    node.pod_status(&pods[twice].id[..1]).await.expect_err("an ambiguous prefix");
    node.stop_pod(&pods[twice].id[..1]).await.ok();
    let ready = node
        .pods(PodSandboxFilter::default())
        .await
        .iter()
        .filter(|pod| pod.state() == PodSandboxState::SandboxReady)
        .count();
    assert_eq!(ready, 17, "an ambiguous prefix must not stop anything");
    node.finish().await;
}

#[tokio::test]
async fn container_requests() {
    let node = Node::ready().await;
    let pod = node.up(node.host_pod("requests")).await;
    let cases: [(&str, Code, Change<'_, ContainerConfig>); 12] = [
        ("name", Code::InvalidArgument, &|c| c.metadata.as_mut().unwrap().name.clear()),
        ("name", Code::InvalidArgument, &|c| c.metadata.as_mut().unwrap().name = "../x".into()),
        ("name", Code::InvalidArgument, &|c| c.metadata.as_mut().unwrap().name = "n".repeat(300)),
        ("metadata", Code::InvalidArgument, &|c| c.metadata = None),
        ("image", Code::InvalidArgument, &|c| c.image = None),
        ("image", Code::InvalidArgument, &|c| c.image = Some(specs::image(""))),
        ("no-such-image", Code::NotFound, &|c| c.image = Some(specs::image("docker.io/library/no-such-image:1"))),
        ("log", Code::InvalidArgument, &|c| c.log_path = "../../escape.log".into()),
        ("log", Code::InvalidArgument, &|c| c.log_path = "/etc/cron.d/evil".into()),
        ("env", Code::InvalidArgument, &|c| c.envs = vec![specs::env("", "x")]),
        ("env", Code::InvalidArgument, &|c| c.envs = vec![specs::env("A=B", "x")]),
        ("container_path", Code::InvalidArgument, &|c| c.mounts = vec![specs::bind("/tmp", "relative")]),
    ];
    for (number, (word, code, change)) in cases.iter().enumerate() {
        let mut config = node.sleeper(&format!("c{number}"));
        change(&mut config);
        refused(node.try_create(&pod, config).await, *code, &[word]);
    }
    assert_eq!(node.containers(ContainerFilter::default()).await, []);
    let request = CreateContainerRequest { pod_sandbox_id: pod.id.clone(), config: None, sandbox_config: None };
    refused(node.cri().runtime().create_container(request).await, Code::InvalidArgument, &["config"]);
    node.finish().await;
}

/// Only what is in the container tells that these cannot be.
async fn contradictions(handler: &str) {
    let Some(node) = crate::handlers::node_with(handler).await else { return };
    let pod = crate::handlers::up(&node, handler, "contradictions").await;
    let volume = node.dir().join("volume");
    fs::create_dir_all(volume.join("folder")).unwrap();
    fs::write(volume.join("file"), "x").unwrap();
    let (folder, file) = (volume.join("folder"), volume.join("file"));
    let (folder, file) = (folder.to_str().unwrap(), file.to_str().unwrap());
    let on = |source: &str, path: &str| vec![specs::bind(source, path)];
    let in_volume = |path: &str| vec![specs::bind(&volume, "/v"), specs::bind(folder, path)];
    let mut cases: Vec<(&str, &str, &str, Vec<Mount>)> = vec![
        ("working_dir", "/etc/passwd", "/etc/passwd", vec![]),
        ("working_dir", "/etc/passwd/x", "/etc/passwd/x", vec![]),
        ("working_dir", "/v/file", "/v/file", vec![specs::bind(&volume, "/v")]),
        ("config.mounts", "/etc/passwd", "", on(folder, "/etc/passwd")),
        ("config.mounts", "/bin", "", on(file, "/bin")),
        ("config.mounts", "/etc/passwd/x", "", on(folder, "/etc/passwd/x")),
        ("config.mounts", "/etc/passwd/x", "", on(file, "/etc/passwd/x")),
        ("config.mounts", "/v/file", "", in_volume("/v/file")),
        ("config.mounts", "/proc/meminfo", "", on(folder, "/proc/meminfo")),
    ];
    if handler == "youki" {
        // runc puts the folder there, and goes on.
        cases.push(("config.mounts", "/dev/null", "", on(folder, "/dev/null")));
    }
    for (number, (field, value, working_dir, mounts)) in cases.into_iter().enumerate() {
        let mut config = node.sleeper(&format!("c{number}"));
        (config.working_dir, config.mounts) = (working_dir.to_owned(), mounts);
        let answer = match node.try_create(&pod, config).await {
            Err(status) => Err(status),
            Ok(ctr) => node.try_start(&ctr).await,
        };
        println!("{number} {field} {value}: {answer:?}");
        refused(answer, Code::InvalidArgument, &[field, value]);
    }
    // What goes together does so still.
    let mut config =
        node.sh("fine", "cat /etc/passwd /v/folder/new; pwd; head -c 2 /dev/random | tr '\\0' z; cat /dev/tty");
    config.mounts =
        vec![specs::bind(file, "/etc/passwd"), specs::bind(&volume, "/v"), specs::bind(file, "/v/folder/new")];
    config.working_dir = "/v/folder".into();
    // A trick of those who wait for entropy: a file or a device in another device's place.
    config.mounts.extend([specs::bind("/dev/zero", "/dev/random"), specs::bind(file, "/dev/tty")]);
    assert_eq!(node.outcome(&pod, config).await, (0, "xx/v/folder\nzzx".to_owned()));
    node.finish().await;
}

#[tokio::test]
async fn mounts_and_folders_that_cannot_be() {
    contradictions("youki").await;
}

#[tokio::test]
async fn mounts_and_folders_that_cannot_be_with_runc() {
    contradictions("runc").await;
}

/// The log folder holds a link that leads away: the log is not written through it.
#[tokio::test]
async fn a_log_path_that_escapes_by_a_link() {
    let node = Node::ready().await;
    let pod = node.up(node.host_pod("loglink")).await;
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("0.log"), "precious").unwrap();
    fs::create_dir_all(&pod.config.log_directory).unwrap();
    std::os::unix::fs::symlink(&outside, Path::new(&pod.config.log_directory).join("c")).unwrap();
    if let Ok(ctr) = node.try_create(&pod, node.sh("c", "echo written")).await {
        let _ = node.try_start(&ctr).await;
    }
    assert_eq!(fs::read_to_string(outside.join("0.log")).unwrap(), "precious");
    node.finish().await;
}

#[tokio::test]
async fn users_that_are_no_numbers() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let pod = node.up(node.host_pod("users")).await;
    for (number, user) in
        ["2147483648", "4294967295", "4294967296", "18446744073709551615", "-1", "0x0", "root:4294967296"]
            .iter()
            .enumerate()
    {
        let passwd = format!("root:x:0:0::/root:/bin/sh\n{}:x:0:0::/:/bin/sh\n", user.split(':').next().unwrap());
        let layers = vec![Layer::busybox(), Tar::new().file("etc/passwd", &passwd).gzip()];
        let reference = registry.push("users", &number.to_string(), &Made::new(layers, json!({ "User": user })));
        node.try_pull(&reference, None).await.unwrap();
        let mut config = node.sh(&format!("c{number}"), "id -u");
        config.image = Some(specs::image(&reference));
        let answer = match node.try_create(&pod, config).await {
            Err(status) => Err(status),
            Ok(ctr) => node.try_start(&ctr).await,
        };
        answer.expect_err(&format!("user {user} must not become root"));
    }
    node.finish().await;
}

#[tokio::test]
async fn programs_that_cannot_be_run() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("programs")).await;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("text"), "no program").unwrap();
    for (name, program, code, words) in [
        ("missing", "/no/such/program", 127, ["/no/such/program", "no such file"]),
        ("not-in-path", "no-such-program", 127, ["no-such-program", "not found"]),
        ("not-executable", "/data/text", 126, ["/data/text", "permission denied"]),
        ("folder", "/data", 126, ["/data", "denied"]),
    ] {
        let mut config = node.run(name, &[program]);
        config.mounts = vec![specs::bind(&volume, "/data")];
        let ctr = node.create(&pod, config).await;
        let status = node.try_start(&ctr).await.expect_err(name);
        let message = status.message().to_lowercase();
        assert!(words.iter().any(|word| message.contains(word)) && message.contains(program), "{name}: {status}");
        let status = node.status(&ctr).await;
        assert_eq!(status.state(), ContainerState::ContainerExited, "{name}");
        assert!([code, 128].contains(&status.exit_code), "{name}: {status:?}");
        assert!(!status.reason.is_empty() && status.message.to_lowercase().contains(program), "{name}: {status:?}");
        node.remove_container(&ctr.id).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn a_full_disk() {
    let node = Node::with(Setup { disk: 3 << 20, ..Setup::default() }).await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let small = registry.push("small", "1", &Made::new(vec![Tar::new().file("a", "1").gzip()], json!({})));
    let big = Tar::new().file("big", &"x".repeat(16 << 20));
    let big = registry.push("big", "1", &Made::new(vec![big.gzip()], json!({})));
    refused(node.try_pull(&big, None).await, Code::ResourceExhausted, &["space"]);
    assert_eq!(node.images().await, []);
    node.try_pull(&small, None).await.expect("there is room for a small image afterwards");
    // Not a byte left: a sandbox is refused, and its traces are removed.
    let filler = node.dir().join("root/filler");
    let _ = fs::write(&filler, vec![0; 3 << 20]);
    let answer = node.run_pod(node.pod("full"), "").await;
    if let Ok(pod) = &answer {
        node.down(pod).await;
    }
    fs::remove_file(&filler).unwrap();
    let pod = node.up(node.pod("room")).await;
    node.down(&pod).await;
    node.finish().await;
}

/// Bytes that are no gRPC on the socket.
#[tokio::test]
async fn noise_on_the_socket() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::start().await;
    for noise in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 4096], &[0xff; 100_000]] {
        let mut stream = tokio::net::UnixStream::connect(node.dir().join("cri.sock")).await.unwrap();
        let _ = stream.write_all(noise).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(crate::harness::secs(5), stream.read_to_end(&mut rest)).await;
    }
    node.version().await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn requests_that_are_too_large() {
    let node = Node::ready().await;
    let mut config = node.host_pod("large");
    config.annotations.insert("big".into(), "x".repeat(32 << 20));
    let status = node.run_pod(config, "").await.unwrap_err();
    assert!([Code::ResourceExhausted, Code::OutOfRange, Code::InvalidArgument].contains(&status.code()), "{status}");
    let many: Vec<_> = (0..4000).map(|n| format!("{n:05}")).collect();
    let mut config = node.host_pod("labels");
    config.labels.extend(many.iter().map(|name| (name.clone(), "x".repeat(200))));
    refused(node.run_pod(config, "").await, Code::InvalidArgument, &["config.labels", "in all"]);
    // Each of them is fine, and the request is; but its record would not be read back by the next daemon.
    let mut config = node.host_pod("sandbox");
    config.log_directory = node.dir().join("logs-of-none").to_string_lossy().into_owned();
    let unified = many[..1500].iter().map(|name| (format!("memory.{name}"), "\"".repeat(4000))).collect();
    let overhead = LinuxContainerResources { unified, ..Default::default() };
    config.linux.as_mut().unwrap().overhead = Some(overhead);
    refused(node.run_pod(config, "").await, Code::InvalidArgument, &["overhead.unified"]);
    assert!(!node.dir().join("logs-of-none").exists());
    let pod = node.up(node.host_pod("p")).await;
    let mut config = node.sleeper("c");
    config.envs = many[..60].iter().map(|name| specs::env(name, &"x".repeat(100 << 10))).collect();
    refused(node.try_create(&pod, config).await, Code::InvalidArgument, &["config.envs"]);
    assert_eq!(node.containers(ContainerFilter::default()).await, []);
    let folder = node.dir().join("root/pods").join(&pod.id).join("containers");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    node.version().await.unwrap();
    node.finish().await;
}
