//! A server, and what is given out at it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::process::Process;
use crate::pod::PodError;
use crate::pod::streams::Wanted;
use crate::streaming::grant::{Verb, Work};
use crate::streaming::session::{AtInputEnd, Session};
use crate::streaming::{Server, Settings, Streaming};
use crate::types::ErrorKind;

pub const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
pub const OUTPUT: Wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false };
pub const TTY: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };

/// Longest wait for anything.
pub const LONG: Duration = Duration::from_secs(20);

pub fn settings() -> Settings {
    Settings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        idle_timeout: LONG,
        creation_timeout: LONG,
        client_timeout: LONG,
        drain: Duration::from_millis(100),
        max_sessions: 100,
    }
}

pub struct World {
    pub streaming: Streaming,
    pub stop: Option<oneshot::Sender<()>>,
    pub server: JoinHandle<()>,
}

impl World {
    pub fn new() -> Self {
        Self::with(settings())
    }

    pub fn with(settings: Settings) -> Self {
        let server = Server::bind(settings).unwrap();
        let streaming = server.streaming();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server.serve(stopped.map(drop)));
        Self { streaming, stop: Some(stop), server }
    }

    /// A URL at which a shell script runs.
    pub fn exec(&self, script: &str, wanted: Wanted) -> String {
        let script = script.to_owned();
        let open = Box::new(move || async move { Ok(Process::start(&script, wanted).exec()) }.boxed());
        self.streaming.give(Verb::Exec, Work::Process { wanted, open }).unwrap()
    }

    /// A URL at which `process` is attached to.
    pub fn attach(&self, process: Process, wanted: Wanted, at_end: AtInputEnd) -> String {
        let open = Box::new(move || async move { Ok(Session::attach(process.attach(), at_end)) }.boxed());
        self.streaming.give(Verb::Attach, Work::Process { wanted, open }).unwrap()
    }

    /// A URL at which nothing can be started.
    pub fn broken(&self, wanted: Wanted) -> String {
        let failed = PodError::Failed { kind: ErrorKind::NotFound, message: "no such program".into() };
        let open = Box::new(move || async move { Err(failed) }.boxed());
        self.streaming.give(Verb::Exec, Work::Process { wanted, open }).unwrap()
    }

    /// A URL at which ports of this machine are reached.
    pub fn ports(&self, ports: &[u16]) -> String {
        let connect = Arc::new(|port: u16| {
            let connected = async move {
                TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| PodError::Failed {
                    kind: ErrorKind::Unavailable,
                    message: format!("port {port}: {error}"),
                })
            };
            connected.boxed()
        });
        self.streaming.give(Verb::PortForward, Work::Ports { ports: ports.to_vec(), connect }).unwrap()
    }
}

/// Waits for what must come.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it never came")
}
