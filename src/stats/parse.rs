//! The kernel's accounting files, as text to numbers: pure.

/// The value behind `key ` in a flat keyed file (`memory.stat`, `cpu.stat`).
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A file with one number; `max` and what the v1 controllers show for it is `None`.
pub(super) fn limit(text: &str) -> Option<u64> {
    // v1 shows "unlimited" as the largest number of whole pages.
    const UNLIMITED: u64 = 1 << 60;
    text.trim().parse().ok().filter(|value| *value < UNLIMITED)
}

/// A file with one number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// One line of a pressure file (PSI): `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Share of the last 10 seconds, percent.
    pub avg10: f64,
    /// Of the last 60 seconds.
    pub avg60: f64,
    /// Of the last 300 seconds.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// The line of a pressure file that begins with `kind` (`some`, `full`).
pub(super) fn pressure(text: &str, kind: &str) -> Option<Pressure> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    let mut found = Pressure::default();
    for (key, value) in line.split(' ').filter_map(|part| part.split_once('=')) {
        match key {
            "avg10" => found.avg10 = value.parse().ok()?,
            "avg60" => found.avg60 = value.parse().ok()?,
            "avg300" => found.avg300 = value.parse().ok()?,
            "total" => found.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(found)
}

/// One interface of /proc/PID/net/dev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Send errors.
    pub tx_errors: u64,
}

/// All interfaces but `lo`, in the file's order (proc_net(5)).
pub(super) fn interfaces(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let numbers: Vec<u64> = rest.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: at(0)?,
            rx_errors: at(2)?,
            tx_bytes: at(8)?,
            tx_errors: at(10)?,
        })
    };
    text.lines().filter_map(line).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files() {
        let text = "anon 10\nanon_thp 5\ninactive_file 7\n";
        assert_eq!(keyed(text, "anon"), Some(10));
        assert_eq!(keyed(text, "inactive_file"), Some(7));
        assert_eq!(keyed(text, "file"), None);
    }

    #[test]
    fn limits_of_both_versions() {
        assert_eq!(limit("1048576\n"), Some(1 << 20));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
    }

    #[test]
    fn pressure_lines() {
        let text =
            "some avg10=1.50 avg60=0.20 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(pressure(text, "some"), Some(Pressure { avg10: 1.5, avg60: 0.2, avg300: 0.0, total: 12345 }));
        assert_eq!(pressure(text, "full").map(|found| found.total), Some(7));
        assert_eq!(pressure("", "some"), None);
    }

    #[test]
    fn interfaces_but_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:100 2 3 0 0 0 0 0 200 5 6 0 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].rx_bytes, found[0].rx_errors, found[0].tx_bytes, found[0].tx_errors), (100, 3, 200, 6));
    }
}
