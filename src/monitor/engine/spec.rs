//! From the daemon's OCI spec, which says what is wanted, to the spec that the program which makes
//! the container can take. Pure, but for reading and writing the files.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::labels::Labels;
use super::users::{self, PodUser};
use super::{attempt, failure, stdio};
use crate::sys::caps;
use crate::types::ErrorKind;
use crate::wire::{CreateSpec, Failure, StagedPropagation};

/// Largest config.json, bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// What this process may do itself, which bounds what it can give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// Bounding set.
    pub bounding: u64,
    /// Present oom_score_adj.
    pub oom_score_adj: i64,
    /// May go below it.
    pub may_lower: bool,
}

impl Own {
    /// Of this process.
    pub(super) fn read() -> Result<Self, Failure> {
        Ok(Self {
            bounding: caps::bounding(),
            oom_score_adj: attempt(super::hygiene::own_oom_score_adj(), || "reading oom_score_adj".to_owned())?,
            may_lower: super::hygiene::may_lower_oom_score_adj(),
        })
    }
}

/// The process as it is really to be run, taken out of a spec before libcontainer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Arguments, the program's name first.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Absolute working directory inside.
    pub cwd: PathBuf,
    /// User id inside.
    pub uid: u32,
    /// oom_score_adj.
    pub oom_score_adj: i64,
    /// The user namespace to join; libcontainer knows nothing of it.
    pub user: Option<PodUser>,
    /// Mounts that are to be labelled once they are there.
    pub labels: Option<Labels>,
}

/// Reads the daemon's config.json.
pub(super) fn load(bundle: &Path) -> Result<Value, Failure> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = fs::File::open(&path).and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text));
    attempt(read, || format!("reading {path:?}"))?;
    attempt(serde_json::from_slice(&text), || format!("reading {path:?}"))
}

/// Writes `value` as `name`, for its owner only.
pub(super) fn save(path: &Path, value: &Value) -> Result<(), Failure> {
    let written = (|| {
        let text = serde_json::to_vec(value)?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(&text)
    })();
    attempt(written, || format!("writing {path:?}"))
}

/// Takes the program out of an OCI `process`, and leaves in its place what libcontainer needs to get
/// as far as our Executor: all capabilities that we have, no filter, no working directory.
pub(super) fn split(process: &mut Value, own: Own) -> Result<Program, Failure> {
    let program = program(process)?;
    let all = json!(caps::names(own.bounding));
    let Some(object) = process.as_object_mut() else { return Err(invalid("process")) };
    for taken in ["noNewPrivileges", "apparmorProfile", "selinuxLabel", "oomScoreAdj"] {
        object.remove(taken);
    }
    object.insert("cwd".into(), json!("/"));
    // With a HOME it does not ask libc for one, which would load libraries of the container's choice.
    object.insert("env".into(), json!(["HOME=/"]));
    object.insert("args".into(), json!(["init"]));
    object.insert(
        "capabilities".into(),
        json!({"bounding": all, "effective": all, "permitted": all, "inheritable": [], "ambient": []}),
    );
    Ok(program)
}

/// The daemon's spec, made fit for libcontainer; and the program.
pub(super) fn for_libcontainer(config: &mut Value, spec: &CreateSpec, own: Own) -> Result<Program, Failure> {
    let process = config.get_mut("process").ok_or_else(|| invalid("process"))?;
    let mut program = split(process, own)?;
    program.user = PodUser::take(config)?;
    let label = config.pointer("/linux/mountLabel").and_then(Value::as_str).map(str::to_owned);
    program.labels = label.as_deref().map(|label| Labels::of(config, label));
    let linux = config.get_mut("linux").and_then(Value::as_object_mut).ok_or_else(|| invalid("linux"))?;
    linux.remove("seccomp");
    // libcontainer would label mounts that cannot have one of their own: /dev/mqueue and cgroups.
    linux.remove("mountLabel");
    let propagation = match linux.get("rootfsPropagation").and_then(Value::as_str) {
        _ if spec.mounts.iter().any(|mount| mount.propagation == StagedPropagation::Shared) => Some("shared"),
        Some(name) => Some(match name {
            "rshared" => "shared",
            "rslave" => "slave",
            "rprivate" => "private",
            "runbindable" => "unbindable",
            other => other,
        }),
        None => None,
    };
    if let Some(propagation) = propagation.map(|name| json!(name)) {
        linux.insert("rootfsPropagation".into(), propagation);
    }
    if let Some(label) = &label {
        label_mounts(config, label);
    }
    // Ids are mapped on the staged mount already.
    for mount in config.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        let staged = mount.get("source").and_then(Value::as_str).map(PathBuf::from);
        if spec.mounts.iter().any(|known| Some(&known.staged) == staged.as_ref())
            && let Some(mount) = mount.as_object_mut()
        {
            mount.remove("uidMappings");
            mount.remove("gidMappings");
        }
    }
    Ok(program)
}

/// Gives file systems that are the container's own its SELinux label.
fn label_mounts(config: &mut Value, label: &str) {
    for mount in config.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if matches!(mount["type"].as_str(), Some("tmpfs" | "devpts"))
            && let Some(mount) = mount.as_object_mut()
            && let Some(options) = mount.entry("options").or_insert_with(|| json!([])).as_array_mut()
        {
            options.push(json!(format!("context={label}")));
        }
    }
}

/// Where cgroups are mounted in the container, if they are to be read-only there.
pub(super) fn read_only_cgroups(config: &Value) -> Option<&'static Path> {
    const PLACE: &str = "/sys/fs/cgroup";
    let mounts = config.get("mounts").and_then(Value::as_array)?;
    let read_only = mounts.iter().any(|mount| {
        mount["destination"] == PLACE
            && mount["type"] == "cgroup"
            && mount["options"].as_array().is_some_and(|options| options.iter().any(|option| option == "ro"))
    });
    read_only.then_some(Path::new(PLACE))
}

