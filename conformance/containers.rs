//! Containers: what runs, as whom, with what, and how the calls behave.

use std::collections::HashMap;

use podwright::proto::*;
use serde_json::json;
use tonic::Code;

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image as Made, Layer, Tar};
use crate::harness::{Node, args, logs, specs};

#[tokio::test]
async fn a_life_in_all_its_states() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("life")).await;
    let mut config = node.sleeper("c");
    config.labels = HashMap::from([("tier".into(), "back".into())]);
    config.annotations = HashMap::from([("note".into(), "x\ny".into())]);
    let ctr = node.create(&pod, config.clone()).await;
    let created = node.status(&ctr).await;
    assert_eq!((created.state(), created.started_at, created.finished_at), (ContainerState::ContainerCreated, 0, 0));
    assert_eq!(
        (&created.metadata, &created.labels, &created.annotations),
        (&config.metadata, &config.labels, &config.annotations)
    );
    assert_eq!(created.log_path, ctr.log.to_string_lossy());
    assert_eq!(created.image.unwrap().image, crate::harness::BUSYBOX);
    node.try_start(&ctr).await.unwrap();
    let running = node.status(&ctr).await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.created_at > 0 && running.started_at >= running.created_at, "{running:?}");
    node.logged(&ctr, "up").await;
    node.stop_container(&ctr.id, 10).await.unwrap();
    let exited = node.status(&ctr).await;
    assert_eq!(
        (exited.state(), exited.exit_code, exited.reason.as_str()),
        (ContainerState::ContainerExited, 0, "Completed")
    );
    assert!(exited.finished_at > running.started_at, "{exited:?}");
    assert!(exited.finished_at % 1_000_000_000 != 0, "times are in nanoseconds");
    node.remove_container(&ctr.id).await.unwrap();
    assert_eq!(node.try_status(&ctr.id).await.unwrap_err().code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn exit_codes_and_reasons() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("codes")).await;
    for (name, script, code, reason) in [
        ("ok", "exit 0", 0, "Completed"),
        ("three", "exit 3", 3, "Error"),
        ("kill", "kill -9 $$", 137, "Error"),
        ("segv", "kill -11 $$", 139, "Error"),
    ] {
        // As process 1 a shell cannot kill itself: a child does, and its status is passed on.
        let script = if script.starts_with("kill") { format!("sh -c '{script}'; exit $?") } else { script.to_owned() };
        let ctr = node.launch(&pod, node.sh(name, &script)).await;
        let status = node.exited(&ctr).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let node = Node::ready().await;
    let (one, two) = (node.up(node.host_pod("one")).await, node.up(node.host_pod("two")).await);
    let mut config = node.sleeper("a");
    config.labels = HashMap::from([("app".into(), "web".into())]);
    let a = node.launch(&one, config).await;
    let b = node.create(&two, node.sleeper("b")).await;
    let ids =
        async |filter: ContainerFilter| node.containers(filter).await.into_iter().map(|c| c.id).collect::<Vec<_>>();
    assert_eq!(ids(ContainerFilter { pod_sandbox_id: one.id.clone(), ..Default::default() }).await, [a.id.as_str()]);
    assert_eq!(ids(ContainerFilter { id: b.id[..9].to_owned(), ..Default::default() }).await, [b.id.as_str()]);
    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning as i32 });
    assert_eq!(ids(ContainerFilter { state, ..Default::default() }).await, [a.id.as_str()]);
    let label_selector = HashMap::from([("app".into(), "web".into())]);
    assert_eq!(ids(ContainerFilter { label_selector, ..Default::default() }).await, [a.id.as_str()]);
    assert_eq!(ids(ContainerFilter::default()).await.len(), 2);
    let listed = &node.containers(ContainerFilter { id: a.id.clone(), ..Default::default() }).await[0];
    assert_eq!((listed.pod_sandbox_id.as_str(), listed.state()), (one.id.as_str(), ContainerState::ContainerRunning));
    node.finish().await;
}

