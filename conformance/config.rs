//! The daemon as a program: its configuration, its socket, its manners.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::config::write;
use crate::harness::cri::Cri;
use crate::harness::daemon::{Daemon, program};
use crate::harness::{Node, Setup, secs};

fn podwright(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

/// Standard error of a start that is refused.
async fn refused(node: &Node, config: &str) -> String {
    let before = node.daemon_log().len();
    let daemon = Daemon::spawn(node.dir(), &["serve", "--config", config], None);
    let status = daemon.ended(secs(10)).await;
    assert!(!status.success(), "it should have refused to start");
    node.daemon_log()[before..].to_owned()
}

#[test]
fn the_default_configuration_is_valid_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let out = podwright(&["config", "default"]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(!text.parse::<toml::Table>().unwrap().is_empty());
    let file = folder.path().join("config.toml");
    fs::write(&file, &text).unwrap();
    let out = podwright(&["config", "check", "--config", file.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn check_and_dump_name_the_file_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.toml"), folder.path().join("bad.toml"));
    fs::write(&good, "[server]\naddress = \"/run/mine.sock\"\n").unwrap();
    fs::write(&bad, "[server]\nadress = \"/run/mine.sock\"\n").unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let said = |args: &[&str]| {
        let out = podwright(args);
        let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.success(), format!("{text}{errors}"))
    };
    for verb in ["check", "dump"] {
        let (fine, text) = said(&["config", verb, "--config", good]);
        assert!(fine && text.contains(if verb == "check" { good } else { "/run/mine.sock" }), "{text}");
        assert_eq!(said(&["config", verb, good]), (fine, text), "the file alone means the same");
        let (fine, text) = said(&["config", verb, "--config", bad]);
        assert!(!fine && text.contains(bad) && text.contains("server.adress"), "{text}");
        assert!(!said(&["config", verb, "--config", good, good]).0, "one of the two");
    }
}

#[test]
fn fragments_are_merged_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    fs::create_dir(dir.join("conf.d")).unwrap();
    write(dir, "config.toml", "[log]\nlevel = \"error\"\n[server]\naddress = \"/run/first.sock\"\n");
    write(dir, "conf.d/20-b.toml", "[log]\nlevel = \"warn\"\n");
    write(dir, "conf.d/10-a.toml", "[log]\nlevel = \"debug\"\n");
    let out = podwright(&["config", "dump", "--config", dir.join("config.toml").to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let merged: toml::Table = String::from_utf8(out.stdout).unwrap().parse().unwrap();
    assert_eq!(merged["log"]["level"].as_str(), Some("warn"));
    assert_eq!(merged["server"]["address"].as_str(), Some("/run/first.sock"));
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_by_file_key_and_reason() {
    let node = Node::start().await;
    let dir = node.dir();
    let cases = [
        ("[server]\nadress = \"/run/x.sock\"", "server.adress"),
        ("[image]\nmax_concurrent_layers = \"many\"", "image.max_concurrent_layers"),
        ("[cgroup]\ndriver = \"none\"", "cgroup.driver"),
        ("[paths]\nroot = \"relative\"", "paths.root"),
        ("[network]\nplugin_timeout = \"soon\"", "network.plugin_timeout"),
        ("[nonsense]\na = 1", "nonsense"),
    ];
    for (number, (text, key)) in cases.iter().enumerate() {
        let name = format!("wrong{number}.toml");
        write(dir, &name, text);
        let said = refused(&node, dir.join(&name).to_str().unwrap()).await;
        assert!(said.contains(&name) && said.contains(key), "{text}: {said}");
    }
    let said = refused(&node, "/nonexistent/config.toml").await;
    assert!(said.contains("/nonexistent/config.toml"), "{said}");
    node.finish().await;
}

#[tokio::test]
async fn a_wrong_fragment_is_named() {
    let node = Node::prepare(&Setup { extra: "[log]\nlevel = 7\n".to_owned(), ..Setup::default() });
    let said = refused(&node, node.dir().join("config.toml").to_str().unwrap()).await;
    assert!(said.contains("50-test.toml") && said.contains("log.level"), "{said}");
}

#[tokio::test]
async fn flags_win_over_the_file() {
    let mut node = Node::start().await;
    node.terminate().await;
    let dir = node.dir().to_owned();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (config, address, root, state) = (path("config.toml"), path("other/x.sock"), path("root2"), path("state2"));
    let args = [
        "serve",
        "--config",
        &config,
        "--address",
        &address,
        "--root",
        &root,
        "--state",
        &state,
        "--log-level",
        "trace",
    ];
    let notify = dir.join("notify2.sock");
    let socket = tokio::net::UnixDatagram::bind(&notify).unwrap();
    let daemon = Daemon::spawn(&dir, &args, Some(&notify));
    tokio::time::timeout(secs(20), socket.recv(&mut [0; 512])).await.unwrap().unwrap();
    let cri = Cri::new(Path::new(&address));
    cri.runtime().version(podwright::proto::VersionRequest::default()).await.unwrap();
    assert!(Path::new(&root).is_dir() && Path::new(&state).is_dir());
    assert!(daemon.terminate(secs(20)).await.success());
    node.start_daemon().await;
    node.finish().await;
}

#[tokio::test]
async fn socket_and_folders_are_closed_to_others() {
    let mut node = Node::start().await;
    node.terminate().await;
    let dir = node.dir().to_owned();
    let address = dir.join("run/podwright/cri.sock");
    fs::create_dir(dir.join("run")).unwrap();
    let notify = dir.join("notify2.sock");
    let socket = tokio::net::UnixDatagram::bind(&notify).unwrap();
    let config = dir.join("config.toml");
    let args = ["serve", "--config", config.to_str().unwrap(), "--address", address.to_str().unwrap()];
    let daemon = Daemon::spawn(&dir, &args, Some(&notify));
    tokio::time::timeout(secs(20), socket.recv(&mut [0; 512])).await.unwrap().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&address), 0o660);
    assert_eq!(mode(address.parent().unwrap()), 0o711);
    for folder in ["root", "state"] {
        for entry in fs::read_dir(dir.join(folder)).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            assert_eq!(meta.mode() & 0o007 & !0o001, 0, "{}: others may read or write", entry.path().display());
        }
    }
    assert!(daemon.terminate(secs(20)).await.success());
    node.start_daemon().await;
    node.finish().await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_root_is_refused() {
    let node = Node::start().await;
    let said = {
        let before = node.daemon_log().len();
        let other = node.dir().join("other.sock");
        let config = node.dir().join("config.toml");
        let args = ["serve", "--config", config.to_str().unwrap(), "--address", other.to_str().unwrap()];
        let status = Daemon::spawn(node.dir(), &args, None).ended(secs(10)).await;
        assert!(!status.success());
        node.daemon_log()[before..].to_owned()
    };
    assert!(said.contains(node.dir().join("root").to_str().unwrap()), "{said}");
    node.version().await.expect("the first one goes on");
    node.finish().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let mut node = Node::start().await;
    node.kill9();
    assert!(node.dir().join("cri.sock").exists(), "the killed daemon's socket stays");
    node.start_daemon().await;
    node.finish().await;
}

#[tokio::test]
async fn each_call_is_logged_in_a_span_with_its_ids() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("spans")).await;
    node.pull(crate::harness::BUSYBOX).await;
    let log = node.daemon_log();
    assert!(log.contains("RunPodSandbox") && log.contains(&pod.id[..12]), "{log}");
    node.finish().await;
}

#[tokio::test]
async fn check_tells_what_the_machine_lacks_and_the_cure() {
    let node = Node::prepare(&Setup::default());
    // The CNI configuration names a plugin that is nowhere.
    let list = serde_json::json!({
        "cniVersion": "1.0.0", "name": "broken", "plugins": [{ "type": "bridge" }, { "type": "no-such-plugin" }],
    });
    crate::harness::config::install_cni(node.dir(), &list);
    let out = podwright(&["check", "--config", node.dir().join("config.toml").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["overlay", "cgroup", "capabilities", "no-such-plugin"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    let lacking = said.lines().find(|line| line.contains("no-such-plugin")).unwrap();
    assert!(lacking.starts_with("FAIL") && lacking.contains("cure"), "{lacking}");
    assert!(!out.status.success());
}
