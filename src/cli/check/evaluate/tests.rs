use super::super::facts::{AppArmor, Cgroups, Refused};
use super::*;
use crate::cdi;
use crate::network::{InspectedNetwork, Inspection};

/// A node as it should be.
fn good() -> Facts {
    let disk = |path: &str, kind| Disk {
        path: path.into(),
        kind,
        bytes: 100 << 30,
        bytes_free: 50 << 30,
        inodes: 1000,
        inodes_free: 900,
        read_only: false,
    };
    Facts {
        release: "6.18.44-fc".into(),
        clone3: true,
        pidfd: true,
        openat2: true,
        mount_api: true,
        mount_setattr: true,
        overlay: true,
        seccomp_actions: vec!["errno".into(), "allow".into()],
        max_user_namespaces: Some(1000),
        cgroups: Cgroups {
            unified: true,
            controllers: ["cpu", "cpuset", "io", "memory", "pids"].map(String::from).into(),
        },
        systemd: true,
        capabilities: Some(u64::MAX),
        cni: Inspection {
            networks: vec![InspectedNetwork {
                name: "pods".into(),
                file: "/etc/cni/net.d/10.conflist".into(),
                plugins: vec![("bridge".into(), Some("/opt/cni/bin/bridge".into()))],
                needs_iptables: true,
            }],
            refused: Vec::new(),
        },
        cni_conf_dir: "/etc/cni/net.d".into(),
        cni_bin_dirs: vec!["/opt/cni/bin".into()],
        devices: cdi::Inspection {
            dirs: vec!["/etc/cdi".into()],
            files: vec!["/etc/cdi/gpu.yaml".into()],
            ..cdi::Inspection::default()
        },
        handlers: vec![Ok("youki".into()), Ok("runc (/usr/sbin/runc)".into())],
        no_handlers: None,
        iptables: true,
        ip_forward: Some(true),
        bridge_nf: Some(true),
        apparmor: AppArmor { on: true, wanted: true, parser: true, profile: None, loaded: false },
        selinux: None,
        selinux_wanted: false,
        inotify_instances: Some(8192),
        inotify_watches: Some(524_288),
        root: disk("/var/lib/podwright", 0xef53),
        state: disk("/run/podwright", 0x0102_1994),
        monitor: ("/usr/bin/podwright-monitor".into(), true),
    }
}

