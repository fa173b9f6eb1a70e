//! What a token is good for, and the URLs that carry it.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::portforward::Connect;
use super::remotecommand::Open;
use super::session::{AtInputEnd, Session};
use super::token::{TokenError, Tokens};
use crate::pod::Pods;
use crate::pod::streams::Wanted;
use crate::types::{ErrorKind, HasKind};

/// No URL was given out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StreamingError {
    /// See there.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl HasKind for StreamingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Token(TokenError::TooMany) => ErrorKind::ResourceExhausted,
            Self::Token(TokenError::Random) => ErrorKind::Internal,
        }
    }
}

/// Gives out URLs of the streaming server. What each stands for begins when a client comes with it; nothing is checked
/// here, and everything by then.
#[derive(Clone)]
pub struct Streaming {
    pub(super) tokens: Arc<Tokens<Grant>>,
    /// `http://127.0.0.1:40000`.
    base: Arc<str>,
}

impl Streaming {
    pub(super) fn new(base: String) -> Self {
        Self { tokens: Arc::new(Tokens::new()), base: base.into() }
    }

    /// A URL at which `command` is executed in a container.
    ///
    /// # Errors
    /// Too many URLs wait to be used.
    pub fn exec(
        &self,
        pods: &Pods,
        container: &str,
        command: Vec<String>,
        wanted: Wanted,
    ) -> Result<String, StreamingError> {
        let (pods, id) = (pods.clone(), container.to_owned());
        let open: Open =
            Box::new(move || async move { pods.exec(&id, command, wanted).await.map(Session::exec) }.boxed());
        self.give(Verb::Exec, Work::Process { wanted, open })
    }

    /// A URL at which a container's own streams are.
    ///
    /// # Errors
    /// Too many URLs wait to be used.
    pub fn attach(&self, pods: &Pods, container: &str, wanted: Wanted) -> Result<String, StreamingError> {
        let (pods, id) = (pods.clone(), container.to_owned());
        let attach = async move {
            let config = Arc::clone(&pods.container(&id)?.config);
            let wanted = as_created(wanted, config.tty, config.stdin);
            // As all runtimes have it: the first client's end is the container's only where it asked for that, and
            // never with a terminal, where one leaves by detaching.
            let once = config.stdin_once && !config.tty;
            let at_end = if once { AtInputEnd::Close } else { AtInputEnd::Detach };
            Ok(Session::attach(pods.attach(&id, wanted).await?, at_end))
        };
        self.give(Verb::Attach, Work::Process { wanted, open: Box::new(move || attach.boxed()) })
    }

    /// A URL at which ports of a sandbox are. `ports` are for clients that cannot name them on their own.
    ///
    /// # Errors
    /// Too many URLs wait to be used.
    pub fn port_forward(&self, pods: &Pods, sandbox: &str, ports: Vec<u16>) -> Result<String, StreamingError> {
        let (pods, id) = (pods.clone(), sandbox.to_owned());
        let connect: Connect = Arc::new(move |port| {
            let (pods, id) = (pods.clone(), id.clone());
            async move { pods.connect(&id, port).await }.boxed()
        });
        self.give(Verb::PortForward, Work::Ports { ports, connect })
    }

    pub(super) fn give(&self, verb: Verb, work: Work) -> Result<String, StreamingError> {
        let token = self.tokens.give(Grant { verb, work })?;
        Ok(format!("{}/{}/{token}", self.base, verb.name()))
    }
}

/// What can be had of what a client wants of a container that has a terminal, or not, and an input, or not. Clients ask
/// for what they could use, and do without what is not there.
fn as_created(wanted: Wanted, tty: bool, stdin: bool) -> Wanted {
    let only_stdin = !wanted.stdout && !wanted.stderr;
    Wanted {
        // A client that wants nothing else is told that there is none.
        stdin: wanted.stdin && (stdin || only_stdin),
        stdout: wanted.stdout,
        stderr: wanted.stderr && !tty,
        tty,
    }
}

/// What a client may do.
pub(super) struct Grant {
    /// Its endpoint.
    pub(super) verb: Verb,
    /// What is done there.
    pub(super) work: Work,
}

/// Endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Exec,
    Attach,
    PortForward,
}

impl Verb {
    const ALL: [Self; 3] = [Self::Exec, Self::Attach, Self::PortForward];

    /// As in a path.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    /// Verb and token of a path.
    pub(super) fn of_path(path: &str) -> Option<(Self, &str)> {
        let (name, token) = path.strip_prefix('/')?.split_once('/')?;
        let verb = Self::ALL.into_iter().find(|verb| verb.name() == name)?;
        Some((verb, token))
    }
}

/// What is done for a client.
pub(super) enum Work {
    /// Exec and attach.
    Process { wanted: Wanted, open: Open },
    /// Port-forward.
    Ports { ports: Vec<u16>, connect: Connect },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attach_is_cut_to_what_the_container_has() {
        let all = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        assert_eq!(as_created(all, false, true), all);
        assert_eq!(as_created(all, true, true), Wanted { stderr: false, tty: true, ..all });
        assert_eq!(as_created(all, false, false), Wanted { stdin: false, ..all });
        let input = Wanted { stdin: true, ..Wanted::default() };
        assert_eq!(as_created(input, false, false), input);
    }

    #[test]
    fn paths() {
        assert_eq!(Verb::of_path("/exec/abc"), Some((Verb::Exec, "abc")));
        assert_eq!(Verb::of_path("/portforward/a"), Some((Verb::PortForward, "a")));
        assert_eq!(Verb::of_path("/attach/"), Some((Verb::Attach, "")));
        for other in ["", "/", "/exec", "exec/a", "/Exec/a", "/execsync/a", "//exec/a"] {
            assert_eq!(Verb::of_path(other), None, "{other}");
        }
    }
}
