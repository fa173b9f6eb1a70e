use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::request::tests::attach;
use super::*;
use crate::types::{ErrorKind, HasKind};

/// Does as its name says; notes each call.
const FAKE: &str = r#"#!/bin/sh
cd "${0%/*}"
name=${0##*/}
cat > "$name.$CNI_COMMAND"
echo "$CNI_COMMAND $name $CNI_IFNAME $CNI_NETNS" >> log
[ -e "fail.$CNI_COMMAND.$name" ] && { echo "{\"code\":100,\"msg\":\"told to\"}"; exit 1; }
[ $CNI_COMMAND = ADD ] && cat result
exit 0
"#;

struct Node {
    root: tempfile::TempDir,
}

/// Also when a test fails.
impl Drop for Node {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("netns") {
                netns::remove(&entry.path()).unwrap();
            }
        }
    }
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["bin", "conf", "pod"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        for name in ["a", "b"] {
            let path = root.path().join("bin").join(name);
            fs::write(&path, FAKE).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let node = Self { root };
        node.put("bin/result", r#"{"ips":[{"address":"10.0.0.2/24"},{"address":"fd00::2/64"}]}"#);
        node
    }

    fn configured() -> Self {
        let node = Self::new();
        node.put("conf/10.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"type":"b"}]}"#);
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    fn network(&self) -> Network {
        Network::new(self.settings()).unwrap()
    }

    fn settings(&self) -> Settings {
        Settings { conf_dir: self.path("conf"), bin_dirs: vec![self.path("bin")], ..Settings::default() }
    }

    fn request(&self) -> Attach {
        Attach { record: self.path("pod/network.json"), ..attach() }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("bin/log")).unwrap_or_default();
        log.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
    }

    fn left(&self) -> usize {
        fs::read_dir(self.path("pod")).unwrap().count()
    }
}

#[tokio::test]
async fn attach_and_detach_leave_nothing() {
    let node = Node::configured();
    let (network, request) = (node.network(), node.request());
    let attachment = network.attach(&request).await.unwrap();
    assert_eq!(attachment.ips, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    assert_eq!((attachment.interfaces[0].name.as_str(), attachment.interfaces[0].addresses[1].prefix), ("eth0", 64));
    assert_eq!(network.attachment(&request.record).await.unwrap(), Some(attachment));
    assert_eq!(network.attach(&request).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    network.check(&request.record).await.unwrap();
    assert!(network.detach(&PodId::generate(), &request.record).await.is_err(), "another pod's record");
    network.detach(&request.pod, &request.record).await.unwrap();
    network.detach(&request.pod, &request.record).await.unwrap();
    assert_eq!(node.log(), "ADD a, ADD b, CHECK a, CHECK b, DEL b, DEL a");
    assert_eq!(node.left(), 0);
    let log = fs::read_to_string(node.path("bin/log")).unwrap();
    assert!(log.contains("ADD a eth0 /run/n\n") && log.contains("DEL a eth0 \n"), "a netns that is gone is not named");
    assert!(network.check(&request.record).await.is_err());
}

#[tokio::test]
async fn a_watch_that_is_lost_is_put_up_again() {
    let node = Node::new();
    let network = node.network();
    // Only the lost one is to see what comes.
    network.shared.watcher.abort();
    let lost = Watch::lost(&node.path("conf")).unwrap();
    let following = tokio::spawn(follow(lost, Arc::downgrade(&network.shared)));
    for file in ["conf/10.conflist", "conf/20.conflist"] {
        let mut published = network.shared.published.subscribe();
        published.mark_unchanged();
        node.put(file, r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#);
        let told = tokio::time::timeout(Duration::from_secs(10), published.wait_for(|it| !it.entries.is_empty()));
        told.await.expect("nobody looked").unwrap();
        fs::remove_file(node.path(file)).unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(10), published.wait_for(|it| it.entries.is_empty()));
        gone.await.expect("nobody looked").unwrap();
    }
    drop(network);
    following.abort();
}

#[tokio::test]
async fn a_failed_add_is_undone_with_what_there_is() {
    let node = Node::configured();
    node.put("bin/fail.ADD.b", "");
    let (network, request) = (node.network(), node.request());
    let error = chain(&network.attach(&request).await.unwrap_err());
    assert_eq!(error, r#"CNI ADD of network "n": plugin "b": told to (code 100)"#);
    assert_eq!(node.log(), "ADD a, ADD b, DEL b, DEL a");
    assert_eq!(node.left(), 0);
    let del = fs::read_to_string(node.path("bin/b.DEL")).unwrap();
    assert!(del.contains("10.0.0.2/24"), "the result so far is handed to DEL: {del}");

    node.put("bin/fail.DEL.a", "");
    fs::remove_file(node.path("bin/fail.ADD.b")).unwrap();
    node.put("bin/result", "{}");
    let error = network.attach(&request).await.unwrap_err();
    assert!(
        matches!(&error, NetworkError::Undo { error, .. } if matches!(**error, NetworkError::NoAddress { .. })),
        "{error}"
    );
    assert!(network.attachment(&request.record).await.unwrap().is_none());
    assert!(network.detach(&request.pod, &request.record).await.is_err(), "not acknowledged yet");

    // A new daemon, another configuration: the record is enough.
    drop(network);
    fs::remove_file(node.path("bin/fail.DEL.a")).unwrap();
    fs::remove_file(node.path("conf/10.conflist")).unwrap();
    let network = node.network();
    assert!(network.status().is_err());
    network.detach(&request.pod, &request.record).await.unwrap();
    assert_eq!(node.left(), 0);
}

#[tokio::test]
async fn a_plugin_of_a_dead_daemon_is_ended_before_del() {
    use cni::chain::Journal;
    let node = Node::configured();
    let (network, request) = (node.network(), node.request());
    let ledger = Ledger::new(&request.record, network.plan(&request).await.unwrap());
    ledger.update(|_| ()).await.unwrap();
    let stdin = Page { ledger: &ledger, index: 0 }.stdin(b"{}".to_vec()).await.unwrap();
    let mut plugin = Command::new("sleep").arg("1000").stdin(stdin).spawn().unwrap();
    drop(ledger);
    network.detach(&request.pod, &request.record).await.unwrap();
    assert!(!plugin.wait().unwrap().success());
    assert_eq!((node.log().as_str(), node.left()), ("DEL b, DEL a", 0));
}

#[tokio::test]
async fn several_networks_are_attached_in_order() {
    let node = Node::configured();
    node.put("conf/20.conf", r#"{"cniVersion":"0.2.0","name":"m","type":"b"}"#);
    let network = Network::new(Settings { max_conf_files: 5, ..node.settings() }).unwrap();
    node.put("bin/result", r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.3/8"},"dns":{"search":["x.y"]}}"#);
    let request = node.request();
    let attachment = network.attach(&request).await.unwrap();
    let names: Vec<_> = attachment.interfaces.iter().map(|one| format!("{} {}", one.name, one.network)).collect();
    assert_eq!(names, ["eth0 n", "eth1 m"]);
    assert_eq!((attachment.ips.len(), attachment.dns.unwrap().searches), (1, vec!["x.y".to_owned()]));
    network.detach(&request.pod, &request.record).await.unwrap();
    assert_eq!(node.log(), "ADD a, ADD b, ADD b, DEL b, DEL b, DEL a");
}

#[tokio::test]
async fn status_says_what_is_wrong_and_follows_the_folder() {
    let node = Node::new();
    node.put("conf/05.conflist", "{");
    let network = node.network();
    let mut changes = network.shared.published.subscribe();
    let error = network.status().unwrap_err();
    assert!(error.to_string().contains("conf; ") && error.to_string().contains("05.conflist: is not JSON"), "{error}");
    assert_eq!(network.attach(&node.request()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(node.left(), 0);

    node.put("conf/10.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#);
    changes.changed().await.unwrap();
    network.status().unwrap();
    assert_eq!(network.files().1.len(), 1, "the broken one is still named");

    node.put("bin/fail.STATUS.a", "");
    node.put("conf/10.conflist", r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#);
    changes.changed().await.unwrap();
    assert!(network.status().is_err(), "not asked yet");
    changes.changed().await.unwrap();
    let error = network.status().unwrap_err();
    assert!(matches!(&error, NetworkError::NotReady { reason } if reason.contains("told to")), "{error}");
    network.gc(Vec::new).await.unwrap();
    assert_eq!(node.log(), "STATUS a, GC a");
}

#[tokio::test]
async fn a_handler_can_have_its_own_folders() {
    let node = Node::new();
    fs::create_dir(node.path("own")).unwrap();
    node.put("own/10.conf", r#"{"cniVersion":"1.0.0","name":"own","type":"b"}"#);
    let network = node.network();
    let mut request = node.request();
    request.dirs = Some(Dirs { conf_dir: node.path("own"), bin_dirs: vec![node.path("bin")] });
    assert_eq!(network.attach(&request).await.unwrap().interfaces[0].network, "own");
    network.detach(&request.pod, &request.record).await.unwrap();
    request.dirs = Some(Dirs { conf_dir: node.path("own"), bin_dirs: vec![node.path("pod")] });
    assert_eq!(network.attach(&request).await.unwrap_err().kind(), ErrorKind::Unavailable, "no such plugin");
}

/// Runs `work` in a network namespace that stands for the host's, so that bridge, rules and sysctls of the
/// plugins touch nothing else.
fn on_a_host_of_its_own(work: impl AsyncFnOnce() + Send) {
    let node = Node { root: tempfile::tempdir().unwrap() };
    let host = node.path("netns-host");
    netns::create(&host, || Ok::<_, io::Error>(())).unwrap();
    netns::within(&host, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work());
        Ok::<_, io::Error>(())
    })
    .unwrap();
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}");
    String::from_utf8(output.stdout).unwrap()
}

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
    {"type":"bridge","bridge":"pwtest0","isGateway":true,"ipMasq":true,"hairpinMode":true,
     "ipam":{"type":"host-local","ranges":[[{"subnet":"10.213.7.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"DATA"}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

/// The plugins of Debian's containernetworking-plugins.
fn real(node: &Node) -> Network {
    node.put("conf/10.conflist", &BRIDGE.replace("DATA", &node.path("leases").display().to_string()));
    Network::new(Settings { bin_dirs: vec!["/usr/lib/cni".into()], ..node.settings() }).unwrap()
}

fn leases(node: &Node) -> usize {
    let is_address = |name: String| name.parse::<IpAddr>().is_ok();
    let entries = fs::read_dir(node.path("leases/pods")).map(|entries| entries.flatten().collect()).unwrap_or(vec![]);
    entries.into_iter().filter(|entry| is_address(entry.file_name().into_string().unwrap())).count()
}

#[test]
fn real_plugins_connect_a_pod_and_give_all_back() {
    on_a_host_of_its_own(async || {
        use crate::types::pod::{PortMapping, Protocol};
        let node = Node::new();
        let network = real(&node);
        network.status().unwrap();
        let mut request = node.request();
        request.netns = node.path("netns");
        request.port_mappings =
            vec![PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 18080, host_ip: String::new() }];
        request.sysctls = BTreeMap::from([
            ("net.ipv4.ip_unprivileged_port_start".into(), "0".into()),
            ("net.ipv4.conf.eth0.accept_redirects".into(), "0".into()),
        ]);
        network.create_netns(&request.netns, &request.sysctls).await.unwrap();
        let attachment = network.attach(&request).await.unwrap();
        assert_eq!(attachment.ips.len(), 1);
        let inside = |program: &str, args: &[&str]| {
            netns::within(&request.netns, || Ok::<_, io::Error>(output(program, args))).unwrap()
        };
        let address = format!("inet {}/24", attachment.ips[0]);
        assert!(inside("ip", &["-o", "addr", "show", "eth0"]).contains(&address));
        assert!(inside("ip", &["-o", "addr", "show", "lo"]).contains("127.0.0.1/8"));
        assert!(inside("ip", &["-o", "link", "show", "eth0"]).contains(&attachment.interfaces[0].mac));
        assert_eq!(inside("cat", &["/proc/sys/net/ipv4/conf/eth0/accept_redirects"]).trim(), "0");
        let listener = netns::within(&request.netns, || std::net::TcpListener::bind((attachment.ips[0], 80))).unwrap();
        std::net::TcpStream::connect((attachment.ips[0], 80)).unwrap();
        drop(listener);
        assert_eq!(leases(&node), 1);
        assert!(output("iptables-save", &[]).contains("18080"));

        network.detach(&request.pod, &request.record).await.unwrap();
        network.remove_netns(&request.netns).await.unwrap();
        assert_eq!((leases(&node), node.left()), (0, 0));
        assert!(!output("iptables-save", &[]).contains("18080"));
        assert!(!output("iptables-save", &[]).contains(request.pod.as_str()));
        assert!(!output("ip", &["-o", "link"]).contains("veth"));
    });
}

#[test]
fn real_plugins_give_back_what_a_vanished_pod_had() {
    on_a_host_of_its_own(async || {
        let node = Node::new();
        let network = real(&node);
        let mut request = node.request();
        request.netns = node.path("netns");
        network.create_netns(&request.netns, &BTreeMap::new()).await.unwrap();
        network.attach(&request).await.unwrap();
        network.check(&request.record).await.unwrap();
        assert_eq!(leases(&node), 1);
        // As after a reboot: namespace and configuration are gone.
        network.remove_netns(&request.netns).await.unwrap();
        fs::remove_file(node.path("conf/10.conflist")).unwrap();
        drop(network);
        node.network().detach(&request.pod, &request.record).await.unwrap();
        assert_eq!((leases(&node), node.left()), (0, 0));
    });
}

#[test]
fn real_plugins_serve_many_pods_at_once() {
    on_a_host_of_its_own(async || {
        let node = Node::new();
        let network = real(&node);
        let one = async |i: usize| {
            let mut request = node.request();
            request.pod = PodId::generate();
            request.netns = node.path(&format!("netns{i}"));
            request.record = node.path(&format!("pod/{i}.json"));
            network.create_netns(&request.netns, &BTreeMap::new()).await.unwrap();
            let ip = network.attach(&request).await.unwrap().ips[0];
            (ip, request)
        };
        let pods = futures_util::future::join_all((0..6).map(one)).await;
        let distinct: std::collections::BTreeSet<_> = pods.iter().map(|(ip, _)| ip).collect();
        assert_eq!((distinct.len(), leases(&node)), (6, 6));
        futures_util::future::join_all(pods.iter().map(async |(_, request)| {
            network.detach(&request.pod, &request.record).await.unwrap();
            network.remove_netns(&request.netns).await.unwrap();
        }))
        .await;
        assert_eq!((leases(&node), node.left()), (0, 0));
        assert!(!output("ip", &["-o", "link"]).contains("veth"));
    });
}

/// Prints what an attach costs, and what of it is ours: `cargo nextest run --lib -- --ignored network::tests::cost`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    use std::time::Instant;
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    on_a_host_of_its_own(async || {
        let node = Node::new();
        // cat prints its configuration, which has the shape of a result.
        let config = r#"{"cniVersion":"1.0.0","name":"n","type":"cat","ips":[{"address":"10.0.0.2/24"}]}"#;
        node.put("conf/10.conf", config);
        let cat = Network::new(Settings { bin_dirs: vec!["/usr/bin".into()], ..node.settings() }).unwrap();
        let other = Node::new();
        let bridge = real(&other);
        let mut request = node.request();
        request.netns = node.path("netns");
        let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        for _ in 0..30 {
            let mut lap = Instant::now();
            let mut note = |name| {
                times.entry(name).or_default().push(lap.elapsed());
                lap = Instant::now();
            };
            let file = fs::File::open(node.path("conf/10.conf")).unwrap();
            Command::new("/usr/bin/cat").stdin(file).output().unwrap();
            note("0 bare cat");
            cat.attach(&request).await.unwrap();
            note("1 attach by cat");
            cat.detach(&request.pod, &request.record).await.unwrap();
            note("2 detach by cat");
            bridge.create_netns(&request.netns, &BTreeMap::new()).await.unwrap();
            note("3 create netns");
            bridge.attach(&request).await.unwrap();
            note("4 attach by bridge, portmap");
            bridge.detach(&request.pod, &request.record).await.unwrap();
            note("5 detach by bridge, portmap");
            bridge.remove_netns(&request.netns).await.unwrap();
            note("6 remove netns");
        }
        for (name, times) in times {
            println!("{name}: {:?}", median(times));
        }
    });
}
