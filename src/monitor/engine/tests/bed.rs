//! A test bed: a small root file system out of this machine's own programs, bundles, and a stand-in
//! for the monitor, which is a freshly forked process with one thread.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use crate::monitor::engine::{self, ExecStatus, Job, Outcome, Streams};
use crate::sys::{caps, fork};
use crate::types::ContainerId;
use crate::wire::{Capabilities, Confinement, CreateSpec, Engine, ExecSpec, Failure, Process, Rootfs, StdioSpec};

const PROGRAMS: [&str; 18] = [
    "sh", "cat", "ls", "sleep", "grep", "id", "readlink", "true", "env", "stat", "mknod", "touch", "mkdir", "sed",
    "dd", "sort", "umount", "mount",
];
/// The default set of containerd and others.
pub(super) const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// Longest wait for anything, in rounds; in each, children are reaped, as a monitor does at once.
const PATIENCE: usize = 3000;
const ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Runs `body` as the monitor would run; its panic is the test's.
pub(super) fn as_monitor(body: impl FnOnce()) {
    let pid = fork::fork_unchecked(|| {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        body();
        0
    })
    .unwrap();
    let mut status = 0;
    let pid = rustix::process::Pid::from_raw(pid);
    if let Some((_, ended)) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap() {
        status = ended.as_raw();
    }
    assert_eq!(status, 0, "the test's body failed, see above");
}

