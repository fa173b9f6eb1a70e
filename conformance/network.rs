//! CNI: addresses, plugins of all manners, ports.

use std::fs;
use std::net::IpAddr;

use podwright::proto::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::config::{Cni, install_cni};
use crate::harness::{HTTPD, Node, Pod, Setup, cni, eventually, secs, specs};

/// The addresses of a pod, as its status tells.
async fn addresses(node: &Node, pod: &Pod) -> Vec<IpAddr> {
    let network = node.pod_status(&pod.id).await.unwrap().status.unwrap().network.unwrap_or_default();
    let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    all.filter(|ip| !ip.is_empty()).map(|ip| ip.parse().unwrap()).collect()
}

async fn network_condition(node: &Node) -> RuntimeCondition {
    let answer = node.cri().runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    answer.status.unwrap().conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap()
}

async fn http_get(address: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map_err(|error| error.to_string())?;
    Ok(text)
}

#[tokio::test]
async fn addresses_of_both_families() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("dual")).await;
    let told = addresses(&node, &pod).await;
    assert!(matches!(told[..], [IpAddr::V4(_), IpAddr::V6(_)]), "{told:?}");
    let out = node.script(&pod, "c", "ip addr show eth0; ip addr show lo; ip route").await;
    for address in &told {
        assert!(out.contains(&address.to_string()), "{address} is not in {out}");
    }
    assert!(out.contains("127.0.0.1/8"), "loopback is up: {out}");
    assert!(out.contains("default via 10.88.0.1"), "{out}");
    node.stop_pod(&pod.id).await.unwrap();
    assert_eq!(cni::leases(node.dir()), Vec::<String>::new(), "a stopped pod holds no address");
    node.finish().await;
}

#[tokio::test]
async fn pods_and_host_reach_each_other() {
    let mut node = Node::ready().await;
    node.pull(HTTPD).await;
    let (web, client) = (node.up(node.pod("web")).await, node.up(node.pod("client")).await);
    let mut config = node.run("web", &[]);
    config.image = Some(specs::image(HTTPD));
    node.launch(&web, config).await;
    let address = addresses(&node, &web).await[0];
    let page = eventually(secs(10), "the web server", async || http_get(&format!("{address}:80")).await).await;
    assert!(page.contains("It works!"), "{page}");
    let out = node.script(&client, "c", &format!("wget -qO- http://{address}/")).await;
    assert!(out.contains("It works!"), "{out}");
    node.finish().await;
}

#[tokio::test]
async fn host_ports_are_forwarded() {
    let mut node = Node::ready().await;
    node.pull(HTTPD).await;
    let mut pod = node.pod("ports");
    pod.port_mappings = vec![
        PortMapping { protocol: Protocol::Tcp as i32, container_port: 80, host_port: 8080, host_ip: String::new() },
        // No host port: for information only.
        PortMapping { protocol: Protocol::Tcp as i32, container_port: 81, host_port: 0, host_ip: String::new() },
    ];
    let pod = node.up(pod).await;
    let mut config = node.run("web", &[]);
    config.image = Some(specs::image(HTTPD));
    node.launch(&pod, config).await;
    let page = eventually(secs(10), "the forwarded port", async || http_get("10.88.0.1:8080").await).await;
    assert!(page.contains("It works!"), "{page}");
    node.stop_pod(&pod.id).await.unwrap();
    http_get("10.88.0.1:8080").await.expect_err("nothing is forwarded to a stopped pod");
    node.finish().await;
}

/// A plugin that writes down each call: command, environment, standard input.
fn recorder(node_dir: &std::path::Path, name: &str) {
    let log = node_dir.join(format!("{name}.calls"));
    let body = format!(
        "input=$(cat)\n\
         jq_free() {{ printf '%s' \"$1\" | tr -d '\\n'; }}\n\
         printf '%s\\t%s\\t%s\\t%s\\t%s\\n' \"$CNI_COMMAND\" \"$CNI_IFNAME\" \"$CNI_ARGS\" \"$CNI_NETNS\" \"$(jq_free \"$input\")\" >> {}\n\
         case $CNI_COMMAND in\n\
         VERSION) echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\",\"1.1.0\"]}}' ;;\n\
         ADD) echo '{{\"cniVersion\":\"1.0.0\",\"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"'$CNI_NETNS'\"}}],\"ips\":[{{\"address\":\"10.1.2.3/24\",\"interface\":0}}],\"dns\":{{\"nameservers\":[\"10.9.9.9\"]}}}}' ;;\n\
         esac",
        log.display()
    );
    cni::script(node_dir, name, &body);
}

