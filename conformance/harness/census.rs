//! The census: what the machine holds at the end of a test against what it held at its start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Node, cgroups, cni, host};

/// What was there before.
#[derive(Debug)]
pub struct Baseline {
    mounts: Vec<String>,
    links: BTreeSet<String>,
    netns: BTreeSet<PathBuf>,
    /// Owners and modes of what is in /dev.
    devices: BTreeMap<PathBuf, [u32; 3]>,
    /// Files below root and state once the daemon had started.
    files: BTreeSet<PathBuf>,
    /// Open files of the daemon once it had started.
    open: Vec<String>,
}

impl Baseline {
    /// Before the daemon was first started.
    pub fn before(_dir: &Path) -> Self {
        let (files, open) = (BTreeSet::new(), Vec::new());
        Self { mounts: host::mounts(), links: host::links(), netns: named_netns(), devices: devices(), files, open }
    }

    /// Once the daemon had answered for the first time.
    pub fn started(&mut self, node: &Node) {
        self.files = files(node.dir());
        self.open = node.daemon().open_files();
    }

    /// Everything that is there now and should not be, one per line; the daemon is still running.
    pub fn compare(&self, node: &Node) -> Result<(), String> {
        let mut wrong = self.leftovers(node);
        let open = node.daemon().open_files();
        if open.len() > self.open.len() {
            wrong.push(format!("{} open files of the daemon, {} at its start: {open:#?}", open.len(), self.open.len()));
        }
        verdict(wrong)
    }

    /// The same, once the daemon has ended.
    pub fn compare_without_daemon(&self, node: &Node) -> Result<(), String> {
        let mut wrong = self.leftovers(node);
        wrong.extend(host::descendants().iter().map(|process| format!("process {process:?}")));
        if node.dir().join("cri.sock").exists() {
            wrong.push("the socket of the daemon that has ended".to_owned());
        }
        verdict(wrong)
    }

    fn leftovers(&self, node: &Node) -> Vec<String> {
        let mut wrong = Vec::new();
        let (dir, ids) = (node.dir(), node.ids());
        let place = dir.to_string_lossy().into_owned();
        let known = |text: &str| ids.iter().any(|id| text.contains(&id[..12.min(id.len())]));

        let mut mounts = host::mounts();
        for before in &self.mounts {
            if let Some(at) = mounts.iter().position(|mount| mount == before) {
                mounts.swap_remove(at);
            }
        }
        wrong.extend(mounts.iter().map(|mount| format!("mount {mount}")));

        let links = host::links();
        wrong.extend(
            links.difference(&self.links).filter(|&link| link != cni::BRIDGE).map(|link| format!("link {link}")),
        );
        wrong.extend(named_netns().difference(&self.netns).map(|path| format!("network namespace {}", path.display())));
        let changed = devices().into_iter().filter(|(path, now)| self.devices.get(path).is_some_and(|was| was != now));
        wrong.extend(changed.map(|(path, now)| format!("user, group, mode of {path:?} are {now:?}")));
        wrong.extend(cni::leases(dir).iter().map(|lease| format!("lease {lease}")));
        wrong.extend(firewall().lines().filter(|line| known(line)).map(|line| format!("firewall rule {line}")));

        let parent = node.cgroup_parent().trim_start_matches('/');
        let left = cgroups::find(|name| name == parent || known(name));
        // The parent itself is its maker's, which on a node is the kubelet.
        wrong.extend(
            left.iter().filter(|path| !path.ends_with(parent)).map(|path| format!("cgroup {}", path.display())),
        );

        let daemon_and_registry = |process: &host::Process| {
            process.parent == std::process::id() as i32
                && (process.command.contains(" serve --config ") || process.command.starts_with("docker-registry"))
        };
        for process in host::processes() {
            let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
            let ours = process.command.contains(&place) || known(&process.command) || known(&cgroup);
            if ours && !daemon_and_registry(&process) && process.pid != std::process::id() as i32 {
                wrong.push(format!("process {process:?}"));
            }
        }
        let orphans = host::descendants().into_iter().filter(|process| !daemon_and_registry(process));
        wrong.extend(orphans.map(|process| format!("process {process:?}")));

        let now = files(dir);
        wrong.extend(now.difference(&self.files).map(|path| format!("file {}", path.display())));
        wrong
    }
}

fn devices() -> BTreeMap<PathBuf, [u32; 3]> {
    let entries = fs::read_dir("/dev").unwrap().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, of)| (path, [of.uid(), of.gid(), of.mode()]))
        .collect()
}

fn verdict(mut wrong: Vec<String>) -> Result<(), String> {
    wrong.sort();
    wrong.dedup();
    if wrong.is_empty() { Ok(()) } else { Err(format!("left behind:\n  {}", wrong.join("\n  "))) }
}

fn named_netns() -> BTreeSet<PathBuf> {
    let folders = ["/run/netns", "/var/run/netns"];
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Rules of this test's network namespace. A machine may lack either tool.
fn firewall() -> String {
    let tools: [&[&str]; 3] = [&["iptables-save"], &["ip6tables-save"], &["nft", "list", "ruleset"]];
    let outputs = tools.iter().filter_map(|words| Command::new(words[0]).args(&words[1..]).output().ok());
    outputs.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).collect()
}

/// Files, and folders that bear an id, below root and state. Compiled seccomp filters may stay: they are a cache.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut next = vec![dir.join("root"), dir.join("state")];
    while let Some(folder) = next.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && path != dir.join("state/seccomp") {
                next.push(path.clone());
            }
            if !is_dir || entry.file_name().len() >= 64 {
                found.insert(path);
            }
        }
    }
    found
}
