//! Limits.

use super::check::{known_chars, length, list, no_control, range};
use super::{At, DecodeError, check};
use crate::proto::{HugepageLimit, LinuxContainerResources};
use crate::types::container::Resources;

/// Limits of a container, or of a sandbox.
pub fn resources(at: &At<'_>, from: LinuxContainerResources) -> Result<Resources, DecodeError> {
    let LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes,
    } = from;
    let swap_at = at.field("memory_swap_limit_in_bytes");
    let memory_limit = range(&at.field("memory_limit_in_bytes"), memory_limit_in_bytes, 0, i64::MAX)?;
    let memory_swap_limit = range(&swap_at, memory_swap_limit_in_bytes, -1, i64::MAX)?;
    if memory_swap_limit > 0 && memory_swap_limit < memory_limit {
        return Err(swap_at.bad(memory_swap_limit, "is memory plus swap: want at least memory_limit_in_bytes"));
    }
    Ok(Resources {
        cpu_period: zero_or(&at.field("cpu_period"), cpu_period, 1_000, 1_000_000)?,
        cpu_quota: if cpu_quota == -1 {
            cpu_quota
        } else {
            zero_or(&at.field("cpu_quota"), cpu_quota, 1_000, i64::MAX / 1_000)?
        },
        cpu_shares: zero_or(&at.field("cpu_shares"), cpu_shares, 2, 262_144)?,
        memory_limit,
        memory_swap_limit,
        oom_score_adj: range(&at.field("oom_score_adj"), oom_score_adj, -1000, 1000)?,
        cpuset_cpus: cpuset(&at.field("cpuset_cpus"), cpuset_cpus)?,
        cpuset_mems: cpuset(&at.field("cpuset_mems"), cpuset_mems)?,
        hugepage_limits: list(&at.field("hugepage_limits"), hugepage_limits, hugepages)?,
        unified: {
            let at = at.field("unified");
            check::count(&at, unified.len())?;
            for (file, value) in &unified {
                let at = at.key(file);
                cgroup_file(&at, file)?;
                length(&at, value, 0, 4096)?;
                no_control(&at, value)?;
            }
            unified.into_iter().collect()
        },
    })
}

/// 0 is "not set".
fn zero_or(at: &At<'_>, value: i64, low: i64, high: i64) -> Result<i64, DecodeError> {
    let fits = value == 0 || (low..=high).contains(&value);
    if fits { Ok(value) } else { Err(at.bad(value, format!("want {low} to {high}, or 0 for not set"))) }
}

/// `0-3,7`: numbers and ranges.
fn cpuset(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    length(at, &text, 0, 4096)?;
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let fine = text.is_empty()
        || text.split(',').all(|part| match part.split_once('-') {
            Some((low, high)) => number(low).zip(number(high)).is_some_and(|(low, high)| low <= high),
            None => number(part).is_some(),
        });
    if fine { Ok(text) } else { Err(at.bad(text, "want a list such as 0-3,7")) }
}

fn hugepages(at: &At<'_>, from: HugepageLimit) -> Result<(String, u64), DecodeError> {
    let HugepageLimit { page_size, limit } = from;
    let digits = page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let fine = matches!(&page_size[digits.len()..], "KB" | "MB" | "GB")
        && (1..=9).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit());
    if fine { Ok((page_size, limit)) } else { Err(at.field("page_size").bad(page_size, "want a size such as 2MB")) }
}

/// A file in a cgroup v2 folder: `memory.high`. It becomes a path, so nothing else is taken; and
/// `cgroup.*` are controls (procs, kill, freeze), not resources.
fn cgroup_file(at: &At<'_>, file: &str) -> Result<(), DecodeError> {
    length(at, file, 1, 64)?;
    known_chars(at, file, |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.', "letters, digits, '_' and '.'")?;
    let plain = file.split('.').count() >= 2 && file.split('.').all(|part| !part.is_empty());
    if plain && !file.starts_with("cgroup.") {
        Ok(())
    } else {
        Err(at.bad(file, "want a resource file such as memory.high"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut LinuxContainerResources)) -> Result<Resources, String> {
        let mut from = LinuxContainerResources::default();
        change(&mut from);
        resources(&At::root("resources"), from).map_err(|error| error.field)
    }

    #[test]
    fn what_the_kubelet_sends_is_taken() {
        let got = check(|r| {
            r.cpu_period = 100_000;
            r.cpu_quota = 50_000;
            r.cpu_shares = 512;
            r.memory_limit_in_bytes = 64 << 20;
            r.memory_swap_limit_in_bytes = 64 << 20;
            r.oom_score_adj = 985;
            r.cpuset_cpus = "0-3,7".into();
            r.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }];
            r.unified.insert("memory.high".into(), "100M".into());
            r.unified.insert("memory.oom.group".into(), "1".into());
        })
        .unwrap();
        assert_eq!((got.cpu_quota, got.memory_limit, got.oom_score_adj), (50_000, 64 << 20, 985));
        assert_eq!(got.hugepage_limits, [("2MB".to_owned(), 0)]);
        assert!(check(|r| r.cpu_quota = -1).is_ok());
        assert!(check(|r| r.memory_swap_limit_in_bytes = -1).is_ok());
    }

    #[test]
    fn wrong_values_are_told_by_their_field() {
        let refused = |change: fn(&mut LinuxContainerResources), field: &str| {
            assert_eq!(check(change).unwrap_err(), format!("resources.{field}"));
        };
        refused(|r| r.cpu_period = -1, "cpu_period");
        refused(|r| r.cpu_period = 2_000_000, "cpu_period");
        refused(|r| r.cpu_quota = -2, "cpu_quota");
        refused(|r| r.cpu_shares = 1, "cpu_shares");
        refused(|r| r.memory_limit_in_bytes = -5, "memory_limit_in_bytes");
        refused(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (10, 5), "memory_swap_limit_in_bytes");
        refused(|r| r.oom_score_adj = 1001, "oom_score_adj");
        refused(|r| r.cpuset_cpus = "3-1".into(), "cpuset_cpus");
        refused(|r| r.cpuset_mems = "0,+1".into(), "cpuset_mems");
        refused(
            |r| r.hugepage_limits = vec![HugepageLimit { page_size: "../2MB".into(), limit: 0 }],
            "hugepage_limits[0].page_size",
        );
        for file in ["../memory.high", "memory", "memory..high", "cgroup.procs", "memory.high\n", "/memory.high"] {
            assert!(check(|r| _ = r.unified.insert(file.into(), "1".into())).is_err(), "{file}");
        }
        assert!(check(|r| _ = r.unified.insert("io.max".into(), "8:0 rbps=1\n8:1 rbps=1".into())).is_err());
    }
}
