//! Requests, short to write.

use podwright::proto::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};

use super::Node;

/// The usual image: a busybox whose applets are hard links.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// A web server on port 80.
pub const HTTPD: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";

/// Owned strings.
pub fn args(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The spec of an image by its reference.
pub fn image(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.to_owned(), user_specified_image: reference.to_owned(), ..Default::default() }
}

impl Node {
    /// A sandbox with a network of its own and logs in the node's folder.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let uid = format!("{name}-uid");
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid,
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.dir().join("logs").join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent().to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Pod)),
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A sandbox on the host's network.
    pub fn host_pod(&self, name: &str) -> PodSandboxConfig {
        let mut pod = self.pod(name);
        pod.hostname = String::new();
        sandbox_security(&mut pod).namespace_options = Some(namespaces(NamespaceMode::Node));
        pod
    }

    /// A container of the usual image that runs a command.
    pub fn run(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image(BUSYBOX)),
            command: args(command),
            log_path: format!("{name}/0.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A container that runs a shell script.
    pub fn sh(&self, name: &str, script: &str) -> ContainerConfig {
        self.run(name, &["sh", "-c", script])
    }

    /// A container that sleeps, and ends at once when told.
    pub fn sleeper(&self, name: &str) -> ContainerConfig {
        self.sh(name, "trap 'exit 0' TERM; echo up; sleep 3600 & wait")
    }
}

/// Namespace options: this network, PID per container, IPC of the pod.
pub fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption { network: network as i32, pid: NamespaceMode::Container as i32, ..Default::default() }
}

/// Seccomp RuntimeDefault.
pub fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, localhost_ref: String::new() }
}

/// A sandbox's security context.
pub fn sandbox_security(pod: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    pod.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A container's security context.
pub fn security(container: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    container.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// An environment variable.
pub fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec().into() }
}

/// A bind mount.
pub fn bind(host: impl AsRef<std::path::Path>, container: &str) -> Mount {
    let host_path = host.as_ref().to_string_lossy().into_owned();
    Mount { container_path: container.to_owned(), host_path, ..Default::default() }
}
