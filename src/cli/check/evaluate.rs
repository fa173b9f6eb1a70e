//! What the facts mean.

use super::facts::{Disk, Facts};
use super::{Finding, Level};

/// Oldest kernel that is supported; the calls that are used are checked, too.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// From here on images and memory file systems can be mounted with shifted ids, as pods with user namespaces need.
const IDMAPPED_KERNEL: (u32, u32) = (6, 3);
/// Free space below which pulls soon fail, bytes.
const LITTLE: u64 = 5 << 30;
/// Free space below which nothing can be pulled, bytes.
const NOTHING: u64 = 256 << 20;
/// Inotify limits below which kubelet and pods run out.
const INSTANCES: u64 = 512;
const WATCHES: u64 = 65_536;

/// Capabilities by number (capabilities(7)) that the daemon and its monitors use themselves.
const NEEDED: [(u8, &str); 13] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (2, "CAP_DAC_READ_SEARCH"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];
/// Capabilities that containers get by default, or that some settings need.
const WANTED: [(u8, &str); 6] = [
    (10, "CAP_NET_BIND_SERVICE"),
    (13, "CAP_NET_RAW"),
    (19, "CAP_SYS_PTRACE"),
    (24, "CAP_SYS_RESOURCE"),
    (29, "CAP_AUDIT_WRITE"),
    (31, "CAP_SETFCAP"),
];

/// Judges all facts, in the order in which people read them.
pub(super) fn evaluate(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts)];
    for (name, there) in [
        ("clone3", facts.clone3),
        ("pidfd", facts.pidfd),
        ("openat2", facts.openat2),
        ("mount-api", facts.mount_api),
        ("mount_setattr", facts.mount_setattr),
    ] {
        findings.push(if there {
            ok(name, "there")
        } else {
            fail(
                name,
                "missing or forbidden",
                "run a newer kernel; inside a container, allow it in the seccomp profile",
            )
        });
    }
    findings.extend([
        if facts.overlay {
            ok("overlayfs", "there")
        } else {
            fail("overlayfs", "missing", "modprobe overlay, and name it in /etc/modules-load.d/podwright.conf")
        },
        seccomp(facts),
        user_namespaces(facts),
        idmapped(facts),
        cgroup(facts),
        controllers(facts),
        capabilities(facts),
    ]);
    findings.extend(handlers(facts));
    findings.extend(cni(facts));
    findings.extend(devices(facts));
    findings.extend([
        match facts.ip_forward {
            Some(true) => ok("ip_forward", "on"),
            _ => warn("ip_forward", "off: pods reach nothing beyond this machine", "sysctl -w net.ipv4.ip_forward=1"),
        },
        match facts.bridge_nf {
            Some(true) => ok("br_netfilter", "on"),
            Some(false) => warn(
                "br_netfilter",
                "loaded, but off: Services do not work between pods of one bridge",
                "sysctl -w net.bridge.bridge-nf-call-iptables=1",
            ),
            None => warn(
                "br_netfilter",
                "not loaded: Services do not work between pods of one bridge",
                "modprobe br_netfilter, and name it in /etc/modules-load.d/podwright.conf",
            ),
        },
        apparmor(facts),
        selinux(facts),
        limit("inotify instances", facts.inotify_instances, INSTANCES, "fs.inotify.max_user_instances"),
        limit("inotify watches", facts.inotify_watches, WATCHES, "fs.inotify.max_user_watches"),
        root(&facts.root),
        state(&facts.state),
        if facts.monitor.1 {
            ok("monitor", facts.monitor.0.display().to_string())
        } else {
            let missing = format!("{} is missing", facts.monitor.0.display());
            fail("monitor", missing, "install podwright-monitor beside podwright")
        },
    ]);
    findings
}

fn ok(name: &'static str, finding: impl Into<String>) -> Finding {
    Finding { name, level: Level::Ok, finding: finding.into(), cure: None }
}

fn warn(name: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding { name, level: Level::Warn, finding: finding.into(), cure: Some(cure.into()) }
}

fn fail(name: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding { name, level: Level::Fail, finding: finding.into(), cure: Some(cure.into()) }
}

