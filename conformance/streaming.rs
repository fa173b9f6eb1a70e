//! Exec, attach and port-forward as clients of the streaming server have them: by a URL from the CRI, over SPDY and
//! WebSocket.

mod attach;
pub mod client;
mod flood;
mod forward;
mod handlers;
mod hostile;
mod protocols;
mod tokens;

use podwright::proto::*;

use client::{Socket, attach_url, exec_url};

use crate::harness::{Ctr, Node, eventually, host, secs, specs};

const V4: &str = "v4.channel.k8s.io";
pub const V5: &str = "v5.channel.k8s.io";
/// Streams of a process with all of them.
const ALL: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

async fn exec(node: &Node, ctr: &Ctr, command: &[&str], tty: bool) -> Socket {
    Socket::open(&exec_url(node, ctr, command, tty).await, V5).await
}

async fn attach(node: &Node, ctr: &Ctr) -> Socket {
    Socket::open(&attach_url(node, ctr, true, false).await, V5).await
}

#[tokio::test]
async fn an_exec_is_the_container_s_own_as_an_exec_sync_is() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("exec")).await;
    let mut config = node.sleeper("c");
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1234 });
    security.no_new_privs = true;
    let ctr = node.launch(&pod, config).await;
    let script = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|SigBlk|SigIgn):' /proc/self/status; \
                  cat /proc/self/oom_score_adj /proc/self/cgroup /proc/self/limits; ls /proc/self/fd";
    let sync = node.exec(&ctr, &["sh", "-c", script]).await;
    assert!(sync.contains("Seccomp:\t2"), "{sync}");
    let [out, err, status] = exec(&node, &ctr, &["sh", "-c", script], false).await.until(None).await;
    assert_eq!((out.as_str(), err.as_str()), (sync.as_str(), ""));
    assert!(status.contains("Success"), "{status}");
    let [_, err, status] = exec(&node, &ctr, &["sh", "-c", "echo err >&2; kill -9 $$"], false).await.until(None).await;
    assert_eq!(err, "err\n");
    assert!(status.contains("137"), "{status}");
    let mut session = exec(&node, &ctr, &["sh", "-c", "tty; echo $TERM; read x; echo got $x"], true).await;
    session.until(Some("/dev/pts/0\r\nxterm\r\n")).await;
    session.write("word\n").await;
    assert!(session.until(None).await[0].contains("got word"));
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_of_an_exec_belongs_to_its_user() {
    let node = Node::ready().await;
    for first in [None, Some(200_000)] {
        let mut config = node.pod(if first.is_some() { "mapped" } else { "plain" });
        let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
        specs::sandbox_security(&mut config).namespace_options.get_or_insert_default().userns_options =
            first.map(|id| UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(id), gids: ids(id) });
        let pod = node.up(config).await;
        for user in [0, 1234] {
            let mut config = node.sleeper(&format!("as-{user}"));
            specs::security(&mut config).run_as_user = Some(Int64Value { value: user });
            let ctr = node.launch(&pod, config).await;
            let script = "stat -c %u $(tty) && echo written > $(tty)";
            let [out, _, status] = exec(&node, &ctr, &["sh", "-c", script], true).await.until(None).await;
            assert_eq!(out, format!("{user}\r\nwritten\r\n"), "{first:?} {status}");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_dies_takes_execs_with_it_and_new_clients_may_attach() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("dies")).await;
    let mut config = node.sh("c", "while read x; do echo \"got $x\"; done; echo eof");
    config.stdin = true;
    let ctr = node.launch(&pod, config).await;
    let mut attached = attach(&node, &ctr).await;
    attached.write("one\n").await;
    attached.until(Some("got one\n")).await;
    let mut session = exec(&node, &ctr, &["sh", "-c", "sleep 7654 & echo up; sleep 7655"], false).await;
    session.until(Some("up\n")).await;
    node.kill9();
    eventually(secs(10), "the end of what was executed", async || {
        let left: Vec<_> = host::descendants().into_iter().filter(|p| p.command.starts_with("sleep 765")).collect();
        if left.iter().all(|process| process.state == 'Z') { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    node.start_daemon().await;
    let mut attached = attach(&node, &ctr).await;
    attached.write("two\n").await;
    let [out, ..] = attached.until(Some("got two\n")).await;
    assert_eq!(out, "got two\n", "from now on");
    drop(attached);
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    node.finish().await;
}
