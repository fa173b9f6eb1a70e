use super::super::manifest::parse;
use super::*;

fn node() -> Node {
    Node {
        name: "node-1".to_owned(),
        memory: 8 << 30,
        cpu_milli: 4000,
        pod_dns: parse_resolv_conf("nameserver 10.0.0.1\nsearch example.org\noptions ndots:2\n"),
        host_dns: parse_resolv_conf("nameserver 127.0.0.53\n"),
        driver: CgroupDriver::Systemd,
        cgroup_v2: true,
        selinux: false,
        recursive_read_only: vec![String::new()],
    }
}

fn dirs() -> Dirs {
    Dirs { pods: "/r/pods".into(), logs: "/l".into(), seccomp: "/r/seccomp".into() }
}

fn job(spec: &str) -> PodJob {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{A: a, B: b}}\n---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: web, labels: {{app: x}}, annotations: {{note: y}}}}\nspec:\n{spec}"
    );
    let mut manifest = parse(&text, "f").unwrap();
    let document = manifest.pods.remove(0);
    PodJob {
        pod: document.pod,
        objects: manifest.objects,
        uid: "u-1".to_owned(),
        hash: "h".to_owned(),
        owner: "run".to_owned(),
        origin: Origin::default(),
    }
}

fn first(job: &PodJob, input: ContainerInput<'_>) -> Result<proto::ContainerConfig, TranslateError> {
    container(job, &job.pod.spec.containers[0], &node(), &dirs(), input)
}

#[test]
fn a_sandbox_carries_identity_and_place() {
    let job = job(
        "  containers:\n  - {name: a, image: i, ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81}]}\n",
    );
    let config = sandbox(&job, &node(), &dirs(), 2);
    let metadata = config.metadata.unwrap();
    assert_eq!((metadata.name.as_str(), metadata.attempt), ("web", 2));
    assert_eq!(config.hostname, "web");
    assert_eq!(config.log_directory, "/l/default_web_u-1");
    assert_eq!(config.labels["app"], "x");
    assert_eq!(config.labels[labels::POD_UID], "u-1");
    assert_eq!(config.annotations["note"], "y");
    assert_eq!(config.annotations[labels::MANIFEST_HASH], "h");
    assert_eq!(config.port_mappings.len(), 1);
    assert_eq!((config.port_mappings[0].host_port, config.port_mappings[0].container_port), (8080, 80));
    let linux = config.linux.unwrap();
    assert_eq!(linux.cgroup_parent, "kubepods-besteffort-podu_1.slice");
    assert_eq!(config.dns_config.unwrap().servers, ["10.0.0.1"]);
}

#[test]
fn the_hosts_network_brings_its_resolver_and_name() {
    let job = job("  hostNetwork: true\n  containers: [{name: a, image: i}]\n");
    let config = sandbox(&job, &node(), &dirs(), 0);
    assert_eq!(config.hostname, "");
    assert_eq!(hostname(&job.pod, &node()), "node-1");
    assert_eq!(config.dns_config.unwrap().servers, ["127.0.0.53"]);
    let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!(options.network(), proto::NamespaceMode::Node);
    assert_eq!(options.pid(), proto::NamespaceMode::Container);
}

#[test]
fn dns_settings_add_up() {
    let job = job(
        "  dnsConfig: {nameservers: [10.0.0.1, 9.9.9.9], searches: [a.b], options: [{name: ndots, value: '5'}, {name: rotate}]}\n  \
         containers: [{name: a, image: i}]\n",
    );
    let dns = sandbox(&job, &node(), &dirs(), 0).dns_config.unwrap();
    assert_eq!(dns.servers, ["10.0.0.1", "9.9.9.9"]);
    assert_eq!(dns.searches, ["example.org", "a.b"]);
    assert_eq!(dns.options, ["ndots:5", "rotate"]);
}

#[test]
fn environment_comes_from_all_sources_in_order() {
    let job = job("  containers:
  - name: a
    image: i
    command: [sh, -c, 'echo $(X) $$(X) $(NONE)']
    envFrom: [{prefix: P_, configMapRef: {name: c}}]
    env:
    - {name: X, value: '$(P_A)!'}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: c, key: B}}}
    - {name: GONE, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: requests.memory, divisor: 1Mi}}}
    - {name: P_B, value: over}
    resources: {requests: {memory: 1500Ki}}
");
    let ips = ["10.1.2.3".to_owned()];
    let config = first(&job, ContainerInput { pod_ips: &ips, ..Default::default() }).unwrap();
    let envs: Vec<String> =
        config.envs.iter().map(|env| format!("{}={}", env.key, String::from_utf8_lossy(&env.value))).collect();
    let want = ["P_A=a", "P_B=over", "X=a!", "KEY=b", "NAME=web", "APP=x", "IP=10.1.2.3", "CPU=4", "MEM=2"];
    assert_eq!(envs, want);
    assert_eq!(config.command[2], "echo a! $(X) $(NONE)");
}

