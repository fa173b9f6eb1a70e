//! Security modules of the kernel. Where it lacks one, tests of it say so and pass; `make test-node` runs those of
//! AppArmor, `conformance/node/test-node.sh --selinux` those of SELinux.

mod apparmor;
mod selinux;

use std::fs;
use std::path::Path;

use podwright::proto::*;
use tonic::{Code, Status};

use crate::harness::{Node, Setup, specs};

fn apparmor_is_on() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn selinux_is_on() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// What `/proc/PID/attr/current` says.
fn current(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/attr/current")).expect("a label");
    text.trim_end_matches(['\0', '\n']).to_owned()
}

fn profile(kind: security_profile::ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
}

#[track_caller]
fn refused(status: &Status, field: &str, value: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(field) && status.message().contains(value), "{status}");
}

#[tokio::test]
async fn status_tells_what_is_on() {
    let node = Node::with(Setup { extra: "[selinux]\nenabled = true\n".into(), ..Setup::default() }).await;
    let answer = node.cri().runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["securityModules"]).unwrap();
    assert_eq!(info["apparmor"], if apparmor_is_on() { "on" } else { "off" });
    assert_eq!(info["selinux"], if selinux_is_on() { "on" } else { "off" });
    let conditions = answer.status.unwrap().conditions;
    let condition = conditions.iter().find(|condition| condition.r#type == "SecurityModulesReady").unwrap();
    assert_eq!(condition.status, selinux_is_on(), "{}", condition.message);
    assert!(selinux_is_on() || condition.message.contains("SELinux"), "{}", condition.message);
    node.finish().await;
}

#[tokio::test]
async fn what_the_kernel_lacks_is_ignored_unless_it_is_named() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("plain")).await;
    use security_profile::ProfileType::{Localhost, RuntimeDefault};
    if !apparmor_is_on() {
        let mut config = node.sh("default", "cat /proc/self/status > /dev/null; echo fine");
        specs::security(&mut config).apparmor = profile(RuntimeDefault, "");
        assert_eq!(node.outcome(&pod, config).await, (0, "fine\n".to_owned()));
        let mut config = node.sh("named", "true");
        specs::security(&mut config).apparmor = profile(Localhost, "mine");
        refused(&node.try_create(&pod, config).await.unwrap_err(), "apparmor", "\"mine\"");
    }
    let mut config = node.sh("label", "echo fine");
    let level = "s0:c1,c2".to_owned();
    specs::security(&mut config).selinux_options = Some(SeLinuxOption { level, ..Default::default() });
    if selinux_is_on() {
        // On in the kernel, and off by configuration: it would have an effect.
        refused(&node.try_create(&pod, config).await.unwrap_err(), "selinux_options", "s0:c1,c2");
    } else {
        assert_eq!(node.outcome(&pod, config).await, (0, "fine\n".to_owned()));
    }
    let mut config = node.sh("bad", "true");
    let level = "s0,c4,c5".to_owned();
    specs::security(&mut config).selinux_options = Some(SeLinuxOption { level, ..Default::default() });
    refused(&node.try_create(&pod, config).await.unwrap_err(), "selinux_options.level", "s0,c4,c5");
    node.finish().await;
}