/// The findings that are not fine after `change`, as `level name`.
fn after(change: impl FnOnce(&mut Facts)) -> String {
    let mut facts = good();
    change(&mut facts);
    let findings = evaluate(&facts);
    assert!(findings.iter().all(|finding| finding.cure.is_some() == (finding.level != Level::Ok)));
    let bad = findings.iter().filter(|finding| finding.level != Level::Ok);
    bad.map(|finding| format!("{} {}", finding.level, finding.name)).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_good_node_is_fine() {
    assert_eq!(after(|_| ()), "");
    assert_eq!(after(|facts| facts.root.inodes = 0), "", "btrfs tells no inodes");
}

#[test]
fn the_kernel() {
    assert_eq!(after(|facts| facts.release = "5.10.0-28-amd64".into()), "FAIL kernel, warn idmapped mounts");
    assert_eq!(after(|facts| facts.release = "5.15.1".into()), "warn idmapped mounts");
    assert_eq!(after(|facts| facts.release = String::new()), "warn kernel, warn idmapped mounts");
    assert_eq!(after(|facts| facts.clone3 = false), "FAIL clone3");
    assert_eq!(after(|facts| facts.pidfd = false), "FAIL pidfd");
    assert_eq!(after(|facts| facts.openat2 = false), "FAIL openat2");
    assert_eq!(after(|facts| facts.mount_api = false), "FAIL mount-api");
    assert_eq!(after(|facts| facts.mount_setattr = false), "FAIL mount_setattr, warn idmapped mounts");
    assert_eq!(after(|facts| facts.overlay = false), "FAIL overlayfs");
    assert_eq!(after(|facts| facts.seccomp_actions.clear()), "FAIL seccomp");
    assert_eq!(after(|facts| facts.max_user_namespaces = Some(0)), "warn user namespaces");
    assert_eq!(after(|facts| facts.max_user_namespaces = None), "warn user namespaces");
}

#[test]
fn security_modules() {
    assert_eq!(after(|facts| facts.apparmor.on = false), "warn apparmor", "and no SELinux either");
    assert_eq!(after(|facts| (facts.apparmor.on, facts.selinux, facts.selinux_wanted) = (false, Some(true), true)), "");
    assert_eq!(after(|facts| facts.apparmor.wanted = false), "warn apparmor");
    assert_eq!(after(|facts| facts.apparmor.parser = false), "warn apparmor");
    assert_eq!(after(|facts| (facts.apparmor.parser, facts.apparmor.loaded) = (false, true)), "");
    assert_eq!(after(|facts| facts.apparmor.profile = Some("mine".into())), "warn apparmor");
    assert_eq!(after(|facts| facts.selinux = Some(false)), "warn selinux", "not used");
    assert_eq!(after(|facts| facts.selinux_wanted = true), "warn selinux", "not there");
}

#[test]
fn control_groups() {
    let controllers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let v1 = ["cpu", "cpuset", "blkio", "memory", "pids", "devices", "freezer"];
    let first = |facts: &mut Facts| {
        facts.cgroups = Cgroups { unified: false, controllers: controllers(&v1) };
    };
    assert_eq!(after(first), "warn cgroup");
    assert_eq!(
        after(|facts| facts.cgroups = Cgroups { unified: false, controllers: controllers(&v1[..5]) }),
        "warn cgroup, FAIL cgroup controllers",
        "no devices"
    );
    assert_eq!(
        after(|facts| facts.cgroups.controllers = controllers(&["cpu", "memory", "pids"])),
        "warn cgroup controllers"
    );
    assert_eq!(after(|facts| facts.cgroups.controllers = controllers(&["cpu"])), "FAIL cgroup controllers");
    assert_eq!(after(|facts| facts.cgroups = Cgroups::default()), "FAIL cgroup, FAIL cgroup controllers");
}

#[test]
fn privileges() {
    assert_eq!(after(|facts| facts.capabilities = Some(!(1 << 24))), "warn capabilities");
    assert_eq!(after(|facts| facts.capabilities = Some(!(1 << 21))), "FAIL capabilities");
    assert_eq!(after(|facts| facts.capabilities = Some(0)), "FAIL capabilities");
    assert_eq!(after(|facts| facts.capabilities = None), "warn capabilities");
}

#[test]
fn handlers_and_devices() {
    let refused = |cgroups, default| Refused { problem: "gone".to_owned(), cgroups, default };
    for cgroups in [false, true] {
        assert_eq!(after(|facts| facts.handlers.push(Err(refused(cgroups, false)))), "warn runtime handlers");
        assert_eq!(after(|facts| facts.handlers.push(Err(refused(cgroups, true)))), "FAIL runtime handlers");
    }
    assert_eq!(after(|facts| facts.no_handlers = Some("x.toml".into())), "FAIL runtime handlers");
    let bad = |facts: &mut Facts| drop(facts.devices.problems.insert("/etc/cdi/bad.json".into(), "no".into()));
    assert_eq!(after(bad), "warn cdi");
    assert_eq!(after(|facts| facts.devices = cdi::Inspection::default()), "", "disabled");
}

#[test]
fn the_network() {
    assert_eq!(after(|facts| facts.cni.networks.clear()), "warn cni configuration");
    assert_eq!(after(|facts| facts.cni.refused.push("10.conf: x".into())), "warn cni configuration");
    assert_eq!(after(|facts| facts.cni.networks[0].plugins[0].1 = None), "FAIL cni plugins");
    assert_eq!(after(|facts| facts.iptables = false), "FAIL iptables");
    assert_eq!(after(|facts| facts.ip_forward = Some(false)), "warn ip_forward");
    assert_eq!(after(|facts| facts.bridge_nf = None), "warn br_netfilter");
    assert_eq!(after(|facts| facts.bridge_nf = Some(false)), "warn br_netfilter");
}

#[test]
fn disks_and_limits() {
    assert_eq!(after(|facts| facts.root.bytes_free = 1 << 20), "FAIL root folder");
    assert_eq!(after(|facts| facts.root.bytes_free = 4 << 30), "warn root folder");
    assert_eq!(after(|facts| facts.root.bytes_free = 9 << 30), "warn root folder", "under a tenth");
    assert_eq!(after(|facts| facts.root.inodes_free = 10), "warn root folder");
    assert_eq!(after(|facts| facts.root.kind = 0x794c_7630), "FAIL root folder");
    assert_eq!(after(|facts| facts.root.read_only = true), "FAIL root folder");
    assert_eq!(after(|facts| facts.root = Disk::default()), "FAIL root folder");
    assert_eq!(after(|facts| facts.state.kind = 0xef53), "warn state folder");
    assert_eq!(after(|facts| facts.state.bytes_free = 0), "FAIL state folder");
    assert_eq!(after(|facts| facts.inotify_instances = Some(128)), "warn inotify instances");
    assert_eq!(after(|facts| facts.inotify_watches = None), "warn inotify watches");
    assert_eq!(after(|facts| facts.monitor.1 = false), "FAIL monitor");
}
