//! A look at what is configured and installed, for people; nothing is run.

use std::path::PathBuf;

use serde_json::Value;

use super::Settings;
use super::cni::config;
use super::cni::exec::Runner;

/// What is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The networks that pods would be attached to.
    pub networks: Vec<InspectedNetwork>,
    /// Files that were refused, and why.
    pub refused: Vec<String>,
}

/// One network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InspectedNetwork {
    /// Its name.
    pub name: String,
    /// Its configuration file.
    pub file: PathBuf,
    /// Executables it needs, IPAM plugins among them, and where they are; `None`: not installed.
    pub plugins: Vec<(String, Option<PathBuf>)>,
    /// Whether a plugin of it is known to call `iptables`.
    pub needs_iptables: bool,
}

/// Reads the configuration folder and looks for the plugins. Blocks.
pub fn inspect(settings: &Settings) -> Inspection {
    let runner = Runner { folders: settings.bin_dirs.clone(), timeout: settings.plugin_timeout };
    let loaded = match config::load(&settings.conf_dir, settings.max_conf_files) {
        Ok(loaded) => loaded,
        Err(error) => {
            let refused = vec![format!("{}: {error}", settings.conf_dir.display())];
            return Inspection { networks: Vec::new(), refused };
        }
    };
    let networks = loaded.networks.into_iter().map(|(file, config)| {
        let mut kinds: Vec<String> = Vec::new();
        for plugin in &config.plugins {
            let ipam = plugin.config.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
            for kind in [Some(plugin.kind.as_str()), ipam].into_iter().flatten() {
                if !kinds.iter().any(|known| known == kind) {
                    kinds.push(kind.to_owned());
                }
            }
        }
        let needs_iptables = config.plugins.iter().any(|plugin| {
            matches!(plugin.kind.as_str(), "portmap" | "firewall")
                || plugin.config.get("ipMasq").and_then(Value::as_bool) == Some(true)
        });
        let plugins = kinds.into_iter().map(|kind| (runner.find(&kind).ok(), kind)).map(|(path, kind)| (kind, path));
        InspectedNetwork { name: config.name, file, plugins: plugins.collect(), needs_iptables }
    });
    Inspection {
        networks: networks.collect(),
        refused: loaded.refused.iter().map(|(file, error)| format!("{}: {error}", file.display())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn plugins_that_are_missing_show() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"name":"n","plugins":[{"type":"sh","ipam":{"type":"none-such"}},{"type":"portmap"}]}"#;
        fs::write(folder.path().join("1.conflist"), text).unwrap();
        fs::write(folder.path().join("0.conf"), "{").unwrap();
        let settings =
            Settings { conf_dir: folder.path().into(), bin_dirs: vec!["/bin".into()], ..Settings::default() };
        let found = inspect(&settings);
        let network = &found.networks[0];
        let missing: Vec<_> = network.plugins.iter().filter(|(_, path)| path.is_none()).map(|(kind, _)| kind).collect();
        assert_eq!(missing, ["none-such", "portmap"]);
        assert!(network.needs_iptables);
        assert_eq!(found.refused.len(), 1);
    }
}
