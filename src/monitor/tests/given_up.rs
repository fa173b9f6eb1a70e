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
