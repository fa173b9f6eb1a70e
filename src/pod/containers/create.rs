//! Making a container: from the request to a bundle and an init process that waits for Start.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use crate::cdi;
use crate::container::edits::{self, Edits};
use crate::container::record::ContainerRecord;
use crate::container::resources::ChangeError;
use crate::container::spec::{self, Inputs, PodPlaces, Program};
use crate::container::{capabilities, devices, layer_file, user};
use crate::image::Image;
use crate::launch::handlers::{Handler, Kind};
use crate::launch::monitor::{LaunchError, Monitor};
use crate::launch::seccomp;
use crate::pod::PodError;
use crate::pod::context::{Context, blocking, user_place};
use crate::pod::create::check_mapped;
use crate::pod::files::{PodPaths, private_folder};
use crate::pod::lsm::relabel;
use crate::pod::record::PodRecord;
use crate::pod::teardown::empty;
use crate::types::container::{ContainerConfig, Mount};
use crate::types::pod::{NamespaceMode, PodSecurity, Profile};
use crate::types::{ErrorKind, HasKind, Signal};
use crate::wire::{Confinement, CreateSpec, Engine, IMAGE_VOLUME_FAILED, IdMaps, Notify, Process, Rootfs, StdioSpec};

/// All that making a container needs to know of its pod.
pub(crate) struct Request {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: PodRecord,
    pub(crate) monitor: Monitor,
    pub(crate) record: ContainerRecord,
    pub(crate) image: Arc<Image>,
    pub(crate) target_pid: Option<i32>,
}

/// What came of it.
pub(crate) struct Created {
    pub(crate) record: ContainerRecord,
    pub(crate) process: Arc<serde_json::Value>,
}

/// A change of resources that cannot be.
pub(crate) fn of_change(error: ChangeError) -> PodError {
    PodError::Invalid { field: error.field, value: error.value.to_string(), reason: error.reason.to_owned() }
}

/// Signal that stops a container: the request's, else the image's, else SIGTERM.
pub(crate) fn stop_signal(config: &ContainerConfig, image: &Image) -> Signal {
    config.stop_signal.or_else(|| Signal::parse(&image.config.stop_signal).ok()).unwrap_or(Signal::TERM)
}

/// Writes the bundle and has the monitor create the container. The caller has written the record
/// and undoes everything by [`undo`] on an error.
pub(crate) async fn run(request: Request) -> Result<Created, PodError> {
    let monitor = request.monitor.clone();
    let prepared = tokio::task::spawn_blocking(move || prepare(request)).await;
    let (spec, process, mut record) = match prepared {
        Ok(prepared) => prepared?,
        Err(error) => return Err(PodError::failed(ErrorKind::Internal, format!("bundle: {error}"))),
    };
    let init: Process = monitor.create(spec).await.map_err(|error| {
        let text = error.to_string();
        // Clients look for it at the beginning.
        match text.find(IMAGE_VOLUME_FAILED).and_then(|at| text.get(at..)) {
            Some(typed) => PodError::failed(error.kind(), typed),
            None => PodError::of("create", &error),
        }
    })?;
    record.process = Some(init);
    Ok(Created { record, process: Arc::new(process) })
}

/// Kills a container, made or half made, and removes all of it; its record goes with the last files.
pub(crate) async fn undo(
    context: &Context,
    record: &ContainerRecord,
    monitor: Option<&Monitor>,
) -> Result<(), PodError> {
    let deleted = match monitor {
        Some(monitor) => monitor.delete(&record.id).await,
        None => Err(LaunchError::Gone(record.pod.clone())),
    };
    match deleted {
        Ok(()) => {}
        Err(LaunchError::Gone(_)) => empty(record.cgroups.clone()).await?,
        Err(error) => return Err(PodError::of("delete", &error)),
    }
    let paths = context.paths(&record.pod);
    context.discard(paths.container_state(&record.id)).await?;
    context.discard(paths.container_data(&record.id)).await
}

