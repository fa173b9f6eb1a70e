//! The `info` of verbose answers: JSON for people and scripts (`crictl inspect`, `inspectp`, `info`).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::cdi::Inspection;
use crate::config::Config;
use crate::container::view::ContainerView;
use crate::cri::HandlerInfo;
use crate::image::Image;
use crate::launch::handlers::Handler;
use crate::pod::view::PodView;
use crate::pod::{AppArmor, Lsm};
use crate::types::chain;
use crate::types::container::ContainerConfig;

/// Largest runtime spec shown, bytes.
const MAX_SPEC: u64 = 4 << 20;

fn one(key: &str, value: &Value) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_string())])
}

/// For Status.
pub fn daemon(config: &Config, lsm: &Lsm, handlers: &[HandlerInfo], devices: &Inspection) -> HashMap<String, String> {
    let (apparmor, profile) = match lsm.apparmor() {
        AppArmor::Off => ("off", None),
        AppArmor::On(name) => ("on", Some(name)),
        AppArmor::NoDefault(_) => ("on, without a default profile", None),
    };
    let mut info = one(
        "config",
        &json!({
            "stateDir": config.paths.state,
            "rootDir": config.paths.root,
            "address": config.server.address,
            "podwright": config,
        }),
    );
    info.extend(one(
        "securityModules",
        &json!({
            "apparmor": apparmor,
            "apparmorDefaultProfile": profile,
            "selinux": if lsm.selinux().is_some() { "on" } else { "off" },
            "problem": lsm.problem(),
        }),
    ));
    info.extend(one("cdi", &json!(devices)));
    info.extend(one("runtimeHandlers", &handlers.iter().map(|handler| self::handler(&handler.handler)).collect()));
    info
}

/// A handler whose program is missing is listed by Status as any other: here it says so.
fn handler(from: &Handler) -> Value {
    let (program, problem) = match from.program() {
        Ok(program) => (program, None),
        Err(error) => (None, Some(chain(&error))),
    };
    json!({ "name": from.name, "program": program, "problem": problem })
}

/// For PodSandboxStatus. The network namespace stands where scripts look for it with other runtimes.
pub fn pod(view: &PodView) -> HashMap<String, String> {
    let namespaces: Vec<Value> = view.netns.iter().map(|path| json!({ "type": "network", "path": path })).collect();
    one(
        "info",
        &json!({
            "pid": view.pause.map_or(0, |pause| pause.pid),
            "monitorPid": view.monitor,
            "runtimeHandler": view.handler,
            "config": *view.config,
            "overhead": view.overhead,
            "resources": view.resources,
            "runtimeSpec": { "linux": { "namespaces": namespaces } },
        }),
    )
}

/// For ContainerStatus.
pub async fn container(view: &ContainerView, config: &Config) -> HashMap<String, String> {
    let snapshot = config.paths.root.join("pods").join(&view.pod).join("containers").join(&view.id).join("upper");
    one(
        "info",
        &json!({
            "sandboxID": view.pod.as_str(),
            "pid": view.pid.unwrap_or(0),
            "snapshotDir": snapshot,
            "bundle": view.bundle,
            "config": asked(&view.config),
            "runtimeSpec": runtime_spec(&view.bundle).await,
        }),
    )
}

/// For ImageStatus.
pub fn image(image: &Image) -> HashMap<String, String> {
    let layers: Vec<String> = image.diff_ids.iter().map(ToString::to_string).collect();
    one(
        "info",
        &json!({
            "imageSpec": {
                "config": serde_json::to_value(&image.config).unwrap_or_default(),
                "rootfs": { "type": "layers", "diff_ids": layers },
            },
        }),
    )
}

/// The config with environment values as text, not as lists of numbers.
fn asked(config: &ContainerConfig) -> Value {
    let mut shown = serde_json::to_value(config).unwrap_or_default();
    shown["envs"] =
        config.envs.iter().map(|(key, value)| json!({ "key": key, "value": String::from_utf8_lossy(value) })).collect();
    shown
}

/// The bundle's `config.json`; null if it is gone or cannot be read.
async fn runtime_spec(bundle: &Path) -> Value {
    let Ok(file) = tokio::fs::File::open(bundle.join("config.json")).await else { return Value::Null };
    let mut text = Vec::new();
    match file.take(MAX_SPEC).read_to_end(&mut text).await {
        Ok(_) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::super::to_proto::samples;
    use super::*;
    use crate::types::PodId;

    fn parsed(info: &HashMap<String, String>, key: &str) -> Value {
        serde_json::from_str(&info[key]).unwrap()
    }

    #[tokio::test]
    async fn scripts_find_what_they_look_for() {
        let lsm = Lsm::start(&Default::default(), Path::new("/none")).await;
        let all = daemon(&Config::default(), &lsm, &[], &Inspection::default());
        assert_eq!(parsed(&all, "config")["stateDir"], "/run/podwright");
        let info = parsed(&all, "securityModules");
        assert_eq!((&info["apparmor"], &info["selinux"]), (&json!("off"), &json!("off")));
        let info = parsed(&pod(&samples::pod("a")), "info");
        assert_eq!(info["runtimeSpec"]["linux"]["namespaces"][0]["path"], "/run/podwright/pods/x/netns");
        assert_eq!(info["config"]["key"]["name"], "web-0");
    }

    #[tokio::test]
    async fn a_container_shows_its_spec_while_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut view = samples::container("c", &PodId::generate());
        let info = parsed(&container(&view, &Config::default()).await, "info");
        assert_eq!((&info["pid"], &info["runtimeSpec"]), (&json!(42), &Value::Null));
        std::fs::write(folder.path().join("config.json"), r#"{"ociVersion":"1.2.0"}"#).unwrap();
        view.bundle = folder.path().into();
        let info = parsed(&container(&view, &Config::default()).await, "info");
        assert_eq!(info["runtimeSpec"]["ociVersion"], "1.2.0");
    }
}
