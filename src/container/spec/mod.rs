//! From what was asked to the OCI runtime spec's `config.json`: pure.
//!
//! The spec is complete and true for any OCI runtime. What libcontainer does not carry out (see
//! [`crate::wire::Confinement`]) is told a second time, apart, for the built-in engine.

mod linux;
mod mounts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::capabilities;
use super::config::ContainerConfig;
use super::devices::Node;
use super::edits::Edits;
use super::user::Resolved;
use crate::types::pod::PodConfig;
use crate::wire::{Capabilities, Confinement, StagedMount};

pub use linux::resources;
pub use mounts::{Unfit, check as check_mount};

/// Version of the OCI runtime spec that is written: the lowest that has all that is used, since some
/// runtimes refuse what is newer than they are.
const OCI_VERSION: &str = "1.0.2";
/// PATH where the image has none, as containerd has it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest command, argument or variable, bytes: the kernel's MAX_ARG_STRLEN.
const MAX_STRING: usize = 128 << 10;

/// The request cannot be put into a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason} (got {value:?})")]
pub struct SpecError {
    /// CRI field.
    pub field: &'static str,
    /// As given.
    pub value: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// What the image says about the program.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// `Env`, `NAME=value`.
    pub env: Vec<String>,
    /// `Entrypoint`
    pub entrypoint: Vec<String>,
    /// `Cmd`
    pub command: Vec<String>,
    /// `WorkingDir`
    pub working_dir: String,
}

/// Where the pod keeps what its containers share.
#[derive(Debug, Clone)]
pub struct PodPlaces {
    /// resolv.conf to mount.
    pub resolv_conf: PathBuf,
    /// hostname file to mount; `None` with host network.
    pub hostname: Option<PathBuf>,
    /// hosts file to mount.
    pub hosts: PathBuf,
    /// /dev/shm: the pod's, or the host's with the host's IPC namespace.
    pub shm: PathBuf,
    /// Network namespace to join; `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Host pid of pause, whose IPC, UTS and PID namespaces are joined.
    pub pause: i32,
}

/// Everything a spec is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// As asked.
    pub config: &'a ContainerConfig,
    /// The pod, as asked.
    pub pod: &'a PodConfig,
    /// The image's part.
    pub program: &'a Program,
    /// Looked up.
    pub user: &'a Resolved,
    /// The pod's.
    pub places: &'a PodPlaces,
    /// Host pid of the container whose PID namespace is the target.
    pub target_pid: Option<i32>,
    /// `linux.cgroupsPath`.
    pub cgroups_path: &'a str,
    /// cgroup v2 alone.
    pub cgroup_v2: bool,
    /// Absolute path the root file system will be mounted on.
    pub rootfs: &'a Path,
    /// Folder for staged mounts.
    pub staging: &'a Path,
    /// Compiled elsewhere; `None`: unconfined.
    pub seccomp: Option<LinuxSeccomp>,
    /// Capabilities that can be given at all.
    pub held: u64,
    /// For the built-in engine, not for an OCI runtime binary: that one takes propagation by option.
    pub built_in: bool,
    /// AppArmor profile.
    pub apparmor: Option<&'a str>,
    /// SELinux label of the process.
    pub process_label: Option<&'a str>,
    /// SELinux label of mounts.
    pub mount_label: Option<&'a str>,
    /// Annotations for the runtime, already filtered.
    pub annotations: Vec<(String, String)>,
    /// Layer folders, topmost first, of the images that are mounted as volumes, by the name in the config.
    pub volumes: &'a BTreeMap<String, Vec<PathBuf>>,
    /// Device nodes to hand in.
    pub devices: &'a [Node],
    /// What CDI devices add; their nodes are among `devices`.
    pub edits: &'a Edits,
    /// RLIMIT_NOFILE, soft and hard.
    pub nofile: (u64, u64),
    /// Most processes; 0: unlimited.
    pub pids: u64,
}

/// A spec and what goes beside it.
#[derive(Debug)]
pub struct Made {
    /// `config.json`.
    pub spec: Value,
    /// For the built-in engine (its BPF file is filled in by the caller).
    pub confinement: Confinement,
    /// For the built-in engine.
    pub staged: Vec<StagedMount>,
}

/// Puts the spec together.
pub fn build(inputs: &Inputs<'_>) -> Result<Made, SpecError> {
    let config = inputs.config;
    let security = &config.security;
    let caps = capabilities::sets(security, inputs.held).map_err(|name| SpecError {
        field: "config.linux.security_context.capabilities",
        value: name,
        reason: "no such capability",
    })?;
    let mounts = mounts::build(inputs)?;
    mounts::keep_clear(inputs.devices, &mounts.list)?;
    let mut linux = linux::build(inputs)?;
    if let Some(propagation) = mounts.root_propagation {
        linux["rootfsPropagation"] = json!(propagation);
    }
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "root": { "path": inputs.rootfs, "readonly": security.readonly_rootfs },
        "process": process(inputs, &caps)?,
        "mounts": mounts.list,
        "linux": linux,
    });
    if !inputs.built_in && inputs.places.netns.is_some() && !inputs.pod.hostname.is_empty() {
        // A runtime with a kernel of its own does not see the namespace's name.
        spec["hostname"] = json!(inputs.pod.hostname);
    }
    let hooks = hooks(inputs);
    if hooks.as_object().is_some_and(|hooks| !hooks.is_empty()) {
        spec["hooks"] = hooks;
    }
    if !inputs.annotations.is_empty() {
        spec["annotations"] =
            inputs.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<serde_json::Map<_, _>>().into();
    }
    if let Some(label) = inputs.mount_label {
        spec["linux"]["mountLabel"] = json!(label);
    }
    let confinement = Confinement {
        bpf: None,
        capabilities: caps,
        no_new_privs: security.no_new_privs,
        selinux_label: inputs.process_label.map(str::to_owned),
        apparmor_profile: inputs.apparmor.map(str::to_owned),
        notify: None,
    };
    Ok(Made { spec, confinement, staged: mounts.staged })
}

