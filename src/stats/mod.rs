//! What sandboxes and containers use: cgroup v1 and v2 files, /proc and layer folders to numbers.
//!
//! The kubelet asks for everything every ten seconds. So nothing is asked of a monitor: the files
//! are read directly, on one thread for blocking work per request, and only the walk over a
//! writable layer, which may be large, is kept for a while.

mod parse;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use parse::{Interface, Pressure};

use crate::cgroup::Cgroups;
use crate::types::now_ns;

/// How long the size of a writable layer is taken for true.
const LAYER_AGE: Duration = Duration::from_secs(10);
/// CPU rates are taken over at least this long, so that two callers do not spoil each other's.
const RATE_WINDOW: i64 = 1_000_000_000;

/// What a cgroup uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// When this was read, nanoseconds since the epoch.
    pub at_ns: i64,
    /// CPU time since the cgroup was made, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// CPU use since the last reading, nanoseconds per second.
    pub cpu_rate: Option<u64>,
    /// Memory with caches, bytes.
    pub memory: Option<u64>,
    /// Memory less what can be dropped at once (inactive file pages), bytes.
    pub working_set: Option<u64>,
    /// Anonymous memory, bytes.
    pub rss: Option<u64>,
    /// The limit, bytes; `None`: none.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub faults: Option<u64>,
    /// Those that needed the disk.
    pub major_faults: Option<u64>,
    /// Swap, bytes.
    pub swap: Option<u64>,
    /// Its limit, bytes; `None`: none.
    pub swap_limit: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// CPU pressure, some and full (cgroup v2).
    pub cpu_pressure: Option<(Pressure, Pressure)>,
    /// Memory pressure.
    pub memory_pressure: Option<(Pressure, Pressure)>,
    /// I/O pressure.
    pub io_pressure: Option<(Pressure, Pressure)>,
}

impl Usage {
    /// What several cgroups use that share no cgroup of their own. A limit or a pressure of them all there
    /// is not; what none of them tells is not told. `None`: there are none.
    pub fn sum(parts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let both = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.saturating_add(b)).or(a).or(b);
        let alone = |part: Self| Self {
            memory_limit: None,
            swap_limit: None,
            cpu_pressure: None,
            memory_pressure: None,
            io_pressure: None,
            ..part
        };
        parts.into_iter().map(alone).reduce(|sum, part| Self {
            at_ns: sum.at_ns.max(part.at_ns),
            cpu_ns: both(sum.cpu_ns, part.cpu_ns),
            cpu_rate: both(sum.cpu_rate, part.cpu_rate),
            memory: both(sum.memory, part.memory),
            working_set: both(sum.working_set, part.working_set),
            rss: both(sum.rss, part.rss),
            faults: both(sum.faults, part.faults),
            major_faults: both(sum.major_faults, part.major_faults),
            swap: both(sum.swap, part.swap),
            processes: both(sum.processes, part.processes),
            ..sum
        })
    }

    /// What is left below the limit, bytes.
    pub fn memory_available(&self) -> Option<u64> {
        Some(self.memory_limit?.saturating_sub(self.working_set?))
    }
}

/// Size of a writable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured, nanoseconds since the epoch.
    pub at_ns: i64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Reads usage, and remembers what rates need.
#[derive(Debug, Default)]
pub struct Stats {
    cpu: Mutex<HashMap<PathBuf, Sample>>,
    layers: Mutex<HashMap<PathBuf, (Instant, LayerUsage)>>,
}

/// Two readings of the CPU time: the rate is that between them.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ns: i64,
    cpu_ns: u64,
    rate: Option<u64>,
}

impl Stats {
    /// What the cgroup with these folders uses; `None`: it is gone. Blocks.
    pub fn usage(&self, cgroups: &Cgroups, folders: &[PathBuf]) -> Option<Usage> {
        let mut usage = if cgroups.is_v2() { read_v2(folders.first()?)? } else { read_v1(folders)? };
        usage.cpu_rate = usage.cpu_ns.and_then(|cpu_ns| self.rate(folders.first()?, usage.at_ns, cpu_ns));
        Some(usage)
    }

    /// Size of a writable layer. Blocks, for long if the layer has many files.
    pub fn layer(&self, upper: &Path) -> Option<LayerUsage> {
        let known = self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(upper).copied();
        if let Some((at, usage)) = known
            && at.elapsed() < LAYER_AGE
        {
            return Some(usage);
        }
        let (bytes, inodes) = crate::sys::tree::usage(upper).ok()?;
        let usage = LayerUsage { at_ns: now_ns(), bytes, inodes };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|path, (at, _)| at.elapsed() < LAYER_AGE * 6 || path == upper);
        layers.insert(upper.to_owned(), (Instant::now(), usage));
        Some(usage)
    }

    fn rate(&self, key: &Path, at_ns: i64, cpu_ns: u64) -> Option<u64> {
        let mut samples = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        // What nobody asked about for minutes is gone.
        samples.retain(|_, sample| at_ns - sample.at_ns < 300 * RATE_WINDOW);
        let Some(last) = samples.get_mut(key) else {
            samples.insert(key.to_owned(), Sample { at_ns, cpu_ns, rate: None });
            return None;
        };
        let span = at_ns - last.at_ns;
        if span >= RATE_WINDOW {
            let used = cpu_ns.saturating_sub(last.cpu_ns);
            let rate = u128::from(used) * 1_000_000_000 / u128::from(span.unsigned_abs());
            *last = Sample { at_ns, cpu_ns, rate: u64::try_from(rate).ok() };
        }
        last.rate
    }
}

