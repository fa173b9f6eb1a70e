//! Seccomp profiles that leave decisions to somebody else: SCMP_ACT_NOTIFY.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use podwright::proto::*;
use podwright::sys::rights;
use rustix::event::{PollFd, PollFlags};
use tonic::Code;

use crate::harness::{Node, specs};

/// Takes descriptors from its socket, notes what came with each, and answers every question with EDQUOT.
struct Agent {
    told: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    fn listen(socket: &Path) -> Self {
        let server = UnixListener::bind(socket).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&told);
        // The threads end with the test's process.
        std::thread::spawn(move || {
            for client in server.incoming() {
                let mut buffer = vec![0; 1 << 16];
                let received = rights::receive(client.unwrap(), &mut buffer).unwrap();
                buffer.truncate(received.bytes);
                // It is there before who asks is answered, and goes on.
                if !buffer.is_empty() {
                    notes.lock().unwrap().push(String::from_utf8(buffer).unwrap());
                }
                for listener in received.descriptors {
                    std::thread::spawn(move || answer(&listener));
                }
            }
        });
        Self { told }
    }

    /// The state that came last.
    fn last(&self) -> serde_json::Value {
        serde_json::from_str(self.told.lock().unwrap().last().unwrap()).unwrap()
    }
}

fn answer(listener: &OwnedFd) {
    loop {
        let mut wait = [PollFd::new(listener, PollFlags::IN)];
        rustix::event::poll(&mut wait, None).unwrap();
        if !wait[0].revents().contains(PollFlags::IN) {
            return; // nobody is left who could ask
        }
        // Who asked may be gone by now.
        if let Ok(question) = ScmpNotifReq::receive(listener.as_raw_fd()) {
            let answer = ScmpNotifResp::new_error(question.id, -libc::EDQUOT, ScmpNotifRespFlags::empty());
            let _ = answer.respond(listener.as_raw_fd());
        }
    }
}

fn asked(mut config: ContainerConfig, profile: &Path) -> ContainerConfig {
    specs::security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost as i32,
        localhost_ref: profile.to_string_lossy().into_owned(),
    });
    config
}

#[tokio::test]
async fn somebody_else_decides() {
    let node = Node::ready().await;
    let socket = node.dir().join("agent.sock");
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

    let agent = Agent::listen(&socket);
    for nnp in [false, true] {
        let mut config = asked(node.sh(if nnp { "nnp" } else { "plain" }, script), &profile);
        specs::security(&mut config).no_new_privs = nnp;
        let ctr = node.launch(&pod, config).await;
        let log = node.logged(&ctr, "up").await;
        let refused = log.iter().filter(|line| line.text.to_lowercase().contains("quota exceeded")).count();
        assert_eq!(refused, 2, "{log:?}");
        let state = agent.last();
        let pid = node.pid_of(&ctr).await;
        assert_eq!((&state["fds"], &state["metadata"]), (&serde_json::json!(["seccompFd"]), &"which=mine".into()));
        assert_eq!((&state["pid"], &state["state"]["pid"]), (&pid.into(), &pid.into()));
        assert_eq!((&state["state"]["id"], &state["state"]["status"]), (&ctr.id.as_str().into(), &"creating".into()));
        // A process that is run in it later is asked about, too.
        let out = node.exec(&ctr, &["sh", "-c", "mkdir /tmp/z 2>&1; ls /tmp"]).await;
        assert!(out.to_lowercase().contains("quota exceeded") && !out.contains("\nz"), "{out}");
        let state = agent.last();
        assert_eq!(state["state"]["status"], "running");
        assert_ne!(state["pid"].as_i64(), Some(i64::from(pid)));
        node.stop_container(&ctr.id, 0).await.unwrap();
    }
    fs::write(&profile, text.to_string().replace("listenerPath", "unused")).unwrap();
    let error = node.try_create(&pod, asked(node.sh("alone", "true"), &profile)).await.unwrap_err();
    assert!(error.message().contains("listenerPath"), "{error}");
    node.finish().await;
}
