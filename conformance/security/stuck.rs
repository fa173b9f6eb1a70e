//! Monitors that do not answer any more (stopped, stuck in the kernel): what the CRI asks for is done without them.

use std::time::Instant;

use podwright::proto::*;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Ctr, Node, Pod, host, secs};

/// The pid of the one monitor there is, stopped.
fn stop_monitor() -> i32 {
    let monitors: Vec<_> = host::descendants().into_iter().filter(|p| p.name == "podwright-monit").collect();
    let [monitor] = &monitors[..] else { panic!("want one monitor: {monitors:?}") };
    kill_process(Pid::from_raw(monitor.pid).unwrap(), Signal::STOP).unwrap();
    monitor.pid
}

async fn running(node: &Node) -> (Pod, Ctr) {
    let pod = node.up(node.pod("stuck")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    (pod, ctr)
}

async fn answers(node: &Node, ctr: &Ctr) {
    let begun = Instant::now();
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    assert_eq!(node.containers(ContainerFilter::default()).await.len(), 1);
    node.try_status(&ctr.id).await.unwrap();
    assert!(begun.elapsed() < secs(2), "lists took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_container_of_a_stopped_monitor_is_stopped_and_removed() {
    let node = Node::ready().await;
    let (_pod, ctr) = running(&node).await;
    let init = node.pid_of(&ctr).await;
    let monitor = stop_monitor();
    answers(&node, &ctr).await;
    node.stop_container(&ctr.id, 1).await.unwrap();
    assert_eq!(node.status(&ctr).await.state(), ContainerState::ContainerExited);
    let gone = |pid| host::process(pid).is_none_or(|process| process.state == 'Z');
    assert!(gone(init) && gone(monitor), "container and monitor are killed");
    node.remove_container(&ctr.id).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_container_of_a_stopped_monitor_is_removed_at_once() {
    let node = Node::ready().await;
    let (_pod, ctr) = running(&node).await;
    stop_monitor();
    node.remove_container(&ctr.id).await.unwrap();
    assert_eq!(node.containers(ContainerFilter::default()).await, []);
    node.finish().await;
}

#[tokio::test]
async fn an_exec_at_a_stopped_monitor_ends_with_its_time() {
    let node = Node::ready().await;
    let (_pod, ctr) = running(&node).await;
    stop_monitor();
    let begun = Instant::now();
    let status = node.try_exec(&ctr, &["true"], 1).await.expect_err("nobody runs it");
    assert!(begun.elapsed() < secs(40), "{:?}: {status}", begun.elapsed());
    assert_ne!(status.code(), tonic::Code::Cancelled, "the daemon's own answer, not the client's: {status}");
    node.finish().await;
}

#[tokio::test]
async fn a_sandbox_of_a_stopped_monitor_is_stopped_and_removed() {
    let node = Node::ready().await;
    let (pod, ctr) = running(&node).await;
    stop_monitor();
    node.down(&pod).await;
    node.try_status(&ctr.id).await.expect_err("gone with its sandbox");
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_finds_a_stopped_monitor_starts_and_gets_rid_of_it() {
    let mut node = Node::ready().await;
    let (pod, ctr) = running(&node).await;
    stop_monitor();
    let begun = Instant::now();
    node.restart().await;
    assert!(begun.elapsed() < secs(5), "the start took {:?}", begun.elapsed());
    answers(&node, &ctr).await;
    node.stop_container(&ctr.id, 0).await.unwrap();
    node.down(&pod).await;
    node.finish().await;
}
