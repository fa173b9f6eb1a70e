//! Several TOML texts to one [`Config`], each error traced to the file that caused it.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::validate::validate;
use super::{Config, ConfigError};

/// One configuration file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it came from, for messages.
    pub file: PathBuf,
    /// Its content.
    pub text: String,
}

/// Merges the sources over the defaults, later ones over earlier ones, tables key by key (arrays are
/// replaced as a whole), and validates the result.
pub fn parse(sources: &[Source]) -> Result<Config, ConfigError> {
    let mut merged = Table::new();
    let mut tables = Vec::new();
    for source in sources {
        let table: Table = toml::from_str(&source.text).map_err(|error| ConfigError::Syntax {
            file: source.file.clone(),
            reason: error.to_string().trim().to_owned(),
        })?;
        // Every key has a default, so each file is a whole configuration by itself, and a wrong key
        // or type can be told with the name of its file.
        typed(&table, &source.file)?;
        merge(&mut merged, &table);
        tables.push((&source.file, table));
    }
    let config = typed(&merged, Path::new("merged configuration"))?;
    validate(&config).map_err(|bad| {
        let setter = tables.iter().rev().find(|(_, table)| has(table, bad.key));
        let file = setter.map_or_else(|| PathBuf::from("defaults"), |(file, _)| (*file).clone());
        ConfigError::Key { file, key: bad.key.to_owned(), reason: bad.reason }
    })?;
    Ok(config)
}

fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

fn has(table: &Table, key: &str) -> bool {
    match key.split_once('.') {
        Some((first, rest)) => matches!(table.get(first), Some(Value::Table(inner)) if has(inner, rest)),
        None => table.contains_key(key),
    }
}

fn typed(table: &Table, file: &Path) -> Result<Config, ConfigError> {
    serde_path_to_error::deserialize(table.clone()).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.inner().message().trim().to_owned();
        ConfigError::Key { file: file.to_owned(), key: full_key(&path, &reason), reason }
    })
}

/// serde tells of an unknown key with the path of the table around it; the key itself is in the words.
fn full_key(path: &str, reason: &str) -> String {
    let unknown = reason.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    match unknown {
        Some(key) if path == "." => key.to_owned(),
        Some(key) if path == key || path.ends_with(&format!(".{key}")) => path.to_owned(),
        Some(key) => format!("{path}.{key}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_TEXT;

    fn one(text: &str) -> Result<Config, String> {
        parse(&[Source { file: "a.toml".into(), text: text.into() }]).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(text: &str, parts: &[&str]) {
        let error = one(text).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{error:?} does not name {part:?}");
        }
    }

    #[test]
    fn nothing_gives_the_defaults() {
        assert_eq!(parse(&[]).unwrap(), Config::default());
        assert_eq!(one("").unwrap(), Config::default());
    }

    #[test]
    fn the_example_is_the_defaults_and_has_every_key() {
        assert_eq!(one(DEFAULT_TEXT).unwrap(), Config::default());
        let example: Table = toml::from_str(DEFAULT_TEXT).unwrap();
        let defaults = Table::try_from(Config::default()).unwrap();
        assert_eq!(keys(&example, ""), keys(&defaults, ""));
    }

    fn keys(table: &Table, prefix: &str) -> std::collections::BTreeSet<String> {
        let mut all = std::collections::BTreeSet::new();
        for (key, value) in table {
            match value {
                Value::Table(inner) => all.extend(keys(inner, &format!("{prefix}{key}."))),
                _ => {
                    all.insert(format!("{prefix}{key}"));
                }
            }
        }
        all
    }

    #[test]
    fn every_wrong_key_is_named_with_its_file() {
        refused("[image]\nprogres_timeout = \"3s\"", &["a.toml", "image.progres_timeout", "unknown field"]);
        refused("typo = 1", &["a.toml", "typo", "unknown field"]);
        refused("[nope]\na = 1", &["a.toml", "nope", "unknown field"]);
        refused("[image]\nprogress_timeout = 3", &["a.toml", "image.progress_timeout", "string"]);
        refused("[image]\nprogress_timeout = \"3\"", &["a.toml", "image.progress_timeout", "not a duration"]);
        refused("[cgroup]\ndriver = \"runc\"", &["a.toml", "cgroup.driver", "runc", "systemd"]);
        refused("[network]\nbin_dirs = [\"/a\", 3]", &["a.toml", "network.bin_dirs[1]"]);
        refused("[server]\naddress = \"relative.sock\"", &["a.toml", "server.address", "relative.sock"]);
        refused("[streaming]\naddress = \"localhost\"", &["a.toml", "streaming.address", "address"]);
        refused("[server\n", &["a.toml", "is not TOML", "line 1"]);
    }

    #[test]
    fn the_last_file_that_sets_a_key_is_blamed() {
        let file = |name: &str, text: &str| Source { file: name.into(), text: text.into() };
        let error = parse(&[
            file("a.toml", "[image]\nmax_concurrent_layers = 2"),
            file("b.toml", "[image]\nmax_concurrent_layers = 0"),
            file("c.toml", "[log]\nlevel = \"debug\""),
        ])
        .unwrap_err()
        .to_string();
        assert!(error.contains("b.toml") && error.contains("image.max_concurrent_layers"), "{error}");
    }

    #[test]
    fn tables_merge_key_by_key_and_arrays_as_a_whole() {
        let file = |name: &str, text: &str| Source { file: name.into(), text: text.into() };
        let config = parse(&[
            file("a", "[network]\nbin_dirs = [\"/a\", \"/b\"]\nconf_dir = \"/conf\""),
            file("b", "[network]\nbin_dirs = [\"/c\"]"),
        ])
        .unwrap();
        assert_eq!(config.network.bin_dirs, [PathBuf::from("/c")]);
        assert_eq!(config.network.conf_dir, PathBuf::from("/conf"));
    }

    #[test]
    fn what_dump_prints_is_read_back() {
        let mut config = Config::default();
        config.log.level = "trace".into();
        config.image.max_concurrent_layers = 3;
        assert_eq!(one(&toml::to_string_pretty(&config).unwrap()).unwrap(), config);
    }
}
