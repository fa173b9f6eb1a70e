//! SELinux on this node: the policy's contexts, which levels are taken, and volumes that want a label.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::container::selinux::{self, Contexts, Label, Labels};
use crate::pod::PodError;
use crate::sys::lsm;
use crate::types::ErrorKind;
use crate::types::pod::SelinuxOptions;

/// Most bytes read of the policy's files.
const MAX_FILE: u64 = 64 << 10;
/// Folders that the machine itself needs as they are: labelling them, or all below them, for a container would break
/// it.
const KEEP: [&str; 26] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/etc/ssh",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];
/// Of these, nothing below either.
const KEEP_BELOW: [&str; 8] = ["/bin", "/boot", "/dev", "/lib", "/proc", "/sbin", "/sys", "/usr"];

/// SELinux as it is used here.
#[derive(Debug)]
pub struct Selinux {
    contexts: Contexts,
    own: Label,
    privileged: Option<String>,
    levels: Levels,
}

impl Selinux {
    /// Reads what the loaded policy says of containers.
    ///
    /// # Errors
    /// Why it cannot be used, for people.
    pub(super) fn start(categories: u32) -> Result<Self, String> {
        let own = lsm::selinux_current().map_err(|error| format!("SELinux: this process's label: {error}"))?;
        let own = Label::parse(&own).ok_or_else(|| format!("SELinux: {own:?} is no label"))?;
        let path = contexts_file().map_err(|error| format!("SELinux: /etc/selinux/config: {error}"))?;
        let text = read(&path).map_err(|error| format!("SELinux: {path:?}: {error}"))?;
        let contexts = Contexts::parse(&text).ok_or_else(|| format!("SELinux: {path:?} has no process and file"))?;
        let privileged = selinux::privileged(&contexts, &own);
        let may = |label: &String| lsm::selinux_may_become(&own.to_string(), label).unwrap_or(false);
        let known = lsm::selinux_knows(&privileged).unwrap_or(false);
        // Else the policy decides by itself what comes of a privileged container.
        let privileged = Some(privileged).filter(|label| known && may(label));
        Ok(Self { contexts, own, privileged, levels: Levels::new(categories) })
    }

    /// What keeps containers from being started at all.
    pub(super) fn problem(&self) -> Option<String> {
        let wanted = selinux::pod(&self.contexts, None, "s0:c0,c1").process;
        match lsm::selinux_may_become(&self.own.to_string(), &wanted) {
            Ok(false) => Some(format!(
                "SELinux: the policy does not let this process, {}, start containers as {wanted}; label the program as \
                 a container runtime's (semanage fcontext, restorecon)",
                self.own
            )),
            Ok(true) => None,
            Err(error) => Some(format!("SELinux cannot be asked: {error}")),
        }
    }

    /// Takes a level for a pod, and names its labels.
    pub(crate) fn claim(&self, owner: &str, asked: Option<&SelinuxOptions>) -> Result<Labels, PodError> {
        let labels = match asked.map(|asked| asked.level.as_str()).filter(|level| !level.is_empty()) {
            Some(level) => selinux::pod(&self.contexts, asked, level),
            None => {
                let level = self.levels.claim(owner).ok_or_else(|| {
                    let text = "SELinux: all levels are taken; raise [selinux] category_range";
                    PodError::failed(ErrorKind::ResourceExhausted, text)
                })?;
                selinux::pod(&self.contexts, asked, &level)
            }
        };
        self.levels.reserve(owner, labels.level());
        if let Err(error) = check(&labels, asked) {
            self.release(owner);
            return Err(error);
        }
        Ok(labels)
    }

    /// A container's labels, checked against the policy.
    pub(crate) fn container(&self, pod: &Labels, asked: Option<&SelinuxOptions>) -> Result<Labels, PodError> {
        let labels = selinux::container(&self.contexts, pod, asked);
        check(&labels, asked)?;
        Ok(labels)
    }

    /// The label of privileged processes; `None`: whatever the policy makes of them.
    pub(crate) fn privileged(&self) -> Option<String> {
        self.privileged.clone()
    }

    /// No new pod gets this level while `owner` has it.
    pub(crate) fn reserve(&self, owner: &str, level: &str) {
        self.levels.reserve(owner, level);
    }

    /// All that `owner` has reserved is free again, unless others have it, too.
    pub(crate) fn release(&self, owner: &str) {
        self.levels.release(owner);
    }
}

/// Gives a volume, with everything in it, a container's label. Blocks for as long as it takes to walk through it.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<(), PodError> {
    let invalid = |reason: String| PodError::Invalid {
        field: "config.mounts.selinux_relabel",
        value: path.to_string_lossy().into_owned(),
        reason,
    };
    if keeps_its_label(path) {
        return Err(invalid("a folder of the machine's own, which must keep its label".into()));
    }
    lsm::set_label_below(path, label).map_err(|error| invalid(format!("labelling it {label}: {error}")))
}

