//! The machine as one test sees it: a network and a mount namespace of its own, so that tests run at once without
//! meeting, and whatever a broken runtime leaves in them goes with the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Moves this thread, and what it starts, into the private namespaces, and makes this process the one that orphans
/// below it come to.
pub fn isolate(dir: &Path) {
    assert!(nix::unistd::geteuid().is_root(), "the conformance suite needs root");
    assert!(
        std::env::var_os("NEXTEST").is_some(),
        "each test needs a process of its own: run the suite with `make conformance` or cargo nextest"
    );
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("unshare");
    let none = None::<&str>;
    // Nothing goes out to the real machine; inside, mounts are shared as systemd has them.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).expect("make / a slave");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).expect("make / shared");
    mount(Some("pwt"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=4g")).expect("mount a tmpfs");
    run("ip", &["link", "set", "lo", "up"]);
    nix::sys::prctl::set_child_subreaper(true).expect("become a subreaper");
}

/// Runs a program of the machine that must succeed; its standard output.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(out.status.success(), "{program} {args:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Mount points in this test's mount namespace.
pub fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

/// Names of the network interfaces of this test's network namespace.
pub fn links() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("net/dev");
    table.lines().skip(2).filter_map(|line| line.split(':').next().map(|name| name.trim().to_owned())).collect()
}

/// Names of listening or bound abstract Unix sockets.
pub fn abstract_sockets() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/unix").expect("net/unix");
    table
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .filter(|n| n.starts_with('@'))
        .map(str::to_owned)
        .collect()
}

/// A process, as /proc tells.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its parent's pid.
    pub parent: i32,
    /// `R`, `S`, `Z`, ….
    pub state: char,
    /// Its short name.
    pub name: String,
    /// Its arguments, blank between them.
    pub command: String,
}

/// All processes of the machine.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

/// One process, if it exists.
pub fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets too.
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let name = head.split_once('(').map(|(_, name)| name.to_owned()).unwrap_or_default();
    Some(Process { pid, parent, state, name, command })
}

/// All processes that descend from this one.
pub fn descendants() -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in processes() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id() as i32];
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            next.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Children of this process that are waited for by those who started them.
static OWN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Starts a program that its caller waits for.
pub fn spawn(command: &mut Command) -> Child {
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    OWN.lock().expect("children").push(child.id());
    child
}

/// Reaps dead orphans that came to this process, as a node's init does.
pub fn reap() {
    let me = std::process::id() as i32;
    let own = OWN.lock().expect("children").clone();
    for orphan in descendants().iter().filter(|p| p.parent == me && p.state == 'Z' && !own.contains(&(p.pid as u32))) {
        let _ = waitpid(Pid::from_raw(orphan.pid), Some(WaitPidFlag::WNOHANG));
    }
}

/// The open files of a process, as `readlink` shows them; TCP connections are left out, for a client may keep some.
pub fn open_files(pid: i32) -> Vec<String> {
    let tcp: BTreeSet<String> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|kind| fs::read_to_string(format!("/proc/{pid}/net/{kind}")).ok())
        .flat_map(|table| {
            let inodes =
                table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(9).map(str::to_owned));
            inodes.collect::<Vec<_>>()
        })
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let mut files: Vec<_> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    files.retain(|file| !tcp.contains(file));
    files.sort();
    files
}
