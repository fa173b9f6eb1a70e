//! The last thing that happens before a container's program runs, in init and in exec processes.
//!
//! Architecture Invariant: this is the security boundary. libcontainer has set namespaces, mounts,
//! ids and groups by then, and left us every capability; whatever is to be given up is given up
//! here, in this order, and any failure ends the process:
//!
//! 1. before init waits for its start, so that nobody who shares its PID namespace and may trace
//!    others finds a process with more than the container has: the labels for the next execve (which
//!    no_new_privs does not hinder: the kernel lets the unconfined go on to any profile, and a label's
//!    policy says so itself), the pod's user namespace, if it has one ([`super::users`]), the bounding
//!    set (needs CAP_SETPCAP), all capabilities but the container's (and CAP_SYS_ADMIN, where step 3
//!    needs it)
//! 2. signals at their defaults
//! 3. without no_new_privs: the seccomp filter (needs CAP_SYS_ADMIN), then the capability sets
//!    with it: the capability sets, then the filter, so that the filter may forbid even those calls
//! 4. execve, by PATH of the program's own environment

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::covers::{self, Cover};
use super::job::ALIVE;
use super::labels::Labels;
use super::late::Opened;
use super::listener::Listener;
use super::nodes::Device;
use super::spec::Program;
use super::users::{Joining, with_files_of};
use super::{attempt, failure, nodes, passwd, rootfs};
use crate::sys::lsm::Attributes;
use crate::sys::{caps, exec, fork, mounts, seccomp};
use crate::types::ErrorKind;
use crate::wire::{Capabilities, Confinement, Failure};

/// Where programs are looked up when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit codes as shells have them.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Runs a program confined. Clones share the status pipe.
#[derive(Clone)]
pub(super) struct Confined {
    args: Vec<CString>,
    name: String,
    env: RefCell<Vec<CString>>,
    path: String,
    cwd: std::path::PathBuf,
    init: Option<RawFd>,
    user: Option<Rc<Joining>>,
    read_only: Option<&'static Path>,
    labels: Option<Rc<Labels>>,
    late: Rc<[Opened]>,
    covers: Rc<[Cover]>,
    nodes: Rc<[Device]>,
    uid: u32,
    capabilities: Capabilities,
    no_new_privs: bool,
    filter: Option<Rc<[u8]>>,
    listener: Option<Rc<Listener>>,
    label: Option<Rc<Label>>,
    status: Rc<OwnedFd>,
}

/// What the security modules of the kernel are told, and how it gets there.
struct Label {
    selinux: Option<String>,
    apparmor: Option<String>,
    attributes: Attributes,
}

impl Label {
    /// For a process that is on the host still; `None`: there is nothing to tell.
    fn new(confinement: &Confinement) -> Result<Option<Rc<Self>>, Failure> {
        let asked = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (selinux, apparmor) = (asked(&confinement.selinux_label), asked(&confinement.apparmor_profile));
        if selinux.is_none() && apparmor.is_none() {
            return Ok(None);
        }
        let attributes = attempt(Attributes::open(), || "opening /proc".to_owned())?;
        Ok(Some(Rc::new(Self { selinux, apparmor, attributes })))
    }

    /// Tells it, and lets go of the host's /proc. In a process that ends by execve or _exit.
    fn apply(&self) -> Result<(), Failure> {
        if let Some(label) = &self.selinux {
            attempt(self.attributes.set_selinux(label), || format!("setting the SELinux label {label:?}"))?;
        }
        if let Some(profile) = &self.apparmor {
            attempt(self.attributes.set_apparmor(profile), || format!("setting the AppArmor profile {profile:?}"))?;
        }
        fork::close(self.attributes.as_raw_fd());
        Ok(())
    }
}

