//! Bridges that a plugin did not live to finish.
//!
//! The bridge plugin fixes its bridge's hardware address last. Until then the bridge has its lowest port's, and none, all
//! zeros, when its last port goes. A later run reads that first and fails to set it in the end.

use serde_json::Value;

use super::cni::config::NetworkConfig;
use super::record::blocking;
use crate::sys::link;

/// What the plugin calls its bridge if it is not told.
const DEFAULT: &str = "cni0";

/// Gives those bridges of a network that have lost their address another one; whether there was one.
pub async fn mend(config: &NetworkConfig) -> bool {
    let mut mended = false;
    for name in gateways(config).filter(|name| link::lacks_address(name)) {
        let bridge = name.to_owned();
        match blocking(move || Ok(link::give_address(&bridge))).await {
            Ok(Ok(())) => {
                tracing::info!(bridge = name, "bridge had lost its hardware address and was given another");
                mended = true;
            }
            Ok(Err(error)) => tracing::warn!(bridge = name, %error, "bridge without hardware address"),
            Err(_) => {}
        }
    }
    mended
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
