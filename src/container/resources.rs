//! A change of a container's resources: what holds after it, and what of that is to be written. Pure.

use serde_json::{Value, json};

use super::config::Resources;
use super::spec;

/// A change that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason} (got {value})")]
pub struct ChangeError {
    /// CRI field.
    pub field: &'static str,
    /// As given.
    pub value: i64,
    /// What is wrong.
    pub reason: &'static str,
}

/// A change, worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// All resources as they are after it.
    pub after: Resources,
    /// The fields that were asked for, each with those that it cannot be written without.
    pub written: Resources,
}

/// Works out what `asked` makes of `present`. Fields that are 0 or empty stay as they are; page sizes
/// and `unified` files that are not named do, too. The allowance of swap stays, when only memory is
/// asked for: the sum of both moves along.
///
/// # Errors
/// Memory and swap together would be less than memory.
pub fn change(present: &Resources, asked: &Resources) -> Result<Change, ChangeError> {
    let number = |asked: i64, present: i64| if asked == 0 { present } else { asked };
    let text = |asked: &String, present: &String| if asked.is_empty() { present.clone() } else { asked.clone() };
    let memory_limit = number(asked.memory_limit, present.memory_limit);
    let swap = if asked.memory_swap_limit != 0 {
        asked.memory_swap_limit
    } else if present.memory_swap_limit > 0 && present.memory_limit > 0 {
        let allowance = present.memory_swap_limit.saturating_sub(present.memory_limit).max(0);
        memory_limit.saturating_add(allowance)
    } else {
        present.memory_swap_limit
    };
    if swap > 0 && swap < memory_limit {
        return Err(ChangeError {
            field: "linux.memory_swap_limit_in_bytes",
            value: swap,
            reason: "is memory plus swap: want at least the container's memory limit",
        });
    }
    let mut hugepage_limits = present.hugepage_limits.clone();
    for (size, limit) in &asked.hugepage_limits {
        hugepage_limits.retain(|(known, _)| known != size);
        hugepage_limits.push((size.clone(), *limit));
    }
    let mut unified = present.unified.clone();
    unified.extend(asked.unified.clone());
    let after = Resources {
        cpu_period: number(asked.cpu_period, present.cpu_period),
        cpu_quota: number(asked.cpu_quota, present.cpu_quota),
        cpu_shares: number(asked.cpu_shares, present.cpu_shares),
        memory_limit,
        memory_swap_limit: swap,
        oom_score_adj: number(asked.oom_score_adj, present.oom_score_adj),
        cpuset_cpus: text(&asked.cpuset_cpus, &present.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems, &present.cpuset_mems),
        hugepage_limits,
        unified,
    };
    let mut written = asked.clone();
    if asked.cpu_quota != 0 || asked.cpu_period != 0 {
        (written.cpu_quota, written.cpu_period) = (after.cpu_quota, after.cpu_period);
    }
    if asked.memory_limit != 0 || asked.memory_swap_limit != 0 {
        (written.memory_limit, written.memory_swap_limit) = (after.memory_limit, after.memory_swap_limit);
    }
    // What `unified` says of a file that is written overrides it, as it did at first.
    written.unified.clone_from(&after.unified);
    Ok(Change { after, written })
}

