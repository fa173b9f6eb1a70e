use super::*;

const HELLO: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hello}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: busybox}
";

fn error(text: &str) -> String {
    match parse(text, "f") {
        Ok(_) => "fine".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A pod whose only container has this further field.
fn with(field: &str) -> String {
    error(&HELLO.replace("image: busybox}", &format!("image: busybox, {field}}}")))
}

/// A pod with this further field in its spec.
fn with_spec(field: &str) -> String {
    error(&format!("{HELLO}  {field}\n"))
}

#[test]
fn a_small_pod_has_its_defaults() {
    let manifest = parse(HELLO, "f").unwrap();
    let pod = &manifest.pods[0].pod;
    assert_eq!(pod.metadata.namespace, "default");
    assert_eq!(pod.spec.restart_policy, RestartPolicy::Never);
    assert_eq!(pod.grace_seconds(), 30);
    assert_eq!(pod.spec.containers[0].termination_path(), "/dev/termination-log");
    assert_eq!(manifest.pods[0].hash.len(), 64);
}

#[test]
fn json_is_read_as_well() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","creationTimestamp":null},
        "spec":{"containers":[{"name":"a","image":"b","resources":{}}]},"status":{}}"#;
    assert_eq!(error(text), "fine");
}

#[test]
fn refused_fields_are_named_by_path() {
    assert_eq!(with("lifecycle: {}"), "f: Pod hello: spec.containers[0].lifecycle: not supported");
    assert_eq!(with("livenessProbe: {exec: {}}"), "f: Pod hello: spec.containers[0].livenessProbe: not supported");
    assert_eq!(with("comand: [a]"), "f: Pod hello: spec.containers[0].comand: no such field; did you mean command?");
    assert_eq!(
        with_spec("volumes: [{name: a, nfs: {server: b, path: /}}]"),
        "f: Pod hello: spec.volumes[0].nfs: not supported"
    );
    assert_eq!(with_spec("zebra: 1"), "f: Pod hello: spec.zebra: no such field");
}

#[test]
fn wrong_values_are_named_by_path() {
    let field = "f: Pod hello: spec.containers[0]";
    assert_eq!(
        with("resources: {limits: {memory: 5X}}"),
        format!(
            "{field}.resources.limits.memory: \"5X\" is not a quantity: \
             want a number of 0 or more with a suffix such as m, k, M, Ki, Mi or none"
        )
    );
    assert_eq!(with("tty: 5"), format!("{field}.tty: invalid type: integer `5`, expected a boolean"));
    assert_eq!(
        with("volumeMounts: [{name: a, mountPath: /a}]"),
        format!("{field}.volumeMounts[0].name: the pod has no volume \"a\"")
    );
    assert_eq!(
        with("envFrom: [{configMapRef: {name: c}}]"),
        format!("{field}.envFrom[0].configMapRef.name: the manifest has no ConfigMap \"c\" in namespace \"default\"")
    );
    assert_eq!(
        with("resources: {limits: {cpu: 1}, requests: {cpu: 2}}"),
        format!("{field}.resources.requests.cpu: is above the limit")
    );
    assert_eq!(
        with_spec("initContainers: [{name: main, image: b}]"),
        "f: Pod hello: spec.containers[0].name: another container has this name"
    );
    assert!(with("resources: {limits: {nvidia.com/gpu: 1}}").ends_with(".nvidia.com/gpu: not supported"));
}

#[test]
fn hostile_names_never_become_paths() {
    for name in ["../x", "a/b", "", ".", "A", "a\\nb", "-a"] {
        assert_ne!(error(&HELLO.replace("hello", &format!("\"{name}\""))), "fine", "{name}");
    }
    for field in [
        "metadata: {name: a, namespace: ../../etc}",
        "metadata: {name: a, uid: ../../etc}",
        "metadata: {name: a, uid: a/b}",
    ] {
        assert_ne!(error(&HELLO.replace("metadata: {name: hello}", field)), "fine", "{field}");
    }
    for path in ["../a", "/a", "a/../../b"] {
        let volumes = format!(
            "volumes: [{{name: v, configMap: {{name: c, optional: true, items: [{{key: a, path: {path}}}]}}}}]"
        );
        assert!(with_spec(&volumes).contains("want a relative path without '..'"), "{path}");
    }
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {'../a': b}\n";
    assert!(error(map).contains("is not a key"));
}

#[test]
fn objects_stand_beside_the_pod() {
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{a: aGk=}}\nstringData: {{b: you}}\n---\n{HELLO}"
    );
    let manifest = parse(&text, "f").unwrap();
    let secret = manifest.objects.secret("default", "s").unwrap();
    assert_eq!((secret["a"].as_slice(), secret["b"].as_slice()), (b"hi".as_slice(), b"you".as_slice()));
    assert!(!format!("{manifest:?}").contains("you"));
    assert!(error(&text.replace("aGk=", "a!b")).contains("Secret s: data.a: not base64"));
}

#[test]
fn the_hash_follows_meaning_not_looks() {
    let hash = |text: &str| parse(text, "f").unwrap().pods[0].hash.clone();
    let map = |value: &str| {
        format!("{HELLO}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: {value}}}\n")
    };
    assert_eq!(hash(HELLO), hash(&format!("# a comment\n{HELLO}\n\n")));
    assert_ne!(hash(HELLO), hash(&HELLO.replace("busybox", "alpine")));
    assert_ne!(hash(&map("x")), hash(&map("y")));
}

#[test]
fn modes_read_as_octal() {
    for (text, want) in [("0600", 0o600), ("384", 0o600), ("0o600", 0o600), ("\"0600\"", 0o600)] {
        let pod = format!(
            "{HELLO}  volumes: [{{name: v, secret: {{secretName: s, optional: true, defaultMode: {text}}}}}]\n"
        );
        let manifest = parse(&pod, "f").unwrap();
        let secret = manifest.pods[0].pod.spec.volumes[0].secret.clone().unwrap();
        assert_eq!(secret.default_mode, Some(want), "{text}");
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let text = format!("{HELLO}  tolerations: []\n  priority: 5\n");
    let notes = notes(&parse(&text, "f").unwrap().pods[0].pod);
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("spec.tolerations has no effect"));
}

#[test]
fn rubbish_is_an_error() {
    for text in ["{", "a: [", "- 1", "5", "kind: Pod", "apiVersion: v1\nkind: Deployment\n", "\u{0}"] {
        assert_ne!(error(text), "fine", "{text}");
    }
    assert_eq!(error(""), "fine");
    assert_eq!(error("---\n---\n"), "fine");
}