/// crun refuses a hybrid set-up where the v2 tree has any controller of its own: for tests of it.
pub(super) fn hide_unified() {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    if Path::new(UNIFIED).exists() {
        fork::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        crate::sys::mounts::set_root_propagation(crate::sys::mounts::Propagation::Slave).unwrap();
        rustix::mount::mount("tmpfs", UNIFIED, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    }
}

pub(super) struct Bed {
    pub folder: tempfile::TempDir,
    statuses: HashMap<i32, i32>,
    descriptors: usize,
    parent: String,
}

pub(super) struct Made {
    pub spec: CreateSpec,
    pub config: Value,
}

pub(super) struct Running {
    pub pid: i32,
    pub status: Option<ExecStatus>,
    pub output: OwnedFd,
}

impl Bed {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer");
        for name in ["bin", "dev", "proc", "sys", "etc", "tmp", "root"] {
            fs::create_dir_all(layer.join(name)).unwrap();
        }
        symlink("bin", layer.join("sbin")).unwrap();
        for program in PROGRAMS {
            install(&layer, program);
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000::/tmp:/bin/sh\n").unwrap();
        fs::write(layer.join("bin/garbage"), "\x01\x02garbage").unwrap();
        Command::new("chmod").arg("755").arg(layer.join("bin/garbage")).status().unwrap();
        fs::write(layer.join("bin/data"), "not a program").unwrap();
        let parent = format!("pw-engine-test-{}", std::process::id());
        Self { folder, statuses: HashMap::new(), descriptors: descriptors(), parent }
    }

    pub(super) fn engine(&self, name: &str) -> Engine {
        let root = self.folder.path().join("state").join(name);
        fs::create_dir_all(&root).unwrap();
        match name {
            "youki" => Engine::Youki { root, systemd_cgroup: false },
            _ => {
                let given = std::env::var_os(name.to_uppercase()).map(PathBuf::from);
                let found =
                    ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/sbin"].map(|dir| Path::new(dir).join(name));
                let binary = given
                    .into_iter()
                    .chain(found)
                    .find(|path| path.exists())
                    .unwrap_or_else(|| panic!("{name} is not installed"));
                let args = match name {
                    "runsc" => vec!["--platform=ptrace".into(), "--ignore-cgroups".into(), "--network=none".into()],
                    _ => Vec::new(),
                };
                Engine::Oci { binary, root, args, systemd_cgroup: false, place: None }
            }
        }
    }

    /// A container of `engine` that runs `args`, after `change` to its spec.
    pub(super) fn make(&self, engine: &str, args: &[&str], change: impl FnOnce(&mut Made)) -> CreateSpec {
        let container = ContainerId::generate();
        let bundle = self.folder.path().join("c").join(container.as_str());
        for name in ["rootfs", "upper", "work"] {
            fs::create_dir_all(bundle.join(name)).unwrap();
        }
        fs::set_permissions(bundle.join("upper"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("/{}/{container}", self.parent);
        let mask = CAPABILITIES.iter().filter_map(|name| caps::from_name(name)).fold(0, |set, bit| set | bit);
        let spec = CreateSpec {
            engine: self.engine(engine),
            rootfs: Rootfs {
                idmap: None,
                lower: vec![self.folder.path().join("layer")],
                upper: Some((bundle.join("upper"), bundle.join("work"))),
                mountpoint: bundle.join("rootfs"),
                label: None,
            },
            mounts: Vec::new(),
            folders: Vec::new(),
            confinement: Confinement {
                capabilities: Capabilities { bounding: mask, permitted: mask, effective: mask, ..Default::default() },
                ..Default::default()
            },
            stdio: StdioSpec::default(),
            cgroups: cgroups(&path),
            timeout_ms: 10_000,
            container,
            bundle,
        };
        let config = config(&spec, &path, args);
        let mut made = Made { spec, config };
        change(&mut made);
        fs::write(made.spec.bundle.join("config.json"), made.config.to_string()).unwrap();
        made.spec
    }

    pub(super) fn finish(&mut self, job: Job) -> Result<Outcome, Failure> {
        let helper = job.helper;
        let bytes = self.read_all(&job.result);
        let status = helper.map(|pid| self.wait(pid));
        job.conclude(&bytes, status)
    }

    pub(super) fn create(&mut self, spec: &CreateSpec) -> Result<Running, Failure> {
        let (output, streams) = streams();
        let (job, status) = engine::create(spec, streams)?;
        match self.finish(job)? {
            Outcome::Process(pid) => Ok(Running { pid, status, output }),
            other => panic!("{other:?}"),
        }
    }

    /// With a terminal; gives its master side.
    pub(super) fn create_on_terminal(&mut self, spec: &CreateSpec) -> (Running, OwnedFd) {
        let console_socket = self.folder.path().join("console.sock");
        let listener = std::os::unix::net::UnixListener::bind(&console_socket).unwrap();
        let (job, status) = engine::create(spec, Streams::Terminal { console_socket: console_socket.clone() }).unwrap();
        let Outcome::Process(pid) = self.finish(job).unwrap() else { panic!() };
        let terminal = receive(&listener);
        fs::remove_file(console_socket).unwrap();
        (Running { pid, status, output: terminal.try_clone().unwrap() }, terminal)
    }

    pub(super) fn start(&mut self, spec: &CreateSpec, running: &mut Running) -> Result<(), Failure> {
        let job = engine::start(spec, running.status.take())?;
        assert_eq!(self.finish(job)?, Outcome::Done);
        Ok(())
    }

    pub(super) fn exec(&mut self, spec: &CreateSpec, init: i32, process: Value) -> Result<(i32, String), Failure> {
        let (output, streams) = streams();
        let exec = ExecSpec {
            container: spec.container.clone(),
            process,
            confinement: spec.confinement.clone(),
            timeout_ms: 0,
            token: 0,
            output_limit: 0,
            drain_ms: 0,
        };
        let job = engine::exec(spec, Process { pid: init, start_time: 0 }, &exec, streams)?;
        match self.finish(job)? {
            Outcome::Process(pid) => {
                let code = self.exit_code(pid);
                Ok((code, text(&output)))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn delete(&mut self, spec: &CreateSpec) {
        let job = engine::delete(spec).unwrap();
        assert_eq!(self.finish(job), Ok(Outcome::Done));
    }

    /// Create, start, wait, delete: exit code and output.
    pub(super) fn run(&mut self, spec: &CreateSpec) -> (i32, String) {
        let mut running = self.create(spec).unwrap();
        self.start(spec, &mut running).unwrap();
        let code = self.exit_code(running.pid);
        let output = text(&running.output);
        self.delete(spec);
        (code, output)
    }

    pub(super) fn exit_code(&mut self, pid: i32) -> i32 {
        let status = self.wait(pid);
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
    }

    fn read_all(&mut self, fd: &OwnedFd) -> Vec<u8> {
        let statuses = &mut self.statuses;
        read_all(fd, || reap(statuses))
    }

    /// Reaps whatever ends until `pid` has.
    fn wait(&mut self, pid: i32) -> i32 {
        loop {
            if let Some(status) = self.statuses.remove(&pid) {
                return status;
            }
            let Some((ended, status)) = rustix::process::wait(rustix::process::WaitOptions::empty()).unwrap() else {
                continue;
            };
            self.statuses.insert(ended.as_raw_nonzero().get(), status.as_raw());
        }
    }

    /// Nothing is left: no process, no mount, no cgroup, no state, no descriptor.
    pub(super) fn census(mut self, containers: &[&CreateSpec]) {
        // What was killed may take a moment to die.
        for round in 0.. {
            reap(&mut self.statuses);
            let children = fs::read_to_string("/proc/thread-self/children").unwrap();
            if children.trim().is_empty() {
                break;
            }
            assert!(round < PATIENCE, "children are left: {children}");
            poll(&mut [], Some(&ROUND)).unwrap();
        }
        assert_eq!(mounts(self.folder.path()), Vec::<String>::new(), "mounts are left");
        for spec in containers {
            for path in &spec.cgroups {
                assert!(!path.exists(), "{path:?} is left");
            }
            let (Engine::Youki { root, .. } | Engine::Oci { root, .. }) = &spec.engine;
            let left: Vec<_> = fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()).collect();
            assert!(left.iter().all(|path| !path.to_string_lossy().contains(spec.container.as_str())), "{left:?}");
        }
        for path in cgroups(&format!("/{}", self.parent)).iter().filter(|path| path.exists()) {
            let children = fs::read_dir(path).unwrap().flatten().filter(|entry| entry.path().is_dir());
            assert_eq!(children.count(), 0, "cgroups are left in {path:?}");
        }
        assert_eq!(descriptors(), self.descriptors, "descriptors are left");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let unified = Path::new("/sys/fs/cgroup/unified").join(&self.parent);
        for path in cgroups(&format!("/{}", self.parent)).into_iter().chain([unified]) {
            let _ = fs::remove_dir(&path);
        }
    }
}

pub(super) fn process(args: &[&str]) -> Value {
    json!({
        "args": args, "cwd": "/", "user": {"uid": 0, "gid": 0, "additionalGids": [7]},
        "env": ["PATH=/usr/bin:/bin", "A=b", "A=c"],
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1000, "soft": 1000}],
    })
}

fn config(spec: &CreateSpec, cgroup: &str, args: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str, options: &str| json!({"destination": destination, "type": kind, "source": kind, "options": options.split(',').collect::<Vec<_>>()});
    let device = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "c", "major": 5, "access": "rwm"}, {"allow": true, "type": "c", "major": 136, "access": "rwm"}]);
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": spec.rootfs.mountpoint},
        "hostname": "test",
        "mounts": [
            mount("/proc", "proc", "nosuid,noexec,nodev"),
            mount("/dev", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount("/dev/shm", "tmpfs", "nosuid,noexec,nodev,mode=1777,size=65536k"),
            mount("/sys", "sysfs", "nosuid,noexec,nodev,ro"),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"devices": device, "memory": {"limit": 268_435_456}, "cpu": {"shares": 512}, "pids": {"limit": 200}},
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

fn cgroups(path: &str) -> Vec<PathBuf> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let roots: Vec<PathBuf> = if unified {
        vec!["/sys/fs/cgroup".into()]
    } else {
        fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir() && !path.ends_with("unified"))
            .collect()
    };
    roots.iter().map(|root| root.join(path.trim_start_matches('/'))).collect()
}

