//! Runtime handlers: what the `runtimeClassName` of a pod stands for, one TOML file each.
//!
//! `NAME.toml` defines the handler NAME; a `*.runtimeclass.yaml` beside it is the manifest for the
//! cluster and not read here. The empty name is the default, which
//! the configuration names. The built-in `youki` is always there; a `youki.toml` replaces its settings.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::features::{self, Features};
use crate::types::{ErrorKind, HasKind};

/// Name of the built-in handler.
pub const BUILT_IN: &str = "youki";
/// Largest file, bytes.
const MAX_FILE: u64 = 64 << 10;
/// Longest name, characters: RuntimeClass handlers are DNS labels.
const MAX_NAME: usize = 63;

/// A handler cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// No handler has this name.
    #[error("runtime handler {name:?} is not configured; known are {known}")]
    NotFound {
        /// As asked.
        name: String,
        /// The names that are.
        known: String,
    },
    /// The program that makes its containers cannot run on this machine.
    #[error("runtime handler {name:?}: {}", hybrid(.controllers))]
    Hybrid {
        /// The handler.
        name: String,
        /// Controllers of version 2.
        controllers: String,
    },
    /// A file or the folder cannot be read.
    #[error("runtime handler file {path:?}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program that makes its containers cannot be had.
    #[error("runtime handler {name:?}: its binary {binary:?} {reason}")]
    Binary {
        /// The handler.
        name: String,
        /// As configured.
        binary: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file is no handler.
    #[error("runtime handler file {path:?}: {reason}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Key and reason.
        reason: String,
    },
}

impl HasKind for HandlerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Io { .. } | Self::Invalid { .. } | Self::Binary { .. } | Self::Hybrid { .. } => {
                ErrorKind::FailedPrecondition
            }
        }
    }
}

/// Who makes the containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Built in.
    #[default]
    Youki,
    /// An OCI runtime binary.
    Oci,
}

/// One handler.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handler {
    /// Its name, as in a RuntimeClass.
    pub name: String,
    /// Its settings.
    pub settings: Settings,
    /// What its binary says of itself; `None`: it was not asked, or there is none.
    pub features: Option<Features>,
}

/// A handler's file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Who makes the containers.
    pub kind: Kind,
    /// `oci`: the binary, absolute or a name to be found in the usual folders.
    pub binary: Option<PathBuf>,
    /// `oci`: the binary's `--root`; unset: a folder of the pod's own.
    pub root: Option<PathBuf>,
    /// `oci`: further global arguments.
    pub args: Vec<String>,
    /// Annotations of pod and container that are handed to the runtime: names, or prefixes ending in `*`.
    pub pod_annotations: Vec<String>,
    /// The same for the container's own annotations.
    pub container_annotations: Vec<String>,
    /// Annotations that are set unless the client does.
    pub default_annotations: BTreeMap<String, String>,
    /// CNI configuration folder; unset: the configured one.
    pub cni_conf_dir: Option<PathBuf>,
    /// CNI plugin folder; unset: the configured one.
    pub cni_bin_dir: Option<PathBuf>,
    /// Privileged containers do not get the host's devices.
    pub privileged_without_host_devices: bool,
    /// Overrides whether the systemd cgroup driver is used; unset: as configured.
    pub systemd_cgroup: Option<bool>,
    /// User namespaces work with it, if they do on this node at all. Unset: with `youki`, and if the binary says so.
    pub user_namespaces: Option<bool>,
    /// Recursive read-only mounts work with it. Unset: the same.
    pub recursive_read_only_mounts: Option<bool>,
}

impl Handler {
    /// Where the binary is now; `None`: the built-in runtime needs none. Blocks, for a look at the file.
    ///
    /// # Errors
    /// [`HandlerError::Binary`] if it is not installed, or nothing that can be executed; [`HandlerError::Hybrid`] if it
    /// is known to be one that cannot work with this machine's cgroups.
    pub fn program(&self) -> Result<Option<PathBuf>, HandlerError> {
        const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        let Some(binary) = &self.settings.binary else { return Ok(None) };
        // An absolute path replaces what it is joined to.
        let candidates = FOLDERS.iter().map(|folder| Path::new(folder).join(binary));
        let found: Vec<_> = candidates.filter_map(|path| Some((fs::metadata(&path).ok()?, path))).collect();
        let executable = |file: &fs::Metadata| file.is_file() && file.permissions().mode() & 0o111 != 0;
        let reason = if found.is_empty() { "is not installed" } else { "is no program that can be executed" };
        match found.into_iter().find(|(file, _)| executable(file)) {
            Some((_, path)) => match self.features.as_ref().filter(|features| features.is_crun) {
                Some(_) => self.fits(features::unified_controllers()).map(|()| Some(path)),
                None => Ok(Some(path)),
            },
            None => Err(HandlerError::Binary { name: self.name.clone(), binary: binary.clone(), reason }),
        }
    }