fn prepare(request: Request) -> Result<(CreateSpec, serde_json::Value, ContainerRecord), PodError> {
    let Request { context, pod, image, mut record, target_pid, .. } = request;
    let applied = context.lsm.for_container(&record.config.security, pod.labels.as_ref())?;
    let paths = context.paths(&pod.id);
    let (data, bundle) = (paths.container_data(&record.id), record.bundle.clone());
    let lower = context.snapshots.lower_dirs(&image.layers);
    let user = find_user(&record.config, &image, &lower)?;
    record.user = user.user.clone();
    let maps = pod.config.security.namespaces.user.as_ref().map(IdMaps::from);
    if let Some(maps) = &maps {
        let (who, field) = (&record.user, "config.linux.security_context.run_as_user");
        check_mapped(maps, who.uid, who.gid, &who.groups, field)?;
    }

    let handler = context.handlers.get(&pod.handler).map_err(|error| PodError::of("handler", &error))?;
    if record.config.mounts.iter().any(|mount| mount.recursive_read_only) && !handler.makes_recursive_read_only_mounts()
    {
        let text = format!("config.mounts.recursive_read_only: runtime handler {:?} has no such mounts", handler.name);
        return Err(PodError::failed(ErrorKind::Unimplemented, text));
    }
    let built_in = handler.settings.kind == Kind::Youki;
    let (bpf, notify, profile) = seccomp_parts(&context, &record.config, built_in)?;
    let places = places(&paths, &pod);
    let parent = context.cgroup_parent(&pod.config.cgroup_parent)?;
    let (rootfs, staging) = (bundle.join("rootfs"), bundle.join("mounts"));
    let mut config = record.config.clone();
    sources(&mut config.mounts)?;
    relabel_volumes(&config.mounts, applied.mount_label.as_deref())?;
    let withheld = capabilities::withheld(&config.security, context.held_capabilities);
    if !withheld.is_empty() {
        tracing::warn!(container = %record.id, capabilities = ?withheld, "not held by the daemon, and so not given");
    }
    let owner = owner(&user.user, maps.as_ref());
    let edits = cdi_edits(&context, &config, handler, owner, maps.as_ref())?;
    let mut devices = device_nodes(&config, handler, owner.filter(|_| context.limits.owned_devices))?;
    devices.retain(|known| !edits.devices.iter().any(|new| new.device["path"] == known.device["path"]));
    devices.extend(edits.devices.iter().cloned());
    let volumes = record.volumes.iter().map(|one| (one.name.clone(), context.snapshots.lower_dirs(&one.layers)));
    let volumes = volumes.collect();
    let program = Program {
        env: image.config.env.clone(),
        entrypoint: image.config.entrypoint.clone(),
        command: image.config.cmd.clone(),
        working_dir: image.config.working_dir.clone(),
    };
    let made = spec::build(&Inputs {
        config: &config,
        pod: &pod.config,
        program: &program,
        user: &user,
        places: &places,
        target_pid,
        cgroups_path: &parent.oci_path(record.id.as_str()),
        cgroup_v2: context.cgroups.is_v2(),
        rootfs: &rootfs,
        staging: &staging,
        seccomp: profile,
        held: context.held_capabilities,
        built_in,
        apparmor: applied.apparmor.as_deref(),
        process_label: applied.process_label.as_deref(),
        mount_label: applied.mount_label.as_deref(),
        annotations: annotations(handler, &pod, &record),
        volumes: &volumes,
        devices: &devices,
        edits: &edits,
        nofile: context.limits.nofile,
        pids: context.limits.pids,
    })
    .map_err(|error| PodError::Invalid {
        field: error.field,
        value: error.value,
        reason: error.reason.to_owned(),
    })?;
    let confinement = Confinement { bpf, notify, ..made.confinement };
    let io = |error: std::io::Error| PodError::io("bundle", &error);
    for folder in [&data.join("work"), &rootfs] {
        private_folder(folder).map_err(io)?;
    }
    let shift = |uid, gid| match &maps {
        None => (uid, gid),
        Some(maps) => (maps.uid(uid).unwrap_or(maps.root().0), maps.gid(gid).unwrap_or(maps.root().1)),
    };
    context.snapshots.create_upper(&image.layers, &data.join("upper"), shift).map_err(io)?;
    for mount in made.staged.iter().filter(|mount| mount.image.is_none()) {
        place(&staging, &mount.source, &mount.staged).map_err(io)?;
    }
    let text =
        serde_json::to_vec(&made.spec).map_err(|error| PodError::failed(ErrorKind::Internal, error.to_string()))?;
    fs::write(bundle.join("config.json"), text).map_err(io)?;
    let log_root = Some(PathBuf::from(&pod.config.log_directory)).filter(|_| !record.log_path.is_empty());
    if let Some(folder) = &log_root {
        fs::create_dir_all(folder).map_err(|error| PodError::io("log folder", &error))?;
    }
    record.confinement = confinement.clone();
    let mut folders = folders(&image.config.volumes, made.spec["process"]["cwd"].as_str());
    folders.extend(targets(config.mounts.iter().filter(|mount| mount.image.is_none()).map(places_of)).map_err(io)?);
    let binds = edits.mounts.iter().filter(|mount| mount.is_bind());
    folders.extend(targets(binds.map(|mount| (mount.destination.as_str(), mount.source.as_str()))).map_err(io)?);
    let spec = CreateSpec {
        container: record.id.clone(),
        engine: engine(&context, handler, &paths)?,
        bundle,
        rootfs: Rootfs {
            lower,
            upper: Some((data.join("upper"), data.join("work"))),
            mountpoint: rootfs,
            label: applied.mount_label,
            idmap: maps,
        },
        mounts: made.staged,
        folders,
        confinement,
        stdio: StdioSpec {
            tty: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            log_path: Some(PathBuf::from(&record.log_path)).filter(|path| !path.as_os_str().is_empty()),
            log_root,
        },
        cgroups: record.cgroups.clone(),
        timeout_ms: super::millis(context.limits.create_timeout),
    };
    let mut spec_value = made.spec;
    Ok((spec, spec_value["process"].take(), record))
}