/// The `process` object for a command run in the container later on: everything of the first
/// process but its arguments and terminal.
pub fn exec_process(first: &Value, command: &[String], terminal: bool) -> Value {
    let mut process = first.clone();
    process["args"] = json!(command);
    process["terminal"] = json!(terminal);
    let names_term = |entry: &Value| entry.as_str().is_some_and(|text| text.starts_with("TERM="));
    if let Some(env) = process["env"].as_array_mut().filter(|env| terminal && !env.iter().any(names_term)) {
        env.push(json!("TERM=xterm"));
    }
    process
}

fn process(inputs: &Inputs<'_>, caps: &Capabilities) -> Result<Value, SpecError> {
    let config = inputs.config;
    let user = &inputs.user.user;
    let program = inputs.program;
    let cwd = [&config.working_dir, &program.working_dir].into_iter().find(|dir| !dir.is_empty());
    let cwd = cwd.map_or("/", String::as_str);
    if !cwd.starts_with('/') {
        return Err(SpecError { field: "config.working_dir", value: cwd.to_owned(), reason: "want an absolute path" });
    }
    let mut groups = user.groups.clone();
    groups.extend(inputs.edits.gids.iter().copied());
    let adjust = config.resources.as_ref().map_or(0, |resources| resources.oom_score_adj);
    let mut process = json!({
        "terminal": config.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": groups },
        "args": args(config, program)?,
        "env": env(inputs)?,
        "cwd": cwd,
        "capabilities": {
            "bounding": capabilities::names(caps.bounding),
            "effective": capabilities::names(caps.effective),
            "permitted": capabilities::names(caps.permitted),
            "inheritable": capabilities::names(caps.inheritable),
            "ambient": capabilities::names(caps.ambient),
        },
        "oomScoreAdj": adjust,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": inputs.nofile.0, "hard": inputs.nofile.1 }],
    });
    if config.security.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(profile) = inputs.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(label) = inputs.process_label {
        process["selinuxLabel"] = json!(label);
    }
    Ok(process)
}

/// The built-in engine has no prestart hooks, which were replaced by createRuntime, at whose time they run.
fn hooks(inputs: &Inputs<'_>) -> Value {
    let mut all = json!({});
    let early = inputs.edits.hooks.iter().filter(|(kind, _)| kind == "prestart");
    let later = inputs.edits.hooks.iter().filter(|(kind, _)| kind != "prestart");
    for (kind, hook) in early.chain(later) {
        let kind = if inputs.built_in && kind == "prestart" { "createRuntime" } else { kind };
        match all.get_mut(kind).and_then(Value::as_array_mut) {
            Some(list) => list.push(hook.clone()),
            None => all[kind] = json!([hook]),
        }
    }
    all
}

/// CRI's command replaces the entrypoint and, with it, the image's command; args replace the command.
fn args(config: &ContainerConfig, program: &Program) -> Result<Vec<String>, SpecError> {
    let (mut entrypoint, mut args) = (config.command.clone(), config.args.clone());
    if entrypoint.is_empty() {
        if args.is_empty() {
            args.clone_from(&program.command);
        }
        entrypoint.clone_from(&program.entrypoint);
    }
    entrypoint.extend(args);
    if entrypoint.is_empty() {
        return Err(SpecError {
            field: "config.command",
            value: String::new(),
            reason: "no command is given and the image has neither entrypoint nor command",
        });
    }
    for text in &entrypoint {
        string("config.command", text)?;
    }
    Ok(entrypoint)
}

fn env(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let mut list: Vec<String> = vec![PATH.to_owned()];
    if inputs.config.tty {
        list.push("TERM=xterm".to_owned());
    }
    if let Some(hostname) = Some(&inputs.pod.hostname).filter(|name| !name.is_empty()) {
        list.push(format!("HOSTNAME={hostname}"));
    }
    for text in &inputs.program.env {
        string("image config Env", text)?;
        if text.contains('=') {
            set(&mut list, text.clone());
        }
    }
    for (name, value) in &inputs.config.envs {
        let bad = |reason| SpecError { field: "config.envs", value: name.chars().take(200).collect(), reason };
        if name.is_empty() || name.contains('=') {
            return Err(bad("a variable's name is empty or has `=` in it"));
        }
        let value = std::str::from_utf8(value)
            .map_err(|_| bad("the value of this variable is not UTF-8, which the OCI runtime spec demands"))?;
        let text = format!("{name}={value}");
        string("config.envs", &text)?;
        set(&mut list, text);
    }
    for text in &inputs.edits.env {
        string("cdi env", text)?;
        set(&mut list, text.clone());
    }
    if !list.iter().any(|text| text.starts_with("HOME=")) {
        list.push(format!("HOME={}", inputs.user.home.as_deref().unwrap_or("/")));
    }
    Ok(list)
}

/// Later settings replace earlier ones, in the earlier one's place.
fn set(list: &mut Vec<String>, text: String) {
    let name = text.split_inclusive('=').next().unwrap_or(&text).to_owned();
    match list.iter_mut().find(|known| known.starts_with(&name)) {
        Some(known) => *known = text,
        None => list.push(text),
    }
}

fn string(field: &'static str, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') || text.len() >= MAX_STRING {
        let value = text.chars().take(100).collect();
        return Err(SpecError { field, value, reason: "a NUL byte, or longer than the kernel takes (128 KiB)" });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
