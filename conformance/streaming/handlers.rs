//! Exec and attach with each runtime handler that is installed.

use super::client::{Socket, Spdy, attach_url, code_of, exec_url, script_url};
use super::{ALL, V4, V5};
use crate::handlers::{node_with, up};
use crate::harness::{Ctr, Node, eventually, secs, specs, with_each_handler};
use crate::userns;
use podwright::proto::Int64Value;

/// Whether a process runs in the container, asked inside: some runtimes' processes are not to be seen from outside.
async fn inside(node: &Node, ctr: &Ctr, command: &str) -> bool {
    node.exec(ctr, &["ps", "-o", "args"]).await.lines().any(|line| line.trim() == command)
}

/// Waits until it does: a shell may still be about to become it.
async fn runs(node: &Node, ctr: &Ctr, command: &str) {
    eventually(secs(30), &format!("{command:?} inside"), async || {
        if inside(node, ctr, command).await { Ok(()) } else { Err("it does not run".to_owned()) }
    })
    .await;
}

async fn ends(node: &Node, ctr: &Ctr, command: &str) {
    eventually(secs(30), &format!("the end of {command:?} inside"), async || {
        if inside(node, ctr, command).await { Err("it runs".to_owned()) } else { Ok(()) }
    })
    .await;
}

async fn exec(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "exec").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let mut client = Spdy::open(&script_url(&node, &ctr, "cat; echo err >&2; exit 5").await, V4, &ALL).await;
    client.write("in").await;
    client.end_input().await;
    let [out, err, status] = client.rest().await;
    assert_eq!((out.as_str(), err.as_str(), code_of(&status)), ("in", "err\n", Some(5)));
    let [.., status] = Socket::open(&script_url(&node, &ctr, "kill -9 $$").await, V5).await.until(None).await;
    assert_eq!(code_of(&status), Some(137));
    let command = ["sh", "-c", "test -t 0 && echo up; read x; stty size; exit 6"];
    let mut client = Socket::open(&exec_url(&node, &ctr, &command, true).await, V5).await;
    client.until(Some("up\r\n")).await;
    client.resize(44, 33).await;
    client.write("go\n").await;
    let [out, _, status] = client.until(None).await;
    assert!(out.contains("33 44"), "{out:?}");
    assert_eq!(code_of(&status), Some(6));
    node.finish().await;
}

/// With a user namespace, by pipes and by a terminal.
async fn mapped(handler: &str) {
    let Some(node) = userns::node_with(handler).await else { return };
    let pod = node.up(userns::pod(&node, "mapped", 500_000)).await;
    for user in [0, 1234] {
        let mut config = node.sleeper(&format!("as-{user}"));
        specs::security(&mut config).run_as_user = Some(Int64Value { value: user });
        let ctr = node.launch(&pod, config).await;
        node.logged(&ctr, "up").await;
        let script = "cat > /dev/stdout; echo err > /dev/stderr; exit 5";
        let mut client = Spdy::open(&script_url(&node, &ctr, script).await, V4, &ALL).await;
        client.write("in").await;
        client.end_input().await;
        let [out, err, status] = client.rest().await;
        assert_eq!((out.as_str(), err.as_str(), code_of(&status)), ("in", "err\n", Some(5)));
        let command = ["sh", "-c", "stat -c %u $(tty) && echo written > $(tty); head -1 /proc/self/uid_map | wc -w"];
        let [out, _, status] = Socket::open(&exec_url(&node, &ctr, &command, true).await, V5).await.until(None).await;
        assert_eq!(out, format!("{user}\r\nwritten\r\n3\r\n"), "{status}");
    }
    node.finish().await;
}

/// What an exec has started goes with it, children of children, too.
const LEAVES: &str = "sleep 4103 & { sleep 4104; true; } & sleep 0.5; echo up; exec sleep 4101";

async fn leaves(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "leaves").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let mut client = Spdy::open(&script_url(&node, &ctr, LEAVES).await, V4, &ALL).await;
    client.until("up\n").await;
    let running = ["sleep 4101", "sleep 4103", "sleep 4104"];
    for command in running {
        runs(&node, &ctr, command).await;
    }
    drop(client);
    for command in running {
        ends(&node, &ctr, command).await;
    }
    let url = exec_url(&node, &ctr, &["sh", "-c", "echo up; exec sleep 4102"], true).await;
    let mut client = Socket::open(&url, V5).await;
    client.until(Some("up\r\n")).await;
    runs(&node, &ctr, "sleep 4102").await;
    drop(client);
    ends(&node, &ctr, "sleep 4102").await;
    node.finish().await;
}

async fn attach(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "attach").await;
    let mut config = node.sh("c", "while read x; do echo \"got $x\"; done; exit 8");
    (config.stdin, config.stdin_once) = (true, true);
    let ctr = node.launch(&pod, config).await;
    let mut client = Spdy::open(&attach_url(&node, &ctr, true, false).await, V4, &ALL).await;
    client.write("one\n").await;
    client.until("got one\n").await;
    client.end_input().await;
    assert_eq!(client.rest().await[0], "");
    assert_eq!(node.exited(&ctr).await.exit_code, 8);
    node.finish().await;
}

with_each_handler!({ exec, leaves, mapped, attach }: youki, runc, crun, runsc);
