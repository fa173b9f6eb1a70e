//! Exec and attach over SPDY.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{all, json, open, spdy};
use super::process::Process;
use super::world::{ALL, OUTPUT, TTY, World, soon};
use crate::streaming::session::AtInputEnd;
use crate::streaming::spdy::{Headers, Stream};

const V4: &str = "v4.channel.k8s.io";

/// What is left of a stream whose end was not written by us.
async fn ended(mut stream: Stream) -> Vec<u8> {
    let mut got = Vec::new();
    let _ = soon(stream.read_to_end(&mut got)).await;
    got
}

#[tokio::test]
async fn outputs_apart_and_the_code() {
    let world = World::new();
    for protocol in [V4, "v5.channel.k8s.io"] {
        let handle = spdy(&world.exec("echo out; echo err >&2; exit 7", OUTPUT), protocol).await;
        // In whatever order.
        let (stderr, error, stdout) = (open(&handle, "stderr"), open(&handle, "error"), open(&handle, "stdout"));
        assert_eq!((&all(stdout).await[..], &all(stderr).await[..]), (&b"out\n"[..], &b"err\n"[..]));
        let status = json(&all(error).await);
        assert_eq!(status["details"]["causes"][0]["message"], "7", "{status}");
        soon(handle.closed()).await;
    }
    let handle = spdy(&world.exec("kill -9 $$", OUTPUT), V4).await;
    let (_out, _err, error) = (open(&handle, "stdout"), open(&handle, "stderr"), open(&handle, "error"));
    assert_eq!(json(&all(error).await)["details"]["causes"][0]["message"], "137");
}

#[tokio::test]
async fn older_protocols_have_words_instead_of_a_status() {
    let world = World::new();
    for protocol in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        for (script, words) in [("exit 3", "command terminated with non-zero exit code: 3"), ("true", "")] {
            let handle = spdy(&world.exec(script, OUTPUT), protocol).await;
            let (_out, _err, error) = (open(&handle, "stdout"), open(&handle, "stderr"), open(&handle, "error"));
            assert_eq!(String::from_utf8(all(error).await).unwrap(), words, "{protocol}");
        }
    }
    let handle = spdy(&world.broken(OUTPUT), V4).await;
    let (_out, _err, error) = (open(&handle, "stdout"), open(&handle, "stderr"), open(&handle, "error"));
    let status = json(&all(error).await);
    assert_eq!((status["code"].as_u64(), status["reason"].as_str()), (Some(500), Some("InternalError")));
    assert!(status["message"].as_str().unwrap().contains("no such program"), "{status}");
}

#[tokio::test]
async fn megabytes_go_through_and_back_in_order() {
    let world = World::new();
    let handle = spdy(&world.exec("cat", ALL), V4).await;
    let error = open(&handle, "error");
    let (mut stdin, stdout, _stderr) = (open(&handle, "stdin"), open(&handle, "stdout"), open(&handle, "stderr"));
    let sent: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let bytes = sent.clone();
    let writer = tokio::spawn(async move {
        stdin.write_all(&bytes).await.unwrap();
        stdin.shutdown().await.unwrap();
        stdin
    });
    assert!(all(stdout).await == sent, "bytes were lost or changed");
    assert_eq!(json(&all(error).await)["status"], "Success");
    soon(writer).await.unwrap();
}

#[tokio::test]
async fn an_end_of_input_that_nobody_reads_holds_up_nothing() {
    let world = World::new();
    let handle = spdy(&world.exec("exec <&-; sleep 0.3; echo done", ALL), V4).await;
    let error = open(&handle, "error");
    let (mut stdin, stdout, _stderr) = (open(&handle, "stdin"), open(&handle, "stdout"), open(&handle, "stderr"));
    let writer = tokio::spawn(async move { stdin.write_all(&vec![1; 8 << 20]).await });
    assert_eq!(all(stdout).await, b"done\n");
    assert_eq!(json(&all(error).await)["status"], "Success");
    let _ = soon(writer).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_process_along() {
    let world = World::new();
    // It reads nothing, so that its input is stuck when the client leaves.
    let handle = spdy(&world.exec("echo $$; exec sleep 1000", ALL), V4).await;
    let _error = open(&handle, "error");
    let (mut stdin, mut stdout, _e) = (open(&handle, "stdin"), open(&handle, "stdout"), open(&handle, "stderr"));
    let mut line = [0; 16];
    let count = soon(stdout.read(&mut line)).await.unwrap();
    let pid: i32 = std::str::from_utf8(&line[..count]).unwrap().trim().parse().unwrap();
    let stuck = tokio::spawn(async move { stdin.write_all(&vec![1; 16 << 20]).await });
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let process = crate::sys::async_fd::readable(process).unwrap();
    // The whole client, with its socket.
    handle.close();
    stuck.abort();
    drop((stdout, _error, _e, handle));
    soon(process.readable()).await.unwrap().retain_ready();
}

#[tokio::test]
async fn a_terminal_follows_its_client_s_size() {
    let world = World::new();
    let script = r#"until [ "$(stty size)" = "45 123" ]; do sleep 0.05; done; read a; echo "sized $a""#;
    let handle = spdy(&world.exec(script, TTY), V4).await;
    let error = open(&handle, "error");
    let (mut stdin, stdout, mut resize) = (open(&handle, "stdin"), open(&handle, "stdout"), open(&handle, "resize"));
    resize.write_all(b"{\"Width\":80,\"Height\":24}\n{\"Width\":123,\"Height\":45}\n").await.unwrap();
    stdin.write_all(b"x\n").await.unwrap();
    let shown = String::from_utf8(all(stdout).await).unwrap();
    assert!(shown.contains("sized x"), "{shown:?}");
    assert_eq!(json(&all(error).await)["status"], "Success");
}

#[tokio::test]
async fn attached_clients_leave_a_process_as_it_is_or_end_its_input() {
    let world = World::new();
    let once = Process::start("cat; echo over", ALL);
    let handle = spdy(&world.attach(once, ALL, AtInputEnd::Close), V4).await;
    let error = open(&handle, "error");
    let (mut stdin, stdout, _stderr) = (open(&handle, "stdin"), open(&handle, "stdout"), open(&handle, "stderr"));
    stdin.write_all(b"hello\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(all(stdout).await, b"hello\nover\n");
    assert_eq!(json(&all(error).await)["status"], "Success");

    let lasting = Process::start("cat; echo over", ALL);
    let handle = spdy(&world.attach(lasting, ALL, AtInputEnd::Detach), V4).await;
    let error = open(&handle, "error");
    let (mut stdin, stdout, _stderr) = (open(&handle, "stdin"), open(&handle, "stdout"), open(&handle, "stderr"));
    stdin.shutdown().await.unwrap();
    assert_eq!(json(&all(error).await)["status"], "Success");
    assert_eq!(ended(stdout).await, b"");
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let world = World::new();
    let handle = spdy(&world.exec("echo fine", OUTPUT), V4).await;
    let error = open(&handle, "error");
    for kind in ["", "stdin", "resize", "nonsense", "error"] {
        let stream = handle.open(Headers::new().with("streamType", kind), false).unwrap();
        soon(stream.reply()).await.unwrap_err();
    }
    let (_stderr, stdout) = (open(&handle, "stderr"), open(&handle, "stdout"));
    assert_eq!(all(stdout).await, b"fine\n");
    assert_eq!(json(&all(error).await)["status"], "Success");
}