/// The calls that a recorder saw: command, CNI_ARGS, network namespace, configuration.
fn calls(node: &Node, name: &str) -> Vec<(String, String, String, Value)> {
    let text = fs::read_to_string(node.dir().join(format!("{name}.calls"))).unwrap_or_default();
    let parse = |line: &str| {
        let parts: Vec<_> = line.splitn(5, '\t').collect();
        (
            parts[0].to_owned(),
            parts[2].to_owned(),
            parts[3].to_owned(),
            serde_json::from_str(parts[4]).unwrap_or(Value::Null),
        )
    };
    text.lines().map(parse).collect()
}

fn recorded() -> Setup {
    let list = json!({
        "cniVersion": "1.0.0", "name": cni::NETWORK,
        "plugins": [
            { "type": "first" },
            { "type": "second", "capabilities": { "portMappings": true, "bandwidth": true, "dns": true, "ips": true } }
        ]
    });
    Setup { cni: Cni::List(list), ..Setup::default() }
}

async fn start_recorded() -> Node {
    let mut node = Node::prepare(&recorded());
    for name in ["first", "second"] {
        recorder(node.dir(), name);
    }
    node.start_daemon().await;
    node
}

#[tokio::test]
async fn plugins_are_chained_and_told_what_they_asked_for() {
    let node = start_recorded().await;
    let mut config = node.pod("chained");
    config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "1M".into());
    config.dns_config = Some(DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() });
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Udp as i32,
        container_port: 53,
        host_port: 5353,
        host_ip: "127.0.0.1".into(),
    }];
    let pod = node.up(config).await;
    assert_eq!(addresses(&node, &pod).await, ["10.1.2.3".parse::<IpAddr>().unwrap()]);

    let first = calls(&node, "first");
    let (_, arguments, netns, config) = first.iter().find(|call| call.0 == "ADD").expect("an ADD");
    assert_eq!((config["name"].as_str(), config["type"].as_str()), (Some(cni::NETWORK), Some("first")));
    assert_eq!(config["cniVersion"], "1.0.0");
    assert!(config.get("prevResult").is_none() && config.get("runtimeConfig").is_none(), "{config}");
    for part in [
        "K8S_POD_NAMESPACE=default",
        "K8S_POD_NAME=chained",
        "K8S_POD_UID=chained-uid",
        &format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.id),
    ] {
        assert!(arguments.contains(part), "{part} is not in {arguments}");
    }
    assert!(netns.starts_with(node.dir().join("state").to_str().unwrap()), "{netns}");

    let second = calls(&node, "second");
    let (.., config) = second.iter().find(|call| call.0 == "ADD").expect("an ADD");
    assert_eq!(config["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    let given = &config["runtimeConfig"];
    assert_eq!(
        given["portMappings"],
        json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1" }])
    );
    assert_eq!(given["bandwidth"]["ingressRate"], 1_000_000);
    assert_eq!(given["dns"]["servers"], json!(["10.0.0.10"]));

    node.stop_pod(&pod.id).await.unwrap();
    for name in ["first", "second"] {
        let all = calls(&node, name);
        let (_, _, _, config) = all.iter().find(|call| call.0 == "DEL").expect("a DEL");
        assert_eq!(config["prevResult"]["ips"][0]["address"], "10.1.2.3/24", "DEL of {name} has the result of ADD");
    }
    assert_eq!(
        calls(&node, "second").iter().find(|call| call.0 == "DEL").unwrap().3["runtimeConfig"]["portMappings"][0]["hostPort"],
        5353
    );
    node.finish().await;
}

#[tokio::test]
async fn del_works_after_a_restart_and_a_changed_configuration() {
    let mut node = start_recorded().await;
    let pod = node.up(node.pod("restart")).await;
    node.kill9();
    install_cni(node.dir(), &cni::bridge_portmap(node.dir()));
    node.start_daemon().await;
    assert_eq!(addresses(&node, &pod).await, ["10.1.2.3".parse::<IpAddr>().unwrap()], "the address is still known");
    node.stop_pod(&pod.id).await.unwrap();
    for name in ["first", "second"] {
        assert!(
            calls(&node, name).iter().any(|call| call.0 == "DEL"),
            "the pod's own plugins undo what they did: {name}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn the_folder_is_watched() {
    let node = Node::with(Setup { cni: Cni::None, ..Setup::default() }).await;
    let condition = network_condition(&node).await;
    assert!(!condition.status && !condition.reason.is_empty() && !condition.message.is_empty(), "{condition:?}");
    let status = node.run_pod(node.pod("early"), "").await.unwrap_err();
    assert!(status.message().contains("CNI") || status.message().contains("cni"), "{status}");
    let on_host = node.up(node.host_pod("host")).await;
    install_cni(node.dir(), &cni::bridge_portmap(node.dir()));
    eventually(secs(5), "NetworkReady", async || {
        let condition = network_condition(&node).await;
        if condition.status { Ok(()) } else { Err(condition.message) }
    })
    .await;
    node.up(node.pod("early")).await;
    fs::remove_file(node.dir().join("cni/net.d/10-test.conflist")).unwrap();
    eventually(secs(5), "NetworkReady=false", async || {
        if network_condition(&node).await.status { Err(String::new()) } else { Ok(()) }
    })
    .await;
    node.down(&on_host).await;
    node.finish().await;
}

#[tokio::test]
async fn the_folder_is_watched_though_a_link_to_itself_took_its_place() {
    let node = Node::start().await;
    let folder = node.dir().join("cni/net.d");
    let ready = async |wanted: bool| {
        eventually(secs(30), &format!("NetworkReady={wanted}"), async || {
            let condition = network_condition(&node).await;
            if condition.status == wanted { Ok(()) } else { Err(condition.message) }
        })
        .await;
    };
    ready(true).await;
    fs::rename(&folder, node.dir().join("cni/away")).unwrap();
    ready(false).await;
    std::os::unix::fs::symlink("net.d", &folder).unwrap();
    fs::remove_file(&folder).unwrap();
    fs::rename(node.dir().join("cni/away"), &folder).unwrap();
    ready(true).await;
    fs::remove_file(folder.join("10-test.conflist")).unwrap();
    ready(false).await;
    install_cni(node.dir(), &cni::bridge_portmap(node.dir()));
    ready(true).await;
    node.finish().await;
}

#[tokio::test]
async fn without_configuration_host_network_pods_run() {
    let mut node = Node::with(Setup { cni: Cni::None, ..Setup::default() }).await;
    node.pull(crate::harness::BUSYBOX).await;
    let pod = node.up(node.host_pod("host")).await;
    assert_eq!(node.script(&pod, "c", "echo runs").await, "runs\n");
    node.finish().await;
}

async fn with_plugin(body: &str) -> Node {
    with_plugin_and(body, "").await
}

async fn with_plugin_and(body: &str, extra: &str) -> Node {
    let list = cni::conflist(&[json!({ "type": "bad" })]);
    let mut node = Node::prepare(&Setup { cni: Cni::List(list), extra: extra.into(), ..Setup::default() });
    cni::script(node.dir(), "bad", body);
    node.start_daemon().await;
    node
}

/// RunPodSandbox fails with these words, and leaves nothing.
async fn refused(node: Node, words: &[&str]) {
    let status = node.run_pod(node.pod("refused"), "").await.unwrap_err();
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {status}");
    }
    assert_eq!(node.pods(PodSandboxFilter::default()).await, [], "a sandbox that failed is not listed");
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_fails() {
    let error =
        r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no addresses left","details":"ask your father"}'; exit 1"#;
    let node = with_plugin(&format!("case $CNI_COMMAND in ADD) {error} ;; esac")).await;
    refused(node, &["bad", "no addresses left"]).await;
}

#[tokio::test]
async fn a_plugin_that_prints_rubbish() {
    refused(with_plugin("case $CNI_COMMAND in ADD) echo 'segmentation fault {'; ;; esac").await, &["bad"]).await;
}

#[tokio::test]
async fn a_plugin_that_says_nothing_and_fails() {
    refused(with_plugin("case $CNI_COMMAND in ADD) echo oops >&2; exit 3 ;; esac").await, &["bad", "oops"]).await;
}

#[tokio::test]
async fn a_plugin_that_hangs() {
    // Its DEL must be done within it, however busy the machine is.
    let extra = "[network]\nplugin_timeout = \"3s\"\n";
    let node = with_plugin_and("case $CNI_COMMAND in ADD) sleep 1000 ;; esac", extra).await;
    refused(node, &["bad"]).await;
}

#[tokio::test]
async fn a_plugin_that_floods() {
    let node = with_plugin("case $CNI_COMMAND in ADD) exec cat /dev/zero ;; esac").await;
    refused(node, &["bad"]).await;
}

#[tokio::test]
async fn a_plugin_that_is_not_there() {
    let list = cni::conflist(&[json!({ "type": "no-such-plugin" })]);
    refused(Node::with(Setup { cni: Cni::List(list), ..Setup::default() }).await, &["no-such-plugin"]).await;
}

#[tokio::test]
async fn a_plugin_name_that_is_a_path() {
    let list = cni::conflist(&[json!({ "type": "../../bin/true" })]);
    let node = Node::with(Setup { cni: Cni::List(list), ..Setup::default() }).await;
    node.run_pod(node.pod("path"), "").await.expect_err("a plugin outside of the plugin folders");
    node.finish().await;
}

/// The second plugin of three fails: what the first did is undone.
#[tokio::test]
async fn a_chain_that_fails_is_undone() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let list = cni::conflist(&[cni::bridge(node.dir()), json!({ "type": "bad" })]);
    cni::script(node.dir(), "bad", "case $CNI_COMMAND in ADD) exit 1 ;; esac");
    install_cni(node.dir(), &list);
    node.start_daemon().await;
    refused(node, &["bad"]).await;
}

/// DEL that fails at first is tried again until it is acknowledged.
#[tokio::test]
async fn a_del_that_fails_is_repeated() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let flag = node.dir().join("broken");
    let result = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}"#;
    let body =
        format!("case $CNI_COMMAND in ADD) echo '{result}' ;; DEL) [ ! -e {} ] || exit 1 ;; esac", flag.display());
    cni::script(node.dir(), "stubborn", &body);
    install_cni(node.dir(), &cni::conflist(&[cni::bridge(node.dir()), json!({ "type": "stubborn" })]));
    node.start_daemon().await;
    let pod = node.up(node.pod("stubborn")).await;
    fs::write(&flag, "").unwrap();
    // Whether the call says so or not, the sandbox may not be forgotten while its address is held.
    let answer = node.stop_pod(&pod.id).await;
    let answer = match answer {
        Ok(()) => node.remove_pod(&pod.id).await,
        failed => failed,
    };
    answer.expect_err("the network could not be torn down");
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    fs::remove_file(&flag).unwrap();
    node.down(&pod).await;
    node.finish().await;
}

