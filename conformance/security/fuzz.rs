//! Requests with arbitrary values in their fields: each is carried out or refused, soon, with a code that says that the
//! request is wrong, and the daemon lives.
//!
//! The values come from a seed that is printed; `PODWRIGHT_TEST_SEED` repeats a run.

use std::fmt::Debug;
use std::future::Future;
use std::time::Instant;

use podwright::proto::*;
use tonic::{Code, Response, Status};

use crate::harness::{Dice, Node, secs, specs};

/// Values of fields.
impl Dice {
    fn text(&mut self) -> String {
        const TEXTS: [&str; 44] = [
            "",
            " ",
            ".",
            "..",
            "/",
            "//",
            "a",
            "../../etc/passwd",
            "/etc/../etc/passwd",
            "/proc",
            "/proc/self/fd/0",
            "/dev",
            "/dev/null",
            "/dev/zero",
            "/dev/full",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/resolv.conf",
            "/no/such/path",
            "/etc/passwd/x",
            "a\nb",
            "a\0b",
            "\u{202e}x",
            "%s%n",
            "${HOME}",
            "a=b",
            "=",
            ":",
            "0",
            "-1",
            "4294967295",
            "4294967296",
            "18446744073709551615",
            "9223372036854775808",
            "0-",
            "0-65535",
            "99",
            "1,,2",
            "memory.max",
            "cgroup.procs",
            "2MB",
            "sha256:0000",
            "docker.io/library/busybox@sha256:00",
            "/dev/shm",
        ];
        match self.below(50) {
            0 => "x".repeat(5000),
            1 => "/".repeat(4000),
            2 => format!("/{}", "d/".repeat(1500)),
            3 => "n".repeat(254),
            4 => "\u{1f980}".repeat(60),
            n => TEXTS[n % TEXTS.len()].to_owned(),
        }
    }

    fn int(&mut self) -> i64 {
        const INTS: [i64; 18] = [
            0,
            1,
            -1,
            2,
            -2,
            3,
            999,
            1000,
            1_000_000,
            65_535,
            65_536,
            1 << 31,
            (1 << 31) - 1,
            1 << 32,
            (1 << 32) - 1,
            1 << 62,
            i64::MAX,
            i64::MIN,
        ];
        INTS[self.below(INTS.len())]
    }

