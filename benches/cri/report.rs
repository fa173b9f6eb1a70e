//! The bench's outcome: a JSON document, and tables for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use podwright::types::{now_ns, rfc3339_nano};
use serde::{Deserialize, Serialize};

use crate::client::RuntimeIdentity;
use crate::error::BenchError;
use crate::pods::{DOWN, UP};
use crate::processes::Memory;
use crate::scenarios::{Bench, Findings};

/// Everything a run found, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this document's form.
    pub format: u32,
    /// When the run ended, RFC 3339 in UTC.
    pub when: String,
    /// The arguments it was started with.
    pub arguments: Vec<String>,
    /// The machine at the start.
    pub machine: Machine,
    /// Load averages of 1, 5 and 15 minutes at the end.
    pub load_after: String,
    /// The runtime that was measured.
    pub runtime: RuntimeIdentity,
    /// The figures that runtimes are compared by.
    pub summary: Vec<Figure>,
    /// All there is.
    pub scenarios: Vec<Findings>,
}

/// The machine that measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Processor, in the kernel's words.
    pub processor: String,
    /// Number of CPUs the bench may use.
    pub cpus: usize,
    /// Main memory, in the kernel's words.
    pub memory: String,
    /// `v2`, or `v1 or hybrid`.
    pub cgroups: String,
    /// Load averages of 1, 5 and 15 minutes: what others did meanwhile.
    pub load_before: String,
}

/// One figure of the summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it tells.
    pub what: String,
    /// In which unit.
    pub unit: String,
    /// How much.
    pub value: f64,
}

impl Machine {
    /// Reads what the kernel tells.
    pub fn read() -> Self {
        let processors = text("/proc/cpuinfo");
        let value = |line: &str| line.split_once(':').map_or("unknown", |(_, value)| value).trim().to_owned();
        let line = |text: &str, name: &str| {
            text.lines().find(|line| line.starts_with(name)).map_or_else(|| "unknown".to_owned(), value)
        };
        Self {
            kernel: text("/proc/sys/kernel/osrelease"),
            processor: line(&processors, "model name"),
            cpus: available_parallelism().map_or(0, usize::from),
            memory: line(&text("/proc/meminfo"), "MemTotal"),
            cgroups: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1 or hybrid" }
                .to_owned(),
            load_before: load(),
        }
    }
}

impl Report {
    /// Puts the findings together.
    pub fn new(machine: Machine, bench: &Bench, scenarios: Vec<Findings>) -> Self {
        Self {
            format: 1,
            when: rfc3339_nano(now_ns()),
            arguments: std::env::args().skip(1).collect(),
            machine,
            load_after: load(),
            runtime: bench.identity.clone(),
            summary: summary(&scenarios, bench.options.parallel),
            scenarios,
        }
    }

    /// Reads a report written before.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let text = fs::read(path).map_err(|source| BenchError::File { path: path.to_owned(), source })?;
        serde_json::from_slice(&text).map_err(|source| BenchError::NotAReport { path: path.to_owned(), source })
    }

    /// Writes the report as JSON.
    pub fn write(&self, path: &Path) -> Result<(), BenchError> {
        let failed = |source| BenchError::File { path: path.to_owned(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        fs::write(path, text + "\n").map_err(failed)
    }

    /// Tables: each scenario's, and at the end the summary, in Markdown, beside `peers`.
    pub fn render(&self, peers: &[Report]) -> String {
        let mut out = String::new();
        let machine = &self.machine;
        let _ = writeln!(out, "{} {} at {}", self.runtime.name, self.runtime.version, self.runtime.endpoint);
        let _ = writeln!(
            out,
            "{} CPUs ({}), {}, Linux {}, cgroup {} ({}); load {} before, {} after",
            machine.cpus,
            machine.processor,
            machine.memory,
            machine.kernel,
            machine.cgroups,
            self.runtime.cgroup_driver,
            machine.load_before,
            self.load_after
        );
        for findings in &self.scenarios {
            render_findings(&mut out, findings);
        }
        self.render_summary(&mut out, peers);
        out
    }

    fn render_summary(&self, out: &mut String, peers: &[Report]) {
        let mut all = vec![self];
        all.extend(peers);
        let mut table = vec![vec!["median".to_owned()]];
        table[0].extend(all.iter().map(|report| format!("{} {}", report.runtime.name, report.runtime.version)));
        let mut names: Vec<&Figure> = Vec::new();
        for figure in all.iter().flat_map(|report| &report.summary) {
            if !names.iter().any(|known| known.what == figure.what) {
                names.push(figure);
            }
        }
        for name in names {
            let mut row = vec![name.what.clone()];
            row.extend(all.iter().map(|report| {
                let same = report.summary.iter().find(|figure| figure.what == name.what);
                same.map_or_else(|| "-".to_owned(), |figure| format!("{} {}", three_digits(figure.value), figure.unit))
            }));
            table.push(row);
        }
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=all.len()).map(width).collect();
        out.push('\n');
        for (number, row) in table.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(out, "| {cell:width$} ");
            }
            out.push_str("|\n");
            if number == 0 {
                for width in &widths {
                    let _ = write!(out, "|{}", "-".repeat(width + 2));
                }
                out.push_str("|\n");
            }
        }
    }
}