/// CNI 1.1: STATUS is asked, and GC is told which attachments are valid.
#[tokio::test]
async fn status_and_gc_of_cni_1_1() {
    let list = json!({ "cniVersion": "1.1.0", "name": cni::NETWORK, "plugins": [{ "type": "modern" }] });
    let mut node = Node::prepare(&Setup { cni: Cni::List(list), ..Setup::default() });
    let (down, log) = (node.dir().join("down"), node.dir().join("modern.log"));
    let body = format!(
        "input=$(cat); echo \"$CNI_COMMAND $(echo $input)\" >> {}\n\
         case $CNI_COMMAND in\n\
         VERSION) echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}}' ;;\n\
         STATUS) if [ -e {} ]; then echo '{{\"cniVersion\":\"1.1.0\",\"code\":50,\"msg\":\"not yet\"}}'; exit 1; fi ;;\n\
         ADD) echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"10.1.2.3/24\"}}]}}' ;;\n\
         esac",
        log.display(),
        down.display()
    );
    cni::script(node.dir(), "modern", &body);
    fs::write(&down, "").unwrap();
    node.start_daemon().await;
    eventually(secs(15), "the plugin's answer to STATUS", async || {
        let condition = network_condition(&node).await;
        assert!(!condition.status, "{condition:?}");
        if condition.message.contains("not yet") { Ok(()) } else { Err(condition.message) }
    })
    .await;
    fs::remove_file(&down).unwrap();
    eventually(secs(15), "NetworkReady", async || {
        let condition = network_condition(&node).await;
        if condition.status { Ok(()) } else { Err(condition.message) }
    })
    .await;
    let pod = node.up(node.pod("modern")).await;
    node.restart().await;
    let calls = eventually(secs(10), "a GC at the start", async || {
        let calls = fs::read_to_string(&log).unwrap();
        if calls.lines().any(|line| line.starts_with("GC ") && line.contains(&pod.id)) { Ok(calls) } else { Err(calls) }
    })
    .await;
    assert!(
        calls.lines().filter(|line| line.starts_with("GC ")).all(|line| line.contains("cni.dev/valid-attachments")),
        "{calls}"
    );
    node.finish().await;
}

