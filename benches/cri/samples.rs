//! Measured times and what is told of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times by what was timed, in the order of first appearance.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    rows: Vec<(&'static str, Vec<Duration>)>,
}

/// The distribution of one thing's times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What was timed: an RPC, or a sum of several.
    pub what: String,
    /// Number of times.
    pub n: usize,
    /// The least, in milliseconds.
    pub min_ms: f64,
    /// The median, in milliseconds.
    pub p50_ms: f64,
    /// The 90th percentile, in milliseconds.
    pub p90_ms: f64,
    /// The 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// The greatest, in milliseconds.
    pub max_ms: f64,
    /// The arithmetic mean, in milliseconds.
    pub mean_ms: f64,
    /// Every time, in microseconds, as measured one after the other.
    pub all_us: Vec<u64>,
}

impl Samples {
    /// Adds one time.
    pub fn add(&mut self, what: &'static str, time: Duration) {
        self.row(what).push(time);
    }

    /// Adds all of another's times.
    pub fn merge(&mut self, other: Samples) {
        for (what, times) in other.rows {
            self.row(what).extend(times);
        }
    }

    /// One summary for each thing timed.
    pub fn summaries(&self) -> Vec<Summary> {
        self.rows.iter().filter_map(|(what, times)| summary(what, times)).collect()
    }

    fn row(&mut self, what: &'static str) -> &mut Vec<Duration> {
        let at = self.rows.iter().position(|(known, _)| *known == what).unwrap_or_else(|| {
            self.rows.push((what, Vec::new()));
            self.rows.len() - 1
        });
        &mut self.rows[at].1
    }
}

fn summary(what: &str, times: &[Duration]) -> Option<Summary> {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    Some(Summary {
        what: what.to_owned(),
        n: sorted.len(),
        min_ms: *sorted.first()?,
        p50_ms: percentile(&sorted, 0.50),
        p90_ms: percentile(&sorted, 0.90),
        p99_ms: percentile(&sorted, 0.99),
        max_ms: *sorted.last()?,
        mean_ms: sorted.iter().sum::<f64>() / sorted.len() as f64,
        all_us: times.iter().map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)).collect(),
    })
}

/// The value below which `share` (0 to 1) of the sorted values lie, interpolated between neighbours; 0 of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(below), Some(above)) => below + (above - below) * at.fract(),
        _ => 0.0,
    }
}