/// What an image may count on to exist: its volumes (with nothing mounted they are plain folders) and
/// the working directory.
fn folders(volumes: &[String], cwd: Option<&str>) -> Vec<PathBuf> {
    let all = volumes.iter().map(String::as_str).chain(cwd).map(|path| Path::new("/").join(path));
    all.filter(|path| path.parent().is_some()).collect()
}

/// What the requested mounts are mounted on, or in: links in the image may lead where nothing is yet.
/// What lies under a mount of the runtime's own is made there by whoever mounts.
fn targets<'a>(mounts: impl Iterator<Item = (&'a str, &'a str)>) -> std::io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for (inside, source) in mounts {
        let path = Path::new(inside);
        let target = if fs::metadata(source)?.is_dir() { Some(path) } else { path.parent() };
        let covered = ["/proc", "/sys", "/dev"].iter().any(|own| path.starts_with(own));
        made.extend(target.filter(|target| !covered && target.parent().is_some()).map(Path::to_owned));
    }
    Ok(made)
}

fn places_of(mount: &Mount) -> (&str, &str) {
    (&mount.container_path, &mount.host_path)
}

/// What the container's CDI devices add, by the request's own list and by annotations.
fn cdi_edits(
    context: &Context,
    config: &ContainerConfig,
    handler: &Handler,
    owner: Option<(u32, u32)>,
    maps: Option<&IdMaps>,
) -> Result<Edits, PodError> {
    let mut names = config.cdi_devices.clone();
    let annotated = cdi::annotated(&config.annotations).map_err(|(key, value)| PodError::Invalid {
        field: "config.annotations",
        value,
        reason: format!("{key:?} wants fully qualified cdi devices, separated by commas"),
    })?;
    names.extend(annotated);
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let list = context.cdi.edits(&names).map_err(|error| PodError::of("config.CDI_devices", &error))?;
    let refused = |reason: String| {
        let text = format!("config.CDI_devices: {}: {reason}", names.join(", "));
        PodError::failed(ErrorKind::FailedPrecondition, text)
    };
    let edits = edits::read(&list, owner, maps).map_err(refused)?;
    let built_in = handler.settings.kind == Kind::Youki;
    let lacking = [("netDevices", !edits.net_devices.is_empty()), ("intelRdt", edits.intel_rdt.is_some())];
    if let Some((name, _)) = lacking.iter().find(|(_, wanted)| built_in && *wanted) {
        return Err(refused(format!("{name}: the built-in engine has no such thing; use a handler of kind \"oci\"")));
    }
    for mount in edits.mounts.iter().filter(|mount| mount.is_bind()) {
        fs::metadata(&mount.source).map_err(|error| refused(format!("mount of {:?}: {error}", mount.source)))?;
    }
    Ok(edits)
}

/// The container's user and group, as the host numbers them, and so do the owners of all its device nodes: what the
/// host's root owns, and nobody asked for another owner of, must not become that of the root inside.
fn owner(user: &crate::container::view::User, maps: Option<&IdMaps>) -> Option<(u32, u32)> {
    match maps {
        None => Some((user.uid, user.gid)),
        Some(maps) => Some((maps.uid(user.uid)?, maps.gid(user.gid)?)),
    }
}

