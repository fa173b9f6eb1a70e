//! Short RCU grace periods while plugins take things away.
//!
//! A plugin that deletes packet filter rules waits for the kernel: iptables ends only when what it deleted has been
//! freed, one grace period (several timer ticks) per call, one call after the other. The kernel can make grace periods
//! short by asking the other processors, as it does by itself for each interface or mount that goes. That is a switch
//! of the whole machine; it is on for the milliseconds of a DEL only, and never where somebody has prepared processors
//! for work that must not be disturbed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The switch, and how many hold it.
#[derive(Debug)]
pub struct Expedite {
    switch: PathBuf,
    /// Says, across a crash, that it was us who turned it on.
    marker: PathBuf,
    holders: Mutex<usize>,
}

/// While one of these exists grace periods are short.
#[derive(Debug)]
pub struct Hold(Arc<Expedite>);

impl Expedite {
    /// Of the machine whose sysfs is at `sys`, unless it is better left alone. What an earlier daemon has left
    /// turned on, says `marker`, is turned off.
    pub fn new(sys: &Path, marker: PathBuf) -> Option<Arc<Self>> {
        let switch = sys.join("kernel/rcu_expedited");
        if marker.exists() && fs::write(&switch, "0").is_ok() {
            let _ = fs::remove_file(&marker);
        }
        let fits = reads(&sys.join("kernel/rcu_normal"), "0")
            && empty(&sys.join("devices/system/cpu/isolated"))
            && empty(&sys.join("devices/system/cpu/nohz_full"));
        fits.then(|| Arc::new(Self { switch, marker, holders: Mutex::new(0) }))
    }

    /// Turns it on, unless it is. Nothing depends on it: a failure only means that DEL takes longer.
    pub fn hold(self: &Arc<Self>) -> Hold {
        let mut holders = self.holders();
        *holders += 1;
        // The marker first: a crash in between leaves one that does no harm.
        if *holders == 1
            && reads(&self.switch, "0")
            && fs::write(&self.marker, "").is_ok()
            && let Err(error) = fs::write(&self.switch, "1")
        {
            tracing::debug!(%error, "grace periods stay long");
            let _ = fs::remove_file(&self.marker);
        }
        drop(holders);
        Hold(self.clone())
    }

    fn holders(&self) -> MutexGuard<'_, usize> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holders = self.0.holders();
        *holders -= 1;
        if *holders == 0 && self.0.marker.exists() && fs::write(&self.0.switch, "0").is_ok() {
            let _ = fs::remove_file(&self.0.marker);
        }
    }
}

fn reads(file: &Path, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == value)
}

/// Whether a list of processors names none; a kernel without such a list has none.
fn empty(list: &Path) -> bool {
    fs::read_to_string(list).map_or(true, |text| matches!(text.trim(), "" | "(null)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(normal: &str, isolated: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        fs::create_dir_all(sys.join("kernel")).unwrap();
        fs::create_dir_all(sys.join("devices/system/cpu")).unwrap();
        fs::write(sys.join("kernel/rcu_expedited"), "0\n").unwrap();
        fs::write(sys.join("kernel/rcu_normal"), normal).unwrap();
        fs::write(sys.join("devices/system/cpu/isolated"), isolated).unwrap();
        root
    }

    fn switch(sys: &Path) -> String {
        fs::read_to_string(sys.join("kernel/rcu_expedited")).unwrap().trim().to_owned()
    }

    #[test]
    fn on_while_anybody_holds_it() {
        let machine = machine("0\n", "\n");
        let marker = machine.path().join("marker");
        let expedite = Expedite::new(machine.path(), marker.clone()).unwrap();
        let (one, two) = (expedite.hold(), expedite.hold());
        assert_eq!(switch(machine.path()), "1");
        drop(one);
        assert_eq!(switch(machine.path()), "1");
        drop(two);
        assert_eq!(switch(machine.path()), "0");
        assert!(!marker.exists());
    }

    #[test]
    fn what_others_turned_on_stays_on() {
        let machine = machine("0\n", "\n");
        fs::write(machine.path().join("kernel/rcu_expedited"), "1").unwrap();
        let expedite = Expedite::new(machine.path(), machine.path().join("marker")).unwrap();
        drop(expedite.hold());
        assert_eq!(switch(machine.path()), "1");
    }

    #[test]
    fn a_crash_is_made_good() {
        let machine = machine("0\n", "\n");
        let marker = machine.path().join("marker");
        std::mem::forget(Expedite::new(machine.path(), marker.clone()).unwrap().hold());
        assert_eq!(switch(machine.path()), "1");
        assert!(Expedite::new(machine.path(), marker.clone()).is_some());
        assert_eq!(switch(machine.path()), "0");
        assert!(!marker.exists());
    }

    #[test]
    fn real_time_machines_are_left_alone() {
        for (normal, isolated) in [("1\n", "\n"), ("0\n", "2-3\n")] {
            let machine = machine(normal, isolated);
            assert!(Expedite::new(machine.path(), machine.path().join("marker")).is_none());
        }
    }
}
