//! Limits that libcgroups leaves out, or gets wrong, on cgroup v2: with systemd CPU sets go out in a
//! form that systemd refuses, most of `unified` is dropped without a word and some of it converted
//! twice; huge pages fail where nobody has enabled their controller.

use std::fs::OpenOptions;
use std::io::{ErrorKind as IoKind, Write};
use std::path::Path;

use serde_json::Value;

use super::{attempt, failure};
use crate::cgroup::systemd::{self, Property};
use crate::types::ErrorKind;
use crate::wire::Failure;

/// A limit as a file in the container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    file: String,
    value: String,
    /// A kernel or a node without it is no reason to fail: kubelet sends limits of 0 for all page sizes.
    optional: bool,
}

/// Takes those limits out of a runtime spec's `linux` section.
pub(super) fn take(linux: &mut Value, systemd: bool) -> Vec<Limit> {
    let mut limits = Vec::new();
    let Some(resources) = linux.get_mut("resources").and_then(Value::as_object_mut) else { return limits };
    for page in resources.remove("hugepageLimits").as_ref().and_then(Value::as_array).into_iter().flatten() {
        let size = page.get("pageSize").and_then(Value::as_str).unwrap_or_default();
        let limit = page.get("limit").map(ToString::to_string).unwrap_or_default();
        for kind in ["max", "rsvd.max"] {
            limits.push(Limit { file: format!("hugetlb.{size}.{kind}"), value: limit.clone(), optional: true });
        }
    }
    if !systemd {
        return limits;
    }
    let mut demand = |file: &str, value: Option<&Value>| {
        if let Some(value) = value.and_then(Value::as_str) {
            limits.push(Limit { file: file.to_owned(), value: value.to_owned(), optional: false });
        }
    };
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        demand("cpuset.cpus", cpu.remove("cpus").as_ref());
        demand("cpuset.mems", cpu.remove("mems").as_ref());
    }
    // After all others, so that it overrides them.
    for (file, value) in resources.remove("unified").as_ref().and_then(Value::as_object).into_iter().flatten() {
        demand(file, Some(value));
    }
    limits
}

/// Puts limits in force in the cgroup at `folder`. systemd is told of those that it would set back.
pub(super) fn apply(folder: &Path, limits: &[Limit]) -> Result<(), Failure> {
    if let Some(unit) = crate::cgroup::scope_of(folder) {
        let mut properties = Vec::new();
        let sets: Vec<(&str, Vec<u8>)> = limits.iter().filter_map(cpu_set).collect();
        properties.extend(sets.iter().map(|(name, bits)| (*name, Property::Bytes(bits))));
        properties.extend(limits.iter().filter_map(number));
        if !properties.is_empty() {
            attempt(systemd::set(unit, &properties), || format!("limits of {unit}"))?;
        }
    }
    for limit in limits {
        let path = folder.join(&limit.file);
        let written =
            OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(limit.value.as_bytes()));
        match written {
            Ok(()) => {}
            Err(error) if limit.optional && error.kind() == IoKind::NotFound => {}
            Err(error) => {
                let kind = match error.kind() {
                    IoKind::NotFound | IoKind::InvalidInput => ErrorKind::InvalidArgument,
                    _ => ErrorKind::Internal,
                };
                let (file, value) = (&limit.file, &limit.value);
                return Err(failure(kind, format!("limit {file} = {value:?}: {error}")));
            }
        }
    }
    Ok(())
}

fn number<'a>(limit: &Limit) -> Option<(&'static str, Property<'a>)> {
    let name = match limit.file.as_str() {
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        _ => return None,
    };
    let value = match limit.value.trim() {
        "max" => u64::MAX,
        number => number.parse().ok()?,
    };
    Some((name, Property::Number(value)))
}

fn cpu_set(limit: &Limit) -> Option<(&'static str, Vec<u8>)> {
    let name = match limit.file.as_str() {
        "cpuset.cpus" => "AllowedCPUs",
        "cpuset.mems" => "AllowedMemoryNodes",
        _ => return None,
    };
    bits(&limit.value).map(|bits| (name, bits))
}

/// `0-2,5` as a bit mask, lowest first; `None`: the kernel will say what is wrong.
fn bits(list: &str) -> Option<Vec<u8>> {
    const MOST: usize = 8192;
    let mut mask = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST {
            return None;
        }
        for bit in first..=last {
            if mask.len() <= bit / 8 {
                mask.resize(bit / 8 + 1, 0);
            }
            if let Some(byte) = mask.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn linux() -> Value {
        json!({ "resources": {
            "memory": { "limit": 5 },
            "cpu": { "cpus": "0-2,9", "shares": 7 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
            "unified": { "memory.high": "max", "memory.oom.group": "1" },
        }})
    }

    #[test]
    fn what_libcgroups_cannot_do_is_taken() {
        let mut spec = linux();
        let limits = take(&mut spec, true);
        assert_eq!(spec, json!({ "resources": { "memory": { "limit": 5 }, "cpu": { "shares": 7 } } }));
        let files: Vec<_> = limits.iter().map(|limit| (limit.file.as_str(), limit.value.as_str())).collect();
        let wanted = [
            ("hugetlb.2MB.max", "0"),
            ("hugetlb.2MB.rsvd.max", "0"),
            ("cpuset.cpus", "0-2,9"),
            ("memory.high", "max"),
            ("memory.oom.group", "1"),
        ];
        assert_eq!(files, wanted);
        let told: Vec<_> = limits.iter().filter_map(number).map(|(name, _)| name).collect();
        assert_eq!(told, ["MemoryHigh"]);
        assert_eq!(limits.iter().find_map(cpu_set), Some(("AllowedCPUs", vec![0b111, 0b10])));

        let mut spec = linux();
        assert_eq!(take(&mut spec, false).len(), 2);
        assert!(spec["resources"]["unified"].is_object());
        assert_eq!(take(&mut json!({}), true), []);
    }

    #[test]
    fn masks_of_odd_lists() {
        assert_eq!(bits("0"), Some(vec![1]));
        for odd in ["", "a", "1-", "0-99999999", "-1"] {
            assert_eq!(bits(odd), None, "{odd}");
        }
    }
}