fn keeps_its_label(path: &Path) -> bool {
    KEEP.iter().any(|kept| path == Path::new(kept)) || KEEP_BELOW.iter().any(|kept| path.starts_with(kept))
}

/// `contexts/lxc_contexts` of the policy that /etc/selinux/config names.
fn contexts_file() -> std::io::Result<PathBuf> {
    let text = read(Path::new("/etc/selinux/config"))?;
    Ok(Path::new("/etc/selinux").join(policy_name(&text)).join("contexts/lxc_contexts"))
}

fn policy_name(text: &str) -> &str {
    let found = text.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).next_back();
    found.map(str::trim).filter(|name| !name.is_empty() && !name.contains('/')).unwrap_or("targeted")
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(fs::canonicalize(path)?)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The policy must know labels that a client had a part in.
fn check(labels: &Labels, asked: Option<&SelinuxOptions>) -> Result<(), PodError> {
    if asked.is_none() {
        return Ok(());
    }
    for label in [&labels.process, &labels.mount] {
        match lsm::selinux_knows(label) {
            Ok(true) => {}
            Ok(false) => {
                return Err(PodError::Invalid {
                    field: "config.linux.security_context.selinux_options",
                    value: label.clone(),
                    reason: "the loaded SELinux policy knows no such label".into(),
                });
            }
            Err(error) => return Err(PodError::io("asking SELinux for a label", &error)),
        }
    }
    Ok(())
}

/// Which levels are taken, and by whom.
#[derive(Debug)]
struct Levels {
    categories: u32,
    taken: Mutex<HashMap<String, BTreeSet<String>>>,
}

impl Levels {
    fn new(categories: u32) -> Self {
        Self { categories, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
        // Nothing that can panic runs under the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that nobody has, from a random place on; `None`: all are taken.
    fn claim(&self, owner: &str) -> Option<String> {
        let count = selinux::levels(self.categories);
        let start = getrandom::u32().unwrap_or(0).checked_rem(count)?;
        let mut taken = self.lock();
        let indices = (start..count).chain(0..start);
        let free = indices
            .filter_map(|index| selinux::level(index, self.categories))
            .find(|level| !taken.contains_key(level))?;
        taken.entry(free.clone()).or_default().insert(owner.to_owned());
        Some(free)
    }

    fn reserve(&self, owner: &str, level: &str) {
        // A level without categories is everybody's.
        if level.contains(":c") {
            self.lock().entry(level.to_owned()).or_default().insert(owner.to_owned());
        }
    }

    fn release(&self, owner: &str) {
        self.lock().retain(|_, owners| {
            owners.remove(owner);
            !owners.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_given_once_and_again_when_it_is_free() {
        let levels = Levels::new(3);
        let mut all: Vec<_> = ["a", "b", "c"].iter().map(|owner| levels.claim(owner).unwrap()).collect();
        assert_eq!(levels.claim("d"), None);
        let freed = all[1].clone();
        levels.release("b");
        assert_eq!(levels.claim("d"), Some(freed));
        all.sort();
        assert_eq!(all, ["s0:c0,c1", "s0:c0,c2", "s0:c1,c2"]);
    }

    #[test]
    fn what_two_have_is_free_when_both_are_gone() {
        let levels = Levels::new(2);
        levels.reserve("pod", "s0:c0,c1");
        levels.reserve("container", "s0:c0,c1");
        levels.reserve("pod", "s0");
        levels.release("pod");
        assert_eq!(levels.claim("x"), None);
        levels.release("container");
        assert_eq!(levels.claim("x").as_deref(), Some("s0:c0,c1"));
        assert_eq!(Levels::new(1).claim("x"), None, "one category makes no pair");
    }

    #[test]
    fn the_machine_keeps_its_labels() {
        for kept in ["/", "/etc", "/usr", "/usr/local/share", "/var/lib", "/proc/1", "/sys/fs/cgroup", "/root"] {
            assert!(keeps_its_label(Path::new(kept)), "{kept}");
            assert!(relabel(Path::new(kept), "u:o:t:s0").is_err(), "{kept}");
        }
        for free in ["/var/lib/kubelet/pods/x/volumes/y", "/srv/data", "/etc/app", "/usr2", "/home/me/data"] {
            assert!(!keeps_its_label(Path::new(free)), "{free}");
        }
    }

    #[test]
    fn the_policy_is_the_one_that_is_configured() {
        assert_eq!(policy_name("SELINUX=enforcing\n# SELINUXTYPE=x\nSELINUXTYPE=default\n"), "default");
        assert_eq!(policy_name("SELINUXTYPE=../../etc\n"), "targeted");
        assert_eq!(policy_name(""), "targeted");
    }
}
