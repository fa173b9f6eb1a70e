//! From calls to what they call for.

use super::container::{Doing, MAX_QUEUE};
use super::failure;
use super::server::{Caller, Closing, Monitor};
use crate::types::{ContainerId, ErrorKind};
use crate::wire::{Failure, Reply, Request, State, VERSION};

impl Monitor {
    /// Carries out or queues a call.
    pub(super) fn call(&mut self, caller: Caller, request: Request) {
        match request {
            Request::Hello { .. } => {
                // State and greeting in one go: no event can come between.
                let state = self.state();
                self.answer(Some(caller), Ok(Reply::Hello(state)));
                self.greet(caller.connection);
            }
            Request::Pause(spec) => self.start_pause(caller, &spec),
            Request::KillPause => self.kill_pause(Some(caller)),
            Request::Create(spec) => self.create(caller, *spec),
            Request::Exec(ref spec) => {
                let container = spec.container.clone();
                self.turn(&container, Some(caller), request);
            }
            Request::ExecStreamed(ref spec) => {
                let container = spec.exec.container.clone();
                self.turn(&container, Some(caller), request);
            }
            Request::Attach(ref spec) => {
                let container = spec.container.clone();
                self.turn(&container, Some(caller), request);
            }
            Request::EndExec { ref container, .. }
            | Request::Start { ref container }
            | Request::Kill { ref container, .. }
            | Request::Delete { ref container }
            | Request::ReopenLog { ref container } => {
                let container = container.clone();
                self.turn(&container, Some(caller), request);
            }
            Request::Shutdown => self.shut_down(caller),
        }
    }

    /// Does what can be done now with a container, queues what must wait for its turn.
    pub(super) fn turn(&mut self, id: &ContainerId, caller: Option<Caller>, request: Request) {
        if let Some(container) = self.containers.get_mut(id)
            && container.doing.is_some()
        {
            if container.queue.len() >= MAX_QUEUE {
                let full = failure(ErrorKind::ResourceExhausted, format!("container {id}: too many requests wait"));
                return self.answer(caller, Err(full));
            }
            return container.queue.push_back((caller, request));
        }
        match request {
            Request::Start { .. } => self.start(id, caller),
            Request::Kill { signal, all, .. } => self.kill(id, caller, signal, all),
            Request::Delete { .. } => self.delete(id, caller),
            Request::ReopenLog { .. } => self.reopen_log(id, caller),
            Request::Exec(spec) => self.exec(caller, *spec),
            Request::EndExec { token, .. } => self.end_exec(id, caller, token),
            Request::ExecStreamed(spec) => self.exec_streamed(caller, *spec),
            Request::Attach(spec) => self.attach(caller, *spec),
            Request::Hello { .. } | Request::Pause(_) | Request::Create(_) | Request::KillPause | Request::Shutdown => {
            }
        }
    }

    /// What was being done with a container is done: goes on with its queue.
    pub(super) fn next(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.doing = None;
        }
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            if container.doing.is_some() {
                return;
            }
            let Some((caller, request)) = container.queue.pop_front() else { return };
            self.turn(id, caller, request);
        }
    }

    fn shut_down(&mut self, caller: Caller) {
        self.closing.get_or_insert_with(Closing::default).callers.push(caller);
        self.kill_pause(None);
        let all: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for container in all {
            let removal = (None, Request::Delete { container: container.clone() });
            match self.containers.get_mut(&container).map(|container| (&container.doing, &mut container.queue)) {
                None | Some((Some(Doing::Delete(..)), _)) => {}
                Some((None, _)) => self.turn(&container, removal.0, removal.1),
                Some((Some(_), queue)) => queue.push_front(removal),
            }
            // What is being made is not waited for.
            let begun = self.jobs.iter().find(|(_, job)| job.begins(&container)).map(|(number, _)| *number);
            if let Some(job) = begun {
                self.cancel_job(job, failure(ErrorKind::Aborted, "the monitor is shutting down"));
            }
        }
        // What is left by now may never end, and so lead there no more.
        self.settle();
    }

    fn state(&self) -> State {
        State {
            version: VERSION,
            pod: self.pod.clone(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            pause: self.sandbox.process(),
            containers: self.containers.values().filter_map(super::container::Container::state).collect(),
        }
    }

    /// The failure for a container nobody knows.
    pub(super) fn unknown(id: &ContainerId) -> Failure {
        failure(ErrorKind::NotFound, format!("container {id} is not known to the pod's monitor"))
    }
}
