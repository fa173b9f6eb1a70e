//! Container configuration.

use super::check::{
    absolute_or_empty, annotations, count, known, labels, length, list, name, no_control, relative_or_empty, word,
    words,
};
use super::mounts::{cdi_device, device, mount};
use super::resources::resources;
use super::security::container_security;
use super::{At, DecodeError, image, required};
use crate::proto;
use crate::types::Signal;
use crate::types::container::ContainerConfig;

/// `config` of CreateContainer. `handlers` are the runtime handlers that an image may be asked for.
pub fn container(from: Option<proto::ContainerConfig>, handlers: &[&str]) -> Result<ContainerConfig, DecodeError> {
    let at = At::root("config");
    let proto::ContainerConfig {
        metadata,
        image: image_spec,
        command,
        args,
        working_dir,
        envs,
        mounts,
        devices,
        labels: label_map,
        annotations: annotation_map,
        log_path,
        stdin,
        stdin_once,
        tty,
        linux,
        windows,
        cdi_devices,
        stop_signal: signal,
    } = required(&at, from)?;
    if windows.is_some() {
        return Err(at.field("windows").bad("", "this runtime runs on Linux only"));
    }
    let metadata_at = at.field("metadata");
    let metadata = required(&metadata_at, metadata)?;
    let image_at = at.field("image");
    let image = image::spec(&image_at, required(&image_at, image_spec)?, handlers)?;
    let linux_at = at.field("linux");
    let proto::LinuxContainerConfig { resources: limits, security_context } = linux.unwrap_or_default();
    Ok(ContainerConfig {
        name: name(&metadata_at.field("name"), metadata.name)?,
        attempt: metadata.attempt,
        image: image.name,
        user_specified_image: image.user_specified,
        image_annotations: image.annotations,
        command: words(&at.field("command"), command)?,
        args: words(&at.field("args"), args)?,
        working_dir: absolute_or_empty(&at.field("working_dir"), working_dir)?,
        envs: environment(&at.field("envs"), envs)?,
        mounts: list(&at.field("mounts"), mounts, |at, from| mount(at, from, handlers))?,
        devices: list(&at.field("devices"), devices, device)?,
        cdi_devices: list(&at.field("CDI_devices"), cdi_devices, cdi_device)?,
        labels: labels(&at.field("labels"), label_map)?,
        annotations: annotations(&at.field("annotations"), annotation_map)?,
        log_path: log_file(&at.field("log_path"), log_path)?,
        stdin,
        stdin_once,
        tty,
        stop_signal: stop_signal(&at.field("stop_signal"), signal)?,
        resources: limits.map(|from| resources(&linux_at.field("resources"), from)).transpose()?,
        security: container_security(&linux_at.field("security_context"), security_context.unwrap_or_default())?,
    })
}

fn environment(at: &At<'_>, from: Vec<proto::KeyValue>) -> Result<Vec<(String, Vec<u8>)>, DecodeError> {
    count(at, from.len())?;
    list(at, from, |at, proto::KeyValue { key, value }| {
        let key_at = at.field("key");
        length(&key_at, &key, 1, 4096)?;
        no_control(&key_at, &key)?;
        if key.contains('=') {
            return Err(key_at.bad(key, "must not have '=' in it"));
        }
        word(&at.field("value"), &value)?;
        Ok((key, value.to_vec()))
    })
}

/// A file below the pod's log folder.
fn log_file(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    let path = relative_or_empty(at, path)?;
    let is_folder = path.ends_with('/') || path.ends_with("/.") || path == ".";
    if is_folder { Err(at.bad(path, "names a folder, want a file")) } else { Ok(path) }
}

