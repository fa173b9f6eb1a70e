use std::time::Instant;

use tonic::Status;

use super::*;
use crate::kubelet::events::Events;
use crate::kubelet::fake::{Fake, Server};
use crate::kubelet::manifest::{self, parse};
use crate::kubelet::qos::CgroupDriver;
use crate::kubelet::record::Claim;
use crate::kubelet::teardown::{PodRef, teardown};
use crate::kubelet::translate::{Origin, parse_resolv_conf};

/// A fake runtime on a socket and what a worker for it needs.
struct Bench {
    root: tempfile::TempDir,
    fake: Fake,
    server: Option<Server>,
    cri: Cri,
    dirs: Arc<Dirs>,
    job: Arc<PodJob>,
}

impl Bench {
    fn new(spec: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("s");
        let fake = Fake::default();
        let server = Some(fake.serve(&socket));
        let endpoint = socket.to_str().unwrap();
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{{spec}}}\n");
        let mut manifest: manifest::Manifest = parse(&text, "f").unwrap();
        let document = manifest.pods.remove(0);
        let job = PodJob {
            pod: document.pod,
            objects: manifest.objects,
            uid: "u".to_owned(),
            hash: document.hash,
            owner: "test".to_owned(),
            origin: Origin::default(),
        };
        let dirs = Dirs {
            pods: root.path().join("pods"),
            logs: root.path().join("logs"),
            seccomp: root.path().join("seccomp"),
        };
        let cri = Cri::new(endpoint, endpoint).unwrap();
        Self { fake, server, cri, dirs: Arc::new(dirs), job: Arc::new(job), root }
    }

    async fn teardown(&self) -> Result<(), WorkerError> {
        let pod = PodRef::of(&self.job);
        let claim = Claim::of(&pod, &self.dirs).unwrap().unwrap();
        teardown(&self.cri, &self.dirs, &pod, 0, &claim).await
    }

    /// A worker, the switch that halts it, and its reports.
    fn worker(&self, stubborn: bool) -> (Worker, watch::Sender<Halt>, mpsc::Receiver<Report>) {
        let (halt, halted) = watch::channel(Halt::No);
        let (reports, incoming) = mpsc::channel(1000);
        let node = Node {
            name: "n".to_owned(),
            memory: 1 << 30,
            cpu_milli: 1000,
            pod_dns: parse_resolv_conf(""),
            host_dns: parse_resolv_conf(""),
            driver: CgroupDriver::Cgroupfs,
            cgroup_v2: false,
            selinux: false,
            recursive_read_only: Vec::new(),
        };
        let tools = Tools {
            cri: self.cri.clone(),
            node: Arc::new(node),
            dirs: self.dirs.clone(),
            listener: Events::start(self.cri.clone()).listen(),
            reports,
            halt: halted,
            asking: TaskTracker::new(),
        };
        (Worker::new(self.job.clone(), tools, stubborn), halt, incoming)
    }
}

async fn until_started(reports: &mut mpsc::Receiver<Report>, container: &str) {
    while let Some(report) = reports.recv().await {
        if report == Report::Started(container.to_owned()) {
            return;
        }
    }
    panic!("{container} never started");
}

const PAIR: &str = "restartPolicy: Never, terminationGracePeriodSeconds: 5, \
    initContainers: [{name: i, image: 'exit-0', imagePullPolicy: IfNotPresent}], \
    containers: [{name: a, image: 'exit-0', imagePullPolicy: IfNotPresent}, {name: b, image: 'exit-3'}]";

#[tokio::test]
async fn a_pod_runs_to_its_code() {
    let bench = Bench::new(PAIR);
    let (mut worker, _halt, mut reports) = bench.worker(false);
    assert_eq!(worker.run().await.unwrap(), Outcome::Completed { code: 3 });
    let calls = bench.fake.calls();
    let later: Vec<&str> =
        calls.iter().map(String::as_str).filter(|c| !c.starts_with("pull") && *c != "sandbox").collect();
    assert_eq!(later, ["create i 0", "start i", "create a 0", "start a", "create b 0", "start b", "stop-sandbox"]);
    // Each image once, though two containers use one of them.
    assert_eq!(calls.iter().filter(|call| call.starts_with("pull")).count(), 2);
    let mut all = Vec::new();
    while let Ok(report) = reports.try_recv() {
        all.push(report);
    }
    assert!(all.contains(&Report::SandboxReady(vec!["10.0.0.7".to_owned()])));
    assert!(all.iter().any(|report| matches!(report, Report::Exited { container, code: 3, .. } if container == "b")));
    assert!(bench.root.path().join("pods/u/hosts").exists());
    bench.teardown().await.unwrap();
    assert!(bench.fake.0.lock().unwrap().sandboxes.is_empty());
    assert!(!bench.root.path().join("pods/u").exists());
}