/// Major and minor of `6.18.44-anything`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    let (major, minor) = OLDEST_KERNEL;
    let release = &facts.release;
    match version(release) {
        Some(found) if found >= OLDEST_KERNEL => ok("kernel", release),
        Some(_) => fail("kernel", format!("{release} is too old"), format!("run Linux {major}.{minor} or newer")),
        None => warn("kernel", format!("cannot read its version ({release:?})"), "mount /proc"),
    }
}

fn seccomp(facts: &Facts) -> Finding {
    let has = |action| facts.seccomp_actions.iter().any(|known| known == action);
    if has("errno") && has("allow") {
        ok("seccomp", facts.seccomp_actions.join(" "))
    } else {
        fail("seccomp", "filters are not available", "run a kernel built with CONFIG_SECCOMP_FILTER")
    }
}

fn user_namespaces(facts: &Facts) -> Finding {
    let cure = "sysctl -w user.max_user_namespaces=65536";
    match facts.max_user_namespaces {
        Some(0) => warn("user namespaces", "switched off: pods with hostUsers: false fail", cure),
        Some(count) => ok("user namespaces", format!("up to {count}")),
        None => warn(
            "user namespaces",
            "not in this kernel: pods with hostUsers: false fail",
            "run a kernel built with CONFIG_USER_NS",
        ),
    }
}

fn idmapped(facts: &Facts) -> Finding {
    let (major, minor) = IDMAPPED_KERNEL;
    if facts.mount_setattr && version(&facts.release).is_some_and(|found| found >= IDMAPPED_KERNEL) {
        ok("idmapped mounts", "there")
    } else {
        let finding = "not for all file systems: pods with hostUsers: false may fail";
        warn("idmapped mounts", finding, format!("run Linux {major}.{minor} or newer"))
    }
}

