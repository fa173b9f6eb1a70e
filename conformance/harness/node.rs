//! One test's node: its folder, its daemon, its registry, and short forms of the CRI's calls.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use podwright::proto::*;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use super::census::Baseline;
use super::config::Setup;
use super::cri::Cri;
use super::daemon::Daemon;
use super::logs::{self, Line};
use super::registry::Registry;
use super::wait::{eventually, secs};
use super::{cgroups, host, specs};

/// A node. End each test with [`Node::finish`].
#[derive(Debug)]
pub struct Node {
    dir: tempfile::TempDir,
    driver: &'static str,
    cgroup_parent: String,
    cri: Cri,
    daemon: Option<Daemon>,
    registry: Option<Registry>,
    ids: Mutex<BTreeSet<String>>,
    baseline: Option<Baseline>,
}

/// A sandbox that was made.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What was asked for.
    pub config: PodSandboxConfig,
}

/// A container that was made.
#[derive(Debug, Clone)]
pub struct Ctr {
    /// Its id.
    pub id: String,
    /// Its log file.
    pub log: PathBuf,
}

impl Node {
    /// A node with bridge network and a running daemon.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// The same, with the usual image pulled from a real registry.
    pub async fn ready() -> Self {
        let mut node = Self::start().await;
        node.pull(specs::BUSYBOX).await;
        node
    }

    /// A node as asked, with a running daemon.
    pub async fn with(setup: Setup) -> Self {
        let mut node = Self::prepare(&setup);
        node.start_daemon().await;
        node
    }

