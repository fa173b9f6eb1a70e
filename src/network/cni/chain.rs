//! A whole network's plugins called for one attachment, in the order and with the configuration that the
//! specification lays down.

use std::fs::File;
use std::io::{self, Seek, Write};

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, Value, json};

use super::config::{NetworkConfig, Plugin};
use super::exec::{Parameters, Runner, rubbish};
use super::result::PluginResult;
use super::version::Version;
use crate::network::error::{NetworkError, PluginFailure, Verb};

/// CNI's "container unknown": nothing of it is left to clean up.
const UNKNOWN_CONTAINER: u64 = 3;

/// Where a chain gets its stdin files from, and tells how far it came.
pub trait Journal: Sync {
    /// A file with this content, positioned at its start, to be a plugin's stdin.
    fn stdin(&self, content: Vec<u8>) -> impl Future<Output = Result<File, NetworkError>> + Send;

    /// Keeps the result of the plugins called so far, so that a DEL can be given it whatever happens next.
    fn progress(&self, result: &PluginResult) -> impl Future<Output = Result<(), NetworkError>> + Send;
}

/// A journal of calls that need no undo: nothing is kept, and stdin is anonymous memory.
#[derive(Debug)]
pub struct NoJournal;

impl Journal for NoJournal {
    async fn stdin(&self, content: Vec<u8>) -> Result<File, NetworkError> {
        let file = || -> io::Result<File> {
            let mut file = File::from(memfd_create("cni", MemfdFlags::CLOEXEC)?);
            file.write_all(&content)?;
            file.rewind()?;
            Ok(file)
        };
        file().map_err(|source| NetworkError::Io { what: "cannot make", path: "memfd:cni".into(), source })
    }

    async fn progress(&self, _: &PluginResult) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// One attachment of a pod to a network.
#[derive(Debug)]
pub struct Chain<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// How to run plugins.
    pub runner: &'a Runner,
    /// The attachment's parameters.
    pub parameters: &'a Parameters,
    /// Runtime arguments by capability; each plugin is given those it asks for.
    pub capabilities: &'a Map<String, Value>,
}

