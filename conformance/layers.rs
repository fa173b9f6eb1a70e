//! What layers become: kinds of files, whiteouts, compression, as a container sees them.

use serde_json::json;
use tar::EntryType;

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image, Layer, Tar};
use crate::harness::{Node, specs};

/// Runs a script in a container of an image whose layers lie over busybox; its output.
async fn script_in(node: &Node, layers: Vec<Layer>, script: &str) -> String {
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let mut all = vec![Layer::busybox()];
    all.extend(layers);
    let reference = registry.push("layers", "1", &Image::new(all, json!({})));
    node.try_pull(&reference, None).await.unwrap_or_else(|status| panic!("pull: {status}"));
    let pod = node.up(node.host_pod("layers")).await;
    let mut config = node.sh("c", script);
    config.image = Some(specs::image(&reference));
    let (code, out) = node.outcome(&pod, config).await;
    assert_eq!(code, 0, "{script}: {out}");
    out
}

#[tokio::test]
async fn every_compression() {
    let node = Node::start().await;
    let tar = |name: &str| Tar::new().file(&format!("from-{name}"), name).finish();
    let layers = vec![Layer::gzip(&tar("gzip")), Layer::zstd(&tar("zstd")), Layer::plain(&tar("plain"))];
    assert_eq!(script_in(&node, layers, "cat /from-gzip /from-zstd /from-plain").await.trim(), "gzipzstdplain");
    node.finish().await;
}

#[tokio::test]
async fn whiteouts_and_opaque_folders() {
    let node = Node::start().await;
    let lower = Tar::new()
        .dir("d", 0o755)
        .file("d/one", "1")
        .file("d/two", "2")
        .dir("o", 0o755)
        .file("o/old", "x")
        .file("gone", "x");
    let upper = Tar::new()
        .dir("d", 0o755)
        .file("d/.wh.one", "")
        .dir("o", 0o755)
        .file("o/.wh..wh..opq", "")
        .file("o/new", "y")
        .file(".wh.gone", "");
    let out = script_in(
        &node,
        vec![lower.gzip(), upper.gzip()],
        "ls /d /o; ls /gone 2>/dev/null; ls -a / /d /o | grep wh; true",
    )
    .await;
    assert_eq!(out, "/d:\ntwo\n\n/o:\nnew\n");
    node.finish().await;
}

#[tokio::test]
async fn a_file_that_replaces_a_folder_and_back() {
    let node = Node::start().await;
    let lower = Tar::new().dir("a", 0o755).file("a/x", "1").file("b", "2");
    let upper = Tar::new().file("a", "file").dir("b", 0o755).file("b/y", "3");
    assert_eq!(script_in(&node, vec![lower.gzip(), upper.gzip()], "cat /a; echo; cat /b/y").await, "file\n3");
    node.finish().await;
}

#[tokio::test]
async fn hard_links_within_a_layer_and_to_lower_ones() {
    let node = Node::start().await;
    let lower = Tar::new().file("base", "content");
    let upper = Tar::new().file("first", "same").hardlink("second", "first").hardlink("third", "base");
    let out = script_in(
        &node,
        vec![lower.gzip(), upper.gzip()],
        "cat /second /third; stat -c ' %h' /first; test /first -ef /second && echo linked",
    )
    .await;
    assert_eq!(out, "samecontent 2\nlinked\n");
    node.finish().await;
}

#[tokio::test]
async fn implied_parents_do_not_override_lower_modes() {
    let node = Node::start().await;
    let lower = Tar::new().entry(EntryType::Directory, "p/", "", 0o1770, (12, 34), b"").dir("p/q", 0o700);
    // No entries for p and p/q here.
    let upper = Tar::new().file("p/q/file", "x");
    let out = script_in(&node, vec![lower.gzip(), upper.gzip()], "stat -c '%a %u:%g' /p /p/q; cat /p/q/file").await;
    assert_eq!(out.trim(), "1770 12:34\n700 0:0\nx");
    node.finish().await;
}

#[tokio::test]
async fn modes_owners_and_times() {
    let node = Node::start().await;
    let layer = Tar::new()
        .entry(EntryType::Regular, "setuid", "", 0o4755, (0, 0), b"x")
        .entry(EntryType::Regular, "setgid", "", 0o2755, (1, 2), b"x")
        .entry(EntryType::Directory, "sticky", "", 0o1777, (3, 4), b"")
        .entry(EntryType::Regular, "secret", "", 0o600, (1000, 1000), b"x")
        .symlink("link", "/no/where");
    let out = script_in(
        &node,
        vec![layer.gzip()],
        "stat -c '%n %a %u:%g %Y' /setuid /setgid /sticky /secret; readlink /link",
    )
    .await;
    let time = 1_700_000_000;
    assert_eq!(
        out,
        format!(
            "/setuid 4755 0:0 {time}\n/setgid 2755 1:2 {time}\n/sticky 1777 3:4 {time}\n/secret 600 1000:1000 {time}\n/no/where\n"
        )
    );
    node.finish().await;
}

