//! The runtime's own processes and their memory, told apart from pause and the workload.
//!
//! A process is the runtime's if it is the daemon behind the socket, a monitor (containerd-shim*,
//! conmon*, podwright-monitor) that this daemon or one of the bench's pods has, or a child of either
//! that is not the workload or pause.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How monitors' names begin. A comm is cut to 15 bytes; so are these.
const MONITORS: [&str; 3] = ["containerd-shim", "conmon", "podwright-monit"];

/// One process, as far as its role shows.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Its parent's id.
    pub parent: i32,
    /// The kernel's name for it, and the last part of its executable's and its first argument's path.
    pub names: Vec<String>,
    /// Its arguments, joined by blanks.
    pub command: String,
}

/// What a process is to the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The daemon behind the socket.
    Daemon,
    /// A shim, conmon or podwright-monitor, or another helper of the runtime.
    Monitor,
    /// A sandbox's pause process.
    Pause,
    /// The container's process.
    Workload,
}

/// Memory of some processes together, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Number of processes.
    pub processes: u64,
    /// Proportional set size: shared pages are divided among those who share.
    pub pss_kib: u64,
    /// Resident set size, shared pages in full.
    pub rss_kib: u64,
    /// What only these processes hold.
    pub private_kib: u64,
    /// Threads.
    pub threads: u64,
}

/// The runtime's memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The daemon alone.
    pub daemon: Memory,
    /// Monitors and helpers.
    pub monitors: Memory,
    /// Pause processes: not counted as the runtime's own.
    pub pause: Memory,
    /// The containers' processes.
    pub workload: Memory,
}

impl Usage {
    /// PSS of daemon, monitors and helpers, in KiB.
    pub fn own_pss_kib(&self) -> u64 {
        self.daemon.pss_kib + self.monitors.pss_kib
    }
}

/// Reads the memory of all processes that have a role. Processes that end meanwhile count as gone.
pub fn usage(daemon: i32, ids: &HashSet<String>, token: &str) -> Usage {
    let mut usage = Usage::default();
    for (pid, role) in roles(&processes(), daemon, ids, token) {
        let sum = match role {
            Role::Daemon => &mut usage.daemon,
            Role::Monitor => &mut usage.monitors,
            Role::Pause => &mut usage.pause,
            Role::Workload => &mut usage.workload,
        };
        if let Some(memory) = memory(pid) {
            sum.processes += 1;
            sum.pss_kib += memory.pss_kib;
            sum.rss_kib += memory.rss_kib;
            sum.private_kib += memory.private_kib;
            sum.threads += memory.threads;
        }
    }
    usage
}

/// Which processes have a role in the runtime at `daemon`, whose pods have `ids` and whose workload's arguments hold `token`.
pub fn roles(all: &BTreeMap<i32, Process>, daemon: i32, ids: &HashSet<String>, token: &str) -> BTreeMap<i32, Role> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, process) in all {
        children.entry(process.parent).or_default().push(*pid);
    }
    let is_workload = |process: &Process| process.command.split(' ').any(|argument| argument == token);
    let is_ours = |pid: i32, process: &Process| {
        process.command.split([' ', '/', '=']).any(|word| ids.contains(word))
            || children.get(&pid).into_iter().flatten().any(|child| all.get(child).is_some_and(is_workload))
    };
    // From the daemon and every monitor that is ours, downwards. Monitors mostly are not the daemon's children.
    let mut open = vec![(daemon, Role::Daemon)];
    open.extend(
        all.iter()
            .filter(|(pid, process)| is_monitor(process) && is_ours(**pid, process))
            .map(|(pid, _)| (*pid, Role::Monitor)),
    );
    let mut found = BTreeMap::new();
    while let Some((pid, role)) = open.pop() {
        if !all.contains_key(&pid) || found.insert(pid, role).is_some() {
            continue;
        }
        for child in children.get(&pid).into_iter().flatten() {
            let Some(process) = all.get(child) else { continue };
            let below = match role {
                Role::Workload => Role::Workload,
                Role::Pause => Role::Pause,
                _ if is_workload(process) => Role::Workload,
                _ if is_monitor(process) || role == Role::Daemon => Role::Monitor,
                _ => Role::Pause,
            };
            open.push((*child, below));
        }
    }
    found
}

fn is_monitor(process: &Process) -> bool {
    process.names.iter().any(|name| MONITORS.iter().any(|monitor| name.starts_with(monitor)))
}

fn processes() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, process(&entry.path())?))
        })
        .collect()
}

fn process(folder: &Path) -> Option<Process> {
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let arguments = fs::read(folder.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
    let mut names = vec![field(&status, "Name:").unwrap_or_default().to_owned()];
    let executable = fs::read_link(folder.join("exe")).ok();
    let first = command.split(' ').next().map(Path::new);
    names.extend(
        [executable.as_deref(), first]
            .into_iter()
            .flatten()
            .filter_map(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned()),
    );
    Some(Process { parent: field(&status, "PPid:")?.parse().ok()?, names, command })
}

fn memory(pid: i32) -> Option<Memory> {
    let folder = Path::new("/proc").join(pid.to_string());
    let rollup = fs::read_to_string(folder.join("smaps_rollup")).ok()?;
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let kib = |name| {
        field(&rollup, name).and_then(|value| value.strip_suffix(" kB")).and_then(|value| value.parse::<u64>().ok())
    };
    Some(Memory {
        processes: 1,
        pss_kib: kib("Pss:")?,
        rss_kib: kib("Rss:")?,
        private_kib: kib("Private_Clean:")? + kib("Private_Dirty:")?,
        threads: field(&status, "Threads:")?.parse().ok()?,
    })
}

/// The value of a `Name:   value` line.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