fn find_user(config: &ContainerConfig, image: &Image, lower: &[PathBuf]) -> Result<user::Resolved, PodError> {
    let read = |path: &str| -> Result<String, PodError> {
        let content = layer_file::read(lower, Path::new(path)).map_err(|error| PodError::io("image", &error))?;
        Ok(String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
    };
    let image_user = image.config.user.as_str();
    user::resolve(&config.security, image_user, &read("/etc/passwd")?, &read("/etc/group")?).map_err(|error| {
        PodError::Invalid {
            field: "config.linux.security_context.run_as_user",
            value: image_user.to_owned(),
            reason: error.to_string(),
        }
    })
}

/// `owner`: of those that are asked for by name, if not the host's.
fn device_nodes(
    config: &ContainerConfig,
    handler: &Handler,
    owner: Option<(u32, u32)>,
) -> Result<Vec<devices::Node>, PodError> {
    let mut nodes = Vec::new();
    if config.security.privileged && !handler.settings.privileged_without_host_devices {
        nodes = devices::all();
    }
    for device in &config.devices {
        let mut asked = devices::asked(device).map_err(|reason| PodError::Invalid {
            field: "config.devices.host_path",
            value: device.host_path.clone(),
            reason,
        })?;
        if let Some((uid, gid)) = owner {
            for node in &mut asked {
                node.device["uid"] = uid.into();
                node.device["gid"] = gid.into();
            }
        }
        nodes.retain(|known| !asked.iter().any(|new| new.device["path"] == known.device["path"]));
        nodes.extend(asked);
    }
    Ok(nodes)
}

/// Where a container's seccomp profile comes from.
#[derive(Debug, Clone, Copy)]
enum ProfileSource<'a> {
    BuiltIn,
    File(&'a Path),
}

fn profile_source<'a>(context: &'a Context, asked: &'a Profile, privileged: bool) -> Option<ProfileSource<'a>> {
    if privileged {
        return None;
    }
    match asked {
        Profile::Unset if !context.limits.seccomp_when_unset => None,
        Profile::Unconfined => None,
        Profile::Unset | Profile::RuntimeDefault => Some(match &context.limits.seccomp_default {
            None => ProfileSource::BuiltIn,
            Some(path) => ProfileSource::File(path),
        }),
        Profile::Localhost(path) => Some(ProfileSource::File(Path::new(path))),
    }
}

type SeccompParts = (Option<PathBuf>, Option<Notify>, Option<LinuxSeccomp>);

/// Only a filter that asks has something to hand over.
fn listener(profile: &LinuxSeccomp) -> Option<Notify> {
    let asks = |rule: &LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    profile.syscalls().iter().flatten().any(asks).then_some(())?;
    let metadata = profile.listener_metadata().clone().unwrap_or_default();
    Some(Notify { listener: profile.listener_path().clone()?, metadata })
}

/// Our Executor takes the compiled filter, a runtime binary the profile: one of the two is wanted.
fn seccomp_parts(context: &Context, config: &ContainerConfig, built_in: bool) -> Result<SeccompParts, PodError> {
    let failed = |error| PodError::of("seccomp", &error);
    let Some(source) = profile_source(context, &config.security.seccomp, config.security.privileged) else {
        return Ok((None, None, None));
    };
    let caps = capabilities::sets(&config.security, context.held_capabilities).map(|sets| sets.bounding).unwrap_or(0);
    if built_in && matches!(source, ProfileSource::BuiltIn) {
        return Ok((Some(context.seccomp.default_file(caps).map_err(failed)?), None, None));
    }
    let profile = match source {
        ProfileSource::BuiltIn => seccomp::default_profile(caps)
            .map_err(|error| PodError::failed(ErrorKind::Internal, format!("seccomp: {error}")))?,
        ProfileSource::File(path) => load_profile(path, caps)?,
    };
    match built_in {
        true => Ok((Some(context.seccomp.bpf_file(&profile).map_err(failed)?), listener(&profile), None)),
        false => Ok((None, None, Some(profile))),
    }
}

/// The compiled filter of pause, which has no capabilities. Blocks.
pub(crate) fn pause_filter(context: &Context, security: &PodSecurity) -> Result<Option<PathBuf>, PodError> {
    let compiled = match profile_source(context, &security.seccomp, security.privileged) {
        None => return Ok(None),
        Some(ProfileSource::BuiltIn) => context.seccomp.default_file(0),
        Some(ProfileSource::File(path)) => context.seccomp.bpf_file(&load_profile(path, 0)?),
    };
    compiled.map(Some).map_err(|error| PodError::of("seccomp", &error))
}

fn places(paths: &PodPaths, pod: &PodRecord) -> PodPlaces {
    let namespaces = &pod.config.security.namespaces;
    let own_network = namespaces.network != NamespaceMode::Node;
    PodPlaces {
        resolv_conf: paths.resolv_conf(),
        hostname: own_network.then(|| paths.hostname()),
        hosts: paths.hosts(),
        shm: if namespaces.ipc == NamespaceMode::Node { PathBuf::from("/dev/shm") } else { paths.shm() },
        netns: own_network.then(|| paths.netns()),
        pause: pod.pause.map_or(0, |process| process.pid),
    }
}

/// Host paths as the kernel will see them: symlinks resolved, and missing ones made as folders, which
/// is what kubelet relies on.
fn sources(mounts: &mut [Mount]) -> Result<(), PodError> {
    for mount in mounts.iter_mut().filter(|mount| mount.image.is_none()) {
        let invalid = |error: std::io::Error| PodError::Invalid {
            field: "config.mounts.host_path",
            value: mount.host_path.clone(),
            reason: error.to_string(),
        };
        let path = PathBuf::from(&mount.host_path);
        if let Err(error) = fs::metadata(&path) {
            if error.kind() != std::io::ErrorKind::NotFound {
                return Err(invalid(error));
            }
            fs::create_dir_all(&path).map_err(invalid)?;
        }
        let real = fs::canonicalize(&path).map_err(invalid)?;
        mount.host_path = real.to_string_lossy().into_owned();
    }
    Ok(())
}

/// Volumes that ask for it get the label of the container's files; what cannot keep one is passed over.
fn relabel_volumes(mounts: &[Mount], label: Option<&str>) -> Result<(), PodError> {
    let Some(label) = label else { return Ok(()) };
    let mut wanted = mounts.iter().filter(|mount| mount.selinux_relabel && mount.image.is_none());
    wanted.try_for_each(|mount| relabel(Path::new(&mount.host_path), label))
}

/// Something to mount on: a folder or a file as the source is.
fn place(staging: &Path, source: &Path, staged: &Path) -> std::io::Result<()> {
    private_folder(staging)?;
    if fs::metadata(source)?.is_dir() { private_folder(staged) } else { fs::write(staged, "") }
}

fn load_profile(path: &Path, caps: u64) -> Result<LinuxSeccomp, PodError> {
    let mut text = Vec::new();
    // A fifo would be waited for.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let read = fs::File::options().read(true).custom_flags(flags).open(path).and_then(|file| {
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
        }
        file.take(seccomp::MAX_PROFILE as u64 + 1).read_to_end(&mut text)
    });
    read.map_err(|error| PodError::Invalid {
        field: "config.linux.security_context.seccomp.localhost_ref",
        value: path.to_string_lossy().into_owned(),
        reason: error.to_string(),
    })?;
    seccomp::parse_profile(&text, caps).map_err(|error| PodError::of("seccomp", &error))
}