impl Confined {
    /// Reads the filter; `status` is the write end of a close-on-exec pipe, see [`super::ExecStatus`].
    pub(super) fn new(
        program: Program,
        confinement: &Confinement,
        own_bounding: u64,
        status: OwnedFd,
    ) -> Result<Self, Failure> {
        let filter = match &confinement.bpf {
            None => None,
            Some(path) => {
                let filter = attempt(std::fs::read(path), || format!("reading the seccomp filter {path:?}"))?;
                // Better no container than one that fails late, or runs without its filter.
                if filter.is_empty() || filter.len() % 8 != 0 || filter.len() > seccomp::MAX_FILTER {
                    return Err(failure(ErrorKind::Internal, format!("{path:?} holds no seccomp filter")));
                }
                Some(Rc::from(filter))
            }
        };
        let label = Label::new(confinement)?;
        let path = program.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
        Ok(Self {
            path: path.unwrap_or(DEFAULT_PATH).to_owned(),
            name: program.args.first().cloned().unwrap_or_default(),
            args: c_strings(&program.args, "an argument")?,
            env: RefCell::new(c_strings(&program.env, "a variable of the environment")?),
            cwd: program.cwd,
            init: None,
            user: None,
            read_only: None,
            labels: program.labels.map(Rc::new),
            late: Rc::new([]),
            covers: Rc::new([]),
            nodes: Rc::new([]),
            uid: program.uid,
            capabilities: limited(confinement.capabilities, own_bounding),
            no_new_privs: confinement.no_new_privs,
            filter,
            listener: None,
            label,
            status: Rc::new(status),
        })
    }

    /// For an init process: a missing working directory is made, and `result`, the helper's pipe, is
    /// closed before init goes to wait for its start; it joins the user namespace.
    pub(super) fn for_init(self, result: RawFd, user: Option<Joining>) -> Self {
        Self { init: Some(result), user: user.map(Rc::new), ..self }
    }

    /// Somebody decides on calls that the filter does not.
    pub(super) fn with_listener(self, listener: Option<Listener>) -> Self {
        Self { listener: listener.map(Rc::new), ..self }
    }

    /// Mounts that come after all of libcontainer's, and what is to be covered in them.
    pub(super) fn with_late(self, late: Vec<Opened>, covers: Vec<Cover>) -> Self {
        Self { late: late.into(), covers: covers.into(), ..self }
    }

    /// Devices that are made in the container's own /dev, before those mounts.
    pub(super) fn with_nodes(self, nodes: Vec<Device>) -> Self {
        Self { nodes: nodes.into(), ..self }
    }

    /// Makes a mount of the container read-only, with all that is mounted below it: libcontainer leaves each
    /// hierarchy of cgroup v1 writable, and a container could lift its own limits.
    pub(super) fn with_read_only(self, path: Option<&'static Path>) -> Self {
        Self { read_only: path, ..self }
    }

    /// In an exec process inside the container: `begin` makes it the container's in all but what this
    /// Executor does, which is then done. Never returns.
    pub(super) fn run(&self, begin: impl FnOnce() -> Result<(), Failure>) -> ! {
        let entered = begin().and_then(|()| {
            self.enter_cwd().map_err(|error| self.no_cwd(&error))?;
            self.complete_env()?;
            self.prepare()
        });
        let _ = rustix::io::write(self.status(), &[ALIVE]);
        match entered {
            Ok(()) => self.finish(),
            Err(failure) => self.end(&failure, NOT_EXECUTABLE),
        }
    }

    /// Steps 2 to 4.
    fn finish(&self) -> ! {
        let (failure, code) = match self.confine() {
            Ok(()) => self.execute(),
            Err(failure) => (failure, NOT_EXECUTABLE),
        };
        self.end(&failure, code)
    }

    fn end(&self, failure: &Failure, code: i32) -> ! {
        if let Ok(text) = serde_json::to_vec(failure) {
            let _ = rustix::io::write(self.status(), &text);
        }
        fork::exit_now(code)
    }

    /// The program gets a HOME.
    fn complete_env(&self) -> Result<(), Failure> {
        let mut env = self.env.borrow_mut();
        if !env.iter().any(|entry| entry.to_bytes().strip_prefix(b"HOME=").is_some_and(|home| !home.is_empty())) {
            env.retain(|entry| entry.to_bytes() != b"HOME=");
            let home = CString::new(format!("HOME={}", passwd::home(self.uid)));
            env.push(home.map_err(|_| failure(ErrorKind::Internal, "HOME has a NUL byte"))?);
        }
        Ok(())
    }

    /// The working directory may lie in what is mounted last.
    fn cwd_is_late(&self) -> bool {
        self.late.iter().any(|mount| mount.concerns(&self.cwd))
    }

    /// Root's ids inside, as the host numbers them.
    fn root(&self) -> (u32, u32) {
        self.user.as_ref().map_or((0, 0), |user| user.root())
    }