#[test]
fn an_unknown_field_path_is_an_error() {
    let job = job(
        "  containers: [{name: a, image: i, env: [{name: H, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]}]\n",
    );
    let error = first(&job, ContainerInput::default()).unwrap_err();
    assert_eq!(error.to_string(), "container a: env[0]: fieldPath \"status.hostIP\" is not supported");
}

#[test]
fn resources_become_cgroup_numbers() {
    let job = job(
        "  containers: [{name: a, image: i, resources: {limits: {cpu: 500m, memory: 64Mi, hugepages-2Mi: 4Mi}, requests: {cpu: 100m}}}]\n",
    );
    let resources = first(&job, ContainerInput::default()).unwrap().linux.unwrap().resources.unwrap();
    assert_eq!((resources.cpu_quota, resources.cpu_period, resources.cpu_shares), (50_000, 100_000, 102));
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
    assert_eq!(resources.oom_score_adj, 993);
    let hugepages = &resources.hugepage_limits[0];
    assert_eq!((hugepages.page_size.as_str(), hugepages.limit), ("2MB", 4 << 20));
    assert_eq!(resources.unified["memory.oom.group"], "1");
}

#[test]
fn the_container_overrides_the_pod() {
    let job = job("  securityContext: {runAsUser: 5, runAsGroup: 6, fsGroup: 7, supplementalGroups: [8], seccompProfile: {type: Unconfined}}
  containers:
  - name: a
    image: i
    securityContext:
      runAsUser: 9
      allowPrivilegeEscalation: false
      seccompProfile: {type: Localhost, localhostProfile: p.json}
      capabilities: {add: [NET_ADMIN], drop: [ALL]}
");
    let security = first(&job, ContainerInput::default()).unwrap().linux.unwrap().security_context.unwrap();
    assert_eq!(security.run_as_user.unwrap().value, 9);
    assert_eq!(security.run_as_group.unwrap().value, 6);
    assert_eq!(security.supplemental_groups, [8, 7]);
    assert!(security.no_new_privs);
    assert_eq!(security.seccomp.unwrap().localhost_ref, "/r/seccomp/p.json");
    assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert_eq!(security.capabilities.unwrap().drop_capabilities, ["ALL"]);
}

#[test]
fn nobody_runs_as_root_who_must_not() {
    let job = job("  securityContext: {runAsNonRoot: true}\n  containers: [{name: a, image: i}]\n");
    let user =
        |uid, name: &str| ContainerInput { image_user: ImageUser { uid, name: name.to_owned() }, ..Default::default() };
    assert!(first(&job, user(Some(0), "")).is_err());
    assert!(first(&job, user(None, "")).is_err());
    assert!(first(&job, user(None, "nobody")).is_err());
    assert!(first(&job, user(Some(1000), "")).is_ok());
}

#[test]
fn read_only_volumes_stay_so() {
    let job = job("  volumes: [{name: v, configMap: {name: c}}, {name: e, emptyDir: {}}]
  containers:
  - {name: a, image: i, volumeMounts: [{name: v, mountPath: /v}, {name: e, mountPath: /e, readOnly: true, recursiveReadOnly: IfPossible}]}
");
    let wishes = &job.pod.spec.containers[0].volume_mounts;
    assert!(mount(&job, &wishes[0], Path::new("/x"), true, &node()).readonly);
    let second = mount(&job, &wishes[1], Path::new("/y"), true, &node());
    assert!(second.readonly && second.recursive_read_only);
    let weak = Node { recursive_read_only: Vec::new(), ..node() };
    assert!(!mount(&job, &wishes[1], Path::new("/y"), true, &weak).recursive_read_only);
}

#[test]
fn hosts_files() {
    let aliases = "  hostAliases: [{ip: 10.9.9.9, hostnames: [db, db.local]}]\n  containers: [{name: a, image: i}]\n";
    let own = hosts_file(&job(aliases).pod, &node(), &["10.0.0.5".to_owned()], "1.1.1.1 host");
    assert!(own.contains("10.0.0.5\tweb\n") && own.contains("10.9.9.9\tdb\tdb.local\n") && !own.contains("1.1.1.1"));
    let host = hosts_file(&job(&format!("  hostNetwork: true\n{aliases}")).pod, &node(), &[], "1.1.1.1 host");
    assert!(host.contains("1.1.1.1 host\n10.9.9.9"));
}