    fn fits(&self, controllers: String) -> Result<(), HandlerError> {
        if controllers.is_empty() { Ok(()) } else { Err(HandlerError::Hybrid { name: self.name.clone(), controllers }) }
    }

    /// Asks the binary, if there is one, what it can do.
    async fn ask_binary(&mut self) {
        self.features = match self.program() {
            Ok(Some(binary)) => Some(Features::ask(&binary, &self.settings.args).await),
            Ok(None) => None,
            Err(problem) => Some(Features::none(problem.to_string())),
        };
    }

    /// Whether pods with user namespaces can use it, where the kernel can do them; else why not.
    pub fn takes_user_namespaces(&self) -> Result<(), String> {
        match (self.settings.user_namespaces, self.settings.kind, &self.features) {
            (Some(false), ..) => Err("its configuration says that it has none".to_owned()),
            (Some(true), ..) | (None, Kind::Youki, _) => Ok(()),
            (None, Kind::Oci, Some(features)) => features.user_namespaces.clone(),
            (None, Kind::Oci, None) => Err("its runtime is not known".to_owned()),
        }
    }

    /// Whether mounts can be made read-only with all that is mounted below them.
    pub fn makes_recursive_read_only_mounts(&self) -> bool {
        let told = self.features.as_ref().is_some_and(|features| features.recursive_read_only_mounts);
        self.settings.recursive_read_only_mounts.unwrap_or(self.settings.kind == Kind::Youki || told)
    }

    async fn ask(&mut self, reachable: Result<(), String>) {
        self.ask_binary().await;
        let Some(features) = &mut self.features else { return };
        if reachable.is_err() {
            // Nothing that its file says makes up for that.
            self.settings.user_namespaces = self.settings.user_namespaces.filter(|has| !has);
            features.user_namespaces = features.user_namespaces.clone().and(reachable);
        }
        match self.takes_user_namespaces() {
            Err(reason) if self.settings.user_namespaces.is_none() => {
                tracing::info!(handler = self.name, reason, "pods of this handler cannot have user namespaces");
            }
            _ => {}
        }
    }

    /// Those of `annotations` that one of `patterns` lets through to the runtime.
    pub fn pass_through(patterns: &[String], annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let passes = |name: &str| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
        };
        annotations.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// All handlers of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handlers {
    by_name: BTreeMap<String, Handler>,
    default: String,
}

impl Default for Handlers {
    /// Only the built-in one.
    fn default() -> Self {
        let built_in = Handler { name: BUILT_IN.to_owned(), ..Handler::default() };
        Self { by_name: BTreeMap::from([(BUILT_IN.to_owned(), built_in)]), default: BUILT_IN.to_owned() }
    }
}

impl Handlers {
    /// Reads all `*.toml` of a folder; one that does not exist holds none. `default` is what the
    /// empty name stands for.
    pub fn load(folder: &Path, default: &str) -> Result<Self, HandlerError> {
        let mut handlers = Self::read(folder)?;
        handlers.default = handlers.get(default)?.name.clone();
        Ok(handlers)
    }

    /// Asks all binaries, side by side, what they can do. `place` is a folder to be made, which containers with user
    /// namespaces are made in, see [`crate::wire::Engine::Oci`].
    pub async fn ask(&mut self, place: &Path) {
        let binaries: Vec<_> = self.by_name.values_mut().filter(|handler| handler.settings.kind == Kind::Oci).collect();
        if binaries.is_empty() {
            return;
        }
        let reachable = features::make_reachable(place);
        futures_util::future::join_all(binaries.into_iter().map(|handler| handler.ask(reachable.clone()))).await;
    }

