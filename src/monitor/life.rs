//! Containers from create to delete.
//!
//! ```text
//! Create ─ job ─▶ created ─ Start ─ job ─▶ running ─ init reaped ─▶ exited ─ Delete ─ kill, wait, job ─▶ gone
//!    └─ failed or late ─▶ Undo ─ job ─▶ gone
//! ```

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tracing::{info, warn};

use super::container::{Container, Doing};
use super::jobs::Purpose;
use super::output::Stdio;
use super::poll::Source;
use super::reaper::{Adopted, Owner};
use super::server::{Caller, Monitor};
use super::{backend, cgroup, failure};
use crate::sys::process::{self, Ended};
use crate::types::{ContainerId, ErrorKind, now_ns};
use crate::wire::{CreateSpec, Event, Exit, Failure, Reply};

/// Time for a removal.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// Time for a creation or start that came without a limit.
const CREATE_LIMIT: Duration = Duration::from_secs(120);

/// Time for processes to end after SIGKILL; one that waits for a dead disk may take for ever.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Monitor {
    /// Request::Create
    pub(super) fn create(&mut self, caller: Caller, spec: CreateSpec) {
        let id = spec.container.clone();
        let refusal = if self.closing.is_some() {
            Some(failure(ErrorKind::FailedPrecondition, "the monitor is shutting down"))
        } else if self.containers.contains_key(&id) {
            Some(failure(ErrorKind::AlreadyExists, format!("container {id} exists")))
        } else {
            None
        };
        let begun = refusal.map_or_else(|| self.begin_create(caller, spec), Err);
        if let Err(failure) = begun {
            self.answer(Some(caller), Err(failure));
        }
    }

    fn begin_create(&mut self, caller: Caller, spec: CreateSpec) -> Result<(), Failure> {
        let id = spec.container.clone();
        let number = self.number();
        let (stdio, streams) = Stdio::open(&spec, &self.dir, number, &mut self.poll)?;
        let (job, status) = match backend::create(&spec, streams) {
            Ok(begun) => begun,
            Err(failure) => {
                stdio.close(&mut self.poll, &mut self.reader);
                return Err(failure);
            }
        };
        let limit = limit(&spec);
        self.containers.insert(id.clone(), Container::new(spec, stdio, status, caller));
        if let Err(failure) = self.watch(job, Purpose::Create(id.clone()), Some(limit)) {
            self.created(&id, Err(failure));
        }
        Ok(())
    }

    /// The engine is done with a creation.
    pub(super) fn created(&mut self, id: &ContainerId, result: Result<i32, Failure>) {
        let adopted = result.and_then(|pid| self.adopt(pid, Owner::Init(id.clone())));
        let Some(container) = self.containers.get_mut(id) else { return };
        let made = adopted.and_then(|adopted| {
            let process = match adopted {
                Adopted::Alive(process, handle) => {
                    container.handle = Some(handle);
                    process
                }
                Adopted::Ended(process, ended) => {
                    container.ended = Some((ended, now_ns()));
                    process
                }
            };
            container.stdio.take_terminal(&mut self.poll).map(|()| process)
        });
        let process = match made {
            Ok(process) => process,
            Err(why) => return self.undo(id, named(id, "creating", why)),
        };
        container.process = Some(process);
        if let Some(Doing::Create(caller)) = container.doing.take() {
            self.answer(caller, Ok(Reply::Created(process)));
        }
        self.report(id);
        self.next(id);
    }

    /// Removes what a failed creation left, then answers with why it failed.
    fn undo(&mut self, id: &ContainerId, why: Failure) {
        let Some(container) = self.containers.get(id) else { return };
        kill_cgroup(container);
        if let Some(handle) = &container.handle {
            // Gone is fine.
            let _ = process::signal(handle, libc::SIGKILL);
        }
        let undone = backend::delete(&container.spec)
            .and_then(|job| self.watch(job, Purpose::Undo(id.clone(), why.clone()), Some(DELETE_LIMIT)));
        if let Err(failure) = undone {
            self.undone(id, why, Err(failure));
        }
    }

    /// The engine is done with removing what a failed creation left.
    pub(super) fn undone(&mut self, id: &ContainerId, mut why: Failure, result: Result<(), Failure>) {
        if let Err(failure) = result {
            warn!(container = %id, %failure, "undoing a creation");
            why.message = format!("{}; and undoing it: {failure}", why.message);
        }
        let caller = self.containers.get_mut(id).and_then(|container| match container.doing.take() {
            Some(Doing::Create(caller)) => caller,
            _ => None,
        });
        self.forget(id);
        self.answer(caller, Err(why));
    }

    /// Request::Start
    pub(super) fn start(&mut self, id: &ContainerId, caller: Option<Caller>) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.answer(caller, Err(Self::unknown(id)));
        };
        let known = match (container.started_ns, &container.refused, &container.handle) {
            // Whoever asks again was not there when it was told.
            (Some(at_ns), ..) => Some(Ok(Reply::Started { at_ns })),
            (None, Some(why), _) => Some(Err(why.clone())),
            (None, None, None) => {
                Some(Err(failure(ErrorKind::FailedPrecondition, format!("container {id} has ended"))))
            }
            (None, None, Some(_)) => None,
        };
        if let Some(known) = known {
            return self.answer(caller, known);
        }
        container.doing = Some(Doing::Start(caller));
        let limit = limit(&container.spec);
        let begun = backend::start(&container.spec, container.status.take())
            .and_then(|job| self.watch(job, Purpose::Start(id.clone()), Some(limit)));
        if let Err(failure) = begun {
            self.started(id, Err(failure));
        }
    }

    /// The engine is done with a start.
    pub(super) fn started(&mut self, id: &ContainerId, result: Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(Doing::Start(caller)) = container.doing.take() else { return };
        let result = match result {
            Ok(()) => {
                // The program may have ended by now; it has not ended before it began.
                let at_ns = container.ended.as_ref().map_or_else(now_ns, |(_, at)| now_ns().min(*at));
                container.started_ns = Some(at_ns);
                Ok(Reply::Started { at_ns })
            }
            Err(why) => {
                // However far it has come: what counts as ended must not run.
                if let Some(handle) = &container.handle {
                    // Gone is fine.
                    let _ = process::signal(handle, libc::SIGKILL);
                }
                kill_cgroup(container);
                let why = named(id, "starting", why);
                container.refused = Some(why.clone());
                Err(why)
            }
        };
        self.answer(caller, result);
        self.report(id);
        self.next(id);
    }

    /// Init was reaped.
    pub(super) fn on_init_ended(&mut self, id: &ContainerId, ended: Ended) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.handle = None;
        container.ended = Some((ended, now_ns()));
        // Without a PID namespace of its own, a container may leave processes behind.
        kill_cgroup(container);
        container.stdio.drain(&mut self.poll, &mut self.reader);
        if !matches!(container.doing, Some(Doing::Create(_) | Doing::Start(_))) {
            self.report(id);
        }
        self.advance_delete(id);
    }

    /// Records and announces the end of init, once.
    fn report(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((ended, at_ns)) = container.ended.filter(|_| container.exit.is_none()) else { return };
        let above = cgroup::oom_kills_above(&container.spec.cgroups);
        // Of several containers of the pod, the one that SIGKILL ended is it.
        let counted = above > container.oom_kills_above && ended.code() == 128 + libc::SIGKILL;
        let folders = &container.spec.cgroups;
        let oom_killed = cgroup::oom_killed(folders) || (counted && cgroup::gone(folders));
        let exit = Exit { container: id.clone(), exit_code: ended.code(), oom_killed, at_ns };
        container.exit = Some(exit.clone());
        if above.is_some() {
            // What was laid at this one's door is at no other's.
            self.containers.values_mut().for_each(|other| other.oom_kills_above = above);
        }
        if let Err(error) = record(&self.dir, &exit) {
            // The daemon learns of it from the event or from Hello.
            warn!(container = %id, %error, "exit.json could not be written");
        }
        self.reader.listeners.finish(id, exit.exit_code, &mut self.poll);
        self.read_on(id);
        info!(container = %id, code = exit.exit_code, oom = exit.oom_killed, "container ended");
        self.announce(&Event::Exited(exit));
    }

    /// Request::Kill
    pub(super) fn kill(&mut self, id: &ContainerId, caller: Option<Caller>, signal: i32, all: bool) {
        let killed = match self.containers.get(id) {
            None => Ok(()),
            Some(_) if !(1..=64).contains(&signal) => {
                Err(failure(ErrorKind::InvalidArgument, format!("{signal} is no signal")))
            }
            Some(container) => {
                let init = match &container.handle {
                    Some(handle) => process::signal(handle, signal).map(drop),
                    None => Ok(()),
                };
                let rest = match all {
                    true => cgroup::signal_all(&container.spec.cgroups, signal, container.process.map(|init| init.pid)),
                    false => Ok(()),
                };
                init.and(rest).map_err(|error| {
                    failure(ErrorKind::Internal, format!("sending signal {signal} to container {id}: {error}"))
                })
            }
        };
        self.answer(caller, killed.map(|()| Reply::Done));
    }

    /// Request::Delete; with nobody to answer to: Shutdown.
    pub(super) fn delete(&mut self, id: &ContainerId, caller: Option<Caller>) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.answer(caller, Ok(Reply::Done));
        };
        if let Some(handle) = &container.handle {
            // Gone is fine, and that it may not be killed shows when the time is up.
            let _ = process::signal(handle, libc::SIGKILL);
        }
        kill_cgroup(container);
        let timer = self.poll.timer(KILL_LIMIT, Source::Killed(id.clone()));
        container.doing = Some(Doing::Delete(caller, Some(timer)));
        self.kill_execs(id);
        self.advance_delete(id);
    }

    /// Goes on with a removal once all processes are gone.
    pub(super) fn advance_delete(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(Doing::Delete(_, timer)) = &mut container.doing else { return };
        if timer.is_none() || container.handle.is_some() || self.execs.values().any(|exec| exec.blocks(id)) {
            return;
        }
        if let Some(timer) = timer.take() {
            self.poll.cancel(timer);
        }
        let begun = backend::delete(&container.spec)
            .and_then(|job| self.watch(job, Purpose::Delete(id.clone()), Some(DELETE_LIMIT)));
        if let Err(failure) = begun {
            self.deleted(id, Err(failure));
        }
    }

    /// Processes did not end.
    pub(super) fn kill_is_late(&mut self, id: &ContainerId) {
        let message = format!("processes still live {} seconds after SIGKILL", KILL_LIMIT.as_secs());
        self.deleted(id, Err(failure(ErrorKind::DeadlineExceeded, message)));
    }

    /// A removal is done, or has failed; it can be asked for again then.
    pub(super) fn deleted(&mut self, id: &ContainerId, result: Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(Doing::Delete(caller, timer)) = container.doing.take() else { return };
        if let Some(timer) = timer {
            self.poll.cancel(timer);
        }
        let result = result.map_err(|why| named(id, "deleting", why));
        match (&result, &mut self.closing) {
            (Err(why), Some(closing)) => closing.failures.push(why.clone()),
            (Err(_), None) => {
                self.answer(caller, result.map(|()| Reply::Done));
                return self.next(id);
            }
            (Ok(()), _) => {}
        }
        self.forget(id);
        self.answer(caller, result.map(|()| Reply::Done));
    }

    /// Request::ReopenLog
    pub(super) fn reopen_log(&mut self, id: &ContainerId, caller: Option<Caller>) {
        let result = match self.containers.get_mut(id) {
            None => Err(Self::unknown(id)),
            Some(container) => container.stdio.reopen_log().map(|()| Reply::Done),
        };
        self.answer(caller, result);
    }

    /// Closes a container's streams and strikes it off the list; what still waits for it learns that it is gone.
    fn forget(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.remove(id) else { return };
        container.stdio.close(&mut self.poll, &mut self.reader);
        for (caller, request) in container.queue {
            self.turn(id, caller, request);
        }
    }
}

fn kill_cgroup(container: &Container) {
    if let Err(error) = cgroup::signal_all(&container.spec.cgroups, libc::SIGKILL, None) {
        warn!(container = %container.spec.container, %error, "killing the cgroup");
    }
}

fn limit(spec: &CreateSpec) -> Duration {
    if spec.timeout_ms == 0 { CREATE_LIMIT } else { Duration::from_millis(spec.timeout_ms) }
}

fn named(id: &ContainerId, what: &str, why: Failure) -> Failure {
    Failure { message: format!("{what} container {}: {}", id.short(), why.message), ..why }
}

/// Leaves the end of a container where a daemon finds it that starts after this monitor is gone.
fn record(dir: &Path, exit: &Exit) -> io::Result<()> {
    let folder = dir.join("containers").join(&exit.container);
    let (new, path) = (folder.join("exit.json.new"), folder.join("exit.json"));
    fs::write(&new, serde_json::to_vec(exit)?)?;
    fs::rename(&new, &path)
}
