//! Making a sandbox: the phases of RunPodSandbox, in the pod's own task.
//!
//! The network and the monitor are made side by side: CNI plugins take tens of milliseconds, pause
//! needs only the namespace they work in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::config::{NamespaceMode, PodConfig};
use super::containers::create::pause_filter;
use super::context::{Context, Limits, blocking};
use super::error::PodError;
use super::files::{self, PodPaths};
use super::lsm::Applied;
use super::record::PodRecord;
use crate::cgroup;
use crate::launch::monitor::{EventReceiver, Monitor};
use crate::network::{Attach, Dirs};
use crate::wire::{IdMaps, PauseSpec, Process};

/// Uid and gid of pause, when nothing else is asked: nobody of the images' users.
const PAUSE_ID: u32 = 65_535;
/// Pause is the last to go when memory is short, as kubelet expects.
const PAUSE_OOM_SCORE: i32 = -998;

/// What came of the phases.
pub(super) struct Made {
    pub(super) ips: Vec<IpAddr>,
    pub(super) pause: Process,
    pub(super) monitor: Monitor,
    pub(super) monitor_process: Process,
    pub(super) events: EventReceiver,
}

/// Runs all phases after the record was written. On an error the caller tears down.
pub(super) async fn run(context: &Arc<Context>, record: &PodRecord) -> Result<Made, PodError> {
    let paths = context.paths(&record.id);
    let config = &record.config;
    let applied = context.lsm.for_pause(&config.security, record.labels.as_ref())?;
    let own_network = config.security.namespaces.network != NamespaceMode::Node;
    let sysctls = &sysctls(&context.limits, config);
    let prepared = {
        let (paths, config, label) = (paths.clone(), config.clone(), applied.mount_label.clone());
        blocking("files", move || files::make(&paths, &config, label.as_deref()))
    };
    // The pause half waits for the namespace, not for the plugins that fill it. In a user namespace it is the other
    // way round: only a process in there can make a network namespace that belongs to it.
    let owned = config.security.namespaces.user.is_some();
    let (ready, namespace) = watch::channel(false);
    let (ready, namespace) = (Some(ready), Some(namespace));
    let (network_side, pause_side) = match (own_network, owned) {
        (false, _) => ((None, None), (None, None)),
        (true, false) => ((ready, None), (None, namespace)),
        (true, true) => ((None, namespace), (ready, None)),
    };
    let paths = &paths;
    // The ends go into it, so that whoever waits for it learns of a failure, too.
    let network = async move {
        if !own_network {
            return Ok(Vec::new());
        }
        let netns = paths.netns();
        let made = match network_side {
            (ready, Some(made)) => {
                drop(ready);
                wait_for(made, "network").await?;
                context.network.prepare_netns(&netns, sysctls).await
            }
            (ready, None) => {
                let made = context.network.create_netns(&netns, sysctls).await;
                if let (Some(ready), Ok(())) = (ready, &made) {
                    let _ = ready.send(true);
                }
                made
            }
        };
        made.map_err(|error| PodError::of("network namespace", &error))?;
        attach(context, record, paths, sysctls).await
    };
    let (prepared, network, process) =
        tokio::join!(prepared, network, processes(context, record, paths, pause_side, applied));
    // Of several failures the first in this order is the cause, the others mostly its echo.
    let (ips, (pause, monitor, monitor_process, events)) = match owned {
        false => (prepared.and(network)?, process?),
        true => {
            let process = prepared.and(process)?;
            (network?, process)
        }
    };
    if own_network {
        let (paths, config, ips) = (paths.clone(), config.clone(), ips.clone());
        blocking("hosts", move || files::write_hosts(&paths, &config, &ips)).await?;
    }
    Ok(Made { ips, pause, monitor, monitor_process, events })
}

/// Those of the request, over what a namespace of its own needs no privilege for.
fn sysctls(limits: &Limits, config: &PodConfig) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if limits.unprivileged_ports {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    }
    // With a user namespace not all groups are mapped, and the kernel takes only those that are.
    if limits.unprivileged_icmp && config.security.namespaces.user.is_none() {
        all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    all.extend(config.sysctls.clone());
    all
}

async fn attach(
    context: &Context,
    record: &PodRecord,
    paths: &PodPaths,
    sysctls: &BTreeMap<String, String>,
) -> Result<Vec<IpAddr>, PodError> {
    let config = &record.config;
    let handler = context.handlers.get(&record.handler).map_err(|error| PodError::of("handler", &error))?;
    let settings = &handler.settings;
    let dirs = (settings.cni_conf_dir.is_some() || settings.cni_bin_dir.is_some()).then(|| Dirs {
        conf_dir: settings.cni_conf_dir.clone().unwrap_or_else(|| context.network.settings().conf_dir.clone()),
        bin_dirs: match &settings.cni_bin_dir {
            Some(folder) => vec![folder.clone()],
            None => context.network.settings().bin_dirs.clone(),
        },
    });
    let request = Attach {
        pod: record.id.clone(),
        key: config.key.clone(),
        netns: paths.netns(),
        record: paths.network_record(),
        port_mappings: config.port_mappings.iter().filter(|mapping| mapping.host_port != 0).cloned().collect(),
        dns: config.dns.clone(),
        annotations: config.annotations.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        sysctls: sysctls.clone(),
        dirs,
    };
    let attachment = context.network.attach(&request).await.map_err(|error| PodError::of("network", &error))?;
    Ok(attachment.ips)
}

