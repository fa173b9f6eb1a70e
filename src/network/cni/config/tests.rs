use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<NetworkConfig, String> {
    NetworkConfig::parse(text.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn lists_and_single_plugins_parse() {
    let list = parse(
        r#"{"cniVersion":"1.0.0","name":"a.b-c_1","disableCheck":"True","unknown":{"x":1},
            "plugins":[{"type":"bridge","x":1},{"type":"portmap","capabilities":{"portMappings":true,"mac":false}}]}"#,
    )
    .unwrap();
    assert_eq!((list.name.as_str(), list.version), ("a.b-c_1", Version::V1_0_0));
    assert!(list.disable_check && !list.disable_gc && !list.only_inlined);
    assert_eq!(list.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["bridge", "portmap"]);
    assert_eq!(list.plugins[0].config["x"], 1);
    assert_eq!(list.plugins[1].capabilities().collect::<Vec<_>>(), ["portMappings"]);

    let single = parse(r#"{"cniVersion":"0.3.1","name":"one","type":"ptp","ipam":{"type":"host-local"}}"#).unwrap();
    assert_eq!(single.plugins.len(), 1);
    assert_eq!(single.plugins[0].config["ipam"]["type"], "host-local");
    assert_eq!(parse(r#"{"name":"old","type":"ptp"}"#).unwrap().version, Version::V0_1_0);
}

#[test]
fn the_newest_known_version_is_chosen() {
    for (versions, want) in [
        (r#""cniVersion":"0.4.0""#, Version::V0_4_0),
        (r#""cniVersions":["1.0.0","0.3.1","1.1.0"]"#, Version::V1_1_0),
        (r#""cniVersion":"1.0.0","cniVersions":["0.3.1"]"#, Version::V1_0_0),
        (r#""cniVersion":"1.9.0","cniVersions":["0.3.1","1.0.0"]"#, Version::V1_0_0),
        (r#""cniVersion":"1.0.0","cniVersions":[]"#, Version::V1_0_0),
    ] {
        let text = format!(r#"{{{versions},"name":"n","plugins":[{{"type":"t"}}]}}"#);
        assert_eq!(parse(&text).unwrap().version, want, "{text}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, want) in [
        ("", "is not JSON"),
        ("{\"name\":", "is not JSON"),
        (&deep, "is not JSON"),
        ("[]", "configuration: must be an object"),
        (r#"{"type":"a"}"#, "name: is missing"),
        (r#"{"name":7,"type":"a"}"#, "name: must be a string"),
        (r#"{"name":"","type":"a"}"#, "name: "),
        (r#"{"name":"../x","type":"a"}"#, "name: "),
        (r#"{"name":"a/b","type":"a"}"#, "name: "),
        (r#"{"name":"-a","type":"a"}"#, "name: "),
        (r#"{"name":"n","plugins":{}}"#, "plugins: must be a list"),
        (r#"{"name":"n","plugins":[]}"#, "plugins: must not be empty"),
        (r#"{"name":"n","plugins":["bridge"]}"#, "plugins: each must be an object"),
        (r#"{"name":"n","plugins":[{}]}"#, "type: "),
        (r#"{"name":"n","plugins":[{"type":""}]}"#, "type: "),
        (r#"{"name":"n","plugins":[{"type":".."}]}"#, "type: "),
        (r#"{"name":"n","plugins":[{"type":"../../bin/sh"}]}"#, "type: "),
        (r#"{"name":"n","plugins":[{"type":"a\u0000b"}]}"#, "type: "),
        (r#"{"name":"n","plugins":[{"type":"a","capabilities":["mac"]}]}"#, "capabilities: "),
        (r#"{"name":"n","plugins":[{"type":"a","capabilities":{"mac":"yes"}}]}"#, "capabilities: "),
        (r#"{"name":"n","loadOnlyInlinedPlugins":true}"#, "plugins: is missing"),
        (r#"{"name":"n","type":"a","cniVersion":"9.0.0"}"#, "cniVersion: "),
        (r#"{"name":"n","type":"a","cniVersion":1}"#, "cniVersion: "),
        (r#"{"name":"n","type":"a","cniVersions":"1.0.0"}"#, "cniVersions: "),
        (r#"{"name":"n","type":"a","disableGC":"perhaps"}"#, "disableGC: "),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(want), "{}: {error}", &text[..text.len().min(80)]);
    }
    let many = format!(r#"{{"name":"n","plugins":[{}]}}"#, vec![r#"{"type":"a"}"#; 65].join(","));
    assert!(parse(&many).unwrap_err().contains("more than"));
}

#[test]
fn the_first_valid_file_wins_and_refused_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    assert!(load(&folder.path().join("missing"), 1).unwrap().networks.is_empty());
    put("05-broken.conflist", "{");
    put("06-note.txt", "not looked at");
    put("10-b.conflist", r#"{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"}]}"#);
    put("20-c.conf", r#"{"cniVersion":"0.3.1","name":"c","type":"ptp"}"#);
    put("30-d.json", r#"{"cniVersion":"0.3.1","name":"d","type":"ptp"}"#);
    fs::create_dir(folder.path().join("00-folder.conf")).unwrap();
    let fifo = folder.path().join("07-fifo.conf");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let names = |limit| {
        let loaded = load(folder.path(), limit).unwrap();
        let names: Vec<_> = loaded.networks.into_iter().map(|(_, config)| config.name).collect();
        (names.join(" "), loaded.refused.len())
    };
    assert_eq!(names(1), ("b".into(), 2));
    assert_eq!(names(2), ("b c".into(), 2));
    assert_eq!(names(9), ("b c d".into(), 2));
}

#[test]
fn plugins_of_the_networks_folder_are_appended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("10-n.conflist");
    fs::create_dir(folder.path().join("n")).unwrap();
    fs::write(folder.path().join("n/20-b.conf"), r#"{"type":"b"}"#).unwrap();
    fs::write(folder.path().join("n/10-a.conf"), r#"{"type":"a"}"#).unwrap();
    fs::write(folder.path().join("n/30-c.json"), r#"{"type":"c"}"#).unwrap();
    let kinds = |text: &str| {
        fs::write(&path, text).unwrap();
        NetworkConfig::read(&path).map(|c| c.plugins.into_iter().map(|p| p.kind).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(kinds(r#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap(), "a b");
    assert_eq!(kinds(r#"{"name":"n","plugins":[{"type":"x"}]}"#).unwrap(), "x a b");
    assert_eq!(kinds(r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#).unwrap(), "x");
    assert_eq!(kinds(r#"{"name":"n","type":"x"}"#).unwrap(), "x");
    assert!(kinds(r#"{"name":"other"}"#).is_err());
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./-]{0,8}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("name"),
        Just("type"),
        Just("plugins"),
        Just("cniVersion"),
        Just("cniVersions"),
        Just("capabilities"),
        Just("disableCheck"),
        Just("loadOnlyInlinedPlugins")
    ]
    .prop_map(String::from);
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_panics_and_what_is_taken_is_sound(value in json()) {
        if let Ok(config) = NetworkConfig::parse(value.to_string().as_bytes()) {
            prop_assert!(is_name(&config.name));
            prop_assert!(config.versions.contains(&config.version));
            prop_assert!(config.plugins.iter().all(|p| !p.kind.contains('/') && !p.kind.is_empty()));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = NetworkConfig::parse(&bytes);
    }
}