fn render_findings(out: &mut String, findings: &Findings) {
    let _ = writeln!(out, "\n{}: {} ({:.1} s)", findings.name, findings.title, findings.seconds);
    if let Some(error) = &findings.error {
        let _ = writeln!(out, "  failed: {error}");
    }
    if let Some(rate) = findings.pods_per_second {
        let _ = writeln!(out, "  {rate:.2} pods per second");
    }
    for (when, usage) in [("before", findings.before), ("with pods", findings.with_pods), ("after", findings.after)] {
        let Some(usage) = usage else { continue };
        for (who, memory) in [
            ("daemon", usage.daemon),
            ("monitors", usage.monitors),
            ("pause", usage.pause),
            ("workload", usage.workload),
        ] {
            if memory != Memory::default() {
                let mib = |kib: u64| kib as f64 / 1024.0;
                let _ = writeln!(
                    out,
                    "  {when:9}  {who:8}  {:5} processes {:6} threads   PSS {:8.2} MiB   RSS {:8.2} MiB   private {:8.2} MiB",
                    memory.processes,
                    memory.threads,
                    mib(memory.pss_kib),
                    mib(memory.rss_kib),
                    mib(memory.private_kib)
                );
            }
        }
    }
    if let Some(kib) = findings.pss_per_pod_kib() {
        let _ = writeln!(out, "  each pod adds {:.2} MiB PSS to the runtime's own processes", kib / 1024.0);
    }
    if !findings.times.is_empty() {
        let _ =
            writeln!(out, "  {:18} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9}", "ms", "n", "min", "p50", "p90", "p99", "max");
    }
    for row in &findings.times {
        let _ = writeln!(
            out,
            "  {:18} {:5} {:9.2} {:9.2} {:9.2} {:9.2} {:9.2}",
            row.what, row.n, row.min_ms, row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms
        );
    }
}

/// The figures to compare by. Memory is told in decimal megabytes, as is custom.
fn summary(scenarios: &[Findings], parallel: u32) -> Vec<Figure> {
    let mut figures = Vec::new();
    let find = |name: &str| scenarios.iter().find(|findings| findings.name == name);
    let median = |name: &str, what: &str| find(name)?.times.iter().find(|row| row.what == what).map(|row| row.p50_ms);
    let mut add = |what: String, unit: &str, value: Option<f64>| {
        figures.extend(value.map(|value| Figure { what, unit: unit.to_owned(), value }));
    };
    let megabytes = |kib: f64| kib * 1024.0 / 1e6;
    add("pod up, bridge + portmap".to_owned(), "ms", median("bridge", UP));
    add("pod up, host network".to_owned(), "ms", median("host", UP));
    add("pod down (grace 0), bridge + portmap".to_owned(), "ms", median("bridge", DOWN));
    add("pod down (grace 0), host network".to_owned(), "ms", median("host", DOWN));
    let rate = find("parallel").and_then(|findings| findings.pods_per_second);
    add(format!("pods up and down again per second, {parallel} at once, bridge"), "/s", rate);
    add("ExecSync `true`".to_owned(), "ms", median("exec", "ExecSync"));
    if let Some(density) = find("density") {
        let pods = density.pods.unwrap_or(0);
        add(format!("pods up per second, {parallel} at once, {pods} pods"), "/s", density.pods_per_second);
        add(format!("runtime memory per pod (PSS, {pods} pods)"), "MB", density.pss_per_pod_kib().map(megabytes));
        add(format!("ListPodSandbox, {pods} pods"), "ms", median("density", "ListPodSandbox"));
        add(format!("ListContainers, {pods} pods"), "ms", median("density", "ListContainers"));
    }
    let idle = find("idle").filter(|idle| idle.pods == Some(0)).and_then(|idle| idle.before);
    add("daemon PSS, no pods".to_owned(), "MB", idle.map(|usage| megabytes(usage.own_pss_kib() as f64)));
    add("pull + unpack".to_owned(), "s", median("pull", "PullImage").map(|ms| ms / 1e3));
    figures
}

/// At least three significant digits, and no more than they need.
fn three_digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn load() -> String {
    text("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn text(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}
