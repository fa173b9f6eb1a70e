//! What a handler's runtime binary can do, by its own account (`features` of the OCI runtime specification).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// How long a binary may take to tell.
const LIMIT: Duration = Duration::from_secs(10);
/// Most bytes that it may tell.
const MAX_ANSWER: u64 = 1 << 20;
/// crun knew no `features` for long, but the mount option `rro` from this version on.
const CRUN: (u32, u32) = (1, 4);
/// What runc says of itself.
const RUNC: &str = "org.opencontainers.runc.version";
/// What crun says of itself.
const CRUN_VERSION: &str = "run.oci.crun.version";

/// What matters to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Makes containers in user namespaces; else why not.
    pub user_namespaces: Result<(), String>,
    /// Knows the mount option `rro`.
    pub recursive_read_only_mounts: bool,
    /// It is a crun: see [`unified_controllers`].
    pub is_crun: bool,
}

/// The controllers of the cgroup v2 tree that a hybrid set-up has beside version 1; empty: none, or another set-up. crun
/// makes no container where there are some. Blocks, for a look at a file.
pub fn unified_controllers() -> String {
    // Only where version 1 is mounted beside it does the tree have a place of its own.
    fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default().trim().to_owned()
}

impl Features {
    /// Nothing, for this reason.
    pub fn none(reason: impl Into<String>) -> Self {
        Self { user_namespaces: Err(reason.into()), recursive_read_only_mounts: false, is_crun: false }
    }

    /// Asks a binary. `args` are its global arguments.
    pub async fn ask(binary: &Path, args: &[String]) -> Self {
        let told = match run(binary, args, "features").await {
            Ok(answer) => parse(&answer),
            Err(error) => Err(error),
        };
        match told {
            Ok(features) => features,
            Err(reason) => {
                let version = run(binary, &[], "--version").await.unwrap_or_default();
                let nothing = Self::none(format!("{binary:?} does not tell its features: {reason}"));
                let able = is_able_crun(&version);
                Self {
                    user_namespaces: if able { Err(too_old()) } else { nothing.user_namespaces },
                    recursive_read_only_mounts: able,
                    is_crun: version.starts_with(b"crun version "),
                }
            }
        }
    }
}

/// Makes a folder that everybody can reach, but not list, with a folder `rootfs` in it: a runtime may want the path of
/// a container's root to exist on the host also later on, as its working directory.
///
/// # Errors
/// It cannot be made, or a folder above it keeps people out.
pub fn make_reachable(folder: &Path) -> Result<(), String> {
    let told = |path: &Path, error: io::Error| format!("{path:?}: {error}");
    for path in [folder, &folder.join("rootfs")] {
        match DirBuilder::new().mode(0o711).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(told(path, error)),
            _ => {}
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(|error| told(path, error))?;
    }
    let real: PathBuf = fs::canonicalize(folder).map_err(|error| told(folder, error))?;
    for above in real.ancestors() {
        let mode = fs::metadata(above).map_err(|error| told(above, error))?.permissions().mode();
        if mode & 0o001 == 0 {
            return Err(format!("{above:?} can be entered by its owner only, and lies above {folder:?}"));
        }
    }
    Ok(())
}

