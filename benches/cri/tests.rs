//! Tests of the bench's pure parts. They stand here, since the bench itself runs without the test harness.

#[expect(dead_code, reason = "what reads /proc is only the bench's")]
mod processes;
mod samples;

use std::collections::BTreeMap;
use std::time::Duration;

use processes::{Process, Role, field, roles};
use samples::{Samples, percentile};

#[test]
fn percentiles_interpolate() {
    let four = [1.0, 2.0, 3.0, 10.0];
    for (share, want) in [(0.0, 1.0), (0.5, 2.5), (1.0, 10.0), (0.9, 7.9)] {
        assert!((percentile(&four, share) - want).abs() < 1e-9, "{share}");
    }
    assert_eq!(percentile(&[7.0], 0.99), 7.0);
    assert_eq!(percentile(&[], 0.5), 0.0);
}

#[test]
fn samples_keep_order_and_merge() {
    let (mut one, mut two) = (Samples::default(), Samples::default());
    one.add("b", Duration::from_millis(3));
    one.add("a", Duration::from_millis(1));
    two.add("c", Duration::from_millis(9));
    two.add("b", Duration::from_millis(5));
    one.merge(two);
    let told: Vec<_> = one.summaries().into_iter().map(|s| (s.what, s.n, s.p50_ms)).collect();
    assert_eq!(told, [("b".to_owned(), 2, 4.0), ("a".to_owned(), 1, 1.0), ("c".to_owned(), 1, 9.0)]);
}

fn table(rows: &[(i32, i32, &str, &str)]) -> BTreeMap<i32, Process> {
    rows.iter()
        .map(|(pid, parent, name, command)| {
            (*pid, Process { parent: *parent, names: vec![(*name).to_owned()], command: (*command).to_owned() })
        })
        .collect()
}

fn told(rows: &[(i32, i32, &str, &str)], ids: &[&str]) -> Vec<(i32, Role)> {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    roles(&table(rows), 10, &ids, "777").into_iter().collect()
}

#[test]
fn shims_are_found_by_sandbox_id_or_workload_and_strangers_are_not() {
    let rows = [
        (1, 0, "init", "init"),
        (10, 1, "containerd", "containerd"),
        (20, 1, "containerd-shim", "containerd-shim-runc-v2 -id aaa"),
        (21, 20, "pause", "/pause"),
        (22, 20, "sleep", "sleep 777"),
        (30, 1, "containerd-shim", "containerd-shim-runc-v2 -id stranger"),
        (31, 30, "sleep", "sleep 778"),
        (40, 1, "conmon", "conmon -c bbb"),
        (41, 40, "sleep", "sleep 777"),
    ];
    use Role::{Daemon, Monitor, Pause, Workload};
    let want = [(10, Daemon), (20, Monitor), (21, Pause), (22, Workload), (40, Monitor), (41, Workload)];
    assert_eq!(told(&rows, &["aaa"]), want);
}

#[test]
fn monitors_below_the_daemon_count_even_when_idle() {
    let rows = [
        (10, 1, "podwright", "podwright serve"),
        (11, 10, "podwright-monit", "podwright-monitor"),
        (12, 11, "pause", "pause"),
        (13, 11, "podwright-monit", "podwright-monitor helper"),
        (14, 10, "bridge", "bridge"),
    ];
    use Role::{Daemon, Monitor, Pause};
    assert_eq!(told(&rows, &[]), [(10, Daemon), (11, Monitor), (12, Pause), (13, Monitor), (14, Monitor)]);
}

#[test]
fn fields_are_read_by_name() {
    assert_eq!(field("Rss:  12 kB\nPss:   7 kB\n", "Pss:"), Some("7 kB"));
    assert_eq!(field("Pss_Anon: 1 kB\n", "Pss:"), None);
}
