//! The real monitor with a real pause, driven by the daemon's client.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podwright::launch::monitor::{EventReceiver, LaunchError, Launcher, Monitor, MonitorEvent};
use podwright::types::{ErrorKind, HasKind, PodId};
use podwright::wire::{PauseSpec, Process, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::harness::{eventually, secs, slowness};

/// A monitor of its own; killed with its pause if a test fails.
struct Pod {
    folder: tempfile::TempDir,
    id: PodId,
    monitor: Monitor,
    state: State,
    events: EventReceiver,
}

fn launcher() -> Launcher {
    Launcher::new(env!("CARGO_BIN_EXE_podwright-monitor").into())
}

impl Pod {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let id = PodId::generate();
        let (monitor, state, events) = launcher().spawn(&id, folder.path()).await.unwrap();
        Self { folder, id, monitor, state, events }
    }

    /// Shuts the monitor down and waits until it and what it ran are gone.
    async fn end(self) {
        let monitor = watch(self.state.pid);
        self.monitor.shutdown().await.unwrap();
        monitor.await;
        let left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["monitor.log"]);
    }

    /// Kills the monitor, if it is still there, and what it runs: nothing is left to wait for its daemon.
    fn kill(&self) {
        let pid = self.state.pid;
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !command.contains(&*self.folder.path().to_string_lossy()) {
            return;
        }
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let all = std::iter::once(pid).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()));
        for pid in all.filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.folder.path().join("monitor.log")).unwrap_or_default());
            self.kill();
        }
    }
}

/// Resolves once the process is gone.
fn watch(pid: i32) -> impl Future<Output = ()> {
    let handle = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    async move {
        let wait = move || {
            let limit = Timespec::try_from(Duration::from_secs(10)).unwrap();
            poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)).unwrap()
        };
        assert_eq!(tokio::task::spawn_blocking(wait).await.unwrap(), 1, "it ends in time");
    }
}

fn spec() -> PauseSpec {
    PauseSpec {
        user_namespace: None,
        netns: None,
        new_ipc: true,
        new_pid: false,
        hostname: Some("a-pod".into()),
        sysctls: vec![("kernel.shm_rmid_forced".into(), "1".into())],
        cgroups: Vec::new(),
        scope: None,
        user: (65535, 65535),
        groups: vec![7, 8],
        bpf: None,
        apparmor_profile: None,
        selinux: None,
        oom_score_adj: 500,
    }
}

fn proc(process: Process, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{file}", process.pid))
}