    /// The same, only for a look: makes no folder, and says nothing of user namespaces.
    pub async fn identify(&mut self) {
        futures_util::future::join_all(self.by_name.values_mut().map(Handler::ask_binary)).await;
    }

    fn read(folder: &Path) -> Result<Self, HandlerError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| HandlerError::Io { path, source }
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io(folder)(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(io(folder))?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        let mut handlers = Self::default();
        for path in paths {
            let mut text = String::new();
            let file = fs::File::open(&path).map_err(io(&path))?;
            file.take(MAX_FILE).read_to_string(&mut text).map_err(io(&path))?;
            let handler = parse(&path, &text)?;
            handlers.by_name.insert(handler.name.clone(), handler);
        }
        Ok(handlers)
    }

    /// The handler of this name; the empty one is the default's.
    pub fn get(&self, name: &str) -> Result<&Handler, HandlerError> {
        let wanted = if name.is_empty() { &self.default } else { name };
        self.by_name.get(wanted).ok_or_else(|| HandlerError::NotFound {
            name: name.chars().take(MAX_NAME + 1).collect(),
            known: self.known(),
        })
    }

    /// The names that can be used; those that are refused apart from them, with the reason.
    fn known(&self) -> String {
        let (mut usable, mut refused) = (Vec::new(), Vec::new());
        for handler in self.iter() {
            match handler.program() {
                Ok(_) => usable.push(format!("{:?}", handler.name)),
                Err(HandlerError::Binary { name, binary, reason }) => {
                    refused.push(format!("{name:?} (its binary {binary:?} {reason})"));
                }
                Err(HandlerError::Hybrid { name, controllers }) => {
                    refused.push(format!("{name:?} ({})", hybrid(&controllers)));
                }
                Err(other) => refused.push(format!("{:?} ({other})", handler.name)),
            }
        }
        let refused = if refused.is_empty() { String::new() } else { format!("; refused is {}", refused.join(", ")) };
        format!("{}{refused}", usable.join(", "))
    }

    /// What the empty name stands for.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Handler> {
        self.by_name.values()
    }
}

fn hybrid(controllers: &str) -> String {
    format!(
        "crun makes no containers where cgroup version 2 has controllers of its own ({controllers}) beside version 1"
    )
}

