//! One container, as the monitor knows it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::backend::ExecStatus;
use super::cgroup;
use super::output::Stdio;
use super::poll::Timer;
use super::server::Caller;
use crate::sys::process::Ended;
use crate::wire::{ContainerState, CreateSpec, Exit, Failure, Process, Request};

/// Requests that may wait for one container.
pub const MAX_QUEUE: usize = 256;

/// What is being done with a container; nothing else is, meanwhile, except execs.
#[derive(Debug)]
pub enum Doing {
    /// The engine makes it.
    Create(Option<Caller>),
    /// The engine lets it run.
    Start(Option<Caller>),
    /// Its processes are killed, then the engine removes it.
    Delete(Option<Caller>, Option<Timer>),
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// As it was asked for.
    pub spec: CreateSpec,
    /// Its streams and log.
    pub stdio: Stdio,
    /// From create to start.
    pub status: Option<ExecStatus>,
    /// Init, from the end of its creation on.
    pub process: Option<Process>,
    /// Init while it is not reaped.
    pub handle: Option<OwnedFd>,
    /// When Start was done.
    pub started_ns: Option<i64>,
    /// Why Start failed.
    pub refused: Option<Failure>,
    /// Init ended; to be reported when what is being done is done.
    pub ended: Option<(Ended, i64)>,
    /// As reported.
    pub exit: Option<Exit>,
    /// The OOM killer's count in the cgroup above when it was last looked at, where that is needed.
    pub oom_kills_above: Option<u64>,
    /// Under way.
    pub doing: Option<Doing>,
    /// To be done afterwards.
    pub queue: VecDeque<(Option<Caller>, Request)>,
}

impl Container {
    /// One whose creation has just begun.
    pub fn new(spec: CreateSpec, stdio: Stdio, status: Option<ExecStatus>, caller: Caller) -> Self {
        Self {
            oom_kills_above: cgroup::oom_kills_above(&spec.cgroups),
            spec,
            stdio,
            status,
            process: None,
            handle: None,
            started_ns: None,
            refused: None,
            ended: None,
            exit: None,
            doing: Some(Doing::Create(Some(caller))),
            queue: VecDeque::new(),
        }
    }

    /// For Hello; a container that is still being created is not told of.
    pub fn state(&self) -> Option<ContainerState> {
        Some(ContainerState {
            container: self.spec.container.clone(),
            process: self.process?,
            started_ns: self.started_ns,
            starting: matches!(self.doing, Some(Doing::Start(_))),
            exit: self.exit.clone(),
        })
    }
}
