//! SELinux labels of pods and containers: which, given what the policy names, what is asked and what the pod has.
//!
//! A pod has a level of its own, by two categories; its containers share it, so they share files, and no other pod's
//! process may touch those. A container that asks for other parts of a label gets them, in its pod's level unless it
//! asks for another. The label of files differs from that of the process in role and type only.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::pod::SelinuxOptions;

/// Type of a process that the policy does not confine.
const SUPER_PRIVILEGED: &str = "spc_t";

/// A label in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Label {
    /// From `user:role:type` and, where the policy has levels, `:level`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let label = Self {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next().unwrap_or_default(),
        };
        let full = [&label.user, &label.role, &label.kind].into_iter().all(|part| !part.is_empty());
        full.then_some(label)
    }

    /// The level; empty: none.
    pub fn level(&self) -> &str {
        &self.level
    }

    fn with_level(&self, level: &str) -> Self {
        // A policy without levels takes none.
        let level = if self.level.is_empty() { "" } else { level };
        Self { level: level.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(f, ":{}", self.level) }
    }
}

/// What the policy says of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    process: Label,
    file: Label,
}

impl Contexts {
    /// From the policy's `contexts/lxc_contexts`: lines `KEY = "LABEL"`.
    pub fn parse(text: &str) -> Option<Self> {
        let find = |wanted: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let mut value =
                lines.filter(|(key, _)| key.trim() == wanted).map(|(_, value)| value.trim().trim_matches('"'));
            Label::parse(value.next_back()?)
        };
        Some(Self { process: find("process")?, file: find("file")? })
    }
}

/// Labels of a pod, or of a container: of its processes and of its files. Kept in the pod's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of processes.
    pub process: String,
    /// Of files and mounts.
    pub mount: String,
}

impl Labels {
    /// The level in a text that is a label; empty: none.
    pub fn level(&self) -> &str {
        self.process.splitn(4, ':').nth(3).unwrap_or_default()
    }
}

/// A pod's labels, in `level` unless another is asked for.
pub fn pod(contexts: &Contexts, asked: Option<&SelinuxOptions>, level: &str) -> Labels {
    let process = replace(&contexts.process.with_level(level), asked);
    let file = contexts.file.with_level(level);
    labels(&process, &file)
}

/// A container's labels: what is asked for, over the policy's, in its pod's level; without a wish its pod's.
pub fn container(contexts: &Contexts, of_pod: &Labels, asked: Option<&SelinuxOptions>) -> Labels {
    let Some(asked) = asked else { return of_pod.clone() };
    let process = replace(&contexts.process.with_level(of_pod.level()), Some(asked));
    labels(&process, &contexts.file)
}

/// The process label of a privileged container, in the range of the runtime itself.
pub fn privileged(contexts: &Contexts, own: &Label) -> String {
    Label { kind: SUPER_PRIVILEGED.to_owned(), ..contexts.process.with_level(own.level()) }.to_string()
}

fn replace(label: &Label, asked: Option<&SelinuxOptions>) -> Label {
    let Some(asked) = asked else { return label.clone() };
    let choose = |asked: &String, own: &String| if asked.is_empty() { own.clone() } else { asked.clone() };
    Label {
        user: choose(&asked.user, &label.user),
        role: choose(&asked.role, &label.role),
        kind: choose(&asked.kind, &label.kind),
        level: choose(&asked.level, &label.level),
    }
}

fn labels(process: &Label, file: &Label) -> Labels {
    let mount = Label { user: process.user.clone(), level: process.level.clone(), ..file.clone() };
    Labels { process: process.to_string(), mount: mount.to_string() }
}

/// Pair number `index` of two different categories under `categories`, as a level.
pub fn level(index: u32, categories: u32) -> Option<String> {
    // (0,1) (0,2) … (0,n-1) (1,2) …
    let (mut first, mut rest) = (0, index);
    while first + 1 < categories {
        let row = categories - 1 - first;
        if rest < row {
            return Some(format!("s0:c{first},c{}", first + 1 + rest));
        }
        (first, rest) = (first + 1, rest - row);
    }
    None
}

/// How many such pairs there are.
pub fn levels(categories: u32) -> u32 {
    categories * categories.saturating_sub(1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
                          file = \"system_u:object_r:container_file_t:s0\"\nro_file = \"system_u:object_r:container_ro_file_t:s0\"\n";

    fn options(user: &str, kind: &str, level: &str) -> SelinuxOptions {
        SelinuxOptions { user: user.into(), role: String::new(), kind: kind.into(), level: level.into() }
    }

    #[test]
    fn containers_are_labelled_as_their_pod() {
        let contexts = Contexts::parse(DEBIAN).unwrap();
        let own = pod(&contexts, None, "s0:c1,c2");
        assert_eq!(own.process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(own.mount, "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(own.level(), "s0:c1,c2");
        assert_eq!(container(&contexts, &own, None), own);
    }

    #[test]
    fn what_is_asked_for_is_taken_and_the_rest_is_not_lost() {
        let contexts = Contexts::parse(DEBIAN).unwrap();
        let own = pod(&contexts, Some(&options("", "web_t", "")), "s0:c1,c2");
        assert_eq!(own.process, "system_u:system_r:web_t:s0:c1,c2");
        assert_eq!(own.mount, "system_u:object_r:container_file_t:s0:c1,c2", "the type is the process's alone");
        let got = container(&contexts, &own, Some(&options("me_u", "", "")));
        assert_eq!(got.process, "me_u:system_r:container_t:s0:c1,c2", "the pod's level, the policy's type");
        assert_eq!(got.mount, "me_u:object_r:container_file_t:s0:c1,c2");
        let got = container(&contexts, &own, Some(&options("", "", "s0")));
        assert_eq!((got.process.as_str(), got.level()), ("system_u:system_r:container_t:s0", "s0"));
    }

    #[test]
    fn privileged_ones_leave_the_policys_confinement() {
        let contexts = Contexts::parse(DEBIAN).unwrap();
        let own = Label::parse("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023").unwrap();
        assert_eq!(privileged(&contexts, &own), "system_u:system_r:spc_t:s0-s0:c0.c1023");
    }

    #[test]
    fn policies_without_levels_get_none() {
        let contexts = Contexts::parse("process=\"u:r:t\"\nfile=\"u:o:f\"").unwrap();
        assert_eq!(pod(&contexts, None, "s0:c1,c2"), Labels { process: "u:r:t".into(), mount: "u:o:f".into() });
        for bad in ["", "process = \"a:b\"\nfile = \"a:b:c\"", "process = \"a:b:c\"", "process=\"::\"\nfile=\"a:b:c\""]
        {
            assert_eq!(Contexts::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_pair_of_categories_is_a_level_once() {
        let all: Vec<_> = (0..levels(5)).map(|index| level(index, 5).unwrap()).collect();
        let mut sorted = all.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!((all.len(), sorted.len()), (10, 10));
        assert_eq!((all[0].as_str(), all[9].as_str()), ("s0:c0,c1", "s0:c3,c4"));
        assert_eq!((level(10, 5), level(0, 1), levels(0)), (None, None, 0));
        assert_eq!(levels(1024), 523_776);
    }
}