fn parse(path: &Path, text: &str) -> Result<Handler, HandlerError> {
    let invalid = |reason: String| HandlerError::Invalid { path: path.to_owned(), reason };
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fine) {
        return Err(invalid("a handler's name has up to 63 of a-z, 0-9 and -".to_owned()));
    }
    let settings: Settings = toml::from_str(text).map_err(|error| invalid(error.to_string().trim().to_owned()))?;
    match (settings.kind, &settings.binary) {
        (Kind::Oci, None) => return Err(invalid("binary: missing, kind \"oci\" needs it".to_owned())),
        (Kind::Oci, Some(binary)) if binary.components().count() > 1 && !binary.is_absolute() => {
            return Err(invalid(format!("binary: {binary:?} is neither a name nor an absolute path")));
        }
        (Kind::Youki, Some(_)) => return Err(invalid("binary: only for kind \"oci\"".to_owned())),
        (Kind::Youki, None) if settings.root.is_some() || !settings.args.is_empty() => {
            return Err(invalid("root, args: only for kind \"oci\"".to_owned()));
        }
        (Kind::Youki, None) if name != BUILT_IN && settings == Settings::default() => {
            return Err(invalid(format!("it says nothing; the built-in handler is {BUILT_IN:?}")));
        }
        _ => {}
    }
    let folders =
        [("root", &settings.root), ("cni_conf_dir", &settings.cni_conf_dir), ("cni_bin_dir", &settings.cni_bin_dir)];
    if let Some((key, path)) =
        folders.into_iter().find(|(_, path)| path.as_ref().is_some_and(|path| !path.is_absolute()))
    {
        return Err(invalid(format!("{key}: {path:?} is not absolute")));
    }
    Ok(Handler { name: name.to_owned(), settings, features: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    #[test]
    fn the_files_that_come_with_us_are_good() {
        let handlers =
            Handlers::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime-handlers"), BUILT_IN).unwrap();
        assert_eq!(handlers.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["crun", "runc", "runsc", "youki"]);
        assert_eq!(handlers.get("").unwrap().name, "youki");
        assert_eq!(handlers.get("runc").unwrap().settings.kind, Kind::Oci);
        for handler in handlers.iter() {
            let manifest = format!("runtime-handlers/{}.runtimeclass.yaml", handler.name);
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest)).unwrap();
            let yaml: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
            assert_eq!((&yaml["kind"], &yaml["handler"]), (&"RuntimeClass".into(), &handler.name.as_str().into()));
        }
    }

    #[test]
    fn an_unknown_handler_is_told_with_the_known() {
        let handlers =
            Handlers::load(folder(&[("runc.toml", "kind = 'oci'\nbinary = '/bin/true'")]).path(), BUILT_IN).unwrap();
        let error = handlers.get("kata").unwrap_err();
        assert_eq!(error.to_string(), r#"runtime handler "kata" is not configured; known are "runc", "youki""#);
        let gone =
            Handlers::load(folder(&[("gone.toml", "kind = 'oci'\nbinary = '/no/run'")]).path(), BUILT_IN).unwrap();
        let refused = r#"known are "youki"; refused is "gone" (its binary "/no/run" is not installed)"#;
        assert!(gone.get("kata").unwrap_err().to_string().ends_with(refused));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(Handlers::load(Path::new("/does/not/exist"), BUILT_IN).unwrap(), Handlers::default());
    }

    #[test]
    fn the_default_is_one_of_those_that_are_there() {
        let folder = folder(&[("a.toml", "kind = 'oci'\nbinary = '/bin/a'")]);
        assert_eq!(Handlers::load(folder.path(), "a").unwrap().get("").unwrap().name, "a");
        assert!(Handlers::load(folder.path(), "b").is_err());
    }

    #[test]
    fn a_program_is_a_file_that_can_be_executed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let settings = Settings { kind: Kind::Oci, binary: Some(folder.path().join(name)), ..Settings::default() };
            Handler { name: "h".to_owned(), settings, features: None }
        };
        fs::write(folder.path().join("text"), "x").unwrap();
        fs::write(folder.path().join("program"), "x").unwrap();
        fs::set_permissions(folder.path().join("program"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(at("program").program().unwrap(), Some(folder.path().join("program")));
        for (name, want) in [("gone", "not installed"), ("text", "executed"), ("", "executed")] {
            let error = at(name).program().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(error.to_string().contains(want) && error.to_string().contains("\"h\""), "{error}");
        }
        assert_eq!(Handler::default().program().unwrap(), None);
    }

    #[test]
    fn crun_needs_the_cgroups_of_one_version() {
        let handler = Handler { name: "crun".to_owned(), ..Handler::default() };
        handler.fits(String::new()).unwrap();
        let error = handler.fits("hugetlb misc".to_owned()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("\"crun\"") && error.to_string().contains("hugetlb misc"), "{error}");
    }

    #[test]
    fn bad_files_are_refused_by_name_and_key() {
        for (name, text, want) in [
            ("a.toml", "kind = 'oci'", "binary"),
            ("a.toml", "kind = 'oci'\nbinary = 'x/y'", "binary"),
            ("a.toml", "kind = 'vm'", "kind"),
            ("a.toml", "kind = 'oci'\nbinary = 'x'\nwhat = 1", "what"),
            ("a.toml", "kind = 'oci'\nbinary = 'x'\nroot = 'y'", "root"),
            ("youki.toml", "binary = 'x'", "binary"),
            ("A.toml", "kind = 'oci'\nbinary = 'x'", "name"),
            ("b.toml", "", "built-in"),
        ] {
            let error = Handlers::load(folder(&[(name, text)]).path(), BUILT_IN).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(want), "{error}");
        }
    }

    #[test]
    fn annotations_pass_by_name_or_prefix() {
        let annotations = ["a.b/c", "a.b/d", "x"].map(|name| (name.to_owned(), String::new())).into();
        let names = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
            Handler::pass_through(&patterns, &annotations).into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(&["a.b/*"]), ["a.b/c", "a.b/d"]);
        assert_eq!(names(&["x", "a"]), ["x"]);
        assert!(names(&[]).is_empty());
    }
}
