//! Exec and attach with each runtime handler that is installed.

use super::client::{Socket, Spdy, attach_url, code_of, exec_url, script_url};
use super::{ALL, V4, V5};
use crate::handlers::{node_with, up};
use crate::harness::{Ctr, Node, eventually, secs, with_each_handler};

/// Whether a process runs in the container, asked inside: some runtimes' processes are not to be seen from outside.
async fn inside(node: &Node, ctr: &Ctr, command: &str) -> bool {
    node.exec(ctr, &["ps", "-o", "args"]).await.lines().any(|line| line.trim() == command)
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

async fn leaves(handler: &str) {
    let Some(node) = node_with(handler).await else { return };
    let pod = up(&node, handler, "leaves").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let mut client = Spdy::open(&script_url(&node, &ctr, "echo up; exec sleep 4101").await, V4, &ALL).await;
    client.until("up\n").await;
    assert!(inside(&node, &ctr, "sleep 4101").await);
    drop(client);
    ends(&node, &ctr, "sleep 4101").await;
    let url = exec_url(&node, &ctr, &["sh", "-c", "echo up; exec sleep 4102"], true).await;
    let mut client = Socket::open(&url, V5).await;
    client.until(Some("up\r\n")).await;
    assert!(inside(&node, &ctr, "sleep 4102").await);
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

with_each_handler!({ exec, leaves, attach }: youki, runc, crun, runsc);