/// Brings the resources in a container's OCI spec up to date; device rules and the like stay.
pub fn note(config: &mut Value, now: &Resources) {
    let Value::Object(new) = spec::resources(now) else { return };
    let resources = &mut config["linux"]["resources"];
    for (section, values) in new {
        match (resources.get_mut(&section), values) {
            (Some(Value::Object(known)), Value::Object(values)) => known.extend(values),
            (_, values) => resources[section] = values,
        }
    }
    config["process"]["oomScoreAdj"] = json!(now.oom_score_adj);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MI: i64 = 1 << 20;

    fn memory(limit: i64, swap: i64) -> Resources {
        Resources { memory_limit: limit, memory_swap_limit: swap, ..Default::default() }
    }

    #[test]
    fn swap_moves_along_with_memory() {
        let after = |present: &Resources, asked: &Resources| {
            change(present, asked).map(|it| (it.after.memory_limit, it.after.memory_swap_limit))
        };
        assert_eq!(after(&memory(10 * MI, 10 * MI), &memory(20 * MI, 0)), Ok((20 * MI, 20 * MI)));
        assert_eq!(after(&memory(10 * MI, 15 * MI), &memory(5 * MI, 0)), Ok((5 * MI, 10 * MI)));
        assert_eq!(after(&memory(10 * MI, -1), &memory(5 * MI, 0)), Ok((5 * MI, -1)));
        assert_eq!(after(&memory(10 * MI, 0), &memory(5 * MI, 0)), Ok((5 * MI, 0)));
        assert_eq!(after(&memory(10 * MI, 15 * MI), &memory(0, 10 * MI)), Ok((10 * MI, 10 * MI)));
        assert_eq!(after(&memory(0, 0), &memory(5 * MI, 5 * MI)), Ok((5 * MI, 5 * MI)));
        let error = after(&memory(10 * MI, 15 * MI), &memory(0, 9 * MI)).unwrap_err();
        assert_eq!(error.field, "linux.memory_swap_limit_in_bytes");
    }

    #[test]
    fn only_what_was_asked_is_written_but_never_half_a_pair() {
        let present = Resources { cpu_quota: 5, cpu_period: 7, cpu_shares: 9, ..memory(MI, MI) };
        let got = change(&present, &Resources { cpu_quota: -1, ..Default::default() }).unwrap();
        assert_eq!(got.written, Resources { cpu_quota: -1, cpu_period: 7, ..Default::default() });
        assert_eq!((got.after.cpu_quota, got.after.cpu_shares, got.after.memory_limit), (-1, 9, MI));
        let got = change(&present, &memory(2 * MI, 0)).unwrap();
        assert_eq!(got.written, memory(2 * MI, 2 * MI));
    }

    #[test]
    fn lists_are_changed_entry_by_entry() {
        let pages = |list: &[(&str, u64)]| list.iter().map(|(size, limit)| ((*size).to_owned(), *limit)).collect();
        let present = Resources { hugepage_limits: pages(&[("2MB", 1), ("1GB", 2)]), ..Default::default() };
        let asked = Resources {
            hugepage_limits: pages(&[("2MB", 3)]),
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        let got = change(&present, &asked).unwrap();
        assert_eq!(got.after.hugepage_limits, [("1GB".to_owned(), 2), ("2MB".to_owned(), 3)]);
        assert_eq!((got.written.hugepage_limits.len(), got.after.unified.len()), (1, 1));
    }

    #[test]
    fn the_spec_follows() {
        let mut config = json!({
            "process": {"oomScoreAdj": 1},
            "linux": {"resources": {"devices": [1], "pids": {"limit": 3}, "memory": {"limit": 5}}},
        });
        note(&mut config, &Resources { cpu_shares: 4, oom_score_adj: 2, ..memory(6, 0) });
        let want = json!({
            "process": {"oomScoreAdj": 2},
            "linux": {"resources": {
                "devices": [1], "pids": {"limit": 3}, "memory": {"limit": 6}, "cpu": {"shares": 4},
            }},
        });
        assert_eq!(config, want);
    }

    proptest! {
        #[test]
        fn asking_twice_is_asking_once(limit in 1..9_i64, swap in -1..9_i64, more in 0..9_i64, quota in -1..9_i64) {
            let present = Resources { cpu_quota: 3, ..memory(limit, if swap > 0 { swap + limit } else { swap }) };
            let asked = Resources { cpu_quota: quota, ..memory(more, 0) };
            let once = change(&present, &asked).unwrap().after;
            let twice = change(&once, &asked).unwrap().after;
            prop_assert_eq!(&once, &twice);
            prop_assert!(once.memory_swap_limit <= 0 || once.memory_swap_limit >= once.memory_limit);
            prop_assert_eq!(change(&present, &Resources::default()).unwrap().after, present);
        }
    }
}
