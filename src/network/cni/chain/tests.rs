use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::*;

/// Notes its call and input beside itself; passes the previous result on, or makes one up.
const GOOD: &str = r#"#!/bin/sh
cd "${0%/*}"
name=${0##*/}
cat > "$name.$CNI_COMMAND"
echo "$CNI_COMMAND $name" >> log
case $CNI_COMMAND in
ADD) echo "{\"ips\":[{\"address\":\"10.0.0.2/24\"}],\"by\":\"$name\"}" ;;
VERSION) echo '{"supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
"#;

struct Case {
    folder: tempfile::TempDir,
    config: NetworkConfig,
    capabilities: Map<String, Value>,
}

impl Case {
    fn new(config: &str) -> Self {
        let config = NetworkConfig::parse(config.as_bytes()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for plugin in &config.plugins {
            put(folder.path(), &plugin.kind, GOOD);
        }
        Self { folder, config, capabilities: Map::new() }
    }

    async fn with<T>(&self, work: impl AsyncFnOnce(Chain<'_>) -> T) -> T {
        let runner = Runner { folders: vec![self.folder.path().into()], timeout: Duration::from_secs(20) };
        let parameters = Parameters { container: "c".into(), ..Parameters::default() };
        let capabilities = &self.capabilities;
        work(Chain { config: &self.config, runner: &runner, parameters: &parameters, capabilities }).await
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default().lines().collect::<Vec<_>>().join(", ")
    }

    fn input(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.folder.path().join(name)).unwrap()).unwrap()
    }
}

fn put(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[derive(Default)]
struct Progress(Mutex<Vec<Value>>);

impl Journal for Progress {
    fn stdin(&self, content: Vec<u8>) -> impl Future<Output = Result<File, NetworkError>> + Send {
        NoJournal.stdin(content)
    }

    async fn progress(&self, result: &PluginResult) -> Result<(), NetworkError> {
        self.0.lock().unwrap().push(result.to_value()["by"].clone());
        Ok(())
    }
}

fn three(version: &str, more: &str) -> Case {
    Case::new(&format!(
        r#"{{"cniVersion":"{version}","name":"n"{more},"plugins":[
            {{"type":"a","own":{{"x":[1,null]}},"cni.dev/attachments":[],"prevResult":{{}}}},
            {{"type":"b","capabilities":{{"portMappings":true,"mac":false,"ips":true}}}},
            {{"type":"c"}}]}}"#
    ))
}

#[tokio::test]
async fn add_passes_results_on_and_del_goes_back() {
    let mut case = three("1.0.0", "");
    case.capabilities =
        json!({"portMappings": [{"hostPort": 1}], "mac": "02:00:00:00:00:01", "dns": {}}).as_object().cloned().unwrap();
    let journal = Progress::default();
    let result = case.with(async |chain| chain.add(&journal).await.unwrap()).await;
    assert_eq!(case.log(), "ADD a, ADD b, ADD c");
    assert_eq!(*journal.0.lock().unwrap(), ["a", "b", "c"]);
    assert_eq!(
        case.input("a.ADD"),
        json!({"cniVersion": "1.0.0", "name": "n", "type": "a", "own": {"x": [1, null]}}),
        "no previous result, no runtimeConfig, no reserved keys"
    );
    let second = case.input("b.ADD");
    assert_eq!(second["runtimeConfig"], json!({"portMappings": [{"hostPort": 1}]}), "asked for and there");
    assert_eq!((&second["prevResult"]["by"], second.get("capabilities")), (&json!("a"), None));
    assert_eq!(second["prevResult"]["cniVersion"], "1.0.0");
    assert_eq!(case.input("c.ADD")["prevResult"]["by"], "b");

    case.with(async |chain| chain.check(&result, &NoJournal).await.unwrap()).await;
    case.with(async |chain| chain.del(Some(&result), true, &NoJournal).await.unwrap()).await;
    assert_eq!(case.log(), "ADD a, ADD b, ADD c, CHECK a, CHECK b, CHECK c, DEL c, DEL b, DEL a");
    for name in ["a.DEL", "b.DEL", "c.DEL", "a.CHECK"] {
        assert_eq!(case.input(name)["prevResult"]["by"], "c", "{name}");
    }
    assert_eq!(case.input("b.DEL")["runtimeConfig"], json!({"portMappings": [{"hostPort": 1}]}));
}