    fn small(&mut self) -> i32 {
        [0, 1, 2, 3, 4, -1, 80, 65_535, 65_536, i32::MAX, i32::MIN][self.below(11)]
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    fn texts(&mut self) -> Vec<String> {
        (0..self.below(3)).map(|_| self.text()).collect()
    }

    fn mapping(&mut self) -> Vec<IdMapping> {
        let id = |dice: &mut Self| dice.int() as u32;
        (0..self.below(3))
            .map(|_| IdMapping { host_id: id(self), container_id: [0, id(self)][self.below(2)], length: id(self) })
            .collect()
    }

    fn namespaces(&mut self) -> NamespaceOption {
        NamespaceOption {
            network: self.small(),
            pid: self.small(),
            ipc: self.small(),
            target_id: self.text(),
            userns_options: self.coin().then(|| UserNamespace {
                mode: self.small(),
                uids: self.mapping(),
                gids: self.mapping(),
            }),
        }
    }

    fn profile(&mut self) -> SecurityProfile {
        SecurityProfile { profile_type: self.small(), localhost_ref: self.text() }
    }

    fn selinux(&mut self) -> SeLinuxOption {
        SeLinuxOption { user: self.text(), role: self.text(), r#type: self.text(), level: self.text() }
    }

    fn resources(&mut self) -> LinuxContainerResources {
        let mut it = LinuxContainerResources::default();
        for _ in 0..1 + self.below(2) {
            match self.below(10) {
                0 => it.cpu_period = self.int(),
                1 => it.cpu_quota = self.int(),
                2 => it.cpu_shares = self.int(),
                3 => it.memory_limit_in_bytes = self.int(),
                4 => it.oom_score_adj = self.int(),
                5 => it.cpuset_cpus = self.text(),
                6 => it.cpuset_mems = self.text(),
                7 => it.hugepage_limits = vec![HugepageLimit { page_size: self.text(), limit: self.int() as u64 }],
                8 => drop(it.unified.insert(self.text(), self.text())),
                _ => it.memory_swap_limit_in_bytes = self.int(),
            }
        }
        it
    }

    fn mount(&mut self) -> Mount {
        Mount {
            container_path: self.text(),
            host_path: self.text(),
            readonly: self.coin(),
            selinux_relabel: false,
            propagation: self.small(),
            image: (self.below(3) == 0).then(|| specs::image([specs::BUSYBOX, "", "../x"][self.below(3)])),
            image_sub_path: self.text(),
            uid_mappings: self.mapping(),
            gid_mappings: self.mapping(),
            recursive_read_only: self.coin(),
            mount_options: self.texts(),
        }
    }

    fn mutate_pod(&mut self, pod: &mut PodSandboxConfig) {
        match self.below(16) {
            0 => pod.metadata.as_mut().unwrap().name = self.text(),
            1 => pod.metadata.as_mut().unwrap().uid = self.text(),
            2 => pod.metadata.as_mut().unwrap().namespace = self.text(),
            3 => pod.hostname = self.text(),
            4 => pod.log_directory = self.text(),
            5 => {
                pod.dns_config =
                    Some(DnsConfig { servers: self.texts(), searches: self.texts(), options: self.texts() })
            }
            6 => {
                pod.port_mappings = vec![PortMapping {
                    protocol: self.small(),
                    container_port: self.small(),
                    host_port: self.small(),
                    host_ip: self.text(),
                }];
            }
            7 => drop(pod.labels.insert(self.text(), self.text())),
            8 => drop(pod.annotations.insert(self.text(), self.text())),
            9 => pod.linux.as_mut().unwrap().cgroup_parent = self.text(),
            10 => drop(pod.linux.as_mut().unwrap().sysctls.insert(self.text(), self.text())),
            11 => specs::sandbox_security(pod).namespace_options = Some(self.namespaces()),
            12 => specs::sandbox_security(pod).run_as_user = Some(Int64Value { value: self.int() }),
            13 => specs::sandbox_security(pod).seccomp = Some(self.profile()),
            14 => {
                let resources = Some(self.resources());
                pod.linux.as_mut().unwrap().resources = resources;
            }
            _ => specs::sandbox_security(pod).selinux_options = Some(self.selinux()),
        }
    }

    fn mutate_container(&mut self, config: &mut ContainerConfig) {
        match self.below(24) {
            0 => config.metadata.as_mut().unwrap().name = self.text(),
            1 => config.image = Some(specs::image(&self.text())),
            2 => config.command = self.texts(),
            3 => config.args = self.texts(),
            4 => config.working_dir = self.text(),
            5 => config.envs = vec![specs::env(&self.text(), &self.text())],
            6 | 7 => config.mounts = vec![self.mount()],
            8 => {
                config.mounts = vec![self.mount()];
                let mount = &mut config.mounts[0];
                (mount.propagation, mount.recursive_read_only, mount.image) = (0, false, None);
                mount.image_sub_path.clear();
                mount.mount_options.clear();
                mount.uid_mappings.clear();
                mount.gid_mappings.clear();
            }
            9 => {
                config.mounts = vec![Mount {
                    container_path: "/volume".into(),
                    image: Some(specs::image(specs::BUSYBOX)),
                    image_sub_path: self.text(),
                    readonly: true,
                    ..Default::default()
                }];
            }
            10 => {
                let permissions = if self.coin() { "rwm".into() } else { self.text() };
                config.devices = vec![Device { container_path: self.text(), host_path: self.text(), permissions }];
            }
            11 => drop(config.labels.insert(self.text(), self.text())),
            12 => drop(config.annotations.insert(self.text(), self.text())),
            13 => config.log_path = self.text(),
            14 => config.stop_signal = self.small(),
            15 => config.cdi_devices = vec![CdiDevice { name: format!("a/b={}", self.text()) }],
            16 => {
                let resources = Some(self.resources());
                config.linux.as_mut().unwrap().resources = resources;
            }
            17 => specs::security(config).namespace_options = Some(self.namespaces()),
            18 => specs::security(config).run_as_user = Some(Int64Value { value: self.int() }),
            19 => specs::security(config).run_as_username = self.text(),
            20 => specs::security(config).supplemental_groups = vec![self.int(), self.int()],
            21 => {
                let paths = self.texts();
                specs::security(config).masked_paths = paths;
                specs::security(config).readonly_paths = self.texts();
            }
            22 => {
                let kind = if self.coin() { 2 } else { self.small() };
                specs::security(config).seccomp =
                    Some(SecurityProfile { profile_type: kind, localhost_ref: self.text() });
            }
            _ => {
                let capabilities = Capability {
                    add_capabilities: self.texts(),
                    drop_capabilities: self.texts(),
                    ..Default::default()
                };
                specs::security(config).capabilities = Some(capabilities);
            }
        }
    }
}

/// Waits for an answer, which must not blame the daemon for what the request had.
async fn sane<T>(what: &impl Debug, call: impl Future<Output = Result<Response<T>, Status>>) -> Option<T> {
    let begun = Instant::now();
    let answer = call.await;
    let shown: String = format!("{what:?}").chars().take(2000).collect();
    assert!(begun.elapsed() < secs(20), "{:?} for {shown}", begun.elapsed());
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            let bad = [Code::Internal, Code::Unknown, Code::Unavailable, Code::Cancelled, Code::DataLoss];
            // What only shows inside the container comes as the engine tells it.
            let inside = status.message().contains("creating container");
            assert!(inside || !bad.contains(&status.code()), "{:?} {:?} for {shown}", status.code(), status.message());
            None
        }
    }
}