    fn no_cwd(&self, error: &io::Error) -> Failure {
        failure(ErrorKind::InvalidArgument, format!("working directory {:?}: {error}", self.cwd))
    }

    fn status(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// Step 1: before the wait for the start.
    fn prepare(&self) -> Result<(), Failure> {
        if let Some(listener) = &self.listener {
            listener.name_myself().map_err(because("looking up the pid for the seccomp listener"))?;
        }
        if let Some(path) = self.read_only {
            mounts::set_read_only_below(path).map_err(because("making a mount read-only"))?;
        }
        if let Some(labels) = &self.labels {
            labels.apply().map_err(because("labelling the container's own mounts"))?;
        }
        nodes::make_inside(&self.nodes, self.root())?;
        let covers = covers::prepare(&self.covers)?;
        for mount in &*self.late {
            mount.attach(self.root()).map_err(|error| mount.failed(&error))?;
        }
        for mount in &*self.late {
            mount.finish().map_err(|error| mount.failed(&error))?;
        }
        let label = self.labels.as_deref().map(Labels::label);
        covers.iter().try_for_each(|cover| cover.cover(label))?;
        if self.cwd_is_late() {
            self.enter_cwd().map_err(|error| self.no_cwd(&error))?;
        }
        if let Some(label) = &self.label {
            label.apply()?;
        }
        if let Some(user) = &self.user {
            user.join().map_err(because("joining the pod's user namespace"))?;
        }
        caps::limit_bounding(self.capabilities.bounding).map_err(because("limiting the bounding set"))?;
        let filter = if self.filter.is_some() && !self.no_new_privs { caps::SYS_ADMIN } else { 0 };
        let interim = self.capabilities.permitted | filter;
        caps::set(interim, interim, self.capabilities.inheritable).map_err(because("reducing capabilities"))
    }

    /// Steps 2 and 3.
    fn confine(&self) -> Result<(), Failure> {
        exec::reset_signals().map_err(because("resetting signals"))?;
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true).map_err(|errno| because("no_new_privs")(errno.into()))?;
            self.limit().map_err(because("setting capabilities"))?;
            self.load_filter().map_err(because("loading the seccomp filter"))
        } else {
            self.load_filter().map_err(because("loading the seccomp filter"))?;
            self.limit().map_err(because("setting capabilities"))
        }
    }

    fn limit(&self) -> io::Result<()> {
        let Capabilities { permitted, effective, inheritable, ambient, .. } = self.capabilities;
        caps::set(effective, permitted, inheritable)?;
        caps::set_ambient(ambient)
    }

    fn load_filter(&self) -> io::Result<()> {
        match (self.filter.as_deref(), &self.listener) {
            (None, _) => Ok(()),
            (Some(filter), None) => seccomp::load_filter(filter),
            (Some(filter), Some(listener)) => listener.tell(&seccomp::load_asking_filter(filter)?),
        }
    }

    /// Step 4. Returns with the reason and the exit code it asks for.
    fn execute(&self) -> (Failure, i32) {
        let env = self.env.borrow();
        let run =
            |path: &str| CString::new(path).map_or_else(io::Error::from, |path| exec::execve(&path, &self.args, &env));
        if self.name.contains('/') {
            return explain(&self.name, &run(&self.name), Path::new(&self.name).exists(), false);
        }
        // As execvp does: what is not there or may not be executed is passed over, anything else is final.
        let (mut reason, mut seen) = (io::Error::from_raw_os_error(libc::ENOENT), false);
        for folder in self.path.split(':') {
            let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(&self.name);
            let error = run(&candidate.to_string_lossy());
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) if !candidate.exists() => {}
                Some(libc::EACCES | libc::ENOENT) => (reason, seen) = (error, true),
                _ => return explain(&self.name, &error, true, true),
            }
        }
        explain(&self.name, &reason, seen, true)
    }

    /// Makes and enters the working directory, inside the container, still privileged.
    fn enter_cwd(&self) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty())?;
        let folder = if self.init.is_some() {
            let owner = self.root();
            match rootfs::make_folder(&root, &self.cwd, owner) {
                // In an idmapped volume only who exists in the user namespace can make anything.
                Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => {
                    with_files_of(owner, || rootfs::make_folder(&root, &self.cwd, owner))?
                }
                made => made?,
            }
        } else {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(&root, &self.cwd, flags, Mode::empty(), resolve)?
        };
        rustix::process::fchdir(&folder)?;
        // The kernel marks a folder that is out of this root.
        match rustix::process::getcwd(Vec::new())?.to_bytes().first() {
            Some(b'/') => Ok(()),
            _ => Err(io::Error::other("it lies outside of the container")),
        }
    }
}