fn install(layer: &Path, program: &str) {
    let path = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(program)).into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("this machine has no {program}"));
    fs::copy(&path, layer.join("bin").join(program)).unwrap();
    let list = String::from_utf8(Command::new("ldd").arg(&path).output().unwrap().stdout).unwrap();
    for library in list.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = layer.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(library, target).unwrap();
    }
}

pub(super) fn streams() -> (OwnedFd, Streams) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let stdin = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    (read, Streams::Pipes { stdin, stderr: write.try_clone().unwrap(), stdout: write })
}

pub(super) fn text(output: &OwnedFd) -> String {
    String::from_utf8_lossy(&read_all(output, || {})).into_owned()
}

fn receive(listener: &std::os::unix::net::UnixListener) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.unwrap()
}

/// The terminal's output until its last user is gone, when the kernel answers EIO.
pub(super) fn terminal_text(terminal: &OwnedFd) -> String {
    let mut file = fs::File::from(terminal.try_clone().unwrap());
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = file.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn reap(statuses: &mut HashMap<i32, i32>) {
    while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        statuses.insert(pid.as_raw_nonzero().get(), status.as_raw());
    }
}

/// All that comes until the end.
fn read_all(fd: impl AsFd, mut meanwhile: impl FnMut()) -> Vec<u8> {
    let mut file = fs::File::from(fd.as_fd().try_clone_to_owned().unwrap());
    let (mut bytes, mut rounds) = (Vec::new(), 0);
    loop {
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&ROUND)).unwrap();
        meanwhile();
        if ready == 0 {
            rounds += 1;
            assert!(rounds < PATIENCE, "nothing came after {:?}", String::from_utf8_lossy(&bytes));
            continue;
        }
        let mut chunk = [0; 4096];
        match file.read(&mut chunk).unwrap() {
            0 => return bytes,
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
}

/// This process's mounts on or of anything in `folder`.
fn mounts(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(str::to_owned).collect()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
