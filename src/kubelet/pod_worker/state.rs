//! What to do next for a pod, from what is wanted and what is there. Pure; times are nanoseconds since the epoch.
//!
//! ```text
//! no sandbox ──RunSandbox──▶ init containers, one by one ──▶ containers, all ──▶ complete ──Stop──▶ Finish
//!      ▲                          │ exits: restart policy         │                    ▲
//!      └── sandbox lost ──────────┴───────────────────────────────┘    halt, deadline ─┘
//! ```

use std::collections::BTreeMap;

use super::super::manifest::{Pod, RestartPolicy};

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Init containers, in order.
    pub init: Vec<InitStep>,
    /// Containers, in order.
    pub main: Vec<String>,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// How long the pod may run.
    pub deadline: Option<i64>,
}

/// One init container.
#[derive(Debug, Clone)]
pub struct InitStep {
    /// Name.
    pub name: String,
    /// It goes on beside the others rather than to its end.
    pub sidecar: bool,
}

impl Plan {
    /// The plan of a pod.
    pub fn of(pod: &Pod) -> Self {
        let init = pod.spec.init_containers.iter();
        Self {
            init: init.map(|c| InitStep { name: c.name.clone(), sidecar: c.is_sidecar() }).collect(),
            main: pod.spec.containers.iter().map(|c| c.name.clone()).collect(),
            restart: pod.spec.restart_policy,
            deadline: pod.spec.active_deadline_seconds.map(|seconds| i64::from(seconds) * 1_000_000_000),
        }
    }

    fn is_sidecar(&self, name: &str) -> bool {
        self.init.iter().any(|step| step.sidecar && step.name == name)
    }
}

/// The pod's newest sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Id.
    pub id: String,
    /// Counts the sandboxes of the pod.
    pub attempt: u32,
    /// It is up.
    pub ready: bool,
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Over.
    Exited {
        /// Exit code.
        code: i32,
        /// When.
        at: i64,
    },
}

/// The newest container of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Id.
    pub id: String,
    /// Counts the containers of this name.
    pub attempt: u32,
    /// It is in the newest sandbox.
    pub here: bool,
    /// State.
    pub life: Life,
    /// If it exited: when it may be started again.
    pub ready_at: i64,
}

/// Why a pod was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All its containers are done, by the restart policy.
    Completed {
        /// The exit code of the first that failed, else 0.
        code: i32,
    },
    /// It was told to stop.
    Halted,
    /// It ran for longer than `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// Its sandbox died, and the restart policy forbids another one.
    SandboxLost,
}

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The newest sandbox.
    pub sandbox: Option<Sandbox>,
    /// When the pod first started; 0: it has not.
    pub started_at: i64,
    /// Containers by name.
    pub containers: BTreeMap<String, Seen>,
    /// What failed to start is not tried again before this, by container name; "" stands for the sandbox.
    pub held: BTreeMap<String, i64>,
    /// The pod was told to stop.
    pub halted: bool,
    /// Now.
    pub now: i64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a sandbox, after clearing away the one before.
    RunSandbox {
        /// Its attempt.
        attempt: u32,
    },
    /// Start a container that is already made.
    Start {
        /// Name.
        container: String,
    },
    /// Make and start a container.
    Launch {
        /// Name.
        container: String,
        /// Its attempt.
        attempt: u32,
    },
    /// Nothing until something changes, or until this time.
    Wait {
        /// Time.
        until: Option<i64>,
    },
    /// Stop the containers, then the sandbox.
    Stop,
    /// It is over.
    Finish(Outcome),
}