/// The folder of configurations is a link, as is done to change all of them at once: what it leads to counts.
#[tokio::test]
async fn a_configuration_folder_that_is_a_link_can_lead_elsewhere() {
    let mut node = Node::prepare(&Setup { cni: Cni::None, ..Setup::default() });
    let folder = node.dir().join("cni");
    fs::create_dir(folder.join("empty")).unwrap();
    fs::rename(folder.join("net.d"), folder.join("full")).unwrap();
    let lead = |to: &str| {
        std::os::unix::fs::symlink(to, folder.join("new")).unwrap();
        fs::rename(folder.join("new"), folder.join("net.d")).unwrap();
    };
    let list = cni::conflist(&[cni::bridge(node.dir())]).to_string();
    fs::write(folder.join("full/10-test.conflist"), list).unwrap();
    lead("empty");
    node.start_daemon().await;
    for (to, ready) in [("full", true), ("empty", false), ("full", true)] {
        assert_eq!(network_condition(&node).await.status, !ready);
        lead(to);
        eventually(secs(5), "the other folder", async || match network_condition(&node).await {
            condition if condition.status == ready => Ok(()),
            condition => Err(format!("{condition:?}")),
        })
        .await;
    }
    node.up(node.pod("p")).await;
    node.finish().await;
}
