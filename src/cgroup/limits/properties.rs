//! The files of cgroup v2 that systemd knows by properties of a unit. It must be told of them, or it
//! sets them back when it reads its units again. Pure.

use super::Limit;
use crate::cgroup::systemd::Property;

/// One property with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// What systemd calls these limits; those that it does not know are left out.
pub(super) fn of(limits: &[Limit]) -> Vec<(&'static str, Value)> {
    let mut all: Vec<(&'static str, Value)> = Vec::new();
    for limit in limits {
        for (name, value) in one(limit) {
            // A later limit overrides an earlier one, as it does in the files.
            all.retain(|(known, _)| *known != name);
            all.push((name, value));
        }
    }
    all
}

impl Value {
    pub(super) fn as_property(&self) -> Property<'_> {
        match self {
            Self::Number(number) => Property::Number(*number),
            Self::Bytes(bytes) => Property::Bytes(bytes),
        }
    }
}

fn one(limit: &Limit) -> Vec<(&'static str, Value)> {
    let text = limit.value.trim();
    let number = |name| amount(text).map(|value| (name, Value::Number(value)));
    let set = |name| bits(text).map(|bits| (name, Value::Bytes(bits)));
    let found = match limit.file.as_str() {
        "memory.min" => number("MemoryMin"),
        "memory.low" => number("MemoryLow"),
        "memory.high" => number("MemoryHigh"),
        "memory.max" => number("MemoryMax"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "cpu.weight" => number("CPUWeight"),
        "cpuset.cpus" => set("AllowedCPUs"),
        "cpuset.mems" => set("AllowedMemoryNodes"),
        "cpu.max" => return cpu_max(text).unwrap_or_default(),
        _ => None,
    };
    found.into_iter().collect()
}

fn amount(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// `QUOTA PERIOD` in microseconds as systemd has it: microseconds per second, and the period.
fn cpu_max(text: &str) -> Option<Vec<(&'static str, Value)>> {
    let (quota, period) = match text.split_once(' ') {
        Some((quota, period)) => (quota, period.trim().parse::<u64>().ok().filter(|period| *period != 0)?),
        None => (text, 100_000),
    };
    let per_second = match amount(quota)? {
        u64::MAX => u64::MAX,
        // systemd rounds down on the way back, so that only rounding up leads to the same quota.
        quota => quota.checked_mul(1_000_000)?.div_ceil(period),
    };
    Some(vec![("CPUQuotaPerSecUSec", Value::Number(per_second)), ("CPUQuotaPeriodUSec", Value::Number(period))])
}

/// `0-2,5` as a bit mask, lowest first, empty for an empty list; `None`: the kernel will say what is wrong.
fn bits(list: &str) -> Option<Vec<u8>> {
    const MOST: usize = 8192;
    let mut mask = Vec::new();
    if list.trim().is_empty() {
        return Some(mask);
    }
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

    fn told(limits: &[(&str, &str)]) -> Vec<(&'static str, Value)> {
        of(&limits.iter().map(|(file, value)| Limit::new(*file, *value, false)).collect::<Vec<_>>())
    }

    #[test]
    fn systemd_is_told_in_its_own_words() {
        let got = told(&[("cpu.max", "5000 10000"), ("memory.max", "5\n"), ("memory.oom.group", "1")]);
        let want = [
            ("CPUQuotaPerSecUSec", Value::Number(500_000)),
            ("CPUQuotaPeriodUSec", Value::Number(10_000)),
            ("MemoryMax", Value::Number(5)),
        ];
        assert_eq!(got, want);
        assert_eq!(told(&[("cpu.max", "max 100000")])[0].1, Value::Number(u64::MAX));
        for (quota, period) in [(30_000, 70_000), (1000, 3000), (12_345, 99_999), (1_999_999, 1_000_000)] {
            let Value::Number(per_second) = told(&[("cpu.max", &format!("{quota} {period}"))])[0].1 else { panic!() };
            assert_eq!(per_second * period / 1_000_000, quota, "{per_second} of {period}");
        }
        assert_eq!(told(&[("memory.high", "7"), ("memory.high", "max")]), [("MemoryHigh", Value::Number(u64::MAX))]);
        assert_eq!(told(&[("cpuset.cpus", "0-2,9")]), [("AllowedCPUs", Value::Bytes(vec![0b111, 0b10]))]);
        assert!(told(&[("cpu.max", "x y"), ("memory.max", "-5"), ("cpu.max", "5 0")]).is_empty());
    }

    #[test]
    fn masks_of_odd_lists() {
        assert_eq!(bits("0"), Some(vec![1]));
        assert_eq!(bits("\n"), Some(vec![]));
        for odd in ["a", "1-", "0-99999999", "-1"] {
            assert_eq!(bits(odd), None, "{odd}");
        }
    }
}
