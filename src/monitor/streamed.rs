//! Processes run in a container whose streams are a client's own: pipes that came with the request,
//! or a terminal that goes to the client.
//!
//! Nothing of what they read or write passes through the monitor, which holds two descriptors for
//! each: the process, and the client's line. When the client hangs up, the process is killed with all
//! of its session.

use std::os::fd::{AsFd as _, OwnedFd};

use tracing::info;

use super::backend::{self, Streams};
use super::console::Console;
use super::exec::{BEGIN_LIMIT, Client, Exec};
use super::line::Line;
use super::poll::Source;
use super::server::{Caller, Monitor};
use super::{because, failure, socket};
use crate::types::ErrorKind;
use crate::wire::{Failure, Reply, StreamedExec, Told};

impl Monitor {
    /// Request::ExecStreamed
    pub(super) fn exec_streamed(&mut self, caller: Option<Caller>, spec: StreamedExec) {
        if let Err(failure) = self.begin_streamed(caller, spec) {
            self.answer(caller, Err(failure));
        }
    }

    fn begin_streamed(&mut self, caller: Option<Caller>, spec: StreamedExec) -> Result<(), Failure> {
        let id = &spec.exec.container;
        let init = self.running(id)?;
        let ends = spec.ends.sort(spec.descriptors)?;
        let number = self.number();
        let (streams, console) = if spec.terminal {
            let console = Console::listen(&self.dir, number, Source::ExecConsole(number), &mut self.poll);
            let console = console.map_err(because("making the socket for a terminal"))?;
            (Streams::Terminal { console_socket: console.path().to_owned() }, Some(console))
        } else {
            let end = |given: Option<OwnedFd>| given.map_or_else(socket::null, Ok);
            let pipes = || {
                let (stdin, stdout, stderr) = (end(ends.stdin)?, end(ends.stdout)?, end(ends.stderr)?);
                Ok(Streams::Pipes { stdin, stdout, stderr })
            };
            (pipes().map_err(because("making the streams of an exec"))?, None)
        };
        let mut client = Client { line: None, console };
        let begun =
            Line::new(ends.line, number, &mut self.poll).map_err(because("watching a client")).and_then(|line| {
                client.line = Some(line);
                let container = self.containers.get(id).ok_or_else(|| Self::unknown(id))?;
                backend::exec(&container.spec, init, &spec.exec, streams)
            });
        match begun {
            Ok(job) => {
                let mut exec = Exec::new(caller, id.clone());
                exec.client = Some(client);
                self.watch_exec(number, exec, job, Some(BEGIN_LIMIT));
                Ok(())
            }
            Err(failure) => {
                client.close(&mut self.poll);
                Err(failure)
            }
        }
    }

    /// A runtime wants to hand over an exec's terminal.
    pub(super) fn on_exec_console(&mut self, number: u64) {
        let Some(client) = self.execs.get_mut(&number).and_then(|exec| exec.client.as_mut()) else { return };
        // Should it fail, the exec ends with that once its process is made.
        let _ = client.take_terminal(&mut self.poll);
    }

    /// The program of an exec runs, or has run. Does nothing for one without a client of its own.
    pub(super) fn streams_begun(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let Some(client) = &mut exec.client else { return };
        let Some(caller) = exec.caller.take() else { return };
        let answer = match client.take_terminal(&mut self.poll) {
            Ok(()) => Ok(Reply::Done),
            Err(mut why) => {
                why.message = format!("exec in container {}: {}", exec.container.short(), why.message);
                self.kill_exec(number);
                Err(why)
            }
        };
        self.answer(Some(caller), answer);
    }

    /// A client hung up, of an exec or of a container's streams.
    pub(super) fn on_line(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return self.on_listener_line(number) };
        let Some(client) = &mut exec.client else { return };
        if !client.line.as_ref().is_some_and(Line::hung_up) {
            return;
        }
        if let Some(line) = client.line.take() {
            line.close(&mut self.poll);
        }
        info!(container = %exec.container, "the client of an exec is gone; killing it");
        match exec.job {
            Some(job) => self.cancel_job(job, failure(ErrorKind::Aborted, "the client is gone")),
            None => self.kill_exec(number),
        }
    }

    /// The process of an exec ended, or could not be made.
    pub(super) fn finish_streams(&mut self, exec: Exec, client: Client, failed: Option<Failure>) {
        if let Some(why) = failed {
            self.answer(exec.caller, Err(why));
        }
        if let (Some(line), Some(exit_code)) = (&client.line, exec.code) {
            // A client that is gone need not know.
            let _ = line.tell(Told::Ended { exit_code }, &[]);
        }
        client.close(&mut self.poll);
        self.advance_delete(&exec.container);
    }
}

impl Client {
    /// Passes on the terminal that the runtime has sent, if one is awaited.
    fn take_terminal(&mut self, poll: &mut super::poll::Poll) -> Result<(), Failure> {
        let Some(console) = &mut self.console else { return Ok(()) };
        let received = console.receive(poll).map_err(because("receiving the terminal"))?;
        let master = received.ok_or_else(|| failure(ErrorKind::Internal, "the runtime sent no terminal"))?;
        if let Some(console) = self.console.take() {
            console.close(poll);
        }
        match &self.line {
            Some(line) => line.tell(Told::Terminal, &[master.as_fd()]).map_err(because("passing on the terminal")),
            None => Ok(()),
        }
    }

    fn close(self, poll: &mut super::poll::Poll) {
        if let Some(console) = self.console {
            console.close(poll);
        }
        if let Some(line) = self.line {
            line.close(poll);
        }
    }
}