#[tokio::test]
async fn old_configurations_know_less() {
    let case = three("0.3.1", "");
    let result = case.with(async |chain| chain.add(&NoJournal).await.unwrap()).await;
    assert_eq!(case.input("b.ADD")["prevResult"]["ips"][0]["version"], "4");
    case.with(async |chain| {
        chain.check(&result, &NoJournal).await.unwrap();
        chain.gc(&[], &NoJournal).await.unwrap();
        chain.status(&NoJournal).await.unwrap();
        chain.del(Some(&result), true, &NoJournal).await.unwrap();
    })
    .await;
    assert_eq!(case.log(), "ADD a, ADD b, ADD c, DEL c, DEL b, DEL a");
    assert_eq!(case.input("c.DEL").get("prevResult"), None);
}

#[tokio::test]
async fn gc_and_status_of_the_newest_version() {
    let case = three("1.1.0", "");
    put(case.folder.path(), "b", "#!/bin/sh\necho '{\"code\":50,\"msg\":\"down\"}'; exit 1");
    let error = case.with(async |chain| chain.gc(&[("p".into(), "eth0".into())], &NoJournal).await.unwrap_err()).await;
    assert_eq!(case.log(), "GC a, GC c", "one that fails stops nobody");
    assert!(matches!(error, NetworkError::Plugin { verb: Verb::Gc, plugin, .. } if plugin == "b"));
    let valid = json!([{"containerID": "p", "ifname": "eth0"}]);
    assert_eq!(case.input("c.GC")["cni.dev/valid-attachments"], valid);
    assert_eq!(case.input("a.GC")["cni.dev/attachments"], valid);
    let error = case.with(async |chain| chain.status(&NoJournal).await.unwrap_err()).await;
    assert_eq!(crate::types::chain(&error), r#"CNI STATUS of network "n": plugin "b": down (code 50)"#);
    assert_eq!(case.log(), "GC a, GC c, STATUS a");

    let off = three("1.1.0", r#","disableGC":true,"disableCheck":true"#);
    let result = PluginResult::parse(b"{}", Version::V1_1_0).unwrap();
    off.with(async |chain| {
        chain.gc(&[], &NoJournal).await.unwrap();
        chain.check(&result, &NoJournal).await.unwrap();
    })
    .await;
    assert_eq!(off.log(), "");
}

#[tokio::test]
async fn a_failure_stops_the_chain_and_names_the_plugin() {
    let case = three("1.0.0", "");
    put(case.folder.path(), "b", "#!/bin/sh\necho not json");
    let error = case.with(async |chain| chain.add(&NoJournal).await.unwrap_err()).await;
    let text = crate::types::chain(&error);
    assert!(
        text.starts_with(r#"CNI ADD of network "n": plugin "b": its result cannot be used: it is not JSON"#),
        "{text}"
    );
    assert_eq!(case.log(), "ADD a");
    put(case.folder.path(), "b", "#!/bin/sh\nexit 1");
    case.with(async |chain| chain.del(None, true, &NoJournal).await.unwrap_err()).await;
    assert_eq!(case.log(), "ADD a, DEL c", "a stays until b is undone");
    put(case.folder.path(), "b", "#!/bin/sh\necho '{\"code\":3,\"msg\":\"unknown container\"}'; exit 1");
    case.with(async |chain| chain.del(None, true, &NoJournal).await.unwrap()).await;
    assert_eq!(case.log(), "ADD a, DEL c, DEL c, DEL a");
}

#[tokio::test]
async fn the_newest_version_all_plugins_speak_is_negotiated() {
    let case = three("1.1.0", r#","cniVersions":["0.4.0","1.0.0"]"#);
    assert_eq!(case.config.version, Version::V1_1_0);
    assert_eq!(case.with(async |chain| chain.negotiate().await).await, Version::V1_0_0);
    put(case.folder.path(), "c", "#!/bin/sh\necho '{\"supportedVersions\":[\"0.4.0\"]}'");
    put(case.folder.path(), "a", "#!/bin/sh\nexit 1");
    assert_eq!(case.with(async |chain| chain.negotiate().await).await, Version::V0_4_0);
    let only = three("1.1.0", "");
    assert_eq!(only.with(async |chain| chain.negotiate().await).await, Version::V1_1_0);
    assert_eq!(only.log(), "", "no choice, no question");
}