impl Executor for Confined {
    /// Before the container counts as created.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        if let Some(result) = self.init {
            fork::close(result);
        }
        if self.cwd_is_late() {
            return Ok(());
        }
        self.enter_cwd().map_err(|error| ExecutorValidationError::ArgValidationError(self.no_cwd(&error).message))
    }

    /// libcontainer's view of the environment is unordered and not the program's; ours gets a HOME.
    /// This is the last call before the wait.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let done = self.complete_env().and_then(|()| self.prepare());
        done.map_err(|failure| ExecutorSetEnvsError::Other(failure.message))
    }

    /// Never returns: libcontainer would only make its own end of it.
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let _ = rustix::io::write(self.status(), &[ALIVE]);
        self.finish()
    }
}

fn because(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| failure(ErrorKind::Internal, format!("{what}: {error}"))
}

/// A program that cannot be run, in the words that users of other runtimes know.
fn explain(name: &str, error: &io::Error, exists: bool, searched: bool) -> (Failure, i32) {
    let (kind, reason, code) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if !exists && searched => {
            (ErrorKind::NotFound, "executable file not found in $PATH".to_owned(), NOT_FOUND)
        }
        Some(libc::ENOENT | libc::ENOTDIR) if !exists => {
            (ErrorKind::NotFound, "no such file or directory".to_owned(), NOT_FOUND)
        }
        Some(libc::ENOENT) => {
            (ErrorKind::NotFound, "the interpreter or loader that it names does not exist".to_owned(), NOT_FOUND)
        }
        Some(libc::EACCES) => (ErrorKind::PermissionDenied, "permission denied".to_owned(), NOT_EXECUTABLE),
        Some(libc::ENAMETOOLONG | libc::ELOOP | libc::EISDIR | libc::E2BIG) => {
            (ErrorKind::InvalidArgument, error.to_string(), NOT_EXECUTABLE)
        }
        Some(libc::ENOEXEC) => (ErrorKind::InvalidArgument, "exec format error".to_owned(), NOT_EXECUTABLE),
        _ => (ErrorKind::Internal, error.to_string(), NOT_EXECUTABLE),
    };
    (failure(kind, format!("exec: {name:?}: {reason}")), code)
}

/// Nobody gives what he does not have; the kernel refuses sets that are not nested.
fn limited(wanted: Capabilities, own: u64) -> Capabilities {
    let permitted = wanted.permitted & own;
    let inheritable = wanted.inheritable & own;
    Capabilities {
        bounding: wanted.bounding & own,
        permitted,
        effective: wanted.effective & permitted,
        inheritable,
        ambient: wanted.ambient & permitted & inheritable,
    }
}

fn c_strings(texts: &[String], what: &str) -> Result<Vec<CString>, Failure> {
    let convert = |text: &String| CString::new(text.as_str());
    let converted: Result<Vec<_>, _> = texts.iter().map(convert).collect();
    converted.map_err(|_| failure(ErrorKind::InvalidArgument, format!("{what} has a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_stay_nested_and_within_our_own() {
        let wanted = Capabilities {
            bounding: 0b1111,
            permitted: 0b0111,
            effective: 0b1111,
            inheritable: 0b0110,
            ambient: 0b1111,
        };
        let got = limited(wanted, 0b1011);
        let want = Capabilities {
            bounding: 0b1011,
            permitted: 0b0011,
            effective: 0b0011,
            inheritable: 0b0010,
            ambient: 0b0010,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn reasons_are_those_that_users_know() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        for (errno, exists, searched, want, code) in [
            (libc::ENOENT, false, true, r#"exec: "x": executable file not found in $PATH"#, 127),
            (libc::ENOENT, false, false, r#"exec: "x": no such file or directory"#, 127),
            (libc::EACCES, true, true, r#"exec: "x": permission denied"#, 126),
            (libc::ENOEXEC, true, true, r#"exec: "x": exec format error"#, 126),
        ] {
            let (failure, got) = explain("x", &error(errno), exists, searched);
            assert_eq!((failure.message.as_str(), got), (want, code));
        }
    }
}