fn cgroup(facts: &Facts) -> Finding {
    let driver = if facts.systemd { "systemd" } else { "cgroupfs" };
    if facts.cgroups.unified {
        ok("cgroup", format!("version 2; driver to choose: {driver}"))
    } else if facts.cgroups.controllers.is_empty() {
        fail("cgroup", "nothing is mounted at /sys/fs/cgroup", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    } else {
        warn(
            "cgroup",
            format!("version 1, which kubelet 1.35 and newer refuse by default; driver to choose: {driver}"),
            "boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false for kubelet",
        )
    }
}

fn controllers(facts: &Facts) -> Finding {
    let found = &facts.cgroups.controllers;
    let (mut needed, wanted) =
        (vec!["cpu", "memory", "pids"], ["cpuset", if facts.cgroups.unified { "io" } else { "blkio" }]);
    if !facts.cgroups.unified {
        // Version 2 limits devices by BPF, without a controller.
        needed.extend(["devices", "freezer"]);
    }
    let missing = |names: &[&str]| -> Vec<String> {
        names.iter().filter(|name| !found.contains(**name)).map(|name| (*name).to_owned()).collect()
    };
    let cure = "enable them on the kernel command line (cgroup_enable=NAME) or in the parent's cgroup.subtree_control";
    match (missing(&needed), missing(&wanted)) {
        (needed, _) if !needed.is_empty() => fail("cgroup controllers", format!("missing: {}", needed.join(" ")), cure),
        (_, wanted) if !wanted.is_empty() => warn("cgroup controllers", format!("missing: {}", wanted.join(" ")), cure),
        _ => ok("cgroup controllers", found.iter().cloned().collect::<Vec<_>>().join(" ")),
    }
}

fn capabilities(facts: &Facts) -> Finding {
    let name = "capabilities";
    let Some(set) = facts.capabilities else { return warn(name, "unknown", "mount /proc") };
    let missing = |list: &[(u8, &str)]| -> Vec<String> {
        list.iter().filter(|(number, _)| set & (1 << number) == 0).map(|(_, name)| (*name).to_owned()).collect()
    };
    match (missing(&NEEDED), missing(&WANTED)) {
        (needed, _) if !needed.is_empty() => fail(name, format!("missing: {}", needed.join(" ")), "run as root"),
        (_, wanted) if !wanted.is_empty() => warn(
            name,
            format!("missing, so containers go without: {}", wanted.join(" ")),
            "run as root with the full bounding set",
        ),
        _ => ok(name, "all that are needed"),
    }
}

fn cni(facts: &Facts) -> Vec<Finding> {
    let (inspection, folder) = (&facts.cni, facts.cni_conf_dir.display());
    let mut findings = Vec::new();
    for refused in &inspection.refused {
        findings.push(warn("cni configuration", format!("refused: {refused}"), "correct or remove the file"));
    }
    if inspection.networks.is_empty() {
        findings.push(warn(
            "cni configuration",
            format!("none in {folder}: only pods on the host's network run"),
            format!("install a network add-on, or write a CNI .conflist file to {folder}"),
        ));
    }
    for network in &inspection.networks {
        findings.push(ok("cni configuration", format!("{} in {}", network.name, network.file.display())));
        let missing: Vec<_> =
            network.plugins.iter().filter(|(_, path)| path.is_none()).map(|(kind, _)| kind.as_str()).collect();
        let all: Vec<_> = network.plugins.iter().map(|(kind, _)| kind.as_str()).collect();
        findings.push(if missing.is_empty() {
            ok("cni plugins", all.join(" "))
        } else {
            let folders: Vec<_> = facts.cni_bin_dirs.iter().map(|path| path.display().to_string()).collect();
            fail(
                "cni plugins",
                format!("missing: {} (looked in {})", missing.join(" "), folders.join(", ")),
                "apt-get install containernetworking-plugins, or install those of the network add-on",
            )
        });
        if network.needs_iptables {
            findings.push(if facts.iptables {
                ok("iptables", "there")
            } else {
                fail("iptables", format!("missing, but network {} needs it", network.name), "apt-get install iptables")
            });
        }
    }
    findings
}

fn handlers(facts: &Facts) -> Vec<Finding> {
    let name = "runtime handlers";
    if let Some(problem) = &facts.no_handlers {
        return vec![fail(name, problem, "correct the file, or runtime.default_handler")];
    }
    let known = &facts.handlers;
    let usable: Vec<_> = known.iter().flatten().map(String::as_str).collect();
    let broken = known.iter().filter_map(|handler| handler.as_ref().err());
    let broken = broken.map(|refused| {
        let cure = if refused.cgroups {
            "boot with systemd.unified_cgroup_hierarchy=1, or mount these controllers as version 1, too (mount -t cgroup \
             -o NAME cgroup /sys/fs/cgroup/NAME); or remove the handler's file"
        } else {
            "install the program, or remove the handler's file"
        };
        let judge = if refused.default { fail } else { warn };
        let whose = if refused.default { ", and it is the default" } else { "" };
        judge(name, format!("{}: its pods are refused{whose}", refused.problem), cure)
    });
    std::iter::once(ok(name, usable.join(", "))).chain(broken).collect()
}

fn devices(facts: &Facts) -> Vec<Finding> {
    let name = "cdi";
    let found = &facts.devices;
    if found.dirs.is_empty() {
        return vec![ok(name, "disabled")];
    }
    let places: Vec<_> = found.dirs.iter().map(|path| path.display().to_string()).collect();
    let good = ok(name, format!("{} files of devices in {}", found.files.len(), places.join(", ")));
    let bad = found.problems.iter().map(|(path, reason)| {
        warn(name, format!("{} cannot be used: {reason}", path.display()), "correct or remove the file")
    });
    std::iter::once(good).chain(bad).collect()
}

fn apparmor(facts: &Facts) -> Finding {
    let name = "apparmor";
    let found = &facts.apparmor;
    match (found.on, found.wanted, &found.profile) {
        (false, true, _) if facts.selinux.is_none() => warn(
            name,
            "not on in this kernel, nor is SELinux: containers run without their confinement",
            "boot with apparmor=1 security=apparmor, if the kernel has it",
        ),
        (false, _, _) => ok(name, "not on in this kernel"),
        (true, false, _) => warn(name, "on, but not used", "[apparmor] enabled = true"),
        (true, true, Some(profile)) if found.loaded => ok(name, format!("on; {profile} is loaded")),
        (true, true, Some(profile)) => warn(
            name,
            format!("on, but the profile {profile} is not loaded: containers with RuntimeDefault fail"),
            "load it (apparmor_parser -r FILE), or take it out of [apparmor] default_profile",
        ),
        (true, true, None) if found.loaded => ok(name, "on; the built-in profile is loaded"),
        (true, true, None) if found.parser => ok(name, "on; the built-in profile is loaded at start"),
        (true, true, None) => warn(
            name,
            "on, but apparmor_parser is missing: containers with RuntimeDefault fail, and those that say nothing run \
             unconfined",
            "apt-get install apparmor",
        ),
    }
}

fn selinux(facts: &Facts) -> Finding {
    let name = "selinux";
    let mode = if facts.selinux == Some(true) { "enforcing" } else { "permissive" };
    match (facts.selinux, facts.selinux_wanted) {
        (None, false) => ok(name, "not on in this kernel"),
        (None, true) => warn(
            name,
            "wanted, but not on in this kernel",
            "boot with security=selinux selinux=1, or set [selinux] enabled = false",
        ),
        (Some(_), true) => ok(name, format!("{mode}; containers are labelled")),
        (Some(_), false) => warn(
            name,
            format!(
                "{mode}, but not used: containers have the runtime's own label, and pods that ask for one are refused"
            ),
            "[selinux] enabled = true",
        ),
    }
}

fn limit(name: &'static str, found: Option<u64>, wanted: u64, sysctl: &str) -> Finding {
    match found {
        Some(found) if found >= wanted => ok(name, found.to_string()),
        Some(found) => warn(name, format!("{found} is little for a node"), format!("sysctl -w {sysctl}={wanted}")),
        None => warn(name, "unknown", "mount /proc"),
    }
}

/// A file system that records or images cannot be on: its name, and why.
fn unfit(kind: u64) -> Option<&'static str> {
    match kind {
        0x794c_7630 => Some("overlayfs, which cannot be the upper layer of containers"),
        0x6969 => Some("NFS, which cannot be the upper layer of containers"),
        0xff53_4d42 | 0xfe53_4d42 => Some("SMB, which cannot be the upper layer of containers"),
        0x4d44 | 0x2011_bab0 => Some("FAT, which knows no owners"),
        _ => None,
    }
}

