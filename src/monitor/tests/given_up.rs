//! What failed, what nobody waits for any more, and what another asks for again.

use super::*;

fn shut(peer: &Peer) {
    peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
}

fn start(spec: &CreateSpec) -> Request {
    Request::Start { container: spec.container.clone() }
}

fn read_pid(path: PathBuf) -> i32 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn a_start_that_fails_or_is_late_leaves_nothing_alive() {
    let mut pod = Pod::new();
    for (flag, kind) in [("refuse", ErrorKind::Internal), ("endless", ErrorKind::DeadlineExceeded)] {
        let spec = CreateSpec { timeout_ms: 300, ..pod.spec("exec sleep 100", &[flag]) };
        pod.peer.ok(Request::Create(Box::new(spec.clone())));
        let failure = pod.peer.call(start(&spec)).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        let exit = pod.peer.exit();
        assert_eq!((&exit.container, exit.exit_code), (&spec.container, 137));
        assert_eq!(pod.peer.call(start(&spec)).unwrap_err(), failure, "the first reason is the one");
    }
    assert_eq!(pod.end(), 0);
}

#[test]
fn another_daemon_learns_how_a_start_went() {
    let mut pod = Pod::new();
    let spec = pod.spec("exec sleep 100", &[]);
    fifo(&spec, "ready");
    pod.peer.ok(Request::Create(Box::new(spec.clone())));
    pod.peer.send(start(&spec));
    let file = spec.bundle.join("never");
    pod.peer.exec(&spec.container, &["touch", file.to_str().unwrap()], 0);
    pod.peer.hello();
    let mut second = Peer::new(UnixStream::connect(pod.folder.path().join(socket::NAME)).unwrap());
    let state = second.hello();
    assert!(state.containers[0].starting && state.containers[0].started_ns.is_none());
    shut(&pod.peer);
    let asked = second.send(start(&spec));
    second.hello();
    assert!(second.answers.is_empty());
    fs::write(spec.bundle.join("ready"), "x\n").unwrap();
    let Reply::Started { at_ns } = second.wait(asked).unwrap() else { panic!() };
    let state = second.hello();
    assert!(!state.containers[0].starting && state.containers[0].started_ns == Some(at_ns));
    assert!(matches!(second.ok(start(&spec)), Reply::Started { at_ns: again } if again == at_ns));
    let exec = second.exec(&spec.container, &["echo", "hi"], 0);
    assert_eq!(second.outcome(exec).stdout, b"hi\n");
    assert!(!file.exists(), "an exec of a daemon that is gone was begun");
    pod.peer = second;
    assert_eq!(pod.end(), 0);
}

#[test]
fn a_shutdown_waits_for_what_is_left_once_all_else_is_done() {
    let mut pod = Pod::new();
    let spec = pod.spec("exec sleep 100", &[]);
    for name in ["stuck", "helper"] {
        fifo(&spec, name);
    }
    pod.peer.ok(Request::Create(Box::new(spec.clone())));
    pod.peer.send(Request::Shutdown);
    let left = read_pid(spec.bundle.join("stuck"));
    let helper = Pid::from_raw(read_pid(spec.bundle.join("helper"))).unwrap();
    rustix::process::kill_process(helper, rustix::process::Signal::KILL).unwrap();
    waitpid(Some(pod.pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(crate::sys::process::stat(left), None, "the second that a killed helper left");
}
