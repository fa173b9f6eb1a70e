//! Limits on cgroup v2, which libcgroups is not asked for: with systemd it sends CPU sets in a form
//! that is refused, drops most of `unified` without a word and converts some of it twice; without, it
//! leaves swap on where none is to be had; huge pages fail where nobody has enabled their controller.

use std::path::Path;

use serde_json::{Value, json};

use super::of_cgroup;
use crate::cgroup::limits::{self, Limit};
use crate::wire::Failure;

/// Takes all limits out of a runtime spec's `linux` section; the device rules stay.
pub(super) fn take(linux: &mut Value) -> Vec<Limit> {
    let Some(resources) = linux.get_mut("resources") else { return Vec::new() };
    let limits = limits::v2(resources);
    *resources = json!({ "devices": resources.get("devices").cloned().unwrap_or_else(|| json!([])) });
    limits
}

/// Puts limits in force in the cgroup at `folder`.
pub(super) fn apply(folder: &Path, limits: &[Limit]) -> Result<(), Failure> {
    limits::set(&[folder.to_owned()], limits).map_err(|error| of_cgroup(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_device_rules_are_left_to_libcgroups() {
        let mut linux = json!({ "resources": {
            "devices": [{"allow": false}],
            "memory": { "limit": 5 },
            "cpu": { "cpus": "0-2,9", "shares": 7 },
            "unified": { "memory.high": "max" },
        }});
        assert_eq!(take(&mut linux).len(), 4);
        assert_eq!(linux, json!({ "resources": { "devices": [{"allow": false}] } }));
        assert_eq!(take(&mut json!({})), []);
    }
}
