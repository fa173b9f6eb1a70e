//! The API as a whole: versions, status, what is not there yet.

use std::fs;

use nix::mount::{MntFlags, MsFlags};
use podwright::proto::*;
use tonic::Status;

use crate::harness::{Node, specs};

#[tokio::test]
async fn version_names_the_runtime() {
    let node = Node::start().await;
    let version = node.version().await.unwrap();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "podwright"));
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn status_tells_conditions_handlers_and_features() {
    let node = Node::start().await;
    let answer = node.cri().runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = answer.status.unwrap().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == kind).unwrap();
        assert!(condition.status, "{kind}: {} {}", condition.reason, condition.message);
    }
    // The unnamed handler is the default; clients skip what it does not name.
    let default = answer.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    assert!(answer.runtime_handlers.iter().any(|handler| handler.name == "youki"), "{:?}", answer.runtime_handlers);
    let features = answer.features.unwrap();
    assert!(features.supplemental_groups_policy && features.mount_options && features.user_namespaces_host_network);
    let default = default.features.unwrap();
    assert!(default.recursive_read_only_mounts && default.user_namespaces);
    let config: serde_json::Value = serde_json::from_str(&answer.info["config"]).unwrap();
    assert_eq!(config["stateDir"], node.dir().join("state").to_str().unwrap());
    node.finish().await;
}

/// What Status tells of itself is so.
#[tokio::test]
async fn features_are_there_as_told() {
    let node = Node::ready().await;
    let data = node.dir().join("data");
    let inner = data.join("inner");
    fs::create_dir_all(&inner).unwrap();
    nix::mount::mount(Some("pwt"), &inner, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let pod = node.up(node.pod("features")).await;
    let script = "touch /ro/inner/x && echo written; touch /rro/inner/y 2>&1; id -G; grep ' /opts ' /proc/mounts";
    let mut config = node.sh("c", script);
    config.mounts = vec![
        Mount { readonly: true, ..specs::bind(&data, "/ro") },
        Mount { readonly: true, recursive_read_only: true, ..specs::bind(&data, "/rro") },
        Mount { mount_options: specs::args(&["noexec", "nodev", "nosuid"]), ..specs::bind(&data, "/opts") },
    ];
    let security = specs::security(&mut config);
    security.supplemental_groups = vec![1234];
    security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!(code, 0, "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!((lines[0], lines[2]), ("written", "0 1234"), "{out}");
    assert!(lines[1].contains("/rro/inner/y") && lines[1].contains("Read-only file system"), "{out}");
    assert!(["noexec", "nodev", "nosuid"].iter().all(|option| lines[3].contains(option)), "{out}");
    nix::mount::umount2(&inner, MntFlags::empty()).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn runtime_config_names_the_cgroup_driver() {
    let node = Node::start().await;
    let answer = node.cri().runtime().runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    let wanted = if node.driver() == "systemd" { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    assert_eq!(answer.linux.unwrap().cgroup_driver(), wanted);
    node.finish().await;
}

#[tokio::test]
async fn update_runtime_config_is_taken() {
    let node = Node::start().await;
    let network_config = Some(NetworkConfig { pod_cidr: "10.88.0.0/16".to_owned() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    node.cri().runtime().update_runtime_config(request).await.unwrap();
    node.finish().await;
}

/// Nothing pretends: asked about something that does not exist, each of these calls answers with an error; and what is
/// not there yet says so by name.
#[tokio::test]
async fn calls_of_later_fail_by_name() {
    let node = Node::start().await;
    let mut runtime = node.cri().runtime();
    let none = || "0".repeat(64);
    let answers: Vec<(&str, Result<(), Status>)> = vec![
        (
            "exec",
            runtime
                .exec(ExecRequest {
                    container_id: none(),
                    cmd: vec!["true".into()],
                    stdout: true,
                    ..Default::default()
                })
                .await
                .map(drop),
        ),
        (
            "attach",
            runtime.attach(AttachRequest { container_id: none(), stdout: true, ..Default::default() }).await.map(drop),
        ),
        ("port", runtime.port_forward(PortForwardRequest { pod_sandbox_id: none(), port: vec![80] }).await.map(drop)),
        (
            "checkpoint",
            runtime
                .checkpoint_container(CheckpointContainerRequest { container_id: none(), ..Default::default() })
                .await
                .map(drop),
        ),
        (
            "checkpoint",
            runtime
                .checkpoint_pod(CheckpointPodRequest { pod_sandbox_id: none(), ..Default::default() })
                .await
                .map(drop),
        ),
        ("restore", runtime.restore_pod(RestorePodRequest::default()).await.map(drop)),
        ("stats", runtime.container_stats(ContainerStatsRequest { container_id: none() }).await.map(drop)),
        ("stats", runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: none() }).await.map(drop)),
        (
            "update",
            runtime
                .update_container_resources(UpdateContainerResourcesRequest {
                    container_id: none(),
                    ..Default::default()
                })
                .await
                .map(drop),
        ),
        (
            "update",
            runtime
                .update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest {
                    pod_sandbox_id: none(),
                    ..Default::default()
                })
                .await
                .map(drop),
        ),
    ];
    for (word, answer) in answers {
        let status = answer.expect_err(word);
        let text = status.message().to_lowercase().replace([' ', '-', '_'], "");
        match status.code() {
            tonic::Code::Unimplemented => assert!(text.contains(word), "{word}: {status:?}"),
            tonic::Code::NotFound | tonic::Code::InvalidArgument => {}
            code => panic!("{word}: {code:?}: {status:?}"),
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn daemon_says_no_to_unknown_services() {
    let node = Node::start().await;
    // A raw call of a method that no CRI has.
    let channel =
        tonic::transport::Endpoint::try_from(format!("unix://{}", node.dir().join("cri.sock").display())).unwrap();
    let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<VersionRequest, VersionResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/runtime.v1.RuntimeService/NoSuchCall");
    let request = tonic::Request::new(VersionRequest { version: "v1".into() });
    let status = client.unary(request, path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    // Its connection counts as an open file of the daemon.
    drop(client);
    node.finish().await;
}