async fn run(binary: &Path, args: &[String], what: &str) -> Result<Vec<u8>, String> {
    let mut command = Command::new(binary);
    command.args(args).arg(what).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let work = async {
        let mut child = command.spawn()?;
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        }
        Ok::<_, io::Error>((child.wait().await?, answer))
    };
    match tokio::time::timeout(LIMIT, work).await {
        Err(_) => Err(format!("{what:?} takes too long")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok((status, answer))) if status.success() => Ok(answer),
        Ok(Ok((status, _))) => Err(format!("{what:?} failed ({status})")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    #[serde(default)]
    mount_options: Vec<String>,
    #[serde(default)]
    linux: Linux,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    mount_extensions: Extensions,
}

#[derive(Default, Deserialize)]
struct Extensions {
    #[serde(default)]
    idmap: Extension,
}

#[derive(Default, Deserialize)]
struct Extension {
    #[serde(default)]
    enabled: bool,
}

fn parse(answer: &[u8]) -> Result<Features, String> {
    let Told { mount_options, linux, annotations } =
        serde_json::from_slice(answer).map_err(|error| error.to_string())?;
    let joins = linux.namespaces.iter().any(|namespace| namespace == "user");
    let recent = linux.mount_extensions.idmap.enabled;
    Ok(Features {
        user_namespaces: match joins {
            false => Err("its runtime says that it has none".to_owned()),
            // Owners are mapped without the runtime, but one that can do it is new enough for the rest. runc always was.
            true if recent || annotations.contains_key(RUNC) => Ok(()),
            true => Err(too_old()),
        },
        recursive_read_only_mounts: mount_options.iter().any(|option| option == "rro"),
        is_crun: annotations.contains_key(CRUN_VERSION),
    })
}

/// What is known of crun before 1.9.
fn too_old() -> String {
    "its runtime is too old: in user namespaces it leaves out what is mounted below a volume".to_owned()
}

/// Whether this is what a crun prints as its version, one that can make recursive read-only mounts.
fn is_able_crun(version: &[u8]) -> bool {
    let text = String::from_utf8_lossy(version);
    let number = text.lines().next().and_then(|line| line.strip_prefix("crun version "));
    let mut parts = number.into_iter().flat_map(|number| number.split('.')).map(|part| part.trim().parse::<u32>());
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= CRUN,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_own_words_count() {
        let all = Ok(Features { user_namespaces: Ok(()), recursive_read_only_mounts: true, is_crun: false });
        let new = r#"{"ociVersionMax":"1.2.0","mountOptions":["ro","rro"],"linux":{"namespaces":["pid","user"],
                      "mountExtensions":{"idmap":{"enabled":true}}}}"#;
        assert_eq!(parse(new.as_bytes()), all);
        let runc = r#"{"mountOptions":["rro"],"linux":{"namespaces":["user"]},
                       "annotations":{"org.opencontainers.runc.version":"1.1.5"}}"#;
        assert_eq!(parse(runc.as_bytes()), all);
        assert!(parse(br#"{"annotations":{"run.oci.crun.version":"1.21"}}"#).unwrap().is_crun);
        let old = parse(br#"{"mountOptions":["rro"],"linux":{"namespaces":["user"]}}"#).unwrap();
        assert!(old.user_namespaces.unwrap_err().contains("too old"));
        let none = parse(br#"{"linux":{"namespaces":["pid"]}}"#).unwrap();
        assert!(none.user_namespaces.is_err() && !none.recursive_read_only_mounts);
        assert!(parse(b"").is_err());
    }

    #[test]
    fn a_crun_of_before_is_known_by_its_version() {
        for (version, want) in [
            ("crun version 1.8.1\ncommit: x", true),
            ("crun version 1.4\n", true),
            ("crun version 1.3", false),
            ("crun version UNKNOWN", false),
            ("runc version 1.0.0", false),
            ("", false),
        ] {
            assert_eq!(is_able_crun(version.as_bytes()), want, "{version:?}");
        }
    }

    #[tokio::test]
    async fn one_that_says_nothing_has_nothing() {
        for binary in ["/bin/true", "/bin/false", "/no/such/runtime"] {
            let got = Features::ask(Path::new(binary), &[]).await;
            assert!(!got.recursive_read_only_mounts, "{binary}");
            assert!(got.user_namespaces.unwrap_err().contains(binary));
        }
    }

    #[test]
    fn folders_above_must_let_people_through() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o710)).unwrap();
        let error = make_reachable(&inner).unwrap_err();
        assert!(error.contains("owner only"), "{error}");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(make_reachable(&inner), Ok(()));
    }
}