/// The next action.
pub fn decide(plan: &Plan, world: &World) -> Action {
    if let Some(outcome) = outcome(plan, world) {
        let ready = world.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready);
        let busy = world.containers.values().any(|seen| !matches!(seen.life, Life::Exited { .. }));
        return if ready || (busy && world.sandbox.is_some()) { Action::Stop } else { Action::Finish(outcome) };
    }
    let deadline = plan.deadline.filter(|_| world.started_at > 0).map(|limit| world.started_at.saturating_add(limit));
    let attempt = match &world.sandbox {
        Some(sandbox) if sandbox.ready => None,
        Some(sandbox) => Some(sandbox.attempt + 1),
        None => Some(0),
    };
    if let Some(attempt) = attempt {
        return match held(world, "") {
            Some(time) => Action::Wait { until: Some(time) },
            None => Action::RunSandbox { attempt },
        };
    }
    let mut until = deadline;
    let mut soonest = |time: i64| until = Some(until.map_or(time, |known| known.min(time)));
    let main_began = plan.main.iter().any(|name| here(world, name).is_some());
    for step in &plan.init {
        let seen = here(world, &step.name);
        let again = match seen.map(|seen| seen.life) {
            Some(Life::Running) if step.sidecar => continue,
            Some(Life::Running) => return Action::Wait { until },
            Some(Life::Exited { code: 0, .. }) if !step.sidecar => continue,
            // Once the containers run, an init container is never run again.
            _ if main_began && !step.sidecar => continue,
            _ => launch(world, &step.name),
        };
        match again {
            Next::Now(action) => return action,
            // A sidecar that waits to be restarted holds up nobody who is already running.
            Next::At(time) if main_began => soonest(time),
            Next::At(time) => {
                soonest(time);
                return Action::Wait { until };
            }
        }
    }
    for name in &plan.main {
        let seen = world.containers.get(name);
        let done = match seen.map(|seen| (seen.life, seen.here)) {
            Some((Life::Running, true)) => true,
            Some((Life::Exited { code, .. }, here)) => match plan.restart {
                RestartPolicy::Always => false,
                RestartPolicy::OnFailure => code == 0,
                RestartPolicy::Never => here,
            },
            _ => false,
        };
        if done {
            continue;
        }
        match launch(world, name) {
            Next::Now(action) => return action,
            Next::At(time) => soonest(time),
        }
    }
    Action::Wait { until }
}

enum Next {
    Now(Action),
    At(i64),
}

fn here<'a>(world: &'a World, name: &str) -> Option<&'a Seen> {
    world.containers.get(name).filter(|seen| seen.here)
}

fn held(world: &World, name: &str) -> Option<i64> {
    world.held.get(name).copied().filter(|time| *time > world.now)
}

fn launch(world: &World, name: &str) -> Next {
    if let Some(time) = held(world, name) {
        return Next::At(time);
    }
    match world.containers.get(name) {
        None => Next::Now(Action::Launch { container: name.to_owned(), attempt: 0 }),
        Some(seen) if seen.here && seen.life == Life::Created => {
            Next::Now(Action::Start { container: name.to_owned() })
        }
        // The back-off is for containers that exit by themselves, not for those that went with their sandbox.
        Some(seen) if seen.here && seen.ready_at > world.now => Next::At(seen.ready_at),
        Some(seen) => Next::Now(Action::Launch { container: name.to_owned(), attempt: seen.attempt + 1 }),
    }
}

/// How the pod ended; `None` while it goes on.
fn outcome(plan: &Plan, world: &World) -> Option<Outcome> {
    let end = completed(plan, world);
    let deadline = plan.deadline.filter(|_| world.started_at > 0).map(|limit| world.started_at.saturating_add(limit));
    if let Some(deadline) = deadline.filter(|deadline| world.now >= *deadline) {
        // It was over in time, and only looked at late?
        let in_time = end.filter(|(_, at)| *at < deadline);
        return Some(in_time.map_or(Outcome::DeadlineExceeded, |(code, _)| Outcome::Completed { code }));
    }
    match end {
        _ if world.halted => Some(Outcome::Halted),
        Some((code, _)) => Some(Outcome::Completed { code }),
        None => {
            let lost = world.sandbox.as_ref().is_some_and(|sandbox| !sandbox.ready);
            let began = !world.containers.is_empty();
            (lost && began && plan.restart == RestartPolicy::Never).then_some(Outcome::SandboxLost)
        }
    }
}

/// The pod's exit code and when it was reached, if all is done.
fn completed(plan: &Plan, world: &World) -> Option<(i32, i64)> {
    if plan.restart == RestartPolicy::Never {
        let failed = plan.init.iter().filter(|step| !plan.is_sidecar(&step.name)).find_map(|step| {
            match world.containers.get(&step.name).map(|seen| seen.life) {
                Some(Life::Exited { code, at }) if code != 0 => Some((code, at)),
                _ => None,
            }
        });
        if failed.is_some() {
            return failed;
        }
    }
    let mut last = 0;
    let mut first_failure: Option<(i64, i32)> = None;
    for name in &plan.main {
        let Life::Exited { code, at } = world.containers.get(name)?.life else { return None };
        match plan.restart {
            RestartPolicy::Always => return None,
            RestartPolicy::OnFailure if code != 0 => return None,
            _ => {}
        }
        last = last.max(at);
        if code != 0 && first_failure.is_none_or(|(time, _)| at < time) {
            first_failure = Some((at, code));
        }
    }
    Some((first_failure.map_or(0, |(_, code)| code), last))
}