/// Those of the pod's and the container's annotations that the handler lets through, over its own.
fn annotations(handler: &Handler, pod: &PodRecord, record: &ContainerRecord) -> Vec<(String, String)> {
    let settings = &handler.settings;
    let mut all = settings.default_annotations.clone();
    all.extend(Handler::pass_through(&settings.pod_annotations, &pod.config.annotations));
    all.extend(Handler::pass_through(&settings.container_annotations, &record.config.annotations));
    all.into_iter().collect()
}

fn engine(context: &Context, handler: &Handler, paths: &PodPaths) -> Result<Engine, PodError> {
    let settings = &handler.settings;
    let systemd_cgroup = settings.systemd_cgroup.unwrap_or(context.cgroups.driver == crate::cgroup::Driver::Systemd);
    Ok(match settings.kind {
        Kind::Youki => Engine::Youki { root: paths.state.join("youki"), systemd_cgroup },
        Kind::Oci => Engine::Oci {
            // Kind `oci` has one: its file was checked.
            binary: handler.program().map_err(|error| PodError::of("handler", &error))?.unwrap_or_default(),
            root: settings.root.clone().unwrap_or_else(|| paths.state.join("oci")),
            args: settings.args.clone(),
            systemd_cgroup,
            place: Some(user_place(&context.state)),
        },
    })
}

/// Reads the spec's process for an exec after a restart of the daemon.
pub(crate) async fn process_of(bundle: PathBuf) -> Result<Arc<serde_json::Value>, PodError> {
    blocking("bundle", move || super::slot::read_process(&bundle)).await.map(Arc::new)
}
