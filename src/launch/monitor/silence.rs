//! Monitors that do not answer, stopped or stuck in the kernel. A monitor works for milliseconds between two requests,
//! so one that lives answers Hello at any time, whatever else it has been asked for, or is at least heard meanwhile. One
//! that is not is no reason for clients to wait for ever; and where its containers are to end anyway, it is killed, and
//! they with it: by its end the pod's task learns that it has to see to what is left.

use std::time::Duration;

use tracing::warn;

use super::LaunchError;
use super::link::Link;
use crate::sys::process;
use crate::wire::{Process, Reply, Request, VERSION};

/// How long an answer may take before the monitor is asked whether it lives.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });
/// How long that answer may take.
const HELLO: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5_000 });
/// How often in a row it is missed before the monitor is killed: it may wait for a slow disk.
const MISSED: u32 = 2;

/// What becomes of a call that a silent monitor does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// It waits: what is being made stays known to whoever asks again.
    Wait,
    /// It fails.
    Fail,
    /// The monitor is killed.
    Kill,
}

impl Silence {
    /// By what is asked for.
    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::Hello { .. } | Request::Pause(_) | Request::Create(_) | Request::Start { .. } => Self::Wait,
            Request::Exec(_) | Request::ExecStreamed(_) | Request::Attach(_) | Request::ReopenLog { .. } => Self::Fail,
            Request::EndExec { .. } => Self::Fail,
            // A mere signal may be meant for a program that is to go on.
            Request::Kill { all: false, .. } => Self::Fail,
            Request::Kill { all: true, .. } | Request::Delete { .. } | Request::KillPause | Request::Shutdown => {
                Self::Kill
            }
        }
    }
}

/// A call over `link` to the monitor that is `process`.
pub(super) async fn call(link: &Link, process: Option<Process>, request: Request) -> Result<Reply, LaunchError> {
    let silence = Silence::of(&request);
    let answer = link.call(request);
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        error = lost(link, process, silence) => Err(error),
    }
}

/// Ready once the monitor is silent and that ends the call.
async fn lost(link: &Link, process: Option<Process>, silence: Silence) -> LaunchError {
    let mut missed = 0;
    loop {
        tokio::time::sleep(PATIENCE).await;
        let heard = link.heard();
        let hello = tokio::time::timeout(HELLO, link.call(Request::Hello { version: VERSION }));
        // On a slow machine it may have much to do before it comes to that one.
        if hello.await.is_ok() || link.heard() != heard {
            missed = 0;
            continue;
        }
        missed += 1;
        match silence {
            Silence::Wait => {}
            Silence::Fail => return LaunchError::Silent(link.pod().clone()),
            Silence::Kill if missed < MISSED => {}
            Silence::Kill => {
                warn!(pod = %link.pod(), "monitor does not answer; killing it");
                if let Some(process) = process {
                    process::kill_if_same(process.pid, process.start_time);
                }
                // Its end answers the call, unless the kernel holds it fast.
                tokio::time::sleep(PATIENCE).await;
                return LaunchError::Silent(link.pod().clone());
            }
        }
    }
}
