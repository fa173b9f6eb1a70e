//! ExecSync.

use std::time::Instant;

use podwright::proto::Int64Value;
use tonic::Code;

use crate::harness::{Node, eventually, host, secs, specs};

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("exec")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let answer = node.try_exec(&ctr, &["sh", "-c", "echo out; echo err >&2; exit 7"], 0).await.unwrap();
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"out\n"[..], &b"err\n"[..], 7));
    let answer = node.try_exec(&ctr, &["sh", "-c", "kill -9 $$"], 0).await.unwrap();
    assert_eq!(answer.exit_code, 137);
    // No standard input: a reader sees its end at once.
    assert_eq!(node.exec(&ctr, &["cat"]).await, "");
    node.finish().await;
}

#[tokio::test]
async fn it_runs_as_the_container_does() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("same")).await;
    let mut config = node.sleeper("c");
    config.working_dir = "/var/log".to_owned();
    config.envs = vec![specs::env("COLOUR", "green")];
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1234 });
    security.run_as_group = Some(Int64Value { value: 77 });
    security.supplemental_groups = vec![88];
    security.no_new_privs = true;
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exec(&ctr, &["sh", "-c", "pwd; echo $COLOUR; id -u; id -g"]).await, "/var/log\ngreen\n1234\n77\n");
    let keys =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigBlk"];
    let take = |text: &str| -> Vec<String> {
        let wanted = |line: &&str| keys.iter().any(|key| line.starts_with(&format!("{key}:")));
        text.lines().filter(wanted).map(str::to_owned).collect()
    };
    let own = take(&node.exec(&ctr, &["cat", "/proc/self/status"]).await);
    let init = take(&node.exec(&ctr, &["cat", "/proc/1/status"]).await);
    assert_eq!(own, init, "an exec must be confined as the container is");
    assert!(own.contains(&"Seccomp:\t2".to_owned()), "{own:?}");
    // Nothing is ignored; the first process is a shell, which has ignored some signals by itself.
    let ignored = node.exec(&ctr, &["grep", "^SigIgn", "/proc/self/status"]).await;
    assert_eq!(ignored, "SigIgn:\t0000000000000000\n");
    node.finish().await;
}

#[tokio::test]
async fn the_image_s_user_applies() {
    let mut node = Node::ready().await;
    let reference = "gcr.io/k8s-staging-cri-tools/test-image-user-username-group:latest";
    node.pull(reference).await;
    let pod = node.up(node.pod("user")).await;
    let mut config = node.sleeper("c");
    config.image = Some(specs::image(reference));
    let ctr = node.launch(&pod, config).await;
    assert_eq!(node.exec(&ctr, &["sh", "-c", "id -u; id -g"]).await, "33\n1004\n");
    node.finish().await;
}

#[tokio::test]
async fn past_its_timeout_the_process_is_killed() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("timeout")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let start = Instant::now();
    let status = node.try_exec(&ctr, &["sleep", "4321"], 1).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(start.elapsed() < secs(10), "{:?}", start.elapsed());
    eventually(secs(5), "the process's end", async || {
        let left: Vec<_> = host::descendants().into_iter().filter(|p| p.command.starts_with("sleep 4321")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert_eq!(node.exec(&ctr, &["echo", "still here"]).await, "still here\n");
    node.finish().await;
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_pipe_is_not_waited_for() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("grandchild")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let start = Instant::now();
    let answer = node.try_exec(&ctr, &["sh", "-c", "sleep 300 & echo started"], 0).await.unwrap();
    assert_eq!((&answer.stdout[..], answer.exit_code), (&b"started\n"[..], 0));
    assert!(start.elapsed() < secs(10), "{:?}", start.elapsed());
    node.finish().await;
}

#[tokio::test]
async fn output_is_bounded_and_what_fits_is_whole() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("big")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let answer = node.try_exec(&ctr, &["sh", "-c", "head -c 1000000 /dev/zero"], 30).await.unwrap();
    assert_eq!((answer.stdout.len(), answer.exit_code), (1_000_000, 0));
    // More than anybody may ask for: it ends, with what fits.
    let answer = node.try_exec(&ctr, &["sh", "-c", "head -c 100000000 /dev/zero"], 60).await.unwrap();
    assert!(answer.stdout.len() <= 16 << 20, "{}", answer.stdout.len());
    node.finish().await;
}

#[tokio::test]
async fn many_at_once() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("many")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let calls = (0..20).map(|n| {
        let (node, ctr) = (&node, &ctr);
        async move {
            let text = format!("number {n}");
            assert_eq!(node.exec(ctr, &["echo", &text]).await, format!("{text}\n"));
        }
    });
    futures_util::future::join_all(calls).await;
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_be_run_says_why() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("cannot")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    // Either an error that names the program, or the shell's convention for it.
    match node.try_exec(&ctr, &["no-such-program"], 5).await {
        Err(status) => assert!(status.message().contains("no-such-program"), "{status}"),
        Ok(answer) => assert_eq!(answer.exit_code, 127),
    }
    let status = node.try_exec(&ctr, &[], 5).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    node.stop_container(&ctr.id, 5).await.unwrap();
    let status = node.try_exec(&ctr, &["true"], 5).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    node.finish().await;
}
