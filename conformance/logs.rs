//! Container logs: form, chunks, streams, terminal, reopening.

use std::fs;

use podwright::proto::ReopenContainerLogRequest;

use crate::harness::{Node, logs};

#[tokio::test]
async fn both_streams_in_cri_form() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("streams")).await;
    let ctr = node
        .launch(&pod, node.sh("c", "echo one; echo two >&2; printf 'no end'; sleep 0.1; printf 'x\\n\\ny\\n'"))
        .await;
    node.exited(&ctr).await;
    let lines = logs::read(&ctr.log);
    assert_eq!(logs::stream(&lines, "stderr"), "two\n");
    assert_eq!(logs::stream(&lines, "stdout"), "one\nno endx\n\ny\n");
    assert!(lines.windows(2).all(|pair| pair[0].time <= pair[1].time || pair[0].stream != pair[1].stream), "{lines:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_last_line_without_an_end_is_kept() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("noend")).await;
    let (code, out) = node.outcome(&pod, node.sh("c", "printf 'a\\nb'; exit 3")).await;
    assert_eq!(code, 3);
    assert_eq!(out.trim_end(), "a\nb");
    node.finish().await;
}

#[tokio::test]
async fn long_lines_come_in_chunks_of_16_kib() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("long")).await;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo; echo end";
    let ctr = node.launch(&pod, node.sh("c", script)).await;
    node.exited(&ctr).await;
    let lines = logs::read(&ctr.log);
    assert!(lines.iter().all(|line| line.text.len() <= 16384), "a chunk is too long");
    let whole = logs::stream(&lines, "stdout");
    assert_eq!(whole, format!("{}\n{}\nend\n", "x".repeat(40000), "y".repeat(16384)));
    assert!(lines.iter().any(|line| line.tag == "P" && line.text.len() == 16384), "no full partial chunk");
    node.finish().await;
}

#[tokio::test]
async fn much_output_loses_nothing() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("much")).await;
    let ctr = node.launch(&pod, node.sh("c", "seq 1 50000; seq 1 1000 >&2")).await;
    node.exited(&ctr).await;
    let lines = logs::read(&ctr.log);
    let wanted: String = (1..=50000).map(|n| format!("{n}\n")).collect();
    assert!(logs::stream(&lines, "stdout") == wanted, "stdout is not whole");
    assert_eq!(logs::stream(&lines, "stderr").lines().count(), 1000);
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_one_stream() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("tty")).await;
    let mut config = node.sh("c", "tty; test -t 0 && test -t 1 && echo yes >&2");
    config.tty = true;
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exited(&ctr).await.exit_code, 0);
    let lines = logs::read(&ctr.log);
    let out = logs::stream(&lines, "stdout");
    assert!(out.contains("/dev/pts/") || out.contains("/dev/console"), "{out}");
    assert!(out.contains("yes"), "stderr of a terminal belongs to stdout: {out}");
    assert_eq!(logs::stream(&lines, "stderr"), "");
    node.finish().await;
}

#[tokio::test]
async fn a_log_is_reopened_after_rotation() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("rotate")).await;
    let script = "trap 'exit 0' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done";
    let ctr = node.launch(&pod, node.sh("c", script)).await;
    node.logged(&ctr, "line 3").await;
    let rotated = ctr.log.with_extension("old");
    fs::rename(&ctr.log, &rotated).unwrap();
    let request = ReopenContainerLogRequest { container_id: ctr.id.clone() };
    node.cri().runtime().reopen_container_log(request).await.unwrap();
    assert!(ctr.log.exists(), "ReopenContainerLog has answered: the new file is there");
    node.logged(&ctr, "line").await;
    node.stop_container(&ctr.id, 5).await.unwrap();
    let mut text = logs::stream(&logs::read(&rotated), "stdout");
    text.push_str(&logs::stream(&logs::read(&ctr.log), "stdout"));
    for (at, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {}", at + 1), "a line is lost or written twice");
    }
    let gone = ReopenContainerLogRequest { container_id: ctr.id.clone() };
    node.cri().runtime().reopen_container_log(gone).await.expect_err("the container does not run");
    node.finish().await;
}

#[tokio::test]
async fn the_log_stays_when_its_container_is_removed() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("stays")).await;
    let ctr = node.launch(&pod, node.sh("c", "echo kept")).await;
    node.exited(&ctr).await;
    node.remove_container(&ctr.id).await.unwrap();
    // The log is its client's to delete.
    assert_eq!(logs::stream(&logs::read(&ctr.log), "stdout"), "kept\n");
    node.finish().await;
}

#[tokio::test]
async fn no_log_path_means_no_log() {
    let node = Node::ready().await;
    let mut pod = node.pod("nolog");
    pod.log_directory.clear();
    let pod = node.up(pod).await;
    let mut config = node.sh("c", "seq 1 20000; exit 4");
    config.log_path.clear();
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exited(&ctr).await.exit_code, 4);
    node.finish().await;
}
