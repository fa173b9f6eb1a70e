//! Attach: several clients, their coming and going, and what it does to the container.

use podwright::proto::*;

use super::client::{Socket, Spdy, attach_url, code_of};
use super::{ALL, V4, V5};
use crate::harness::{Node, logs};

const ECHO: &str = "echo before; while read x; do echo \"got $x\"; echo \"err $x\" >&2; done; echo eof; exit 8";

#[tokio::test]
async fn several_clients_from_now_on_and_detaching_is_harmless() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("several")).await;
    let mut config = node.sh("c", ECHO);
    config.stdin = true;
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "before").await;
    let mut first = Spdy::open(&attach_url(&node, &ctr, true, false).await, V4, &ALL).await;
    let mut second = Socket::open(&attach_url(&node, &ctr, true, false).await, V5).await;
    first.write("one\n").await;
    assert_eq!(first.until("one\n").await, "got one\n", "from now on");
    // A WebSocket client has an empty message first, as others send it.
    assert_eq!(second.until(Some("one\n")).await[0], "got one\n");
    second.write("two\n").await;
    second.until(Some("two\n")).await;
    assert_eq!(first.until("two\n").await, "got two\n");
    // An end of input detaches; it does not end the container's.
    first.end_input().await;
    assert_eq!(code_of(&first.rest().await[2]), None);
    drop(second);
    let mut third = Spdy::open(&attach_url(&node, &ctr, true, false).await, V4, &ALL).await;
    third.write("three\n").await;
    assert_eq!(third.until("three\n").await, "got three\n");
    node.restart().await;
    let mut fourth = Socket::open(&attach_url(&node, &ctr, true, false).await, V5).await;
    fourth.write("four\n").await;
    assert_eq!(fourth.until(Some("four\n")).await[0], "got four\n");
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    let text = logs::stream(&logs::so_far(&ctr.log), "stdout");
    assert_eq!(text, "before\ngot one\ngot two\ngot three\ngot four\n", "the log has it all");
    node.stop_container(&ctr.id, 0).await.unwrap();
    assert_eq!(code_of(&fourth.until(None).await[2]), None, "the container's end is told");
    node.finish().await;
}

#[tokio::test]
async fn stdin_once_ends_the_container_s_input_with_its_first_client() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("once")).await;
    for how in ["half-close", "leave", "v5"] {
        let mut config = node.sh(how, ECHO);
        (config.stdin, config.stdin_once) = (true, true);
        let ctr = node.launch(&pod, config).await;
        let mut looker =
            Spdy::open(&attach_url(&node, &ctr, false, false).await, V4, &["error", "stdout", "stderr"]).await;
        if how == "v5" {
            let mut client = Socket::open(&attach_url(&node, &ctr, true, false).await, V5).await;
            client.write("word\n").await;
            client.end_input().await;
            let [out, err, status] = client.until(None).await;
            assert!(out.ends_with("got word\neof\n"), "{out:?}");
            assert_eq!((err.as_str(), code_of(&status)), ("err word\n", None));
        } else {
            let mut client = Spdy::open(&attach_url(&node, &ctr, true, false).await, V4, &ALL).await;
            client.write("word\n").await;
            client.until("got word\n").await;
            if how == "half-close" {
                client.end_input().await;
                let [out, err, status] = client.rest().await;
                assert_eq!((out.as_str(), err.as_str(), code_of(&status)), ("eof\n", "err word\n", None));
            }
        }
        looker.until("eof\n").await;
        assert_eq!(node.exited(&ctr).await.exit_code, 8, "{how}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_s_terminal() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("terminal")).await;
    let mut config = node.sh("c", "trap 'stty size' WINCH; echo up; while ! read x; do :; done; echo got $x; read y");
    (config.stdin, config.tty) = (true, true);
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    let streams = ["error", "stdin", "stdout", "resize"];
    let mut client = Spdy::open(&attach_url(&node, &ctr, true, true).await, V4, &streams).await;
    client.resize(71, 17).await;
    client.until("17 71\r\n").await;
    drop(client);
    let mut client = Socket::open(&attach_url(&node, &ctr, true, true).await, V5).await;
    client.resize(72, 18).await;
    client.until(Some("18 72\r\n")).await;
    client.write("word\n").await;
    client.until(Some("got word\r\n")).await;
    drop(client);
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    node.finish().await;
}
