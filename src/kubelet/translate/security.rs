//! Security contexts: the container's own settings, else the pod's, else the defaults.

use crate::proto;
use crate::proto::security_profile::ProfileType as Kind;

use super::super::manifest::{
    Container, GroupsPolicy, Pod, ProcMount, Profile, ProfileType, SeLinuxOptions, SecurityContext,
};
use super::{Dirs, ImageUser, PodJob, TranslateError, text};

/// Files of /proc and /sys that tell of the host or change it: hidden.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// The same: read-only.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The sandbox's.
pub(super) fn sandbox(job: &PodJob, dirs: &Dirs) -> proto::LinuxSandboxSecurityContext {
    let security = &job.pod.spec.security_context;
    proto::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(&job.pod)),
        selinux_options: security.se_linux_options.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(int),
        run_as_group: security.run_as_user.and(security.run_as_group).map(int),
        supplemental_groups: groups(&job.pod),
        supplemental_groups_policy: policy(security.supplemental_groups_policy).into(),
        privileged: job.pod.all_containers().any(|container| container.security_context.privileged),
        seccomp: Some(seccomp(security.seccomp_profile.as_ref(), dirs)),
        apparmor: security.app_armor_profile.as_ref().map(apparmor),
        ..Default::default()
    }
}

/// A container's.
pub(super) fn container(
    job: &PodJob,
    container: &Container,
    image: &ImageUser,
    dirs: &Dirs,
) -> Result<proto::LinuxContainerSecurityContext, TranslateError> {
    let (pod, own) = (&job.pod.spec.security_context, &container.security_context);
    let run_as_user = own.run_as_user.or(pod.run_as_user);
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        non_root(container, run_as_user, image)?;
    }
    let unmasked = own.proc_mount == ProcMount::Unmasked || own.privileged;
    let paths = |list: &[&str]| list.iter().filter(|_| !unmasked).map(|path| (*path).to_owned()).collect();
    // The runtime takes the image's user if none is given; naming it spares it the doubt.
    let user = run_as_user.or(image.uid);
    Ok(proto::LinuxContainerSecurityContext {
        capabilities: Some(proto::Capability {
            add_capabilities: own.capabilities.add.clone(),
            drop_capabilities: own.capabilities.drop.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(&job.pod)),
        selinux_options: own.se_linux_options.as_ref().or(pod.se_linux_options.as_ref()).map(selinux),
        run_as_user: user.map(int),
        run_as_group: own.run_as_group.or(pod.run_as_group).map(int),
        run_as_username: if user.is_none() { image.name.clone() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem,
        supplemental_groups: groups(&job.pod),
        supplemental_groups_policy: policy(pod.supplemental_groups_policy).into(),
        no_new_privs: no_new_privs(own),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(if own.privileged {
            profile(Kind::Unconfined, String::new())
        } else {
            seccomp(own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()), dirs)
        }),
        apparmor: own.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref()).map(apparmor),
        ..Default::default()
    })
}

fn no_new_privs(own: &SecurityContext) -> bool {
    // CAP_SYS_ADMIN could undo it, as could a privileged container: Kubernetes ignores the wish there.
    let admin = own.capabilities.add.iter().any(|name| matches!(name.as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN"));
    own.allow_privilege_escalation == Some(false) && !own.privileged && !admin
}

fn non_root(container: &Container, user: Option<i64>, image: &ImageUser) -> Result<(), TranslateError> {
    let problem = match (user, image.uid) {
        (Some(0), _) => "runAsUser is 0".to_owned(),
        (Some(_), _) => return Ok(()),
        (None, Some(0)) => "the image runs as root; set runAsUser".to_owned(),
        (None, Some(_)) => return Ok(()),
        (None, None) if image.name.is_empty() => {
            "the image names no user, so it runs as root; set runAsUser".to_owned()
        }
        (None, None) => format!("the image's user {:?} may be root; set runAsUser to a number", image.name),
    };
    let field = "securityContext.runAsNonRoot".to_owned();
    Err(TranslateError { container: container.name.clone(), field, problem })
}

fn namespaces(pod: &Pod) -> proto::NamespaceOption {
    use proto::NamespaceMode::{Container, Node, Pod};
    let spec = &pod.spec;
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => Node,
        (false, true) => Pod,
        (false, false) => Container,
    };
    proto::NamespaceOption {
        network: if spec.host_network { Node } else { Pod }.into(),
        pid: pid.into(),
        ipc: if spec.host_ipc { Node } else { Pod }.into(),
        target_id: String::new(),
        userns_options: None,
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let security = &pod.spec.security_context;
    let mut groups = security.supplemental_groups.clone();
    groups.extend(security.fs_group.filter(|group| !security.supplemental_groups.contains(group)));
    groups
}

fn policy(policy: GroupsPolicy) -> proto::SupplementalGroupsPolicy {
    match policy {
        GroupsPolicy::Merge => proto::SupplementalGroupsPolicy::Merge,
        GroupsPolicy::Strict => proto::SupplementalGroupsPolicy::Strict,
    }
}

const fn int(value: i64) -> proto::Int64Value {
    proto::Int64Value { value }
}

fn selinux(options: &SeLinuxOptions) -> proto::SeLinuxOption {
    proto::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}

fn profile(kind: Kind, localhost_ref: String) -> proto::SecurityProfile {
    proto::SecurityProfile { profile_type: kind.into(), localhost_ref }
}

/// Without a wish: the runtime's profile, as kubelet with `seccompDefault` does.
fn seccomp(wish: Option<&Profile>, dirs: &Dirs) -> proto::SecurityProfile {
    match wish.map(|wish| (wish.kind, &wish.localhost_profile)) {
        Some((ProfileType::Unconfined, _)) => profile(Kind::Unconfined, String::new()),
        Some((ProfileType::Localhost, Some(file))) => profile(Kind::Localhost, text(&dirs.seccomp.join(file))),
        _ => profile(Kind::RuntimeDefault, String::new()),
    }
}

fn apparmor(wish: &Profile) -> proto::SecurityProfile {
    match wish.kind {
        ProfileType::RuntimeDefault => profile(Kind::RuntimeDefault, String::new()),
        ProfileType::Unconfined => profile(Kind::Unconfined, String::new()),
        ProfileType::Localhost => profile(Kind::Localhost, wish.localhost_profile.clone().unwrap_or_default()),
    }
}