fn status(process: Process) -> BTreeMap<String, String> {
    let text = fs::read_to_string(proc(process, "status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

fn namespace(process: Process, name: &str) -> (PathBuf, PathBuf) {
    let link = |path: PathBuf| fs::read_link(path.join(name)).unwrap();
    (link(proc(process, "ns")), link("/proc/self/ns".into()))
}

/// A network namespace of the test's own, bound where the daemon would bind it.
struct Netns(PathBuf);

impl Netns {
    fn new(folder: &Path) -> Self {
        let path = folder.join("netns");
        fs::write(&path, "").unwrap();
        let bound = Command::new("unshare")
            .args(["--net", "mount", "--bind", "/proc/self/ns/net"])
            .arg(&path)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(bound.success());
        Self(path)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_file(&self.0);
    }
}

/// A cgroup folder of the test's own, in the first hierarchy that will have it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn all() -> Vec<Self> {
        let hosts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"];
        hosts
            .iter()
            .filter(|host| Path::new(host).join("cgroup.procs").exists())
            .map(|host| Path::new(host).join(format!("podwright-test-{}", PodId::generate().short())))
            .filter(|folder| fs::create_dir(folder).is_ok())
            .map(Self)
            .collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn pause_holds_namespaces_and_nothing_else() {
    let pod = Pod::new().await;
    let pause = pod.monitor.pause(spec()).await.unwrap();
    // Its first act is to give itself that name.
    eventually(secs(10), "the name", async || match status(pause).remove("Name") {
        Some(name) if name == "pause" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let status = status(pause);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(
        (status["Uid"].as_str(), status["Gid"].as_str()),
        ("65535 65535 65535 65535", "65535 65535 65535 65535")
    );
    assert_eq!((status["Groups"].as_str(), status["NoNewPrivs"].as_str()), ("7 8", "1"));
    assert_eq!(status["NSpid"], pause.pid.to_string(), "the host's PID namespace");
    assert_eq!(status["PPid"], pod.state.pid.to_string());
    for name in ["ipc", "uts", "mnt"] {
        let (its, ours) = namespace(pause, name);
        assert_ne!(its, ours, "{name}");
    }
    for name in ["net", "pid", "user"] {
        let (its, ours) = namespace(pause, name);
        assert_eq!(its, ours, "{name}");
    }
    // Nothing to see, nothing to write, nothing of the host behind it.
    assert_eq!(fs::read_dir(proc(pause, "root")).unwrap().count(), 0);
    assert!(fs::write(proc(pause, "root/file"), "").is_err());
    let mounts = fs::read_to_string(proc(pause, "mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    assert_eq!(fs::read_dir(proc(pause, "fd")).unwrap().count(), 0, "no descriptor");
    assert_eq!(fs::read(proc(pause, "environ")).unwrap(), b"");
    assert!(fs::read_link(proc(pause, "exe")).unwrap().to_string_lossy().starts_with("/memfd:pause"));
    assert_eq!(fs::read_to_string(proc(pause, "oom_score_adj")).unwrap().trim(), "500");
    // The sysctl is set there and not here.
    let inside = |file: &str| {
        let inside = Command::new("nsenter").args(["-t", &pause.pid.to_string(), "-i", "-u", "cat", file]).output();
        String::from_utf8(inside.unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(inside("/proc/sys/kernel/shm_rmid_forced"), "1");
    assert_eq!(inside("/proc/sys/kernel/hostname"), "a-pod");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "a-pod");
    let again = pod.monitor.pause(spec()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    pod.monitor.kill_pause().await.unwrap();
    assert!(!proc(pause, "status").exists(), "it is reaped");
    pod.monitor.kill_pause().await.unwrap();
    pod.end().await;
}

#[tokio::test]
async fn pause_joins_the_network_and_leads_a_pid_namespace() {
    let pod = Pod::new().await;
    let netns = Netns::new(pod.folder.path());
    let sysctls = vec![("net.ipv4.ping_group_range".into(), "0 1".into())];
    let spec = PauseSpec { netns: Some(netns.0.clone()), new_pid: true, sysctls, ..spec() };
    let pause = pod.monitor.pause(spec).await.unwrap();
    assert_eq!(status(pause)["NSpid"], format!("{} 1", pause.pid));
    let ours = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&netns.0).unwrap());
    assert_eq!(namespace(pause, "net").0, PathBuf::from(format!("net:[{ours}]")));
    let target = pause.pid.to_string();
    // A child of a process that ends at once is left to pause, and leaves no zombie when it ends.
    let orphan = Command::new("nsenter")
        .args(["-t", &target, "-p", "-n", "sh", "-c", "cat /proc/sys/net/ipv4/ping_group_range; sleep 0.05 & echo $!"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(orphan.stdout).unwrap().lines().next(), Some("0\t1"));
    assert_eq!(status(pause)["State"], "S (sleeping)");
    // SIGTERM ends it, also as process 1.
    let mut pod = pod;
    let gone = watch(pause.pid);
    kill_process(Pid::from_raw(pause.pid).unwrap(), Signal::TERM).unwrap();
    gone.await;
    assert_eq!(pod.events.recv().await, Some(MonitorEvent::PauseExited));
    drop(netns);
    pod.end().await;
}

#[tokio::test]
async fn pause_is_put_into_its_cgroups() {
    let pod = Pod::new().await;
    let cgroups = Cgroup::all();
    assert!(!cgroups.is_empty(), "no cgroup hierarchy to test with");
    let folders: Vec<PathBuf> = cgroups.iter().map(|cgroup| cgroup.0.clone()).collect();
    let pause = pod.monitor.pause(PauseSpec { cgroups: folders.clone(), ..spec() }).await.unwrap();
    for folder in &folders {
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), pause.pid.to_string(), "{folder:?}");
    }
    pod.end().await;
    for folder in folders {
        // The kernel may still be busy with the one that has just ended there.
        eventually(secs(10), "an empty cgroup", async || {
            fs::remove_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))
        })
        .await;
    }
}

#[tokio::test]
async fn a_filter_is_loaded_and_a_bad_one_refused() {
    let pod = Pod::new().await;
    let bpf = pod.folder.path().join("filter.bpf");
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    let allow = [&6_u16.to_ne_bytes()[..], &[0, 0], &0x7fff_0000_u32.to_ne_bytes()].concat();
    fs::write(&bpf, &allow[..7]).unwrap();
    let spec = PauseSpec { bpf: Some(bpf.clone()), ..spec() };
    let refused = pod.monitor.pause(spec.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("seccomp"), "{refused}");
    fs::write(&bpf, &allow).unwrap();
    let pause = pod.monitor.pause(spec).await.unwrap();
    assert_eq!(status(pause)["Seccomp"], "2");
    fs::remove_file(&bpf).unwrap();
    pod.end().await;
}

#[tokio::test]
async fn failures_name_what_is_missing_and_leave_nothing() {
    let pod = Pod::new().await;
    let none = PathBuf::from("/none/such");
    for (bad, kind, name) in [
        (PauseSpec { netns: Some(none.clone()), ..spec() }, ErrorKind::NotFound, "/none/such"),
        (PauseSpec { netns: Some("/dev/null".into()), ..spec() }, ErrorKind::InvalidArgument, "/dev/null"),
        (PauseSpec { cgroups: vec![none.clone()], ..spec() }, ErrorKind::NotFound, "/none/such"),
        (PauseSpec { bpf: Some(none.clone()), ..spec() }, ErrorKind::NotFound, "/none/such"),
        (PauseSpec { hostname: Some("x".repeat(65)), ..spec() }, ErrorKind::InvalidArgument, "hostname"),
        (PauseSpec { sysctls: vec![("vm.swappiness".into(), "1".into())], ..spec() }, ErrorKind::InvalidArgument, "vm"),
        (
            PauseSpec { sysctls: vec![("kernel.shmmax".into(), "x".into())], ..spec() },
            ErrorKind::InvalidArgument,
            "shmmax",
        ),
        (
            PauseSpec { sysctls: vec![("kernel.shm_none".into(), "1".into())], ..spec() },
            ErrorKind::NotFound,
            "shm_none",
        ),
    ] {
        let refused = pod.monitor.pause(bad).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(refused.to_string().contains(name), "{refused}");
    }
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.state.pid)).unwrap();
    assert_eq!(children.trim(), "", "no child is left");
    pod.end().await;
}

#[tokio::test]
async fn the_monitor_outlives_its_daemon_and_its_signals() {
    let mut pod = Pod::new().await;
    let pause = pod.monitor.pause(spec()).await.unwrap();
    assert_eq!(pod.state.pause, None);
    let mode = |name: &str| fs::metadata(pod.folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("monitor.sock"), mode("monitor.log")), (0o600, 0o600));
    let pid = Pid::from_raw(pod.state.pid).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        kill_process(pid, signal).unwrap();
    }
    let (monitor, state, events) = launcher().connect(&pod.id, pod.folder.path()).await.unwrap();
    assert_eq!(state.pause, Some(pause));
    assert_eq!(state.pid, pid.as_raw_nonzero().get());
    (pod.monitor, pod.state, pod.events) = (monitor, state, events);
    let stranger = launcher().connect(&PodId::generate(), pod.folder.path()).await.unwrap_err();
    assert!(matches!(stranger, LaunchError::Stranger { .. }));
    // A second monitor for the pod ends before it says anything, and does no harm.
    let second = launcher().spawn(&pod.id, pod.folder.path()).await.unwrap_err();
    assert!(matches!(second, LaunchError::Gone(_)), "{second}");
    let id = pod.id.clone();
    pod.end().await;
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(launcher().connect(&id, folder.path()).await, Err(LaunchError::Gone(_))));
}

#[tokio::test]
async fn pause_takes_milliseconds() {
    let (mut monitors, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let started = Instant::now();
        let pod = Pod::new().await;
        monitors.push(started.elapsed());
        let started = Instant::now();
        pod.monitor.pause(spec()).await.unwrap();
        pauses.push(started.elapsed());
        pod.end().await;
    }
    for (name, mut times) in [("monitor", monitors), ("pause", pauses)] {
        times.sort();
        println!("{name}: median {:?}, all {times:?}", times[times.len() / 2]);
        // The best of them, far above what it takes, so that a busy machine does not matter. Under emulation figures
        // say nothing.
        assert!(slowness() > 1 || times[0] < Duration::from_millis(50), "{name}: {times:?}");
    }
}
