//! Resource limits of a container as cgroup files, on v1 and v2: which file gets what (pure), and
//! getting it there ([`set`] and [`change`]). The same code serves creation and later changes, so
//! that both mean the same.

mod apply;
mod oom;
mod properties;

use serde_json::Value;

use super::CgroupError;

pub use apply::{change, set};
pub use oom::adjust as adjust_oom_score;

/// Largest `cpu.shares` (v1) and `cpu.weight` (v2).
const MAX_SHARES: f64 = 262_144.0;
const MAX_WEIGHT: u64 = 10_000;

/// One limit: a file in the cgroup, and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Controller that has the file: names the hierarchy on v1.
    pub controller: String,
    /// File name.
    pub file: String,
    /// Value, as the kernel reads it.
    pub value: String,
    /// A node whose kernel has no such file does without: kubelet sends limits of 0 for pages of all
    /// sizes, and "no swap" to nodes that do not account for swap.
    pub optional: bool,
}

impl Limit {
    fn new(file: impl Into<String>, value: impl Into<String>, optional: bool) -> Self {
        let file = file.into();
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        Self { controller, file, value: value.into(), optional }
    }
}

/// `linux.resources` of an OCI runtime spec (but for its device rules) as files of cgroup v2, in the
/// order in which they are best written. Huge pages may be missing, whatever is asked.
pub fn v2(resources: &Value) -> Vec<Limit> {
    let mut all = Vec::new();
    let number = |pointer: &str| resources.pointer(pointer).and_then(Value::as_i64);
    let text = |pointer: &str| resources.pointer(pointer).and_then(Value::as_str);
    let or_max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    // The set of CPUs first: a quota is checked against nothing, a set may be refused.
    for (pointer, file) in [("/cpu/cpus", "cpuset.cpus"), ("/cpu/mems", "cpuset.mems")] {
        all.extend(text(pointer).map(|list| Limit::new(file, list, false)));
    }
    if let Some(shares) = number("/cpu/shares").and_then(|shares| u64::try_from(shares).ok()).filter(|n| *n != 0) {
        all.push(Limit::new("cpu.weight", weight(shares).to_string(), false));
    }
    let (quota, period) = (number("/cpu/quota"), number("/cpu/period"));
    if quota.is_some() || period.is_some() {
        let quota = or_max(quota.filter(|quota| *quota > 0).unwrap_or(-1));
        let value = period.map_or(quota.clone(), |period| format!("{quota} {period}"));
        all.push(Limit::new("cpu.max", value, false));
    }
    let (limit, swap) = (number("/memory/limit"), number("/memory/swap"));
    match (limit, swap) {
        (_, Some(-1)) | (Some(-1), None) => all.push(Limit::new("memory.swap.max", "max", true)),
        // OCI and CRI have memory and swap in one sum, as v1 does.
        (Some(limit), Some(swap)) if limit >= 0 => {
            all.push(Limit::new("memory.swap.max", swap.saturating_sub(limit).max(0).to_string(), true));
        }
        _ => {}
    }
    all.extend(limit.map(|limit| Limit::new("memory.max", or_max(limit), false)));
    if let Some(pids) = number("/pids/limit") {
        all.push(Limit::new("pids.max", or_max(if pids > 0 { pids } else { -1 }), false));
    }
    for (size, limit) in huge_pages(resources) {
        for kind in ["max", "rsvd.max"] {
            all.push(Limit::new(format!("hugetlb.{size}.{kind}"), &limit, true));
        }
    }
    // After all others, so that they override them.
    for (file, value) in resources.get("unified").and_then(Value::as_object).into_iter().flatten() {
        all.extend(value.as_str().map(|value| Limit::new(file, value, false)));
    }
    all
}

/// The same for v1. Its processes' limit is left out: who makes a container counts, too, and sets it last.
///
/// # Errors
/// `unified` is given, which v1 does not have.
pub fn v1(resources: &Value) -> Result<Vec<Limit>, CgroupError> {
    if let Some((file, _)) = resources.get("unified").and_then(Value::as_object).and_then(|map| map.iter().next()) {
        return Err(CgroupError::NoUnified { file: file.clone() });
    }
    let mut all = Vec::new();
    for (pointer, file, optional) in [
        ("/memory/limit", "memory.limit_in_bytes", false),
        // Without swap accounting it is not there.
        ("/memory/swap", "memory.memsw.limit_in_bytes", true),
        ("/cpu/shares", "cpu.shares", false),
        ("/cpu/period", "cpu.cfs_period_us", false),
        ("/cpu/quota", "cpu.cfs_quota_us", false),
        ("/cpu/cpus", "cpuset.cpus", false),
        ("/cpu/mems", "cpuset.mems", false),
    ] {
        let value = match resources.pointer(pointer) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text.clone(),
            Some(number) => number.to_string(),
        };
        all.push(Limit::new(file, value, optional));
    }
    for (size, limit) in huge_pages(resources) {
        all.push(Limit::new(format!("hugetlb.{size}.limit_in_bytes"), limit, true));
    }
    Ok(all)
}