#[tokio::test]
async fn a_retry_finds_the_same_container() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("retry")).await;
    let first = node.create(&pod, node.sleeper("c")).await;
    assert_eq!(node.create(&pod, node.sleeper("c")).await.id, first.id);
    let status = node.try_create(&pod, node.sh("c", "other")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    let calls = (0..5).map(|_| node.create(&pod, node.sleeper("many")));
    let mut ids: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(|ctr| ctr.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let mut next = node.sleeper("c");
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(node.create(&pod, next).await.id, first.id);
    node.finish().await;
}

#[tokio::test]
async fn calls_in_the_wrong_state() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("wrong")).await;
    let ctr = node.launch(&pod, node.sleeper("c")).await;
    let status = node.try_start(&ctr).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "a running container is not started: {status}");
    node.logged(&ctr, "up").await;
    for _ in 0..2 {
        node.stop_container(&ctr.id, 5).await.unwrap();
    }
    let status = node.try_start(&ctr).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "an exited container is not started: {status}");
    for _ in 0..2 {
        node.remove_container(&ctr.id).await.unwrap();
    }
    let running = node.launch(&pod, node.sleeper("running")).await;
    node.remove_container(&running.id).await.expect("a running container is stopped and removed");
    let created = node.create(&pod, node.sleeper("created")).await;
    node.stop_container(&created.id, 5).await.unwrap();
    node.remove_container(&created.id).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn command_arguments_and_environment_are_merged_with_the_image_s() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let config = json!({
        "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"], "WorkingDir": "/image/dir",
        "Env": ["PATH=/bin", "FROM_IMAGE=1", "BOTH=image"],
    });
    let reference = registry.push("merge", "1", &Made::new(vec![Layer::busybox()], config));
    node.try_pull(&reference, None).await.unwrap();
    let pod = node.up(node.pod("merge")).await;
    let with = |name: &str, command: &[&str], arguments: &[&str]| {
        let mut config = node.run(name, command);
        config.image = Some(specs::image(&reference));
        config.args = args(arguments);
        config.envs = vec![specs::env("BOTH", "client"), specs::env("NEW", "a=b c")];
        config
    };
    assert_eq!(node.outcome(&pod, with("a", &[], &[])).await.1, "entry cmd\n");
    assert_eq!(node.outcome(&pod, with("b", &[], &["mine"])).await.1, "entry mine\n");
    assert_eq!(
        node.outcome(&pod, with("c", &["/bin/echo", "other"], &[])).await.1,
        "other\n",
        "a command drops the image's Cmd"
    );
    assert_eq!(node.outcome(&pod, with("d", &["/bin/echo"], &["x"])).await.1, "x\n");
    let out =
        node.outcome(&pod, with("e", &["sh", "-c", "echo $FROM_IMAGE $BOTH \"$NEW\" $HOME $PATH; pwd"], &[])).await.1;
    assert_eq!(out, "1 client a=b c /root /bin\n/image/dir\n");
    let mut config = with("f", &["pwd"], &[]);
    config.working_dir = "/made/for/it".into();
    assert_eq!(node.outcome(&pod, config).await.1, "/made/for/it\n", "a working directory that is missing is made");
    node.finish().await;
}

#[tokio::test]
async fn an_image_without_a_command_needs_one() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let reference = registry.push("empty", "1", &Made::new(vec![Tar::new().file("x", "").gzip()], json!({})));
    node.try_pull(&reference, None).await.unwrap();
    let pod = node.up(node.pod("empty")).await;
    let mut config = node.run("c", &[]);
    config.image = Some(specs::image(&reference));
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert!(status.message().contains("command"), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn users_and_groups() {
    let mut node = Node::ready().await;
    let prefix = "gcr.io/k8s-staging-cri-tools";
    let pod = node.up(node.pod("users")).await;
    let show = "id -u; id -g; grep ^Groups /proc/self/status";
    for (name, wanted) in [
        ("uid", "1002\n0\n"),
        ("username", "33\n33\n"),
        ("uid-group", "1003\n1004\n"),
        ("username-group", "33\n1004\n"),
    ] {
        let reference = format!("{prefix}/test-image-user-{name}:latest");
        node.pull(&reference).await;
        let mut config = node.sh(name, show);
        config.image = Some(specs::image(&reference));
        let out = node.outcome(&pod, config).await.1;
        assert!(out.starts_with(wanted), "{name}: {out}");
    }
    let mut config = node.sh("asked", show);
    let security = specs::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1001 });
    security.run_as_group = Some(Int64Value { value: 1002 });
    security.supplemental_groups = vec![1003, 1004];
    assert_eq!(node.outcome(&pod, config).await.1, "1001\n1002\nGroups:\t1002 1003 1004 \n");
    let mut config = node.sh("byname", show);
    specs::security(&mut config).run_as_username = "www-data".into();
    assert!(node.outcome(&pod, config).await.1.starts_with("33\n33\n"));
    node.finish().await;
}