/// The user of the container's process, as the host numbers it.
pub(super) fn owner(config: &Value) -> Result<u32, Failure> {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let uid = config.pointer("/process/user").and_then(|user| number(user, "uid")).unwrap_or(0);
    let maps = config.pointer("/linux/uidMappings").map(users::mappings).unwrap_or_default();
    if maps.is_empty() {
        return Ok(uid);
    }
    stdio::on_host(uid, maps).ok_or_else(|| invalid("process.user.uid"))
}

/// Takes from a `process` what this machine's limits do not let a runtime binary do, where it would
/// fail rather than do without. Says whether that was anything.
pub(super) fn fit(process: &mut Value, own: Own) -> bool {
    let mut changed = false;
    if let Some(object) = process.as_object_mut()
        && object.get("oomScoreAdj").and_then(Value::as_i64).is_some_and(|value| value < own.oom_score_adj)
        && !own.may_lower
    {
        object.remove("oomScoreAdj");
        changed = true;
    }
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        let before = set.len();
        set.retain(|name| name.as_str().and_then(caps::from_name).is_none_or(|bit| bit & own.bounding != 0));
        changed |= set.len() != before;
    }
    changed
}

/// The program in an OCI `process`.
pub(super) fn program(process: &Value) -> Result<Program, Failure> {
    let texts = |key| -> Result<Vec<String>, Failure> {
        match process.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(list) => serde_json::from_value(list.clone()).map_err(|_| invalid(key)),
        }
    };
    let user = process.get("user").and_then(|user| user.get("uid")).and_then(Value::as_u64).unwrap_or(0);
    let program = Program {
        args: texts("args")?,
        env: texts("env")?,
        cwd: process.get("cwd").and_then(Value::as_str).unwrap_or("/").into(),
        uid: u32::try_from(user).map_err(|_| invalid("user.uid"))?,
        oom_score_adj: process.get("oomScoreAdj").and_then(Value::as_i64).unwrap_or(0),
        user: None,
        labels: None,
    };
    if program.args.first().is_none_or(String::is_empty) {
        return Err(failure(ErrorKind::InvalidArgument, "no command specified"));
    }
    if !program.cwd.is_absolute() {
        return Err(failure(
            ErrorKind::InvalidArgument,
            format!("working directory {:?} is not absolute", program.cwd),
        ));
    }
    Ok(program)
}

fn invalid(field: &str) -> Failure {
    failure(ErrorKind::InvalidArgument, format!("the container's OCI spec has no valid {field:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Own = Own { bounding: 1 << 21 | 1, oom_score_adj: 0, may_lower: false };

    #[test]
    fn libcontainer_sees_nothing_that_the_executor_does() {
        let mut process = json!({
            "args": ["sh", "-c", "x"], "env": ["A=1", "A=2"], "cwd": "/w", "user": {"uid": 5, "gid": 6},
            "noNewPrivileges": true, "apparmorProfile": "p", "oomScoreAdj": -998,
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        });
        let program = split(&mut process, OWN).unwrap();
        assert_eq!(program.args, ["sh", "-c", "x"]);
        assert_eq!((program.env.len(), program.uid, program.oom_score_adj), (2, 5, -998));
        let all = json!(["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        assert_eq!(
            process,
            json!({
                "args": ["init"], "env": ["HOME=/"], "cwd": "/", "user": {"uid": 5, "gid": 6},
                "capabilities": {"bounding": all, "effective": all, "permitted": all, "inheritable": [], "ambient": []},
            })
        );
    }

    #[test]
    fn file_systems_of_the_container_alone_are_labelled() {
        let mut config = json!({"mounts": [
            {"destination": "/dev", "type": "tmpfs", "options": ["nosuid"]},
            {"destination": "/t", "type": "tmpfs"},
            {"destination": "/dev/mqueue", "type": "mqueue", "options": ["nosuid"]},
            {"destination": "/v", "type": "bind", "options": ["rbind"]},
        ]});
        label_mounts(&mut config, "u:r:t:s0:c1,c2");
        let options = |index: usize| config["mounts"][index]["options"].clone();
        assert_eq!(options(0), json!(["nosuid", "context=u:r:t:s0:c1,c2"]));
        assert_eq!(options(1), json!(["context=u:r:t:s0:c1,c2"]));
        assert_eq!((options(2), options(3)), (json!(["nosuid"]), json!(["rbind"])));
    }

    #[test]
    fn cgroups_are_read_only_as_the_spec_says() {
        let config = |options: &[&str]| {
            json!({"mounts": [
                {"destination": "/x", "type": "bind", "options": ["ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": options},
            ]})
        };
        assert!(read_only_cgroups(&config(&["nosuid", "ro"])).is_some());
        assert!(read_only_cgroups(&config(&["nosuid", "rw"])).is_none());
        assert!(read_only_cgroups(&json!({})).is_none());
    }

    #[test]
    fn a_process_without_a_command_is_refused() {
        for process in [
            json!({}),
            json!({"args": []}),
            json!({"args": [""]}),
            json!({"args": 1}),
            json!({"args": ["a"], "cwd": "x"}),
        ] {
            assert!(split(&mut process.clone(), OWN).is_err(), "{process}");
        }
    }

    #[test]
    fn what_we_lack_is_taken_from_a_binarys_spec() {
        let mut process = json!({"oomScoreAdj": -5, "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}});
        assert!(fit(&mut process, OWN));
        assert_eq!(process, json!({"capabilities": {"bounding": ["CAP_CHOWN"]}}));
        assert!(!fit(&mut process, OWN));
    }
}