/// Waits for what the other half makes.
async fn wait_for(mut made: watch::Receiver<bool>, who: &str) -> Result<(), PodError> {
    match made.wait_for(|made| *made).await {
        Ok(_) => Ok(()),
        // The other half failed and tells why.
        Err(_) => Err(PodError::failed(crate::types::ErrorKind::Aborted, format!("{who}: no network namespace"))),
    }
}

type Processes = (Process, Monitor, Process, EventReceiver);

async fn processes(
    context: &Arc<Context>,
    record: &PodRecord,
    paths: &PodPaths,
    (made, namespace): (Option<watch::Sender<bool>>, Option<watch::Receiver<bool>>),
    applied: Applied,
) -> Result<Processes, PodError> {
    let scope = context.cgroup_parent(&record.config.cgroup_parent)?.scope(record.id.as_str());
    // A scope's folders are systemd's to make.
    let folders = if scope.is_some() { Vec::new() } else { record.cgroups.clone() };
    let cgroups = tokio::task::spawn_blocking(move || cgroup::make(&folders));
    let (monitor, state, events) =
        context.launcher.spawn(&record.id, &paths.state).await.map_err(|error| PodError::of("monitor", &error))?;
    match cgroups.await {
        Ok(made) => made.map_err(|error| PodError::of("cgroup", &error))?,
        Err(error) => return Err(PodError::failed(crate::types::ErrorKind::Internal, format!("cgroup: {error}"))),
    }
    if let Some(namespace) = namespace {
        wait_for(namespace, "pause").await?;
    }
    let (filterer, security) = (context.clone(), record.config.security.clone());
    let filtered = tokio::task::spawn_blocking(move || pause_filter(&filterer, &security)).await;
    let bpf = filtered
        .map_err(|error| PodError::failed(crate::types::ErrorKind::Internal, format!("seccomp: {error}")))??;
    let spec = PauseSpec {
        scope,
        bpf,
        apparmor_profile: applied.apparmor,
        selinux: applied.process_label.zip(applied.mount_label),
        ..pause_spec(&record.config, paths, &record.cgroups)?
    };
    let pause = monitor.pause(spec).await.map_err(|error| PodError::of("pause", &error))?;
    if let Some(made) = made {
        let _ = made.send(true);
    }
    let monitor_process =
        Process { pid: state.pid, start_time: crate::sys::process::start_time(state.pid).unwrap_or(0) };
    Ok((pause, monitor, monitor_process, events))
}

fn pause_spec(config: &PodConfig, paths: &PodPaths, cgroups: &[PathBuf]) -> Result<PauseSpec, PodError> {
    let security = &config.security;
    let own_network = security.namespaces.network != NamespaceMode::Node;
    let maps = security.namespaces.user.as_ref().map(IdMaps::from);
    let default = |map: fn(&IdMaps) -> &[(u32, u32, u32)]| match maps.as_ref().and_then(|maps| map(maps).first()) {
        Some((first, _, length)) => PAUSE_ID.min(first + (length - 1)),
        None => PAUSE_ID,
    };
    let id = |wanted: Option<i64>, default| wanted.and_then(|id| u32::try_from(id).ok()).unwrap_or(default);
    let user =
        (id(security.run_as_user, default(|maps| &maps.uids)), id(security.run_as_group, default(|maps| &maps.gids)));
    let groups: Vec<u32> = security.supplemental_groups.iter().filter_map(|gid| u32::try_from(*gid).ok()).collect();
    if let Some(maps) = &maps {
        check_mapped(maps, user.0, user.1, &groups, "config.linux.security_context.run_as_user")?;
    }
    Ok(PauseSpec {
        netns: own_network.then(|| paths.netns()),
        user_namespace: maps,
        new_ipc: security.namespaces.ipc != NamespaceMode::Node,
        new_pid: security.namespaces.pid == NamespaceMode::Pod,
        hostname: own_network.then(|| config.hostname.clone()),
        // Those of the network are set with its namespace.
        sysctls: config.sysctls.clone().into_iter().filter(|(name, _)| !name.starts_with("net.")).collect(),
        cgroups: cgroups.to_vec(),
        scope: None,
        user,
        groups,
        bpf: None,
        apparmor_profile: None,
        selinux: None,
        oom_score_adj: PAUSE_OOM_SCORE,
    })
}

/// Whether a process can have these ids in a user namespace.
pub(super) fn check_mapped(
    maps: &IdMaps,
    uid: u32,
    gid: u32,
    groups: &[u32],
    field: &'static str,
) -> Result<(), PodError> {
    let strange = groups.iter().copied().chain([gid]).find(|gid| maps.gid(*gid).is_none());
    let (what, id) = match (maps.uid(uid), strange) {
        (None, _) => ("user", uid),
        (_, Some(gid)) => ("group", gid),
        _ => return Ok(()),
    };
    let reason = format!("{what} {id} does not exist in the user namespace of the sandbox, which has {maps:?}");
    Err(PodError::Invalid { field, value: id.to_string(), reason })
}