#[tokio::test]
async fn sandboxes_and_containers() {
    let node = Node::ready().await;
    let mut dice = Dice::new();
    let home = node.up(node.host_pod("home")).await;
    for round in 0..rounds(150) {
        let mut pod = node.host_pod(&format!("p{round}"));
        dice.mutate_pod(&mut pod);
        let request = RunPodSandboxRequest { config: Some(pod), runtime_handler: String::new() };
        if let Some(made) = sane(&request, node.cri().runtime().run_pod_sandbox(request.clone())).await {
            node.stop_pod(&made.pod_sandbox_id).await.unwrap();
            node.remove_pod(&made.pod_sandbox_id).await.unwrap();
        }
    }
    for round in 0..rounds(250) {
        let mut config = node.sh(&format!("c{round}"), "true");
        dice.mutate_container(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: home.id.clone(),
            config: Some(config),
            sandbox_config: Some(home.config.clone()),
        };
        if let Some(made) = sane(&request, node.cri().runtime().create_container(request.clone())).await {
            let start = StartContainerRequest { container_id: made.container_id.clone() };
            sane(&request, node.cri().runtime().start_container(start)).await;
            node.remove_container(&made.container_id).await.unwrap();
        }
    }
    lives(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn everything_else() {
    let node = Node::ready().await;
    let mut dice = Dice::new();
    let pod = node.up(node.pod("home")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    for _ in 0..rounds(400) {
        let mut runtime = node.cri().runtime();
        let id = |dice: &mut Dice| if dice.below(4) == 0 { dice.text() } else { ctr.id.clone() };
        let pod_id = |dice: &mut Dice| if dice.below(4) == 0 { dice.text() } else { pod.id.clone() };
        match dice.below(8) {
            0 | 1 => {
                let request = UpdateContainerResourcesRequest {
                    container_id: id(&mut dice),
                    linux: Some(dice.resources()),
                    ..Default::default()
                };
                sane(&request, runtime.update_container_resources(request.clone())).await;
            }
            2 => {
                let (overhead, resources) = (dice.coin().then(|| dice.resources()), Some(dice.resources()));
                let request =
                    UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod_id(&mut dice), overhead, resources };
                sane(&request, runtime.update_pod_sandbox_resources(request.clone())).await;
            }
            3 => {
                let timeout = [1, -1, i64::MIN, i64::MAX][dice.below(4)];
                let request = ExecSyncRequest { container_id: id(&mut dice), cmd: dice.texts(), timeout };
                sane(&request, runtime.exec_sync(request.clone())).await;
            }
            4 => {
                let request = ExecRequest {
                    container_id: id(&mut dice),
                    cmd: dice.texts(),
                    tty: dice.coin(),
                    stdin: dice.coin(),
                    stdout: dice.coin(),
                    stderr: dice.coin(),
                };
                sane(&request, runtime.exec(request.clone())).await;
            }
            5 => {
                let request = PortForwardRequest {
                    pod_sandbox_id: pod_id(&mut dice),
                    port: (0..dice.below(3)).map(|_| dice.small()).collect(),
                };
                sane(&request, runtime.port_forward(request.clone())).await;
            }
            6 => {
                let request = ListContainersRequest {
                    filter: Some(ContainerFilter {
                        id: dice.text(),
                        pod_sandbox_id: dice.text(),
                        label_selector: [(dice.text(), dice.text())].into(),
                        ..Default::default()
                    }),
                };
                sane(&request, runtime.list_containers(request.clone())).await;
            }
            _ => {
                let request = ImageStatusRequest { image: Some(specs::image(&dice.text())), verbose: dice.coin() };
                sane(&request, node.cri().images().image_status(request.clone())).await;
                let request = RemoveImageRequest { image: Some(specs::image(&dice.text())) };
                if request.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
                    sane(&request, node.cri().images().remove_image(request.clone())).await;
                }
            }
        }
    }
    let back = LinuxContainerResources { memory_limit_in_bytes: 1 << 30, cpu_quota: -1, ..Default::default() };
    let request =
        UpdateContainerResourcesRequest { container_id: ctr.id.clone(), linux: Some(back), ..Default::default() };
    let _ = node.cri().runtime().update_container_resources(request).await;
    lives(&node).await;
    node.finish().await;
}

fn rounds(usual: usize) -> usize {
    std::env::var("PODWRIGHT_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

async fn lives(node: &Node) {
    node.version().await.unwrap();
    let log = node.daemon_log();
    let panics: Vec<_> = log.lines().filter(|line| line.contains("panicked")).collect();
    assert!(panics.is_empty(), "{panics:?}");
}
