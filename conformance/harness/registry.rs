//! A real registry with the test images, one per test, in the test's network namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::config::REGISTRY;
use super::host;
use super::wait::{eventually, secs};

/// A running docker-registry; it ends with the test.
#[derive(Debug)]
pub struct Registry {
    child: Child,
}

/// The folder for what the suite makes and keeps: test images, tools.
fn kept() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    std::env::var_os("PODWRIGHT_TEST_DATA").map_or_else(|| target.join("conformance"), PathBuf::from)
}

/// Where conformance/setup.sh unpacks programs that it does not install.
pub fn tools() -> PathBuf {
    kept().join("tools")
}

/// The folder with the test images, which are made if they are not there.
pub fn images() -> PathBuf {
    let folder = kept().join("images");
    if !folder.join("stamp").exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/images/make-images.sh");
        let out = Command::new(&script).arg(&folder).output().expect("make-images.sh");
        assert!(out.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&out.stderr));
    }
    folder
}

impl Registry {
    /// Starts it and waits until it answers.
    pub async fn start(dir: &Path) -> Self {
        let storage = images().join("registry");
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}}}\n  maintenance: {{readonly: {{enabled: true}}, uploadpurging: {{enabled: false}}}}\n\
             http: {{addr: \"{REGISTRY}\", secret: none}}\n",
            storage.display()
        );
        fs::write(&config, text).expect("registry.yml");
        let log = File::create(dir.join("registry.log")).expect("registry.log");
        let mut command = super::daemon::command("docker-registry");
        command.arg("serve").arg(&config).stdout(log.try_clone().expect("dup")).stderr(log);
        // From here on it ends with the test, whatever becomes of that.
        let mut registry = Self { child: host::spawn(&mut command) };
        eventually(secs(20), "the registry's answer", async || {
            let log = || fs::read_to_string(dir.join("registry.log")).unwrap_or_default();
            if let Some(status) = registry.child.try_wait().expect("wait for the registry") {
                panic!("the registry has ended: {status}\n{}", log());
            }
            tokio::net::TcpStream::connect(REGISTRY).await.map(drop).map_err(|error| format!("{error}\n{}", log()))
        })
        .await;
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
