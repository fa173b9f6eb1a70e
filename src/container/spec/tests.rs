use super::*;
use crate::container::view::User;
use crate::types::container::{ContainerSecurity, Mount, Propagation, Resources};
use crate::types::pod::{Namespaces, PodKey, PodSecurity};
use crate::wire::StagedPropagation;

fn pod() -> PodConfig {
    PodConfig {
        key: PodKey { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 },
        hostname: "box".into(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        sysctls: Default::default(),
        overhead: None,
        resources: None,
        security: PodSecurity::default(),
    }
}

pub(super) fn container() -> ContainerConfig {
    ContainerConfig {
        name: "c".into(),
        attempt: 0,
        image: "i".into(),
        user_specified_image: String::new(),
        image_annotations: Default::default(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: None,
        security: ContainerSecurity {
            namespaces: Namespaces { pid: NamespaceMode::Container, ..Default::default() },
            ..Default::default()
        },
    }
}
use crate::types::pod::NamespaceMode;

fn spec(config: &ContainerConfig, program: &Program, built_in: bool) -> Result<Made, SpecError> {
    let places = PodPlaces {
        resolv_conf: "/s/resolv.conf".into(),
        hostname: Some("/s/hostname".into()),
        hosts: "/s/hosts".into(),
        shm: "/s/shm".into(),
        netns: Some("/s/netns".into()),
        pause: 77,
    };
    let user = Resolved { user: User { uid: 5, gid: 6, groups: vec![6] }, home: None };
    build(&Inputs {
        config,
        pod: &pod(),
        program,
        user: &user,
        places: &places,
        target_pid: None,
        cgroups_path: "/p/c",
        cgroup_v2: true,
        rootfs: Path::new("/b/rootfs"),
        staging: Path::new("/b/mounts"),
        seccomp: None,
        held: (1 << 41) - 1,
        built_in,
        apparmor: Some("p"),
        process_label: Some("u:r:t:s0:c1,c2"),
        mount_label: Some("u:o:f:s0:c1,c2"),
        annotations: Vec::new(),
        volumes: &[("v".to_owned(), vec!["/l/2".into(), "/l/1".into()])].into(),
        devices: &[],
        edits: &Edits::default(),
        nofile: (1024, 4096),
        pids: 0,
    })
}

fn program() -> Program {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    Program { env: words("A=1 B=2"), entrypoint: words("/e"), command: words("x y"), working_dir: "/w".into() }
}

#[test]
fn it_is_a_spec_that_oci_runtimes_can_read() {
    let made = spec(&container(), &program(), true).unwrap();
    let parsed: oci_spec::runtime::Spec = serde_json::from_value(made.spec).unwrap();
    let process = parsed.process().as_ref().unwrap();
    assert_eq!(process.user().uid(), 5);
    assert_eq!(parsed.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 6);
}

#[test]
fn command_and_args_combine_with_the_image() {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    for (command, args, want) in [
        (vec![], vec![], vec!["/e", "x", "y"]),
        (vec![], vec!["z"], vec!["/e", "z"]),
        (vec!["/c"], vec![], vec!["/c"]),
        (vec!["/c"], vec!["z"], vec!["/c", "z"]),
    ] {
        let config = ContainerConfig { command: list(&command), args: list(&args), ..container() };
        let made = spec(&config, &program(), true).unwrap();
        assert_eq!(made.spec["process"]["args"], json!(want));
    }
    assert_eq!(spec(&container(), &Program::default(), true).unwrap_err().field, "config.command");
}

#[test]
fn environment_of_request_wins_in_place() {
    let config =
        ContainerConfig { envs: vec![("B".into(), b"3".to_vec()), ("C".into(), b"4".to_vec())], ..container() };
    let made = spec(&config, &program(), true).unwrap();
    assert_eq!(made.spec["process"]["env"], json!([PATH, "HOSTNAME=box", "A=1", "B=3", "C=4", "HOME=/"]));
    for (name, value) in [("", "x"), ("A=B", "x"), ("N", "a\0b")] {
        let config = ContainerConfig { envs: vec![(name.into(), value.into())], ..container() };
        assert!(spec(&config, &program(), true).is_err(), "{name:?}");
    }
}

#[test]
fn a_mount_in_place_of_one_of_ours_replaces_it_and_parents_come_first() {
    let mount = |path: &str, propagation| Mount {
        container_path: path.into(),
        host_path: "/h".into(),
        propagation,
        ..Default::default()
    };
    let config = ContainerConfig {
        mounts: vec![
            mount("/a/b/c", Propagation::Private),
            mount("/a", Propagation::Private),
            mount("/etc/hosts", Propagation::Private),
        ],
        ..container()
    };
    let made = spec(&config, &program(), true).unwrap();
    let list: Vec<&str> =
        made.spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(list.iter().filter(|path| **path == "/etc/hosts").count(), 1);
    assert!(list.iter().position(|p| *p == "/a") < list.iter().position(|p| *p == "/a/b/c"));
    assert_eq!(made.staged.len(), 3, "libcontainer cannot make one mount private");

    let shared = ContainerConfig {
        mounts: vec![mount("/a", Propagation::Bidirectional), mount("/b", Propagation::Private)],
        ..container()
    };
    let made = spec(&shared, &program(), true).unwrap();
    assert_eq!(made.staged.len(), 2);
    assert_eq!(made.spec["linux"]["rootfsPropagation"], "shared");
    let plain = spec(&shared, &program(), false).unwrap();
    assert_eq!(plain.staged.iter().map(|mount| mount.propagation).collect::<Vec<_>>(), [StagedPropagation::Shared]);
    let list = plain.spec["mounts"].as_array().unwrap();
    let one = list.iter().find(|mount| mount["destination"] == "/a").unwrap();
    assert_eq!((&one["source"], &one["options"][1]), (&json!(plain.staged[0].staged), &json!("rshared")));
}

#[test]
fn unset_resources_stay_unset() {
    let all = resources(&Resources { cpu_shares: 512, memory_limit: 1 << 20, ..Default::default() });
    assert_eq!(all, json!({ "cpu": { "shares": 512 }, "memory": { "limit": 1 << 20 } }));
    assert_eq!(resources(&Resources::default()), json!({}));
}

#[test]
fn labels_and_profiles_are_in_the_spec_and_beside_it() {
    let config = ContainerConfig { command: vec!["x".into()], ..container() };
    let made = spec(&config, &program(), true).unwrap();
    assert_eq!(made.spec["process"]["apparmorProfile"], "p");
    assert_eq!(made.spec["process"]["selinuxLabel"], "u:r:t:s0:c1,c2");
    assert_eq!(made.spec["linux"]["mountLabel"], "u:o:f:s0:c1,c2");
    assert_eq!(made.confinement.apparmor_profile.as_deref(), Some("p"));
    assert_eq!(made.confinement.selinux_label.as_deref(), Some("u:r:t:s0:c1,c2"));
}