#[tokio::test]
async fn a_pod_whose_sandbox_may_yet_come_keeps_its_record() {
    let bench = Bench::new("restartPolicy: Never, containers: [{name: a, image: 'exit-0'}]");
    bench.fake.0.lock().unwrap().failures.push(("sandbox", Status::deadline_exceeded("not yet")));
    let (mut worker, _halt, _reports) = bench.worker(false);
    worker.run().await.unwrap_err();
    assert!(matches!(bench.teardown().await.unwrap_err(), WorkerError::Awaited { .. }));
    assert!(bench.root.path().join("pods/u/pod.json").exists());
    let (mut worker, _halt, _reports) = bench.worker(false);
    worker.run().await.unwrap();
    bench.teardown().await.unwrap();
    assert!(!bench.root.path().join("pods/u").exists());
    // One that is refused never comes.
    bench.fake.0.lock().unwrap().failures.push(("sandbox", Status::invalid_argument("no")));
    let (mut worker, _halt, _reports) = bench.worker(false);
    worker.run().await.unwrap_err();
    bench.teardown().await.unwrap();
}

#[tokio::test]
async fn a_failed_start_names_the_container() {
    let bench = Bench::new(PAIR);
    bench.fake.0.lock().unwrap().failures.push(("start", Status::internal("no such program")));
    let (mut worker, _halt, _reports) = bench.worker(false);
    let error = worker.run().await.unwrap_err();
    assert_eq!(crate::types::chain(&error), "container i: StartContainer: no such program");
}

#[tokio::test]
async fn a_runtime_that_goes_away_is_waited_for() {
    let mut bench = Bench::new("restartPolicy: Never, containers: [{name: a, image: x}]");
    let (mut worker, _halt, mut reports) = bench.worker(false);
    let task = tokio::spawn(async move { worker.run().await });
    until_started(&mut reports, "a").await;
    bench.server = None;
    let socket = bench.root.path().join("s");
    std::fs::remove_file(&socket).unwrap();
    bench.fake.0.lock().unwrap().exit("a", 4);
    // Its trouble is seen before the runtime comes back.
    while !matches!(reports.recv().await, Some(Report::Trouble(_))) {}
    bench.server = Some(bench.fake.serve(&socket));
    assert_eq!(task.await.unwrap().unwrap(), Outcome::Completed { code: 4 });
}

#[tokio::test]
async fn a_second_worker_takes_over() {
    let bench = Bench::new("restartPolicy: Never, containers: [{name: a, image: x}]");
    let (mut worker, _halt, mut reports) = bench.worker(true);
    let task = tokio::spawn(async move { worker.run().await });
    until_started(&mut reports, "a").await;
    task.abort();
    let before = bench.fake.calls().len();
    bench.fake.0.lock().unwrap().exit("a", 0);
    let (mut worker, _halt, _reports) = bench.worker(true);
    assert_eq!(worker.run().await.unwrap(), Outcome::Completed { code: 0 });
    assert_eq!(bench.fake.calls()[before..], ["stop-sandbox"]);
}

#[tokio::test]
async fn a_second_halt_does_not_wait_for_the_first() {
    let bench = Bench::new(
        "terminationGracePeriodSeconds: 600, initContainers: [{name: side, image: x, restartPolicy: Always}], \
         containers: [{name: deaf, image: x}]",
    );
    let (mut worker, halt, mut reports) = bench.worker(false);
    let task = tokio::spawn(async move { worker.run().await });
    until_started(&mut reports, "deaf").await;
    let began = Instant::now();
    halt.send_replace(Halt::Gracefully);
    // The runtime has the first request before the second is made.
    while !bench.fake.calls().contains(&"stop deaf 600".to_owned()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    halt.send_replace(Halt::Now);
    assert_eq!(task.await.unwrap().unwrap(), Outcome::Halted);
    assert!(began.elapsed() < Duration::from_secs(60));
    let calls = bench.fake.calls();
    // The sidecar goes last.
    assert_eq!(calls[calls.len() - 3..], ["stop deaf 0", "stop side 0", "stop-sandbox"]);
}

#[tokio::test]
async fn a_stubborn_worker_goes_on_after_errors() {
    let bench = Bench::new("restartPolicy: Never, containers: [{name: a, image: 'exit-0'}]");
    bench.fake.0.lock().unwrap().failures.push(("pull", Status::not_found("no such image")));
    let (mut worker, _halt, mut reports) = bench.worker(true);
    assert_eq!(worker.run().await.unwrap(), Outcome::Completed { code: 0 });
    assert_eq!(bench.fake.calls().iter().filter(|call| call.starts_with("pull")).count(), 2);
    reports.close();
    // A one-time pod fails at once.
    let bench = Bench::new("restartPolicy: Never, containers: [{name: a, image: 'exit-0'}]");
    bench.fake.0.lock().unwrap().failures.push(("pull", Status::not_found("no such image")));
    let (mut worker, _halt, _reports) = bench.worker(false);
    assert_eq!(crate::types::chain(&worker.run().await.unwrap_err()), "image exit-0: PullImage: no such image");
}

#[tokio::test]
async fn a_crash_loop_keeps_two_containers() {
    let bench = Bench::new("restartPolicy: OnFailure, containers: [{name: a, image: 'exit-1'}]");
    let (mut worker, halt, _reports) = bench.worker(false);
    // Without waiting for real back-offs: forget each as it comes.
    for _ in 0..12 {
        worker.backoffs.clear();
        assert!(worker.step().await.unwrap().is_none());
    }
    let kept = bench.fake.0.lock().unwrap().containers.len();
    assert!(kept <= 2, "{kept}");
    halt.send_replace(Halt::Now);
    assert_eq!(worker.run().await.unwrap(), Outcome::Halted);
}