/// CRI's own numbering of signals has names that [`Signal`] knows.
fn stop_signal(at: &At<'_>, value: i32) -> Result<Option<Signal>, DecodeError> {
    let signal: proto::Signal = known(at, value)?;
    if signal == proto::Signal::RuntimeDefault {
        return Ok(None);
    }
    let text = signal.as_str_name();
    let text = text.strip_prefix("SIGNAL_").unwrap_or(text).replace("PLUS", "+").replace("MINUS", "-");
    Signal::parse(&text).map(Some).map_err(|error| at.bad(text, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> proto::ContainerConfig {
        proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata { name: "main".into(), attempt: 1 }),
            image: Some(proto::ImageSpec { image: "busybox:1".into(), ..Default::default() }),
            command: vec!["sh".into(), "-c".into(), "echo hello\n".into()],
            envs: vec![proto::KeyValue { key: "A".into(), value: vec![b'x', 0xff].into() }],
            log_path: "main/1.log".into(),
            stop_signal: proto::Signal::Sigrtminplus3.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_plain_request() {
        let got = container(Some(sample()), &[]).unwrap();
        assert_eq!((got.name.as_str(), got.attempt, got.image.as_str()), ("main", 1, "busybox:1"));
        assert_eq!(got.envs, [("A".to_owned(), vec![b'x', 0xff])]);
        assert_eq!(got.stop_signal.map(Signal::number), Some(37));
        assert_eq!(got.resources, None);
    }

    #[test]
    fn every_signal_of_cri_is_one_of_linux() {
        let at = At::root("stop_signal");
        assert_eq!(stop_signal(&at, 0), Ok(None));
        let numbers: Vec<i32> = (1..=65).map(|n| stop_signal(&at, n).unwrap().unwrap().number()).collect();
        for (cri, linux) in [(1, 6), (5, 17), (13, 9), (23, 15), (35, 34), (50, 49), (51, 50), (65, 64)] {
            assert_eq!(numbers[cri - 1], linux, "SIGNAL {cri}");
        }
        assert!(stop_signal(&at, 66).is_err());
        assert!(stop_signal(&at, -1).is_err());
    }

    #[test]
    fn wrong_values_are_told_by_their_field() {
        let refused = |change: fn(&mut proto::ContainerConfig), field: &str| {
            let mut from = sample();
            change(&mut from);
            assert_eq!(container(Some(from), &["youki"]).map_err(|error| error.field), Err(field.to_owned()));
        };
        assert_eq!(container(None, &[]).unwrap_err().field, "config");
        refused(|c| c.metadata = None, "config.metadata");
        refused(|c| c.metadata.as_mut().unwrap().name = "a/b".into(), "config.metadata.name");
        refused(|c| c.image = None, "config.image");
        refused(|c| c.image.as_mut().unwrap().image.clear(), "config.image.image");
        refused(|c| c.image.as_mut().unwrap().runtime_handler = "x".into(), "config.image.runtime_handler");
        refused(|c| c.log_path = "/etc/passwd".into(), "config.log_path");
        refused(|c| c.log_path = "../../etc/passwd".into(), "config.log_path");
        refused(|c| c.log_path = "main/".into(), "config.log_path");
        refused(|c| c.working_dir = "tmp".into(), "config.working_dir");
        refused(|c| c.args = vec!["a\0b".into()], "config.args[0]");
        refused(|c| c.envs[0].key.clear(), "config.envs[0].key");
        refused(|c| c.envs[0].key = "A=B".into(), "config.envs[0].key");
        refused(|c| c.envs[0].value = vec![0].into(), "config.envs[0].value");
        refused(|c| c.mounts = vec![proto::Mount::default()], "config.mounts[0].container_path");
        refused(|c| c.cdi_devices = vec![proto::CdiDevice::default()], "config.CDI_devices[0].name");
        refused(|c| c.windows = Some(proto::WindowsContainerConfig::default()), "config.windows");
        refused(|c| c.stop_signal = 99, "config.stop_signal");
        refused(
            |c| {
                c.linux = Some(proto::LinuxContainerConfig {
                    resources: Some(proto::LinuxContainerResources { oom_score_adj: 5000, ..Default::default() }),
                    security_context: None,
                });
            },
            "config.linux.resources.oom_score_adj",
        );
    }
}
