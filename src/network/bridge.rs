//! Bridges that a plugin did not live to finish.
//!
//! The bridge plugin fixes its bridge's hardware address last. Until then the bridge has its lowest port's, and none, all
//! zeros, when its last port goes. A later run reads that first and fails to set it in the end. It does not try again
//! where the bridge has its IP address, which it is given before: then a bridge that has ports stays without one of its own.

use serde_json::Value;

use super::cni::config::NetworkConfig;
use super::error::PluginFailure;
use super::record::blocking;
use crate::sys::link;

/// What the plugin calls its bridge if it is not told.
const DEFAULT: &str = "cni0";

/// Part of what the plugin says that could not set its bridge's hardware address, in every version so far.
const UNSET: &str = "bridge's mac";

/// Gives those bridges of a network that have lost their address another one; whether there was one.
pub async fn mend(config: &NetworkConfig) -> bool {
    each(config, |name| match link::give_address(name) {
        Ok(given) => {
            if given {
                tracing::info!(bridge = name, "bridge had lost its hardware address and was given another");
            }
            given
        }
        Err(error) => {
            tracing::warn!(bridge = name, %error, "bridge without hardware address");
            false
        }
    })
    .await
}

/// Whether a plugin was refused its bridge's address. Meanwhile the bridge may have another by someone else's hand.
pub fn is_unset(failure: &PluginFailure) -> bool {
    matches!(failure, PluginFailure::Refused { message, .. } if message.contains(UNSET))
}

/// Does what the plugin could not, and will not do again: a network's bridges keep the address that they have.
pub async fn keep(config: &NetworkConfig) {
    each(config, |name| match link::keep_address(name) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(bridge = name, %error, "bridge without hardware address of its own");
            false
        }
    })
    .await;
}

/// Whether the work had an effect on any of a network's bridges.
async fn each(config: &NetworkConfig, work: fn(&str) -> bool) -> bool {
    let names: Vec<String> = gateways(config).map(str::to_owned).collect();
    if names.is_empty() {
        return false;
    }
    blocking(move || Ok(names.iter().filter(|name| work(name)).count() > 0)).await.unwrap_or(false)
}

/// Bridges that the plugin makes a gateway: of others it leaves the address to the kernel.
fn gateways(config: &NetworkConfig) -> impl Iterator<Item = &str> {
    let set = |plugin: &serde_json::Map<String, Value>, key| plugin.get(key) == Some(&Value::Bool(true));
    config
        .plugins
        .iter()
        .filter(|plugin| plugin.kind == "bridge")
        .map(|plugin| &plugin.config)
        .filter(move |plugin| set(plugin, "isGateway") || set(plugin, "isDefaultGateway"))
        .map(|plugin| plugin.get("bridge").and_then(Value::as_str).filter(|name| !name.is_empty()).unwrap_or(DEFAULT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_of_gateways_are_found() {
        let text = br#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"bridge","bridge":"br7","isDefaultGateway":true},{"type":"bridge","isGateway":true},
            {"type":"bridge","bridge":"l2"},{"type":"other","bridge":"x","isGateway":true}]}"#;
        let config = NetworkConfig::parse(text).unwrap();
        assert_eq!(gateways(&config).collect::<Vec<_>>(), ["br7", "cni0"]);
    }
}
