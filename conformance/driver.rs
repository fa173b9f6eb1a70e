//! `podwright run` and `podwright kubelet`: pods from manifests, over the socket.

mod hands_off;
mod leftovers;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use podwright::proto::*;

use crate::harness::{BUSYBOX, Node, daemon, eventually, host, secs};

/// What a program said and how it ended.
#[derive(Debug)]
struct Outcome {
    code: i32,
    out: String,
    err: String,
}

/// A running `podwright`.
struct Driver {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Driver {
    fn start(node: &Node, name: &str, args: &[&str]) -> Self {
        let (out, err) = (node.dir().join(format!("{name}.out")), node.dir().join(format!("{name}.err")));
        let endpoint = format!("unix://{}", node.dir().join("cri.sock").display());
        let mut command = daemon::command(daemon::program());
        let root = node.dir().join("driver");
        command.arg(args[0]).args(["--runtime-endpoint", &endpoint, "--root"]).arg(root).args(&args[1..]);
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let input = node.dir().join("stdin");
        command.stdin(if input.exists() { File::open(input).unwrap().into() } else { Stdio::null() });
        Self { child: host::spawn(&mut command), out, err }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    async fn says(&self, text: &str) {
        eventually(secs(30), &format!("{text:?} in the output"), async || {
            let said = fs::read_to_string(&self.out).unwrap() + &fs::read_to_string(&self.err).unwrap();
            if said.contains(text) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    async fn ends(mut self) -> Outcome {
        let status = eventually(secs(60), "the driver's end", async || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(fs::read_to_string(&self.err).unwrap()),
        })
        .await;
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Outcome { code: status.code().unwrap_or(-1), out: read(&self.out), err: read(&self.err) }
    }
}

/// A node with the registry up.
async fn node() -> Node {
    let mut node = Node::start().await;
    node.serve_images().await;
    node
}

async fn run(node: &Node, manifest: &str, args: &[&str]) -> Outcome {
    let path = node.dir().join("pod.yaml");
    fs::write(&path, manifest).unwrap();
    let mut all = vec!["run"];
    all.extend(args);
    all.push(path.to_str().unwrap());
    Driver::start(node, "run", &all).ends().await
}

fn pod(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: Never\n{spec}")
}

/// A container that runs a script, as it stands in a manifest.
fn container(name: &str, script: &str, more: &str) -> String {
    format!(
        "  - name: {name}\n    image: {BUSYBOX}\n    command: [sh, -c, {}]\n{more}",
        serde_json::to_string(script).unwrap()
    )
}

async fn nothing_left(node: &Node) {
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);
    assert_eq!(node.containers(ContainerFilter::default()).await, []);
}

#[tokio::test]
async fn the_example_says_hello() {
    let node = node().await;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/hello.yaml");
    let outcome = Driver::start(&node, "run", &["run", "--rm", example]).ends().await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.out.to_lowercase().contains("hello"), "{outcome:?}");
    assert!(outcome.err.contains("10.88."), "the pod's address is told: {outcome:?}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn the_exit_code_is_the_pod_s() {
    let node = node().await;
    let manifest = pod("code", &format!("  containers:\n{}", container("c", "echo out; echo err >&2; exit 7", "")));
    let outcome = run(&node, &manifest, &["--rm"]).await;
    assert_eq!(outcome.code, 7, "{outcome:?}");
    assert!(outcome.out.contains("out") && outcome.err.contains("err"), "{outcome:?}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn without_rm_the_pod_stays_stopped() {
    let node = node().await;
    let manifest = pod("stays", &format!("  containers:\n{}", container("c", "echo done", "")));
    assert_eq!(run(&node, &manifest, &[]).await.code, 0);
    let pods = node.pods(PodSandboxFilter::default()).await;
    assert_eq!((pods.len(), pods[0].metadata.as_ref().unwrap().name.as_str()), (1, "stays"));
    node.finish().await;
}

#[tokio::test]
async fn init_containers_run_in_order() {
    let node = node().await;
    let volume = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let spec = format!(
        "  volumes: [{{name: v, emptyDir: {{}}}}]\n  initContainers:\n{}{}  containers:\n{}{}",
        container("first", "sleep 0.3; echo first >> /v/order", volume),
        container("second", "echo second >> /v/order", volume),
        container("main", "cat /v/order", volume),
        container("other", "echo beside", volume),
    );
    let outcome = run(&node, &pod("init", &spec), &["--rm"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let lines: Vec<_> = outcome.out.lines().filter(|line| line.contains("main")).collect();
    assert!(lines[0].ends_with("first") && lines[1].ends_with("second"), "{outcome:?}");
    assert!(
        outcome.out.lines().any(|line| line.contains("other") && line.ends_with("beside")),
        "a prefix per container: {outcome:?}"
    );
    let failing = format!(
        "  initContainers:\n{}  containers:\n{}",
        container("broken", "exit 9", ""),
        container("main", "echo must not run", "")
    );
    let outcome = run(&node, &pod("failing", &failing), &["--rm"]).await;
    assert!(outcome.code == 9 && !outcome.out.contains("must not run"), "{outcome:?}");
    node.finish().await;
}

#[tokio::test]
async fn configuration_in_the_same_file() {
    let node = node().await;
    let objects = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {COLOUR: green, file.txt: from a map}\n---\n\
                   apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\ndata: {TOKEN: c2VjcmV0}\nstringData: {PLAIN: text}\n---\n";
    let more = "    env:\n    - {name: ONE, valueFrom: {configMapKeyRef: {name: settings, key: COLOUR}}}\n\
                \x20   - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n\
                \x20   - {name: BOTH, value: \"$(ONE)-$(NAME)\"}\n\
                \x20   envFrom: [{secretRef: {name: keys}}, {configMapRef: {name: settings}, prefix: P_}]\n\
                \x20   volumeMounts: [{name: map, mountPath: /map}, {name: secret, mountPath: /secret, readOnly: true}]\n";
    let script = "echo $BOTH $TOKEN $PLAIN $P_COLOUR; cat /map/file.txt /secret/TOKEN";
    let spec = format!(
        "  volumes: [{{name: map, configMap: {{name: settings}}}}, {{name: secret, secret: {{secretName: keys}}}}]\n  containers:\n{}",
        container("c", script, more)
    );
    let outcome = run(&node, &format!("{objects}{}", pod("config", &spec)), &["--rm"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(
        outcome.out.contains("green-config secret text green") && outcome.out.contains("from a mapsecret"),
        "{outcome:?}"
    );
    node.finish().await;
}

#[tokio::test]
async fn json_on_standard_input() {
    let node = node().await;
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "json" },
        "spec": { "restartPolicy": "Never", "hostNetwork": true,
                  "containers": [{ "name": "c", "image": BUSYBOX, "command": ["echo", "from json"] }] }
    });
    fs::write(node.dir().join("stdin"), manifest.to_string()).unwrap();
    let outcome = Driver::start(&node, "run", &["run", "--rm", "-"]).ends().await;
    assert!(outcome.code == 0 && outcome.out.contains("from json"), "{outcome:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_failed_container_is_started_again() {
    let node = node().await;
    let script = "if [ -e /v/once ]; then echo second time; exit 0; fi; touch /v/once; exit 1";
    let spec = format!(
        "  volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n{}",
        container("c", script, "    volumeMounts: [{name: v, mountPath: /v}]\n")
    );
    let manifest = pod("again", &spec).replace("restartPolicy: Never", "restartPolicy: OnFailure");
    let outcome = run(&node, &manifest, &["--rm"]).await;
    assert!(outcome.code == 0 && outcome.out.contains("second time"), "{outcome:?}");
    node.finish().await;
}

#[tokio::test]
async fn resources_reach_the_container() {
    let node = node().await;
    let more = "    resources: {limits: {cpu: 500m, memory: 64Mi}}\n";
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
    let outcome =
        run(&node, &pod("limits", &format!("  containers:\n{}", container("c", script, more))), &["--rm"]).await;
    assert!(outcome.out.contains("67108864"), "{outcome:?}");
    node.finish().await;
}

#[tokio::test]
async fn the_time_limit_ends_the_pod() {
    let node = node().await;
    let spec =
        format!("  terminationGracePeriodSeconds: 1\n  containers:\n{}", container("c", "echo up; sleep 1000", ""));
    let outcome = run(&node, &pod("limit", &spec), &["--rm", "--timeout", "2s"]).await;
    assert_eq!(outcome.code, 124, "{outcome:?}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_signal_stops_the_pod() {
    let node = node().await;
    let script = "trap 'echo stopping; exit 0' TERM; echo up; while true; do sleep 0.1; done";
    fs::write(node.dir().join("pod.yaml"), pod("signal", &format!("  containers:\n{}", container("c", script, ""))))
        .unwrap();
    let driver = Driver::start(&node, "run", &["run", "--rm", node.dir().join("pod.yaml").to_str().unwrap()]);
    driver.says("up").await;
    driver.signal(nix::sys::signal::Signal::SIGINT);
    let outcome = driver.ends().await;
    assert_eq!(outcome.code, 130, "{outcome:?}");
    assert!(outcome.out.contains("stopping"), "{outcome:?}");
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let node = node().await;
    let probe = "    livenessProbe: {exec: {command: [\"true\"]}}\n";
    for (words, manifest) in [
        (vec!["livenessProbe"], pod("probe", &format!("  containers:\n{}", container("c", "true", probe)))),
        (vec!["nonsense"], pod("field", &format!("  nonsense: 1\n  containers:\n{}", container("c", "true", "")))),
        (
            vec!["persistentVolumeClaim"],
            pod(
                "pvc",
                &format!(
                    "  volumes: [{{name: v, persistentVolumeClaim: {{claimName: x}}}}]\n  containers:\n{}",
                    container("c", "true", "")
                ),
            ),
        ),
        (vec!["containers"], pod("none", "  hostNetwork: true\n")),
        (vec!["name"], pod("UPPER_case", &format!("  containers:\n{}", container("c", "true", "")))),
        (vec!["Deployment"], "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n".to_owned()),
        (
            vec!["settings"],
            pod(
                "ref",
                &format!(
                    "  containers:\n{}",
                    container("c", "true", "    envFrom: [{configMapRef: {name: settings}}]\n")
                ),
            ),
        ),
        (
            vec!["no-such-class"],
            pod("class", &format!("  runtimeClassName: no-such-class\n  containers:\n{}", container("c", "true", ""))),
        ),
        (
            vec!["no-such-image"],
            pod("image", "  containers: [{name: c, image: registry.k8s.io/no-such-image:1, imagePullPolicy: Never}]\n"),
        ),
    ] {
        let outcome = run(&node, &manifest, &["--rm", "--timeout", "20s"]).await;
        assert!(![0, 124].contains(&outcome.code), "{words:?}: {outcome:?}");
        for word in words {
            assert!(outcome.err.contains(word), "{word}: {outcome:?}");
        }
    }
    nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn without_a_runtime_the_endpoint_is_named() {
    let node = node().await;
    let path = node.dir().join("pod.yaml");
    fs::write(&path, pod("x", &format!("  containers:\n{}", container("c", "true", "")))).unwrap();
    let mut command = daemon::command(daemon::program());
    command.args(["run", "--runtime-endpoint", "unix:///no/such.sock", path.to_str().unwrap()]);
    let out = command.output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("/no/such.sock"), "{out:?}");
    node.finish().await;
}

#[tokio::test]
async fn static_pods_follow_their_folder() {
    let node = node().await;
    let folder = node.dir().join("manifests");
    fs::create_dir(&folder).unwrap();
    let write = |name: &str, script: &str| {
        let text =
            pod(name, &format!("  terminationGracePeriodSeconds: 1\n  containers:\n{}", container("c", script, "")));
        let text = text.replace("restartPolicy: Never", "restartPolicy: Always");
        fs::write(folder.join(format!(".{name}.new")), text).unwrap();
        fs::rename(folder.join(format!(".{name}.new")), folder.join(format!("{name}.yaml"))).unwrap();
    };
    let ready = async |wanted: &[&str]| {
        eventually(secs(30), &format!("running: {wanted:?}"), async || {
            let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning as i32 });
            let running = node.containers(ContainerFilter { state, ..Default::default() }).await;
            let pods = node.pods(PodSandboxFilter::default()).await;
            let pod_of = |c: &Container| {
                pods.iter().find(|p| p.id == c.pod_sandbox_id).and_then(|p| p.metadata.clone()).map(|m| m.name)
            };
            let mut names: Vec<String> = running.iter().filter_map(pod_of).collect();
            names.sort();
            if names == wanted { Ok(running) } else { Err(format!("{names:?}")) }
        })
        .await
    };
    let script = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
    write("one", script);
    let manifests = folder.to_str().unwrap().to_owned();
    let driver = Driver::start(&node, "kubelet", &["kubelet", "--manifests", &manifests]);
    // A static pod's name may carry the node's.
    let names = |running: &[Container]| running.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
    let before = names(&ready(&["one"]).await);
    write("two", script);
    ready(&["one", "two"]).await;
    fs::write(folder.join("bad.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {nonsense: 1}\n")
        .unwrap();
    driver.says("bad.yaml: Pod bad: spec.nonsense: no such field").await;
    fs::remove_file(folder.join("bad.yaml")).unwrap();
    write("one", &format!("echo changed; {script}"));
    eventually(secs(30), "the changed pod", async || {
        let now = names(&ready(&["one", "two"]).await);
        if now.contains(&before[0]) { Err("the old container".to_owned()) } else { Ok(()) }
    })
    .await;
    let before = names(&ready(&["one", "two"]).await);
    driver.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(driver.ends().await.code, 0);
    let driver = Driver::start(&node, "kubelet", &["kubelet", "--manifests", &manifests]);
    fs::remove_file(folder.join("two.yaml")).unwrap();
    let left = names(&ready(&["one"]).await);
    assert!(before.contains(&left[0]), "a new driver takes over what runs");
    fs::remove_file(folder.join("one.yaml")).unwrap();
    eventually(secs(30), "no pod", async || {
        if node.pods(PodSandboxFilter::default()).await.is_empty() { Ok(()) } else { Err(String::new()) }
    })
    .await;
    driver.signal(nix::sys::signal::Signal::SIGTERM);
    driver.ends().await;
    node.finish().await;
}
