use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use super::*;

/// A plugin folder with one shell script as plugin `p`.
fn folder(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(folder.path().join("p")).unwrap();
    write!(file, "#!/bin/sh\ncd \"${{0%/*}}\"\n{script}\n").unwrap();
    folder
}

async fn run_in(folder: &Path, verb: Verb, timeout: Duration) -> Result<String, PluginFailure> {
    let mut stdin = tempfile::tempfile().unwrap();
    stdin.write_all(b"{\"the\":\"config\"}").unwrap();
    stdin.rewind().unwrap();
    let parameters = Parameters {
        container: "c1".into(),
        netns: "/run/n".into(),
        interface: "eth0".into(),
        args: "IgnoreUnknown=1".into(),
    };
    let runner = Runner { folders: vec!["/nowhere".into(), folder.to_owned()], timeout };
    runner.call(verb, "p", &parameters, stdin).await.map(|output| String::from_utf8(output).unwrap())
}

async fn run(script: &str) -> Result<String, PluginFailure> {
    run_in(folder(script).path(), Verb::Add, Duration::from_secs(20)).await
}

/// Whether the process is dead, or dies now: a signal sent need not have arrived.
fn dies(pid_file: &Path) -> bool {
    let pid: i32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    let Ok(process) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return true };
    let mut polled = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let limit = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
    // A child of another test's may have ended, which interrupts.
    loop {
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other == Ok(1),
        }
    }
}

#[tokio::test]
async fn a_plugin_gets_its_input_and_nothing_else() {
    let output = run("cat; env | sort | grep -v -e ^PATH= -e ^PWD= -e ^OLDPWD= -e ^SHLVL= -e ^_=").await.unwrap();
    let (stdin, environment) = output.split_once('\n').unwrap_or((&output, ""));
    assert!(stdin.starts_with("{\"the\":\"config\"}CNI_ARGS=IgnoreUnknown=1"), "{output}");
    let names: Vec<_> = environment.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names, ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"]);
    let folder = folder("env | grep CNI_ | sort; ls -l /proc/self/fd | wc -l");
    let output = run_in(folder.path(), Verb::Status, Duration::from_secs(20)).await.unwrap();
    let want = format!("CNI_COMMAND=STATUS\nCNI_PATH=/nowhere:{}\n", folder.path().display());
    assert!(output.starts_with(&want), "{output}");
}

#[tokio::test]
async fn a_long_answer_is_whole() {
    assert_eq!(run("head -c 1000000 /dev/zero | tr '\\0' x").await.unwrap().len(), 1_000_000);
}

#[tokio::test]
async fn failures_say_what_the_plugin_said() {
    let said = |failure: PluginFailure| failure.to_string();
    let error = said(run(r#"echo '{"code":11,"msg":"try later","details":"no lease"}'; exit 1"#).await.unwrap_err());
    assert_eq!(error, "try later; no lease (code 11)");
    let error = said(run(r#"echo '{"code":7,"msg":"bad"}'"#).await.unwrap_err());
    assert_eq!(error, "bad (code 7)", "an error result counts, whatever the exit status");
    let error = said(run(r#"echo '{"msg":"no code"}'; exit 1"#).await.unwrap_err());
    assert_eq!(error, "no code (code 0)");
    let error = said(run("echo oops >&2; echo; exit 3").await.unwrap_err());
    assert_eq!(error, r#"exit status 3, output "", stderr "oops""#);
    let error = said(run("kill -SEGV $$").await.unwrap_err());
    assert!(error.contains("signal 11"), "{error}");
    let error = said(run("printf 'a\\033[31m\\nb' >&2; exit 1").await.unwrap_err());
    assert!(error.contains(r#"stderr "a [31m b""#), "{error}");
    let error = run("yes noise | head -c 3000000 >&2; echo end >&2; exit 1").await.unwrap_err().to_string();
    assert!(error.len() < 4000 && error.contains("..."), "{error}");
}

#[tokio::test]
async fn what_is_no_plugin_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let runner = Runner { folders: vec![folder.path().into()], timeout: Duration::from_secs(1) };
    fs::write(folder.path().join("plain"), "#!/bin/sh").unwrap();
    fs::create_dir(folder.path().join("dir")).unwrap();
    for kind in ["plain", "dir", "absent", "", ".", "..", "/bin/sh", "../bin/sh", "sh/"] {
        assert!(matches!(runner.find(kind), Err(PluginFailure::Missing { .. })), "{kind}");
    }
    let not_executable_text = super::tests::folder("");
    fs::write(not_executable_text.path().join("p"), "neither script nor program").unwrap();
    let error = run_in(not_executable_text.path(), Verb::Add, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, PluginFailure::Spawn { .. }), "{error}");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_all_it_started() {
    let folder = folder("sleep 1000 & echo $! > child; echo stuck >&2; wait");
    let error = run_in(folder.path(), Verb::Add, Duration::from_secs(3)).await.unwrap_err();
    assert!(matches!(&error, PluginFailure::Hung { stderr, .. } if stderr == "stuck"), "{error}");
    assert!(dies(&folder.path().join("child")));
}

#[tokio::test]
async fn a_failing_plugin_leaves_no_child() {
    let folder = folder("sleep 1000 & echo $! > child; exit 1");
    run_in(folder.path(), Verb::Add, Duration::from_secs(20)).await.unwrap_err();
    assert!(dies(&folder.path().join("child")));
}

#[tokio::test]
async fn endless_output_is_cut_off() {
    let started = Instant::now();
    let error = run("exec yes").await.unwrap_err();
    assert!(matches!(error, PluginFailure::TooMuch { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_child_that_holds_the_pipes_delays_nobody() {
    let folder = folder("sleep 1000 & echo $! > child; echo '{}'");
    let started = Instant::now();
    assert_eq!(run_in(folder.path(), Verb::Add, Duration::from_secs(30)).await.unwrap(), "{}\n");
    assert!(started.elapsed() < Duration::from_secs(10));
    let child = fs::read_to_string(folder.path().join("child")).unwrap();
    rustix::process::kill_process(Pid::from_raw(child.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_dropped_call_kills_the_plugin() {
    let folder = folder("sleep 1000 & echo $! > child; mv child ready; wait");
    let mut inotify = inotify::Inotify::init().unwrap();
    inotify.watches().add(folder.path(), inotify::WatchMask::MOVED_TO).unwrap();
    let path = folder.path().to_owned();
    let call = tokio::spawn(async move { run_in(&path, Verb::Add, Duration::from_secs(60)).await });
    tokio::task::spawn_blocking(move || inotify.read_events_blocking(&mut [0; 4096]).unwrap().count()).await.unwrap();
    call.abort();
    call.await.unwrap_err();
    assert!(dies(&folder.path().join("ready")));
}
