//! The daemon as a service of systemd, by the unit that is shipped.

use std::fs;
use std::path::{Path, PathBuf};

use podwright::proto::*;

use crate::harness::daemon::program;
use crate::harness::{Node, Setup, cgroups, eventually, host, secs};

/// The unit, which is gone with this.
struct Service {
    name: String,
    file: PathBuf,
}

impl Service {
    /// The shipped unit, but that the daemon runs in this test's namespaces with this node's configuration.
    fn install(node: &Node) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/podwright.service");
        let shipped = fs::read_to_string(shipped).unwrap();
        let place = format!("/proc/{}/task/{}/ns", std::process::id(), rustix::thread::gettid());
        let command = format!(
            "ExecStart=/usr/bin/nsenter --mount={place}/mnt --net={place}/net {} serve --config {}/config.toml",
            program().display(),
            node.dir().display()
        );
        let line = shipped.lines().find(|line| line.starts_with("ExecStart=")).expect("ExecStart= in the unit");
        let name = format!("{}.service", node.cgroup_parent().trim_end_matches(".slice").trim_start_matches('/'));
        let file = Path::new("/run/systemd/system").join(&name);
        fs::write(&file, shipped.replace(line, &command)).unwrap();
        host::run("systemctl", &["daemon-reload"]);
        Self { name, file }
    }

    fn control(&self, verb: &str) {
        host::run("systemctl", &[verb, &self.name]);
    }

    fn property(&self, name: &str) -> String {
        host::run("systemctl", &["show", "--value", "-p", name, &self.name]).trim().to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for verb in ["stop", "reset-failed"] {
            let _ = std::process::Command::new("systemctl").args([verb, &self.name]).output();
        }
        let members = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/{}/cgroup.procs", self.name));
        for pid in members.unwrap_or_default().lines().filter_map(|line| line.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let _ = fs::remove_file(&self.file);
        let _ = std::process::Command::new("systemctl").arg("daemon-reload").output();
    }
}

#[tokio::test]
async fn pods_outlive_every_end_of_the_service() {
    if !Path::new("/run/systemd/system").exists() || !cgroups::is_v2() {
        println!("SKIPPED: this machine's init is not systemd; make test-node runs this");
        return;
    }
    let mut node = Node::prepare(&Setup::default());
    let service = Service::install(&node);
    // It is of type notify: this returns once the daemon has said that it is ready.
    service.control("start");
    node.version().await.expect("Version");
    let kept = ["KillMode", "OOMPolicy", "Delegate", "Restart"].map(|name| service.property(name));
    assert_eq!(kept, ["process", "continue", "yes", "always"]);
    node.pull(crate::harness::BUSYBOX).await;
    let pod = node.up(node.pod("service")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let init = async || node.exec(&ctr, &["cat", "/proc/1/stat"]).await;
    let before = init().await;
    let start_time = |stat: &str| stat.rsplit(')').next().unwrap().split(' ').nth(20).unwrap().to_owned();

    for end in ["restart", "kill", "stop"] {
        let main = service.property("MainPID");
        match end {
            "restart" => service.control("restart"),
            "kill" => {
                let pid = nix::unistd::Pid::from_raw(main.parse().unwrap());
                nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
                eventually(secs(20), "the service's return", async || {
                    let (state, pid) = (service.property("ActiveState"), service.property("MainPID"));
                    if state == "active" && pid != main { Ok(()) } else { Err(format!("{state}, pid {pid}")) }
                })
                .await;
            }
            _ => {
                service.control("stop");
                assert_eq!(service.property("Result"), "success");
                assert!(!node.dir().join("cri.sock").exists());
                service.control("start");
            }
        }
        assert_ne!(service.property("MainPID"), main);
        // The client may have to notice that its connection is gone.
        eventually(secs(5), "an answer", async || node.version().await.map_err(|status| status.to_string())).await;
        assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning, "after {end}");
        assert_eq!(start_time(&init().await), start_time(&before), "another init after {end}");
        let state = node.pod_status(&pod.id).await.unwrap().status.unwrap().state();
        assert_eq!(state, PodSandboxState::SandboxReady, "after {end}");
    }
    node.down(&pod).await;
    let members = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/{}/cgroup.procs", service.name)).unwrap();
    assert_eq!(members.trim(), service.property("MainPID"), "only the daemon is left in its service");
    service.control("stop");
    assert_eq!(service.property("Result"), "success");
}