/// The interfaces of the network namespace that this process lives in. Blocks.
pub fn interfaces(pid: i32) -> Vec<Interface> {
    fs::read_to_string(format!("/proc/{pid}/net/dev")).map(|text| parse::interfaces(&text)).unwrap_or_default()
}

fn read_v2(folder: &Path) -> Option<Usage> {
    let file = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| file(name).and_then(|text| parse::number(&text));
    let pressure = |name: &str| {
        let text = file(name)?;
        Some((parse::pressure(&text, "some")?, parse::pressure(&text, "full").unwrap_or_default()))
    };
    let cpu = file("cpu.stat")?;
    let stat = file("memory.stat");
    let keyed = |key: &str| stat.as_deref().and_then(|text| parse::keyed(text, key));
    let memory = number("memory.current");
    Some(Usage {
        at_ns: now_ns(),
        cpu_ns: parse::keyed(&cpu, "usage_usec").map(|micros| micros * 1000),
        cpu_rate: None,
        memory,
        working_set: memory.map(|all| all.saturating_sub(keyed("inactive_file").unwrap_or(0))),
        rss: keyed("anon"),
        memory_limit: file("memory.max").and_then(|text| parse::limit(&text)),
        faults: keyed("pgfault"),
        major_faults: keyed("pgmajfault"),
        swap: number("memory.swap.current"),
        swap_limit: file("memory.swap.max").and_then(|text| parse::limit(&text)),
        processes: number("pids.current"),
        cpu_pressure: pressure("cpu.pressure"),
        memory_pressure: pressure("memory.pressure"),
        io_pressure: pressure("io.pressure"),
    })
}

fn read_v1(folders: &[PathBuf]) -> Option<Usage> {
    // Each file's name tells its controller, so that it is looked for in every hierarchy's folder.
    let file = |name: &str| folders.iter().find_map(|folder| fs::read_to_string(folder.join(name)).ok());
    let number = |name: &str| file(name).and_then(|text| parse::number(&text));
    let limit = |name: &str| file(name).and_then(|text| parse::limit(&text));
    let stat = file("memory.stat");
    let keyed = |key: &str| stat.as_deref().and_then(|text| parse::keyed(text, key));
    let memory = number("memory.usage_in_bytes");
    let cpu_ns = number("cpuacct.usage");
    if memory.is_none() && cpu_ns.is_none() {
        return None;
    }
    let with_swap = number("memory.memsw.usage_in_bytes");
    let memory_limit = limit("memory.limit_in_bytes");
    Some(Usage {
        at_ns: now_ns(),
        cpu_ns,
        cpu_rate: None,
        memory,
        working_set: memory.map(|all| all.saturating_sub(keyed("total_inactive_file").unwrap_or(0))),
        rss: keyed("total_rss"),
        memory_limit,
        faults: keyed("total_pgfault"),
        major_faults: keyed("total_pgmajfault"),
        swap: with_swap.zip(memory).map(|(both, memory)| both.saturating_sub(memory)).or_else(|| keyed("total_swap")),
        swap_limit: limit("memory.memsw.limit_in_bytes")
            .zip(memory_limit)
            .map(|(both, memory)| both.saturating_sub(memory)),
        processes: number("pids.current"),
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_readings_a_second_apart() {
        let stats = Stats::default();
        let key = Path::new("/c");
        assert_eq!(stats.rate(key, 0, 0), None);
        assert_eq!(stats.rate(key, RATE_WINDOW / 2, 1_000_000), None, "too early");
        assert_eq!(stats.rate(key, RATE_WINDOW * 2, 1_000_000_000), Some(500_000_000));
        assert_eq!(stats.rate(key, RATE_WINDOW * 2 + 1, 1_000_000_001), Some(500_000_000), "the last one is kept");
    }

    #[test]
    fn what_several_use_is_added_up_without_limits() {
        let pause = Usage { at_ns: 1, cpu_ns: Some(5), memory: Some(10), processes: Some(1), ..Usage::default() };
        let container = Usage {
            at_ns: 3,
            cpu_ns: Some(7),
            cpu_rate: Some(2),
            memory: Some(u64::MAX),
            memory_limit: Some(100),
            processes: Some(4),
            cpu_pressure: Some(Default::default()),
            ..Usage::default()
        };
        let sum = Usage::sum([pause, container]).unwrap();
        assert_eq!((sum.at_ns, sum.cpu_ns, sum.cpu_rate), (3, Some(12), Some(2)));
        assert_eq!((sum.memory, sum.processes, sum.swap), (Some(u64::MAX), Some(5), None));
        assert_eq!((sum.memory_limit, sum.cpu_pressure), (None, None));
        assert_eq!(Usage::sum([]), None);
    }

    #[test]
    fn v2_files_become_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpu.stat", "usage_usec 5\nuser_usec 3\n"),
            ("memory.current", "100\n"),
            ("memory.stat", "anon 30\ninactive_file 40\npgfault 9\npgmajfault 1\n"),
            ("memory.max", "1000\n"),
            ("pids.current", "3\n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let usage = read_v2(folder.path()).unwrap();
        assert_eq!((usage.cpu_ns, usage.working_set, usage.memory_available()), (Some(5000), Some(60), Some(940)));
        assert_eq!((usage.processes, usage.swap), (Some(3), None));
        assert_eq!(read_v2(&folder.path().join("gone")), None);
    }
}
