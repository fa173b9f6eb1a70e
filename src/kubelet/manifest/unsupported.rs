//! Words for fields the types do not take: known to Kubernetes, or to nobody?

/// Fields of a v1 Pod (and of what is in it) that Kubernetes has and this driver does not.
const KNOWN: &[&str] = &[
    // metadata
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    // spec
    "ephemeralContainers",
    "hostnameOverride",
    "imagePullSecrets",
    "readinessGates",
    "resourceClaims",
    "resources",
    "schedulingGates",
    "serviceAccount",
    "setHostnameAsFQDN",
    "subdomain",
    "workloadRef",
    // containers
    "claims",
    "fileKeyRef",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "resizePolicy",
    "restartPolicyRules",
    "startupProbe",
    "volumeDevices",
    // security contexts
    "seLinuxChangePolicy",
    "windowsOptions",
    // volumes
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "clusterTrustBundle",
    "csi",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "podCertificate",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "serviceAccountToken",
    "storageos",
    "vsphereVolume",
];

/// What to say of the field at `path`, given the deserializer's message.
pub(super) fn explain(path: &str, message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message.to_owned();
    };
    let (field, expected) = rest.split_once('`').unwrap_or((rest, ""));
    if KNOWN.contains(&field) {
        return "not supported".to_owned();
    }
    let near = expected.split('`').skip(1).step_by(2).find(|known| close(known, field));
    match near {
        Some(known) => format!("no such field; did you mean {known}?"),
        None if path.ends_with(field) => "no such field".to_owned(),
        None => format!("no such field: {field}"),
    }
}

/// The same letters but for case, or one letter more, less, other, or two neighbours swapped.
fn close(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (left_a, left_b) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    matches!((left_a, left_b), ([], []) | ([_], []) | ([], [_]) | ([_], [_]))
        || matches!((left_a, left_b), ([w, x], [y, z]) if w == z && x == y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_told_apart() {
        let message = |field: &str| format!("unknown field `{field}`, expected one of `image`, `command`, `args`");
        assert_eq!(explain("spec.containers[0].lifecycle", &message("lifecycle")), "not supported");
        assert_eq!(explain("a.comand", &message("comand")), "no such field; did you mean command?");
        assert_eq!(explain("a.Args", &message("Args")), "no such field; did you mean args?");
        assert_eq!(explain("a.zebra", &message("zebra")), "no such field");
        assert_eq!(explain("a.image", "invalid type: integer"), "invalid type: integer");
    }
}
