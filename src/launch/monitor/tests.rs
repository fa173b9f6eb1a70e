//! The client against a peer made of a socket pair.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Peer;
use std::thread::JoinHandle;

use super::*;
use crate::wire::{Call, Message, codec};

fn state(pod: &PodId) -> State {
    State { version: VERSION, pod: pod.clone(), pid: 0, pause: None, containers: Vec::new() }
}

fn next(peer: &mut Peer) -> Call {
    let mut buffer = vec![0; 4];
    peer.read_exact(&mut buffer).unwrap();
    let length = u32::from_le_bytes(buffer[..4].try_into().unwrap()) as usize;
    buffer.resize(4 + length, 0);
    peer.read_exact(&mut buffer[4..]).unwrap();
    codec::decode(&buffer).unwrap().unwrap().0
}

fn answer(peer: &mut Peer, id: u64, result: Result<Reply, Failure>) {
    peer.write_all(&codec::encode(&Message::Answer { id, result }).unwrap()).unwrap();
}

/// Says Hello, then goes on as `script` says.
async fn meet(
    script: impl FnOnce(Peer, PodId) + Send + 'static,
) -> (Result<(Monitor, State, EventReceiver), LaunchError>, JoinHandle<()>) {
    let (ours, mut theirs) = Peer::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let pod = PodId::generate();
    let name = pod.clone();
    let peer = std::thread::spawn(move || {
        let call = next(&mut theirs);
        assert!(matches!(call.request, Request::Hello { version: VERSION }));
        answer(&mut theirs, call.id, Ok(Reply::Hello(state(&name))));
        script(theirs, name);
    });
    let launcher = Launcher::new("/none".into());
    (launcher.greet(&pod, UnixStream::from_std(ours).unwrap()).await, peer)
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (met, peer) = meet(|mut peer, _| {
        let (first, second) = (next(&mut peer), next(&mut peer));
        for call in [second, first] {
            let result = match call.request {
                Request::Start { .. } => Ok(Reply::Started { at_ns: 5 }),
                _ => Err(Failure { kind: ErrorKind::NotFound, message: "no".into() }),
            };
            answer(&mut peer, call.id, result);
        }
    })
    .await;
    let (monitor, _, mut events) = met.unwrap();
    let id = ContainerId::generate();
    let (started, killed) = tokio::join!(monitor.start(&id), monitor.kill(&id, 9, true));
    assert_eq!(started.unwrap(), 5);
    assert!(matches!(killed, Err(LaunchError::Refused(Failure { kind: ErrorKind::NotFound, .. }))));
    peer.join().unwrap();
    assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
    assert!(matches!(monitor.kill_pause().await, Err(LaunchError::Gone(_))));
    monitor.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_dies_fails_the_calls_under_way() {
    let (met, peer) = meet(|mut peer, _| {
        next(&mut peer);
        peer.write_all(&codec::encode(&Message::Event(Event::PauseExited)).unwrap()).unwrap();
    })
    .await;
    let (monitor, _, mut events) = met.unwrap();
    assert!(matches!(monitor.kill_pause().await, Err(LaunchError::Gone(_))));
    peer.join().unwrap();
    assert_eq!(events.recv().await, Some(MonitorEvent::PauseExited));
    assert_eq!(events.recv().await, Some(MonitorEvent::Gone));
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_sent() {
    let (met, peer) = meet(|mut peer, _| assert_eq!(peer.read(&mut [0]).unwrap(), 0)).await;
    let (monitor, _, _events) = met.unwrap();
    let spec = PauseSpec {
        user_namespace: None,
        netns: None,
        new_ipc: true,
        new_pid: false,
        hostname: Some("h".repeat(codec::MAX_CALL)),
        sysctls: Vec::new(),
        cgroups: Vec::new(),
        scope: None,
        user: (0, 0),
        groups: Vec::new(),
        bpf: None,
        apparmor_profile: None,
        selinux: None,
        oom_score_adj: 0,
    };
    assert!(matches!(monitor.pause(spec).await, Err(LaunchError::TooLong { .. })));
    drop(monitor);
    tokio::task::spawn_blocking(|| peer.join()).await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_there_is_told_from_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path().join("none"));
    let pod = PodId::generate();
    assert!(matches!(launcher.connect(&pod, folder.path()).await, Err(LaunchError::Gone(_))), "no socket");
    drop(std::os::unix::net::UnixListener::bind(folder.path().join(SOCKET)).unwrap());
    assert!(matches!(launcher.connect(&pod, folder.path()).await, Err(LaunchError::Gone(_))), "nobody listens");
    assert!(matches!(launcher.spawn(&pod, folder.path()).await, Err(LaunchError::Spawn { .. })));
}

#[tokio::test]
async fn a_silent_monitor_is_killed_only_if_its_containers_are_to_end() {
    let (ours, theirs) = Peer::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let process = Process { pid, start_time: sys::process::start_time(pid).unwrap() };
    let (pod, (tell, _events)) = (PodId::generate(), mpsc::unbounded_channel());
    let link = Arc::new(Link::new(pod.clone(), UnixStream::from_std(ours).unwrap(), tell));
    let monitor = Monitor { pod, link, process: Some(process) };
    let id = ContainerId::generate();
    assert!(matches!(monitor.reopen_log(&id).await, Err(LaunchError::Silent(_))));
    assert!(matches!(monitor.kill(&id, 15, false).await, Err(LaunchError::Silent(_))));
    assert!(child.try_wait().unwrap().is_none(), "it may only be slow");
    let waiting = tokio::time::timeout(Duration::from_secs(4), monitor.start(&id)).await;
    assert!(waiting.is_err(), "what is being made is waited for: {waiting:?}");
    assert!(matches!(monitor.delete(&id).await, Err(LaunchError::Silent(_))));
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    drop(theirs);
    assert!(matches!(monitor.delete(&id).await, Err(LaunchError::Gone(_))));
}

#[tokio::test]
async fn a_monitor_that_is_heard_is_not_silent() {
    let (met, peer) = meet(|mut peer, _| {
        let call = next(&mut peer);
        let event = codec::encode(&Message::Event(Event::PauseExited)).unwrap();
        peer.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        for _ in 0..30 {
            // Hellos, which it does not come to.
            let _ = peer.read(&mut [0; 4096]);
            peer.write_all(&event).unwrap();
        }
        answer(&mut peer, call.id, Ok(Reply::Done));
        peer.set_read_timeout(None).unwrap();
        while peer.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    })
    .await;
    let (monitor, _, events) = met.unwrap();
    monitor.delete(&ContainerId::generate()).await.unwrap();
    drop((monitor, events));
    tokio::task::spawn_blocking(|| peer.join()).await.unwrap().unwrap();
}