#[tokio::test]
async fn groups_of_the_image_are_merged_or_left_out() {
    let mut node = Node::ready().await;
    let reference = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest";
    node.pull(reference).await;
    let pod = node.up(node.pod("groups")).await;
    for (policy, wanted) in [
        (SupplementalGroupsPolicy::Merge, vec![1000, 1234, 50000]),
        (SupplementalGroupsPolicy::Strict, vec![1000, 1234]),
    ] {
        let mut config =
            node.sh(policy.as_str_name(), "grep ^Groups /proc/self/status; trap 'exit 0' TERM; sleep 1000 & wait");
        config.image = Some(specs::image(reference));
        let security = specs::security(&mut config);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.supplemental_groups = vec![1234];
        security.supplemental_groups_policy = policy as i32;
        let ctr = node.launch(&pod, config).await;
        let lines = node.logged(&ctr, "Groups").await;
        let inside: Vec<i64> =
            logs::stream(&lines, "stdout").split_ascii_whitespace().skip(1).map(|id| id.parse().unwrap()).collect();
        assert_eq!(inside, wanted, "{policy:?}");
        let told = node.status(&ctr).await.user.unwrap().linux.unwrap();
        let mut groups = told.supplemental_groups;
        groups.sort();
        assert_eq!((told.uid, told.gid, groups), (1000, 1000, wanted), "{policy:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_group_needs_a_user() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("group")).await;
    let mut config = node.sh("c", "true");
    specs::security(&mut config).run_as_group = Some(Int64Value { value: 1 });
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    node.finish().await;
}

#[tokio::test]
async fn a_user_that_the_image_lacks() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("nouser")).await;
    let mut config = node.sh("c", "true");
    specs::security(&mut config).run_as_username = "nobody-by-this-name".into();
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert!(status.message().contains("nobody-by-this-name"), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn file_descriptors_of_the_runtime_do_not_leak_in() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("fds")).await;
    let out = node.script(&pod, "c", "ls /proc/self/fd | tr '\\n' ' '").await;
    // 3 is the folder that ls reads.
    assert_eq!(out.trim(), "0 1 2 3");
    let ctr = node.launch(&pod, node.sleeper("s")).await;
    assert_eq!(node.exec(&ctr, &["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"]).await.trim(), "0 1 2 3");
    node.finish().await;
}

/// A working directory that is an open file of the runtime must not lead out of the container.
#[tokio::test]
async fn a_working_directory_in_proc_leads_nowhere() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("cwd")).await;
    for number in 3..16 {
        let mut config = node.sh(&format!("c{number}"), "cat ../../../../etc/passwd | head -1; ls ../../../../..");
        config.working_dir = format!("/proc/self/fd/{number}");
        let Ok(ctr) = node.try_create(&pod, config).await else { continue };
        if node.try_start(&ctr).await.is_err() {
            continue;
        }
        node.exited(&ctr).await;
        let out = logs::stream(&logs::read(&ctr.log), "stdout");
        assert!(!out.contains("boot") && !out.contains("snap"), "fd {number} leads to the host: {out}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_seven_standard_devices() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("devices")).await;
    let out = node.script(&pod, "c", "for d in null zero full random urandom tty; do stat -c '%n %F %t,%T' /dev/$d; done; echo x > /dev/null; ls -l /dev/fd /dev/stdin | wc -l").await;
    assert_eq!(out.matches("character special file").count(), 6, "{out}");
    node.finish().await;
}

#[tokio::test]
async fn a_device_is_passed_in() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("device")).await;
    let mut config = node.sh("c", "stat -c '%F %t,%T' /dev/mine; echo x > /dev/mine && echo written");
    config.devices =
        vec![Device { container_path: "/dev/mine".into(), host_path: "/dev/null".into(), permissions: "rwm".into() }];
    assert_eq!(node.outcome(&pod, config).await.1, "character special file 1,3\nwritten\n");
    let mut config = node.sh("d", "true");
    config.devices = vec![Device {
        container_path: "/dev/mine".into(),
        host_path: "/dev/no-such-device".into(),
        permissions: "rwm".into(),
    }];
    let status = node.try_create(&pod, config).await.unwrap_err();
    assert!(status.message().contains("/dev/no-such-device"), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn standard_input_is_empty() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("stdin")).await;
    assert_eq!(node.script(&pod, "c", "cat; echo end").await, "end\n");
    node.finish().await;
}