impl Chain<'_> {
    /// ADD by every plugin in order. After each one the journal is told the result so far.
    pub async fn add(&self, journal: &impl Journal) -> Result<PluginResult, NetworkError> {
        let mut result: Option<PluginResult> = None;
        for plugin in &self.config.plugins {
            let output = self.call(Verb::Add, plugin, result.as_ref(), journal).await?;
            let next = PluginResult::parse(&output, self.config.version)
                .map_err(|reason| self.error(Verb::Add, plugin, rubbish(reason, &output)))?;
            journal.progress(&next).await?;
            result = Some(next);
        }
        result
            .ok_or_else(|| NetworkError::NoConfig { reason: format!("network {:?} has no plugins", self.config.name) })
    }

    /// DEL by every plugin, last first, up to the first that fails: an address must not be given back while
    /// a rule of a later plugin still points at it. `result` is what ADD gave, as far as it got. Unless all
    /// were `added`, a plugin that is not installed most likely is why, and has nothing to undo.
    pub async fn del(
        &self,
        result: Option<&PluginResult>,
        added: bool,
        journal: &impl Journal,
    ) -> Result<(), NetworkError> {
        // Plugins of older versions were not promised it, and refuse what they do not expect.
        let result = result.filter(|_| self.config.version >= Version::V0_4_0);
        for plugin in self.config.plugins.iter().rev() {
            match self.call(Verb::Del, plugin, result, journal).await {
                Err(NetworkError::Plugin { source, .. })
                    if matches!(*source, PluginFailure::Refused { code: UNKNOWN_CONTAINER, .. }) => {}
                Err(NetworkError::Plugin { source, .. })
                    if !added && matches!(*source, PluginFailure::Missing { .. }) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// CHECK by every plugin in order, up to the first that finds fault. Configurations that forbid it, or
    /// are older than it, have nothing to say.
    pub async fn check(&self, result: &PluginResult, journal: &impl Journal) -> Result<(), NetworkError> {
        if self.config.disable_check || self.config.version < Version::V0_4_0 {
            return Ok(());
        }
        for plugin in &self.config.plugins {
            self.call(Verb::Check, plugin, Some(result), journal).await?;
        }
        Ok(())
    }

    /// GC by every plugin: whatever they hold for an attachment that is not in `valid` (container id and
    /// interface) is given back. All are called; configurations that forbid it, or are older, are left alone.
    pub async fn gc(&self, valid: &[(String, String)], journal: &impl Journal) -> Result<(), NetworkError> {
        if self.config.disable_gc || self.config.version < Version::V1_1_0 {
            return Ok(());
        }
        let valid: Vec<_> =
            valid.iter().map(|(container, interface)| json!({"containerID": container, "ifname": interface})).collect();
        let mut errors = Vec::new();
        for plugin in &self.config.plugins {
            let mut request = self.request(plugin);
            request.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            // The reference library calls it so; plugins look for one or the other.
            request.insert("cni.dev/attachments".into(), valid.clone().into());
            if let Err(error) = self.send(Verb::Gc, plugin, request, journal).await {
                errors.push(error);
            }
        }
        several(errors)
    }

    /// STATUS by every plugin, up to the first that is not ready. Older configurations are always ready.
    pub async fn status(&self, journal: &impl Journal) -> Result<(), NetworkError> {
        if self.config.version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &self.config.plugins {
            self.send(Verb::Status, plugin, self.request(plugin), journal).await?;
        }
        Ok(())
    }

    /// The newest version that the configuration allows and every plugin says it speaks. A plugin that
    /// cannot be asked does not count.
    pub async fn negotiate(&self) -> Version {
        let mut versions = self.config.versions.clone();
        if versions.len() > 1 {
            for plugin in &self.config.plugins {
                let request = json!({"cniVersion": self.config.version.as_str()}).as_object().cloned();
                let answer = self.send(Verb::Version, plugin, request.unwrap_or_default(), &NoJournal).await;
                if let Some(spoken) = answer.ok().and_then(|answer| spoken(&answer)) {
                    versions.retain(|version| spoken.contains(version));
                }
            }
        }
        versions.last().copied().unwrap_or(self.config.version)
    }

    async fn call(
        &self,
        verb: Verb,
        plugin: &Plugin,
        previous: Option<&PluginResult>,
        journal: &impl Journal,
    ) -> Result<Vec<u8>, NetworkError> {
        let mut request = self.request(plugin);
        let wanted: Map<String, Value> = plugin
            .capabilities()
            .filter_map(|name| self.capabilities.get(name).map(|value| (name.to_owned(), value.clone())))
            .collect();
        if !wanted.is_empty() {
            request.insert("runtimeConfig".into(), wanted.into());
        }
        if let Some(previous) = previous {
            request.insert("prevResult".into(), previous.to_value());
        }
        self.send(verb, plugin, request, journal).await
    }

    /// The plugin's configuration as it is given to it, without what belongs to one attachment.
    fn request(&self, plugin: &Plugin) -> Map<String, Value> {
        let mut request = plugin.config.clone();
        request.retain(|key, _| key != "capabilities" && key != "prevResult" && !key.starts_with("cni.dev/"));
        request.insert("cniVersion".into(), self.config.version.as_str().into());
        request.insert("name".into(), self.config.name.clone().into());
        request
    }

    async fn send(
        &self,
        verb: Verb,
        plugin: &Plugin,
        request: Map<String, Value>,
        journal: &impl Journal,
    ) -> Result<Vec<u8>, NetworkError> {
        let file = journal.stdin(Value::Object(request).to_string().into_bytes()).await?;
        let called = self.runner.call(verb, &plugin.kind, self.parameters, file).await;
        called.map_err(|failure| self.error(verb, plugin, failure))
    }

    fn error(&self, verb: Verb, plugin: &Plugin, source: PluginFailure) -> NetworkError {
        NetworkError::Plugin {
            verb,
            network: self.config.name.clone(),
            plugin: plugin.kind.clone(),
            source: Box::new(source),
        }
    }
}

/// The versions in a VERSION result.
fn spoken(answer: &[u8]) -> Option<Vec<Version>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let versions = answer.get("supportedVersions")?.as_array()?;
    Some(versions.iter().filter_map(Value::as_str).filter_map(Version::parse).collect())
}

fn several(mut errors: Vec<NetworkError>) -> Result<(), NetworkError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(NetworkError::Several(errors)),
    }
}

#[cfg(test)]
mod tests;
