//! The daemon's process.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixDatagram;

use super::host;
use super::wait::{eventually, secs};

/// The programs under test: `PODWRIGHT_BIN`, or what cargo built.
pub fn program() -> PathBuf {
    let given = ["PODWRIGHT_BIN", "NEXTEST_BIN_EXE_podwright"].iter().find_map(std::env::var_os);
    given.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_podwright")), PathBuf::from)
}

/// A command that runs one of our programs, or one of theirs, and dies with this test.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref()).stdin(Stdio::null());
    let machine = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{machine}:/usr/sbin:/sbin:/usr/bin:/bin:{}/usr/bin", super::registry::tools().display()));
    command
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it with the configuration in `dir` and waits until it says that it is ready.
    pub async fn start(dir: &Path) -> Self {
        let notify = dir.join("notify.sock");
        let _ = std::fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).expect("notify socket");
        let mut daemon =
            Self::spawn(dir, &["serve", "--config", &dir.join("config.toml").to_string_lossy()], Some(&notify));
        let ready = async {
            let mut message = [0; 512];
            loop {
                let length = socket.recv(&mut message).await.expect("notify message");
                if String::from_utf8_lossy(&message[..length]).lines().any(|line| line == "READY=1") {
                    return;
                }
            }
        };
        let died = async {
            loop {
                if let Some(status) = daemon.child.try_wait().expect("wait for the daemon") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = ready => {}
            status = died => panic!("the daemon ended before it was ready: {status}"),
            () = tokio::time::sleep(secs(30)) => panic!("the daemon did not say READY=1 within {:?}", secs(30)),
        }
        daemon
    }

    /// Starts the program with these arguments; its output is added to `daemon.log`.
    pub fn spawn(dir: &Path, args: &[&str], notify: Option<&Path>) -> Self {
        let log = File::options().create(true).append(true).open(dir.join("daemon.log")).expect("daemon.log");
        let mut command = command(program());
        command.args(args).current_dir("/").stdout(log.try_clone().expect("dup")).stderr(log);
        command.env_remove("NOTIFY_SOCKET");
        if let Some(path) = notify {
            command.env("NOTIFY_SOCKET", path);
        }
        Self { child: host::spawn(&mut command) }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(mut self) {
        self.child.kill().expect("kill -9");
        let status = self.child.wait().expect("wait for the daemon");
        assert_eq!(status.signal(), Some(9), "the daemon had ended by itself: {status}");
    }

    /// SIGTERM, and waits until it is gone.
    pub async fn terminate(self, limit: Duration) -> ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        self.ended(limit).await
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self, limit: Duration) -> ExitStatus {
        eventually(limit, "the daemon's end", async || match self.child.try_wait().expect("wait for the daemon") {
            Some(status) => Ok(status),
            None => Err("it runs".to_owned()),
        })
        .await
    }

    /// Takes note of the end of one that has ended, or is about to.
    pub fn reap(mut self) {
        self.child.wait().expect("wait for the daemon");
    }

    /// The open files of it, TCP connections left out.
    pub fn open_files(&self) -> Vec<String> {
        host::open_files(self.pid())
    }
}