fn root(disk: &Disk) -> Finding {
    let name = "root folder";
    let path = disk.path.display();
    let free = format!("{path}: {} MiB of {} MiB free", disk.bytes_free >> 20, disk.bytes >> 20);
    if disk.bytes == 0 {
        return fail(name, format!("{path} cannot be looked at"), "choose another folder (--root)");
    }
    if disk.read_only {
        return fail(name, format!("{path} is read-only"), "remount it, or choose another folder (--root)");
    }
    if let Some(why) = unfit(disk.kind) {
        return fail(name, format!("{path} is on {why}"), "choose a folder on ext4, xfs or btrfs (--root)");
    }
    let cure = "free some space, or choose a folder on a larger disk (--root)";
    if disk.bytes_free < NOTHING {
        return fail(name, free, cure);
    }
    if disk.bytes_free < LITTLE || disk.bytes_free < disk.bytes / 10 {
        return warn(name, free, cure);
    }
    // Some file systems make inodes as they need them and tell none.
    if disk.inodes > 0 && disk.inodes_free < disk.inodes / 20 {
        return warn(name, format!("{path}: {} of {} inodes free", disk.inodes_free, disk.inodes), cure);
    }
    ok(name, free)
}

fn state(disk: &Disk) -> Finding {
    const TMPFS: u64 = 0x0102_1994;
    let name = "state folder";
    let path = disk.path.display();
    if disk.bytes == 0 || disk.read_only {
        return fail(name, format!("{path} cannot be written"), "choose another folder (--state)");
    }
    if disk.bytes_free < 16 << 20 {
        return fail(name, format!("{path} is full"), "free some space, or choose another folder (--state)");
    }
    if disk.kind == TMPFS {
        ok(name, format!("{path}: tmpfs"))
    } else {
        warn(
            name,
            format!("{path} is not on tmpfs: slower, and not emptied at boot"),
            "mount a tmpfs there, or choose a folder on one, below /run mostly (--state)",
        )
    }
}

#[cfg(test)]
mod tests;
