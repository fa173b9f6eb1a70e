//! Seccomp profiles that leave decisions to somebody else: SCMP_ACT_NOTIFY.

use std::fs;
use std::process::{Child, Command, Stdio};

use podwright::proto::*;
use tonic::Code;

use crate::harness::{Node, eventually, secs, specs};

/// Takes descriptors from its socket, writes down what came with each, and answers every question with EDQUOT.
const AGENT: &str = r#"
import array, fcntl, json, os, select, socket, struct, sys
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen(8)
print("listening", flush=True)
fds, clients = [], []
while True:
    for ready in select.select([server] + clients + fds, [], [])[0]:
        if ready is server:
            clients.append(server.accept()[0])
        elif ready in clients:
            text, extra, _, _ = ready.recvmsg(65536, socket.CMSG_SPACE(4))
            clients.remove(ready)
            for _, _, data in extra:
                fds.append(array.array("i", data)[0])
            if text:
                print(text.decode(), flush=True)
        else:
            question = bytearray(80)
            try:
                fcntl.ioctl(ready, 0xc0502100, question)
                fcntl.ioctl(ready, 0xc0182101, struct.pack("QqiI", struct.unpack("Q", question[:8])[0], 0, -122, 0))
            except OSError:
                fds.remove(ready); os.close(ready)
"#;

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn asked(mut config: ContainerConfig, profile: &std::path::Path) -> ContainerConfig {
    specs::security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost as i32,
        localhost_ref: profile.to_string_lossy().into_owned(),
    });
    config
}

#[tokio::test]
async fn somebody_else_decides() {
    let node = Node::ready().await;
    let (socket, told) = (node.dir().join("agent.sock"), node.dir().join("told"));
    let profile = node.dir().join("profile.json");
    let text = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "which=mine",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    fs::write(&profile, text.to_string()).unwrap();
    let pod = node.up(node.pod("notify")).await;
    let script = "mkdir /tmp/x; mkdir /tmp/y; echo up; sleep 3600";
    let error = node.try_create(&pod, asked(node.sh("nobody", script), &profile)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("agent.sock"), "{error}");

    let agent = Command::new("python3")
        .args(["-c", AGENT, &socket.to_string_lossy()])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&told).unwrap())
        .spawn()
        .unwrap();
    let agent = Agent(agent);
    let lines = || fs::read_to_string(&told).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    eventually(secs(20), "the agent listens", async || {
        lines().first().map(drop).ok_or_else(|| "it does not".to_owned())
    })
    .await;
    for nnp in [false, true] {
        let mut config = asked(node.sh(if nnp { "nnp" } else { "plain" }, script), &profile);
        specs::security(&mut config).no_new_privs = nnp;
        let ctr = node.launch(&pod, config).await;
        let log = node.logged(&ctr, "up").await;
        let refused = log.iter().filter(|line| line.text.to_lowercase().contains("quota exceeded")).count();
        assert_eq!(refused, 2, "{log:?}");
        let state: serde_json::Value = serde_json::from_str(lines().last().unwrap()).unwrap();
        let pid = node.pid_of(&ctr).await;
        assert_eq!((&state["fds"], &state["metadata"]), (&serde_json::json!(["seccompFd"]), &"which=mine".into()));
        assert_eq!((&state["pid"], &state["state"]["pid"]), (&pid.into(), &pid.into()));
        assert_eq!((&state["state"]["id"], &state["state"]["status"]), (&ctr.id.as_str().into(), &"creating".into()));
        // A process that is run in it later is asked about, too.
        let out = node.exec(&ctr, &["sh", "-c", "mkdir /tmp/z 2>&1; ls /tmp"]).await;
        assert!(out.to_lowercase().contains("quota exceeded") && !out.contains("\nz"), "{out}");
        let state: serde_json::Value = serde_json::from_str(lines().last().unwrap()).unwrap();
        assert_eq!(state["state"]["status"], "running");
        assert_ne!(state["pid"].as_i64(), Some(i64::from(pid)));
        node.stop_container(&ctr.id, 0).await.unwrap();
    }
    fs::write(&profile, text.to_string().replace("listenerPath", "unused")).unwrap();
    let error = node.try_create(&pod, asked(node.sh("alone", "true"), &profile)).await.unwrap_err();
    assert!(error.message().contains("listenerPath"), "{error}");
    drop(agent);
    node.finish().await;
}