#[tokio::test]
async fn extended_attributes_and_file_capabilities() {
    let node = Node::start().await;
    // cap_net_bind_service=ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .pax("SCHILY.xattr.security.capability", &capability)
        .entry(EntryType::Regular, "bin/capable", "", 0o755, (0, 0), b"#!/bin/sh\n")
        .pax("SCHILY.xattr.user.note", b"hello")
        .file("noted", "x");
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let reference = registry.push("xattrs", "1", &Image::new(vec![Layer::busybox(), layer.gzip()], json!({})));
    node.try_pull(&reference, None).await.unwrap();
    let pod = node.up(node.host_pod("xattrs")).await;
    let mut config = node.sleeper("c");
    config.image = Some(specs::image(&reference));
    let ctr = node.launch(&pod, config).await;
    node.logged(&ctr, "up").await;
    // busybox reads no attributes: look in by the process's root.
    let root = format!("/proc/{}/root", node.pid_in(&ctr.id, "sh"));
    let mut buffer = [0; 64];
    let length = rustix::fs::getxattr(format!("{root}/bin/capable"), "security.capability", &mut buffer).unwrap();
    assert_eq!(&buffer[..length], &capability);
    let length = rustix::fs::getxattr(format!("{root}/noted"), "user.note", &mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
    node.finish().await;
}

#[tokio::test]
async fn special_files() {
    let node = Node::start().await;
    let layer = Tar::new().device("mynull", EntryType::Char, 1, 3).device("myloop", EntryType::Block, 7, 0).device(
        "fifo",
        EntryType::Fifo,
        0,
        0,
    );
    let out = script_in(&node, vec![layer.gzip()], "stat -c '%n %F %t,%T' /mynull /myloop /fifo").await;
    assert_eq!(out, "/mynull character special file 1,3\n/myloop block special file 7,0\n/fifo fifo 0,0\n");
    node.finish().await;
}

#[tokio::test]
async fn long_and_odd_names() {
    let node = Node::start().await;
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let path = format!("pax-{}", "p".repeat(150));
    let layer = Tar::new()
        .dir(&"d".repeat(120), 0o755)
        .file(&long, "long")
        .pax("path", path.as_bytes())
        .file("short", "pax")
        .file("with space\tand\nline", "odd")
        .file("./dot/./name", "dot");
    let script = format!("cat '/{long}' '/{path}' /dot/name; cat /with*");
    assert_eq!(script_in(&node, vec![layer.gzip()], &script).await.trim(), "longpaxdotodd");
    node.finish().await;
}

#[tokio::test]
async fn sparse_files() {
    let node = Node::start().await;
    // GNU's PAX form 1.0: the map stands before the data.
    let mut body = b"1\n1048576\n4\n".to_vec();
    body.resize(512, 0);
    body.extend_from_slice(b"data");
    // The records of one header belong together.
    let records: Vec<u8> = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", "1048580"),
    ]
    .iter()
    .flat_map(|(key, value)| {
        let body = format!(" {key}={value}\n");
        let length = body.len() + if body.len() + 2 > 99 { 3 } else { 2 };
        format!("{length}{body}").into_bytes()
    })
    .collect();
    let layer = Tar::new().entry(EntryType::XHeader, "PaxHeaders/sparse", "", 0o644, (0, 0), &records).entry(
        EntryType::Regular,
        "GNUSparseFile.0/sparse",
        "",
        0o644,
        (0, 0),
        &body,
    );
    let out =
        script_in(&node, vec![layer.gzip()], "stat -c %s /sparse; tail -c 4 /sparse; echo; stat -c %b /sparse").await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(&lines[..2], ["1048580", "data"], "{out}");
    assert!(lines[2].parse::<u64>().unwrap() <= 64, "the hole takes room: {out}");
    node.finish().await;
}

#[tokio::test]
async fn the_image_is_never_written() {
    let node = Node::ready().await;
    let pod = node.up(node.host_pod("clean")).await;
    node.script(&pod, "first", "echo x > /bin/new; rm /bin/ls; echo broken > /etc/passwd").await;
    let out = node.script(&pod, "second", "ls /bin/ls; test ! -e /bin/new; head -1 /etc/passwd").await;
    assert!(out.starts_with("/bin/ls\nroot:"), "{out}");
    node.finish().await;
}
