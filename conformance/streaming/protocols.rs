//! Exec in every protocol of remotecommand.

use podwright::proto::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{Socket, Spdy, code_of, exec_url, gone, script_url, soon, there};
use super::{ALL, V4, V5};
use crate::harness::{Node, specs};

const SPDY: [&str; 5] = [V5, V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const WEBSOCKET: [&str; 6] = [V5, V4, "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""];

/// What the error stream must say of this exit code.
fn check(protocol: &str, status: &str, code: i32) {
    if protocol.starts_with('v') && protocol >= "v4" {
        assert_eq!(code_of(status), (code != 0).then_some(code), "{protocol}");
    } else {
        let words = format!("command terminated with non-zero exit code: {code}");
        assert_eq!(status, if code == 0 { "" } else { words.as_str() }, "{protocol}");
    }
}

#[tokio::test]
async fn outputs_apart_and_codes_in_each() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("each")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    for (script, code) in [("echo out; echo err >&2", 0), ("echo out; echo err >&2; exit 7", 7)] {
        for protocol in SPDY {
            let rest = Spdy::open(&script_url(&node, &ctr, script).await, protocol, &ALL).await.rest().await;
            assert_eq!((rest[0].as_str(), rest[1].as_str()), ("out\n", "err\n"), "{protocol}");
            check(protocol, &rest[2], code);
        }
        for protocol in WEBSOCKET {
            let mut socket = Socket::open(&script_url(&node, &ctr, script).await, protocol).await;
            let rest = socket.until(None).await;
            assert_eq!((rest[0].as_str(), rest[1].as_str()), ("out\n", "err\n"), "{protocol}");
            check(protocol, &rest[2], code);
        }
    }
    for (signal, code) in [(9, 137), (15, 143), (6, 134)] {
        let url = script_url(&node, &ctr, &format!("kill -{signal} $$")).await;
        let [.., status] = Spdy::open(&url, V4, &ALL).await.rest().await;
        assert_eq!(code_of(&status), Some(code));
        let url = script_url(&node, &ctr, &format!("kill -{signal} $$")).await;
        assert_eq!(code_of(&Socket::open(&url, V5).await.until(None).await[2]), Some(code));
    }
    // What cannot be started is said in the status, too.
    let url = exec_url(&node, &ctr, &["/no/such/program"], false).await;
    let [.., status] = Spdy::open(&url, V4, &ALL).await.rest().await;
    assert!(status.contains("/no/such/program"), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn input_ends_and_output_goes_on() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("input")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let script = "cat; echo over; echo err >&2; exit 3";
    // Whatever the order in which the streams are opened.
    let orders = [ALL, ["stderr", "stdout", "stdin", "error"], ["stdin", "stderr", "error", "stdout"]];
    for (protocol, order) in SPDY.iter().zip(orders.iter().cycle()) {
        let mut client = Spdy::open(&script_url(&node, &ctr, script).await, protocol, order).await;
        client.write("some words\n").await;
        client.end_input().await;
        let rest = client.rest().await;
        assert_eq!((rest[0].as_str(), rest[1].as_str()), ("some words\nover\n", "err\n"), "{protocol}");
        check(protocol, &rest[2], 3);
    }
    let mut client = Socket::open(&script_url(&node, &ctr, script).await, V5).await;
    client.write("some words\n").await;
    client.end_input().await;
    let rest = client.until(None).await;
    assert_eq!((rest[0].as_str(), rest[1].as_str()), ("some words\nover\n", "err\n"));
    check(V5, &rest[2], 3);
    for protocol in WEBSOCKET {
        let mut client = Socket::open(&script_url(&node, &ctr, "read x; echo got $x").await, protocol).await;
        client.write("a word\n").await;
        assert_eq!(client.until(None).await[0], "got a word\n", "{protocol}");
    }
    node.finish().await;
}

#[tokio::test]
async fn eight_megabytes_there_and_back() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("back")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let sent: Vec<u8> = (0..2 << 20).flat_map(u32::to_le_bytes).collect();
    let mut client = Spdy::open(&exec_url(&node, &ctr, &["cat"], false).await, V4, &ALL).await;
    let (mut stdin, mut stdout) = (client.take("stdin"), client.take("stdout"));
    let mut got = Vec::new();
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    soon(async { tokio::join!(write, async { stdout.read_to_end(&mut got).await.unwrap() }) }).await;
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    assert_eq!(code_of(&client.rest().await[2]), None);
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_and_its_size() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("size")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let command = ["sh", "-c", "trap 'stty size' WINCH; tty; echo up; while ! read x; do :; done; echo got $x; exit 4"];
    for protocol in [V5, V4, "v3.channel.k8s.io"] {
        let url = exec_url(&node, &ctr, &command, true).await;
        let mut client = Spdy::open(&url, protocol, &["error", "resize", "stdout", "stdin"]).await;
        assert!(client.until("up\r\n").await.starts_with("/dev/pts/"));
        client.resize(91, 23).await;
        client.until("23 91\r\n").await;
        client.resize(132, 50).await;
        client.until("50 132\r\n").await;
        client.write("word\n").await;
        let [out, _, status] = client.rest().await;
        assert!(out.contains("got word"), "{out:?}");
        check(protocol, &status, 4);
    }
    for protocol in WEBSOCKET {
        let mut client = Socket::open(&exec_url(&node, &ctr, &command, true).await, protocol).await;
        client.until(Some("up\r\n")).await;
        client.resize(91, 23).await;
        client.until(Some("23 91\r\n")).await;
        client.write("word\n").await;
        let [out, _, status] = client.until(None).await;
        assert!(out.contains("got word"), "{out:?}");
        check(protocol, &status, 4);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_process() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("leaves")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let script =
        |number| format!("sleep {number} & trap '' HUP PIPE TERM; echo up; while true; do sleep {number}; done");
    let mut client = Spdy::open(&script_url(&node, &ctr, &script(4001)).await, V4, &ALL).await;
    client.until("up\n").await;
    there("sleep 4001").await;
    drop(client);
    gone("sleep 4001").await;
    let mut client = Socket::open(&script_url(&node, &ctr, &script(4002)).await, V5).await;
    client.until(Some("up\n")).await;
    there("sleep 4002").await;
    drop(client);
    gone("sleep 4002").await;
    // With a terminal, and job control's own process groups.
    let url = exec_url(&node, &ctr, &["sh", "-i"], true).await;
    let mut client = Spdy::open(&url, V4, &["error", "resize", "stdout", "stdin"]).await;
    client.write("sleep 4003 & sleep 4003 & echo u''p\n").await;
    client.until("up").await;
    there("sleep 4003").await;
    drop(client);
    gone("sleep 4003").await;
    // Its input is stuck: the end of the connection stands behind what nobody reads.
    let mut client = Spdy::open(&script_url(&node, &ctr, "echo up; exec sleep 4004").await, V4, &ALL).await;
    client.until("up\n").await;
    let mut stdin = client.take("stdin");
    let stuck = tokio::spawn(async move { stdin.write_all(&vec![1; 16 << 20]).await });
    let _ = tokio::time::timeout(std::time::Duration::from_millis(300), std::future::pending::<()>()).await;
    client.handle.close();
    stuck.abort();
    drop(client);
    gone("sleep 4004").await;
    assert_eq!(node.exec(&ctr, &["echo", "unharmed"]).await, "unharmed\n");
    node.finish().await;
}

#[tokio::test]
async fn in_a_user_namespace_as_another_user_under_seccomp() {
    let node = Node::ready().await;
    let mut config = node.pod("users");
    let mapping = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
    specs::sandbox_security(&mut config).namespace_options.as_mut().unwrap().userns_options =
        Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(300_000), gids: mapping(300_000) });
    let pod = node.up(config).await;
    let mut config = node.sleeper("c");
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1234 });
    security.run_as_group = Some(Int64Value { value: 77 });
    security.supplemental_groups = vec![88];
    let ctr = node.launch(&pod, config).await;
    let script = "id -u; id -g; id -G; grep Seccomp: /proc/self/status; cat /proc/self/uid_map; cat; exit 9";
    let mut client = Spdy::open(&script_url(&node, &ctr, script).await, V4, &ALL).await;
    client.end_input().await;
    let [out, err, status] = client.rest().await;
    let words: Vec<_> = out.split_whitespace().collect();
    let wanted = ["1234", "77", "77", "88", "Seccomp:", "2", "0", "300000", "65536"];
    assert_eq!((words.as_slice(), err.as_str(), code_of(&status)), (&wanted[..], "", Some(9)));
    let command = ["sh", "-c", "test -w $(tty) && stat -c %u $(tty); echo up; sleep 4005"];
    let mut client = Socket::open(&exec_url(&node, &ctr, &command, true).await, V5).await;
    let shown = client.until(Some("up\r\n")).await;
    assert_eq!(shown[0], "1234\r\nup\r\n", "{shown:?}");
    drop(client);
    gone("sleep 4005").await;
    node.finish().await;
}
