//! The cgroup hierarchies of the machine, version 1 and 2.

use std::fs;
use std::path::{Path, PathBuf};

/// Which cgroup driver the tests use: systemd's where systemd runs with cgroup v2, unless `PODWRIGHT_TEST_CGROUP_DRIVER`
/// says otherwise.
pub fn driver() -> &'static str {
    match std::env::var("PODWRIGHT_TEST_CGROUP_DRIVER").as_deref() {
        Ok("cgroupfs") => "cgroupfs",
        Ok("systemd") => "systemd",
        _ if Path::new("/run/systemd/system").exists() && is_v2() => "systemd",
        _ => "cgroupfs",
    }
}

/// Whether cgroup v2 holds the controllers.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A cgroup parent of this test's own, in the form that the driver wants.
pub fn parent(token: &str, driver: &str) -> String {
    if driver == "systemd" { format!("podwrighttest{token}.slice") } else { format!("/podwright-test-{token}") }
}

/// The roots of all hierarchies that can be reached: one that a test covered is not.
pub fn roots() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let mut roots: Vec<PathBuf> = table
        .lines()
        .filter(|line| line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("cgroup")))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|root| root.join("cgroup.procs").exists())
        .collect();
    roots.dedup();
    roots
}

/// All cgroups of all hierarchies whose path has a part that `wanted` takes.
pub fn find(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next: Vec<(PathBuf, bool)> = roots().into_iter().map(|root| (root, false)).collect();
    while let Some((folder, inside)) = next.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let inside = inside || entry.file_name().to_str().is_some_and(&wanted);
            if inside {
                found.push(entry.path());
            }
            next.push((entry.path(), inside));
        }
    }
    found.sort();
    found
}

/// Removes cgroups, the deepest first; those that are in use stay.
pub fn remove(mut folders: Vec<PathBuf>) {
    folders.sort();
    for folder in folders.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

/// The content of a cgroup file of a process, `file` given by its v2 name or its v1 controller and name.
pub fn read(pid: i32, v2: &str, v1: (&str, &str)) -> String {
    try_read(pid, v2, v1).unwrap_or_else(|| panic!("no file {v2} ({v1:?}) in the cgroup of {pid}"))
}

/// The same; `None` where the machine has no such file.
pub fn try_read(pid: i32, v2: &str, v1: (&str, &str)) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process's cgroups");
    let line = |controller: &str| {
        table.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let named = parts.next()?.split(',').any(|name| name == controller);
            named.then(|| parts.next().map(str::to_owned)).flatten()
        })
    };
    let path = if is_v2() {
        format!("/sys/fs/cgroup{}/{v2}", line("").expect("a v2 cgroup"))
    } else {
        format!("/sys/fs/cgroup/{}{}/{}", v1.0, line(v1.0)?, v1.1)
    };
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
