//! Environment variables, `$(NAME)` expansion, and fields of the pod.

use super::super::manifest::{Container, EnvSource, Pod, Quantity, ResourceFieldRef};
use super::{Node, PodJob, TranslateError};

/// Names and values, in order; a later one of the same name replaces the earlier one in its place.
pub type Environment = Vec<(String, Vec<u8>)>;

/// The environment of a container: `envFrom` first, then `env`, each of which may refer to those before it.
///
/// # Errors
/// A reference to what is not there.
pub fn environment(
    job: &PodJob,
    container: &Container,
    node: &Node,
    pod_ips: &[String],
) -> Result<Environment, TranslateError> {
    let namespace = &job.pod.metadata.namespace;
    let mut all = Environment::new();
    for source in &container.env_from {
        let from_map = source.config_map_ref.as_ref().and_then(|map| job.objects.config_map(namespace, &map.name));
        let from_secret = source.secret_ref.as_ref().and_then(|secret| job.objects.secret(namespace, &secret.name));
        for (key, value) in from_map.into_iter().chain(from_secret).flatten() {
            set(&mut all, format!("{}{key}", source.prefix), value.clone());
        }
    }
    for (index, variable) in container.env.iter().enumerate() {
        let fail = |problem: String| TranslateError {
            container: container.name.clone(),
            field: format!("env[{index}]"),
            problem,
        };
        let value = match &variable.value_from {
            None => expand(variable.value.as_deref().unwrap_or_default().as_bytes(), &all),
            Some(source) => match resolve(job, container, node, pod_ips, source).map_err(fail)? {
                Some(value) => value,
                None => continue,
            },
        };
        set(&mut all, variable.name.clone(), value);
    }
    if let Some((name, _)) = all.iter().find(|(_, value)| value.contains(&0)) {
        let problem = format!("the value of {name} holds a NUL byte");
        return Err(TranslateError { container: container.name.clone(), field: "env".to_owned(), problem });
    }
    Ok(all)
}

fn set(all: &mut Environment, name: String, value: Vec<u8>) {
    match all.iter_mut().find(|(known, _)| *known == name) {
        Some(slot) => slot.1 = value,
        None => all.push((name, value)),
    }
}

/// `None`: optional and not there.
fn resolve(
    job: &PodJob,
    container: &Container,
    node: &Node,
    pod_ips: &[String],
    source: &EnvSource,
) -> Result<Option<Vec<u8>>, String> {
    let namespace = &job.pod.metadata.namespace;
    let keyed =
        [(source.config_map_key_ref.as_ref(), "ConfigMap", false), (source.secret_key_ref.as_ref(), "Secret", true)];
    for (reference, kind, secret) in keyed {
        let Some(key) = reference else { continue };
        let objects = &job.objects;
        let data = if secret { objects.secret(namespace, &key.name) } else { objects.config_map(namespace, &key.name) };
        return match data.and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if key.optional => Ok(None),
            None => Err(format!("no {kind} {:?} with key {:?}", key.name, key.key)),
        };
    }
    if let Some(reference) = &source.field_ref {
        let value = field(job, node, pod_ips, &reference.field_path)
            .ok_or_else(|| format!("fieldPath {:?} is not supported", reference.field_path))?;
        return Ok(Some(value.into_bytes()));
    }
    match &source.resource_field_ref {
        Some(reference) => Ok(Some(resource_field(&job.pod, Some(container), node, reference)?.into_bytes())),
        None => Ok(None),
    }
}

/// A field of the pod by its path; `None` for one that cannot be had.
pub fn field(job: &PodJob, node: &Node, pod_ips: &[String], path: &str) -> Option<String> {
    let (metadata, spec) = (&job.pod.metadata, &job.pod.spec);
    let subscript = |name: &str| path.strip_prefix(name)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels") {
        return Some(metadata.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Some(metadata.annotations.get(key).cloned().unwrap_or_default());
    }
    // As in a downwardAPI volume: one key="value" a line.
    let lines = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    Some(match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => job.uid.clone(),
        "metadata.labels" => lines(&metadata.labels),
        "metadata.annotations" => lines(&metadata.annotations),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_else(|| node.name.clone()),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
        "status.podIP" => pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => pod_ips.join(","),
        _ => return None,
    })
}

/// A request or limit in units of the divisor, rounded up; what is not set is the whole machine.
///
/// # Errors
/// An unknown container or resource.
pub fn resource_field(
    pod: &Pod,
    at_hand: Option<&Container>,
    node: &Node,
    reference: &ResourceFieldRef,
) -> Result<String, String> {
    let named = pod.all_containers().find(|container| container.name == reference.container_name);
    let container = if reference.container_name.is_empty() { at_hand } else { named };
    let container = container.ok_or_else(|| format!("no container {:?}", reference.container_name))?;
    let unknown = || format!("resource {:?} is not supported", reference.resource);
    let (list, name) = reference.resource.split_once('.').ok_or_else(unknown)?;
    let whole = match name {
        "cpu" => Quantity::from_milli(node.cpu_milli.into()),
        "memory" => Quantity::from_milli(i128::from(node.memory) * 1000),
        _ => return Err(unknown()),
    };
    let resources = &container.resources;
    let limit = resources.limits.get(name);
    let amount = match list {
        "limits" => limit.copied().unwrap_or(whole),
        "requests" => resources.requests.get(name).or(limit).copied().unwrap_or_default(),
        _ => return Err(unknown()),
    };
    Ok(amount.divided_by(reference.divisor).to_string())
}

/// Puts in the value for each `$(NAME)` that is known; `$$` is a plain `$`, all else stays as it is.
pub fn expand(text: &[u8], known: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.iter().position(|b| *b == b'$') {
        out.extend_from_slice(&rest[..dollar]);
        rest = &rest[dollar..];
        match rest.get(1) {
            Some(b'$') => {
                out.push(b'$');
                rest = &rest[2..];
            }
            Some(b'(') => {
                let Some(end) = rest.iter().position(|b| *b == b')') else { break };
                match known.iter().find(|(name, _)| name.as_bytes() == &rest[2..end]) {
                    Some((_, value)) => out.extend_from_slice(value),
                    None => out.extend_from_slice(&rest[..=end]),
                }
                rest = &rest[end + 1..];
            }
            _ => {
                out.push(b'$');
                rest = &rest[1..];
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(text: &str) -> String {
        let known = [("A".to_owned(), b"x".to_vec()), ("B".to_owned(), b"$(A)".to_vec())];
        String::from_utf8(expand(text.as_bytes(), &known)).unwrap()
    }

    #[test]
    fn references_are_expanded_once() {
        for (text, want) in [
            ("$(A)-$(B)", "x-$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(NONE)", "$(NONE)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(expanded(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollars_stays(text in "[^$]{0,60}") {
            prop_assert_eq!(expanded(&text), text);
        }

        #[test]
        fn nothing_panics(text in "[$()AB]{0,40}") {
            let _ = expanded(&text);
        }
    }
}