fn huge_pages(resources: &Value) -> impl Iterator<Item = (&str, String)> {
    let pages = resources.get("hugepageLimits").and_then(Value::as_array);
    pages.into_iter().flatten().map(|page| {
        let size = page.get("pageSize").and_then(Value::as_str).unwrap_or_default();
        (size, page.get("limit").map(ToString::to_string).unwrap_or_default())
    })
}

/// v1's shares (2 to 262144, usually 1024) as v2's weight (1 to 10000, usually 100): the curve through
/// those three points that runtimes agreed upon in 2025.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "1 to 10000")]
fn weight(shares: u64) -> u64 {
    let log = (shares as f64).clamp(2.0, MAX_SHARES).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, MAX_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pairs(limits: &[Limit]) -> Vec<String> {
        limits.iter().map(|limit| format!("{}={}", limit.file, limit.value)).collect()
    }

    #[test]
    fn v1_takes_what_it_has() {
        let resources = json!({
            "cpu": {"quota": 5000, "period": 10000, "shares": 2, "cpus": "0-1"},
            "memory": {"limit": 1 << 20, "swap": 2 << 20},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        });
        let want = [
            "memory.limit_in_bytes=1048576",
            "memory.memsw.limit_in_bytes=2097152",
            "cpu.shares=2",
            "cpu.cfs_period_us=10000",
            "cpu.cfs_quota_us=5000",
            "cpuset.cpus=0-1",
            "hugetlb.2MB.limit_in_bytes=0",
        ];
        let limits = v1(&resources).unwrap();
        assert_eq!(pairs(&limits), want);
        assert_eq!(limits[6].controller, "hugetlb");
        assert!(v1(&json!({})).unwrap().is_empty());
        let error = v1(&json!({"unified": {"memory.high": "1"}})).unwrap_err().to_string();
        assert!(error.contains("unified") && error.contains("memory.high"), "{error}");
    }

    #[test]
    fn v2_has_other_files_and_units() {
        let resources = json!({
            "devices": [{"allow": false}],
            "cpu": {"quota": 5000, "period": 10000, "shares": 1024, "cpus": "0-1", "mems": "0"},
            "memory": {"limit": 1 << 20, "swap": 3 << 20},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": "max"},
        });
        let want = [
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "cpu.weight=100",
            "cpu.max=5000 10000",
            "memory.swap.max=2097152",
            "memory.max=1048576",
            "pids.max=7",
            "hugetlb.2MB.max=0",
            "hugetlb.2MB.rsvd.max=0",
            "memory.high=max",
        ];
        assert_eq!(pairs(&v2(&resources)), want);
        assert!(v2(&json!({"devices": []})).is_empty());
    }

    #[test]
    fn no_swap_any_swap_and_no_word_of_swap_are_three_things() {
        let swap = |memory: Value| pairs(&v2(&json!({ "memory": memory })));
        assert_eq!(swap(json!({"limit": 5, "swap": 5})), ["memory.swap.max=0", "memory.max=5"]);
        assert_eq!(swap(json!({"limit": 5, "swap": -1})), ["memory.swap.max=max", "memory.max=5"]);
        assert_eq!(swap(json!({"limit": 5})), ["memory.max=5"]);
        assert_eq!(swap(json!({"swap": -1})), ["memory.swap.max=max"]);
        assert_eq!(pairs(&v2(&json!({"cpu": {"quota": -1}}))), ["cpu.max=max"]);
        assert_eq!(pairs(&v2(&json!({"cpu": {"period": 9000}}))), ["cpu.max=max 9000"]);
    }

    #[test]
    fn weights_keep_the_ends_and_the_middle() {
        for (shares, want) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(weight(shares), want, "{shares}");
        }
        assert!(weight(512) < 100 && weight(2048) > 100);
    }
}