    /// A node as asked, its daemon not started yet.
    pub fn prepare(setup: &Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("pwt.").tempdir_in("/tmp").expect("a temporary folder");
        // The root of a user namespace must find its way to STATE.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("mode");
        host::isolate(dir.path());
        setup.write(dir.path());
        let token: String = dir.path().to_string_lossy().chars().filter(char::is_ascii_alphanumeric).skip(6).collect();
        let cgroup_parent = cgroups::parent(&token.to_lowercase(), setup.driver);
        let cri = Cri::new(&dir.path().join("cri.sock"));
        let node = Self {
            dir,
            driver: setup.driver,
            cgroup_parent,
            cri,
            daemon: None,
            registry: None,
            ids: Mutex::default(),
            baseline: None,
        };
        // A node's init reaps orphans; here this process does.
        let mut children = signal(SignalKind::child()).expect("SIGCHLD");
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                host::reap();
            }
        });
        node
    }

    /// Starts the daemon. The first time, what is there now becomes what must be there at the end.
    pub async fn start_daemon(&mut self) {
        let before = self.baseline.is_none().then(|| Baseline::before(self.dir()));
        self.daemon = Some(Daemon::start(self.dir()).await);
        self.version().await.expect("Version");
        if let Some(mut baseline) = before {
            baseline.started(self);
            self.baseline = Some(baseline);
        }
    }

    /// `kill -9` of the daemon.
    pub fn kill9(&mut self) {
        self.daemon.take().expect("a daemon").kill9();
    }

    /// `kill -9` of the daemon, and a new one.
    pub async fn restart(&mut self) {
        self.kill9();
        self.start_daemon().await;
    }

    /// SIGTERM to the daemon, and waits until it has ended well.
    pub async fn terminate(&mut self) {
        let status = self.daemon.take().expect("a daemon").terminate(secs(30)).await;
        assert!(status.success(), "the daemon's end at SIGTERM: {status}");
    }

    /// The daemon has ended in a way the test itself saw to.
    pub fn forget_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.reap();
        }
    }

    /// The node's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Cgroup driver in use.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// The cgroup parent of this test's pods.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// The running daemon.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a running daemon")
    }

    /// The client.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Every id that the daemon gave out.
    pub fn ids(&self) -> BTreeSet<String> {
        self.ids.lock().expect("ids").clone()
    }

    fn remember(&self, id: &str) {
        self.ids.lock().expect("ids").insert(id.to_owned());
    }

    /// What the daemon wrote so far.
    pub fn daemon_log(&self) -> String {
        let bytes = std::fs::read(self.dir().join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts the registry with the test images, once.
    pub async fn serve_images(&mut self) {
        if self.registry.is_none() {
            self.registry = Some(Registry::start(self.dir()).await);
        }
    }

    /// Ends the registry.
    pub fn stop_images(&mut self) {
        self.registry = None;
    }

    /// Pulls an image from the real registry.
    pub async fn pull(&mut self, reference: &str) -> String {
        self.serve_images().await;
        self.try_pull(reference, None).await.unwrap_or_else(|status| panic!("pull {reference}: {status}"))
    }

    /// PullImage.
    pub async fn try_pull(&self, reference: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
        let request = PullImageRequest { image: Some(specs::image(reference)), auth, sandbox_config: None };
        Ok(self.cri.images().pull_image(request).await?.into_inner().image_ref)
    }

    /// Version.
    pub async fn version(&self) -> Result<VersionResponse, Status> {
        Ok(self.cri.runtime().version(VersionRequest { version: "v1".into() }).await?.into_inner())
    }

    /// RunPodSandbox with a handler.
    pub async fn run_pod(&self, config: PodSandboxConfig, handler: &str) -> Result<Pod, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = self.cri.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.remember(&id);
        Ok(Pod { id, config })
    }

    /// RunPodSandbox with the default handler, which must succeed.
    pub async fn up(&self, config: PodSandboxConfig) -> Pod {
        self.run_pod(config, "").await.unwrap_or_else(|status| panic!("RunPodSandbox: {status}"))
    }

    /// CreateContainer.
    pub async fn try_create(&self, pod: &Pod, config: ContainerConfig) -> Result<Ctr, Status> {
        let log = Path::new(&pod.config.log_directory).join(&config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = self.cri.runtime().create_container(request).await?.into_inner().container_id;
        self.remember(&id);
        Ok(Ctr { id, log })
    }

    /// CreateContainer, which must succeed.
    pub async fn create(&self, pod: &Pod, config: ContainerConfig) -> Ctr {
        self.try_create(pod, config).await.unwrap_or_else(|status| panic!("CreateContainer: {status}"))
    }

    /// StartContainer.
    pub async fn try_start(&self, ctr: &Ctr) -> Result<(), Status> {
        self.cri.runtime().start_container(StartContainerRequest { container_id: ctr.id.clone() }).await.map(drop)
    }

    /// Creates and starts a container, which must succeed.
    pub async fn launch(&self, pod: &Pod, config: ContainerConfig) -> Ctr {
        let ctr = self.create(pod, config).await;
        self.try_start(&ctr).await.unwrap_or_else(|status| panic!("StartContainer: {status}"));
        ctr
    }

    /// StopContainer.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.cri.runtime().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        self.cri.runtime().remove_container(RemoveContainerRequest { container_id: id.to_owned() }).await.map(drop)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        self.cri.runtime().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        self.cri.runtime().remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await.map(drop)
    }

    /// Stops and removes a sandbox, which must succeed.
    pub async fn down(&self, pod: &Pod) {
        self.stop_pod(&pod.id).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status}"));
        self.remove_pod(&pod.id).await.unwrap_or_else(|status| panic!("RemovePodSandbox: {status}"));
    }

    /// PodSandboxStatus, with what the verbose form adds.
    pub async fn pod_status(&self, id: &str) -> Result<PodSandboxStatusResponse, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        Ok(self.cri.runtime().pod_sandbox_status(request).await?.into_inner())
    }

    /// ContainerStatus.
    pub async fn try_status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.cri.runtime().container_status(request).await?.into_inner();
        Ok(answer.status.expect("a status in ContainerStatusResponse"))
    }

    /// ContainerStatus, which must succeed.
    pub async fn status(&self, ctr: &Ctr) -> ContainerStatus {
        self.try_status(&ctr.id).await.unwrap_or_else(|status| panic!("ContainerStatus: {status}"))
    }

    /// Host pid of a container's first process.
    pub async fn pid_of(&self, ctr: &Ctr) -> i32 {
        let request = ContainerStatusRequest { container_id: ctr.id.clone(), verbose: true };
        let info = self.cri.runtime().container_status(request).await.expect("ContainerStatus").into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("info in JSON");
        i32::try_from(info["pid"].as_i64().expect("a pid")).expect("a pid")
    }

    /// ListPodSandbox.
    pub async fn pods(&self, filter: PodSandboxFilter) -> Vec<PodSandbox> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        self.cri.runtime().list_pod_sandbox(request).await.expect("ListPodSandbox").into_inner().items
    }

    /// ListContainers.
    pub async fn containers(&self, filter: ContainerFilter) -> Vec<Container> {
        let request = ListContainersRequest { filter: Some(filter) };
        self.cri.runtime().list_containers(request).await.expect("ListContainers").into_inner().containers
    }

    /// ListImages.
    pub async fn images(&self) -> Vec<Image> {
        self.cri.images().list_images(ListImagesRequest { filter: None }).await.expect("ListImages").into_inner().images
    }

    /// ImageStatus.
    pub async fn image(&self, reference: &str) -> Option<Image> {
        let request = ImageStatusRequest { image: Some(specs::image(reference)), verbose: false };
        self.cri.images().image_status(request).await.expect("ImageStatus").into_inner().image
    }

    /// RemoveImage.
    pub async fn remove_image(&self, reference: &str) -> Result<(), Status> {
        let request = RemoveImageRequest { image: Some(specs::image(reference)) };
        self.cri.images().remove_image(request).await.map(drop)
    }

    /// The same with a deadline.
    pub async fn remove_image_within(&self, reference: &str, limit: Duration) -> Result<(), Status> {
        let mut request = tonic::Request::new(RemoveImageRequest { image: Some(specs::image(reference)) });
        request.set_timeout(limit);
        self.cri.images().remove_image(request).await.map(drop)
    }

    /// ExecSync; `timeout` in seconds, 0: none.
    pub async fn try_exec(&self, ctr: &Ctr, command: &[&str], timeout: i64) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest { container_id: ctr.id.clone(), cmd: specs::args(command), timeout };
        Ok(self.cri.runtime().exec_sync(request).await?.into_inner())
    }

    /// ExecSync that must succeed with exit code 0; its standard output.
    pub async fn exec(&self, ctr: &Ctr, command: &[&str]) -> String {
        let answer =
            self.try_exec(ctr, command, 30).await.unwrap_or_else(|status| panic!("ExecSync {command:?}: {status}"));
        let (out, err) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert_eq!(answer.exit_code, 0, "ExecSync {command:?}: {out}{err}");
        out.into_owned()
    }

    /// Waits until a container has ended.
    pub async fn exited(&self, ctr: &Ctr) -> ContainerStatus {
        eventually(secs(30), "the container's end", async || {
            let status = self.try_status(&ctr.id).await.map_err(|status| status.to_string())?;
            if status.state() == ContainerState::ContainerExited {
                Ok(status)
            } else {
                Err(format!("{:?}", status.state()))
            }
        })
        .await
    }

    /// Waits until the log holds a line with this text.
    pub async fn logged(&self, ctr: &Ctr, text: &str) -> Vec<Line> {
        eventually(secs(20), &format!("{text:?} in the log"), async || {
            let lines = logs::so_far(&ctr.log);
            if lines.iter().any(|line| line.text.contains(text)) { Ok(lines) } else { Err(format!("{lines:?}")) }
        })
        .await
    }

    /// Runs a container to its end: exit code and what it wrote to stdout.
    pub async fn outcome(&self, pod: &Pod, config: ContainerConfig) -> (i32, String) {
        let ctr = self.launch(pod, config).await;
        let status = self.exited(&ctr).await;
        let lines = logs::read(&ctr.log);
        let errors = logs::stream(&lines, "stderr");
        if !errors.is_empty() {
            eprintln!("stderr of {}: {errors}", ctr.log.display());
        }
        (status.exit_code, logs::stream(&lines, "stdout"))
    }

    /// Runs a shell script in a container of the usual image; its standard output. It must exit with 0.
    pub async fn script(&self, pod: &Pod, name: &str, script: &str) -> String {
        let (code, out) = self.outcome(pod, self.sh(name, script)).await;
        assert_eq!(code, 0, "{script}: {out}");
        out
    }

    /// The host's pid of a container's init or of a pod's pause, found by its cgroup. Either may have its name only a
    /// moment after the call that made it was answered, for which this waits.
    pub fn pid_in(&self, id: &str, name: &str) -> i32 {
        let inside =
            |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|table| table.contains(id));
        let end = Instant::now() + secs(10);
        loop {
            let found = host::descendants().into_iter().find(|process| process.name == name && inside(process.pid));
            if let Some(process) = found {
                return process.pid;
            }
            assert!(Instant::now() < end, "no process {name} in a cgroup of {id}");
            #[expect(
                clippy::disallowed_methods,
                reason = "as `eventually` does: there is no event to wait for in procfs"
            )]
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes everything through the CRI, counts what is left on the machine, and ends the daemon. Every test's end.
    pub async fn finish(mut self) {
        for pod in self.pods(PodSandboxFilter::default()).await {
            self.remember(&pod.id);
            self.stop_pod(&pod.id).await.unwrap_or_else(|status| panic!("StopPodSandbox at the end: {status}"));
            self.remove_pod(&pod.id).await.unwrap_or_else(|status| panic!("RemovePodSandbox at the end: {status}"));
        }
        assert_eq!(self.containers(ContainerFilter::default()).await, [], "containers of removed pods");
        for image in self.images().await {
            self.remove_image(&image.id).await.unwrap_or_else(|status| panic!("RemoveImage at the end: {status}"));
        }
        assert_eq!(self.images().await, [], "removed images");
        let baseline = self.baseline.take().expect("a baseline");
        eventually(secs(15), "the census", async || baseline.compare(&self)).await;
        self.terminate().await;
        self.stop_images();
        eventually(secs(15), "the census after the daemon's end", async || baseline.compare_without_daemon(&self))
            .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.daemon_log();
            let tail: Vec<_> = log.lines().rev().take(150).collect();
            eprintln!("---- the daemon's log, its end:");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        // Whatever a broken runtime left must not stay on the machine.
        for _ in 0..100 {
            let left: Vec<_> = host::descendants().into_iter().filter(|process| process.state != 'Z').collect();
            if left.is_empty() {
                break;
            }
            for process in left {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), nix::sys::signal::SIGKILL);
            }
            host::reap();
        }
        if self.driver == "systemd" {
            let _ = std::process::Command::new("systemctl").args(["stop", &self.cgroup_parent]).output();
        }
        let (ids, parent) = (self.ids(), self.cgroup_parent.trim_start_matches('/').to_owned());
        cgroups::remove(cgroups::find(|name| name == parent || ids.iter().any(|id| name.contains(id.as_str()))));
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
