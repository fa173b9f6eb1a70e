//! ExecSync.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use podwright::proto::{ContainerState, Int64Value};
use tonic::Code;

use crate::harness::{Node, eventually, host, secs, slowness, specs, with_each_handler};
use crate::streaming::V5;
use crate::streaming::client::{Socket, exec_url};

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

/// As crictl with its own time limit, or a kubelet that restarts.
#[tokio::test]
async fn when_its_client_leaves_the_process_is_killed() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("left")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let runs = || host::descendants().into_iter().any(|process| process.command.contains("sleep 4721"));
    let call = node.try_exec(&ctr, &["sh", "-c", "sleep 4721; true"], 0);
    let begun = eventually(secs(15), "the process", async || if runs() { Ok(()) } else { Err("none".to_owned()) });
    tokio::select! {
        _ = call => panic!("it ends by itself"),
        () = begun => {}
    }
    eventually(secs(15), "its end", async || if runs() { Err("it runs".to_owned()) } else { Ok(()) }).await;
    assert_eq!(node.exec(&ctr, &["echo", "well"]).await, "well\n");
    node.finish().await;
}

/// A daemon's end is nobody's wish to end what it was asked to run: that has its own end, or its time limit.
#[tokio::test]
async fn when_its_daemon_dies_the_process_goes_on() {
    let mut node = Node::ready().await;
    let pod = node.up(node.pod("dies")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let runs = |what: &str| host::descendants().into_iter().any(|process| process.command.contains(what));
    let begun = async |what: &str| {
        eventually(secs(15), what, async || if runs(what) { Ok(()) } else { Err("none".to_owned()) }).await;
    };
    {
        let waits = "until [ -e /go ]; do sleep 0.05; done; echo done > /done; echo 4731";
        let (waits, sleeps) = (["sh", "-c", waits], ["sleep", "4732"]);
        let (call, late) = (node.try_exec(&ctr, &waits, 0), node.try_exec(&ctr, &sleeps, 5));
        tokio::pin!(call, late);
        tokio::select! {
            _ = &mut call => panic!("it ends by itself"),
            _ = &mut late => panic!("it ends by itself"),
            () = async { begun("echo 4731").await; begun("sleep 4732").await } => {}
        }
        // Their clients wait on.
        let daemon = nix::unistd::Pid::from_raw(node.daemon().pid());
        nix::sys::signal::kill(daemon, nix::sys::signal::SIGKILL).unwrap();
        call.await.expect_err("its daemon is gone");
        late.await.expect_err("its daemon is gone");
    }
    node.kill9();
    let ends = async |what: &str| {
        eventually(secs(15), what, async || if runs(what) { Err("it runs".to_owned()) } else { Ok(()) }).await;
    };
    ends("sleep 4732").await;
    node.start_daemon().await;
    assert!(runs("echo 4731"));
    node.exec(&ctr, &["touch", "/go"]).await;
    ends("echo 4731").await;
    assert_eq!(node.exec(&ctr, &["cat", "/done"]).await, "done\n");
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

/// Root inside may own the null device that its streams are; it must not be the host's.
async fn the_hosts_null_device_stays_as_it_is(handler: &str) {
    let Some(node) = crate::handlers::node_with(handler).await else { return };
    let pod = crate::handlers::up(&node, handler, "null").await;
    let before = null();
    // Each of the streams, and whatever else is open, by its number.
    let script = "for fd in /proc/self/fd/*; do chmod 600 $fd; chown 5:6 $fd; done 2>/dev/null; \
                  stat -L -c %t:%T /proc/self/fd/0; cat <&0; echo all up";
    // gVisor shows no numbers.
    let numbers = if handler == "runsc" { "0:0" } else { "1:3" };
    let ctr = node.launch(&pod, node.sh("c", &format!("{script}; sleep 3600"))).await;
    let lines = node.logged(&ctr, "all up").await;
    assert_eq!(lines[0].text, numbers, "{lines:?}");
    assert_unchanged(before, "the main process");
    assert_eq!(node.exec(&ctr, &["sh", "-c", script]).await, format!("{numbers}\nall up\n"));
    assert_unchanged(before, "an exec");
    let terminal = script.replace("; cat <&0", "");
    let mut config = node.sh("tty", &terminal);
    config.tty = true;
    node.outcome(&pod, config).await;
    assert_unchanged(before, "the main process with a terminal");
    let url = exec_url(&node, &ctr, &["sh", "-c", &terminal], true).await;
    Socket::open(&url, V5).await.until(None).await;
    assert_unchanged(before, "an exec with a terminal");
    node.finish().await;
}

fn null() -> [u32; 3] {
    let of = fs::metadata("/dev/null").unwrap();
    [of.mode(), of.uid(), of.gid()]
}

/// The device is this machine's, which needs it.
#[track_caller]
fn assert_unchanged(before: [u32; 3], who: &str) {
    let now = null();
    if now != before {
        fs::set_permissions("/dev/null", fs::Permissions::from_mode(before[0] & 0o7777)).unwrap();
        chown("/dev/null", Some(before[1]), Some(before[2])).unwrap();
    }
    assert_eq!(now, before, "{who} has changed the host's null device");
}

with_each_handler!({ the_hosts_null_device_stays_as_it_is }: youki, runc, crun, runsc);

/// A runtime binary that has made the process, and hangs before it says so.
const SLOW: &str = "#!/bin/sh\n\
    case \" $* \" in *' exec '*) RUNTIME \"$@\"; [ -e FOLDER/go ] || sleep 4713;; *) exec RUNTIME \"$@\";; esac\n";

async fn what_was_given_up_leaves_nothing(handler: &str) {
    let (Some(runtime), Some(mut setup)) = (crate::handlers::find(handler), crate::handlers::setup(handler)) else {
        return;
    };
    let made = tempfile::tempdir_in("/run").unwrap();
    let folder = made.path();
    // Its name tells what it is.
    let (place, runtime) = (folder.join(handler), runtime.to_str().unwrap());
    let text = SLOW.replace("RUNTIME", runtime).replace("FOLDER", folder.to_str().unwrap());
    fs::write(&place, text).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
    let known = format!("binary = {runtime:?}");
    assert!(setup.handlers[0].1.contains(&known), "{:?}", setup.handlers);
    setup.handlers[0].1 = setup.handlers[0].1.replace(&known, &format!("binary = {place:?}"));
    let mut node = Node::with(setup).await;
    node.pull(specs::BUSYBOX).await;
    let pod = crate::handlers::up(&node, handler, "slow").await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    node.logged(&ctr, "up").await;
    let files = node.dir().join("state/pods").join(&pod.id).join("containers").join(&ctr.id);
    let pause = host::process(node.pid_in(&pod.id, "pause")).unwrap();
    let state = || {
        let mut files = walk(&files);
        files.sort();
        (files, host::open_files(pause.parent).len())
    };
    let before = state();
    for command in ["sleep 4711", "sleep 4712"] {
        let words: Vec<_> = command.split(' ').collect();
        if command == "sleep 4711" {
            let status = node.try_exec(&ctr, &words, 5 * i64::from(slowness())).await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        } else {
            // The client leaves, once the process is made.
            let is_pid =
                |file: &PathBuf| file.extension().is_some_and(|kind| kind == "pid") && !before.0.contains(file);
            let made = eventually(secs(15), "the process", async || {
                if walk(&files).iter().any(is_pid) { Ok(()) } else { Err("none".to_owned()) }
            });
            tokio::select! {
                _ = node.try_exec(&ctr, &words, 300) => panic!("it must hang"),
                () = made => {}
            }
        }
        eventually(secs(15), &format!("the end of all that {command:?} was"), async || {
            // What the binary itself had started is no more wanted than what it was to start.
            let is_left = |p: &host::Process| p.command.contains(command) || p.command.contains("sleep 4713");
            let left: Vec<_> = host::descendants().into_iter().filter(is_left).collect();
            let now = state();
            if left.is_empty() && now == before { Ok(()) } else { Err(format!("{left:?}, {now:?}, before {before:?}")) }
        })
        .await;
    }
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerRunning);
    // In a kernel of their own the host would not see them.
    fs::write(folder.join("go"), "").unwrap();
    let shown = node.exec(&ctr, &["ps"]).await;
    assert!(shown.contains("ps") && !shown.contains("sleep 471"), "{shown}");
    node.finish().await;
}

mod given_up {
    use super::{what_was_given_up_leaves_nothing, with_each_handler};

    with_each_handler!({ what_was_given_up_leaves_nothing }: runc, runsc);
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let below = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => walk(&entry.path()),
        false => vec![entry.path()],
    };
    entries.flat_map(below).collect()
}
