//! Who a container runs as, whatever its image says (CVE-2024-40635, CVE-2026-46680, CVE-2022-4318, CVE-2026-15809,
//! CVE-2022-23648, CVE-2024-5154, CVE-2026-53488).

use std::fs;

use podwright::proto::Int64Value;
use serde_json::json;

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image, Layer, Tar};
use crate::harness::{Node, specs};

/// Users that are no 31-bit number wrap around to nobody, and are not looked up as names of root either.
#[tokio::test]
async fn users_beyond_the_bounds() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let pod = node.up(node.pod("users")).await;
    let numbers =
        ["2147483648", "4294967295", "4294967296", "4294967297", "9223372036854775808", "18446744073709551616", "-1"];
    let passwd: String = numbers.iter().map(|number| format!("{number}:x:0:0::/root:/bin/sh\n")).collect();
    let layer = Tar::new().dir("etc", 0o755).file("etc/passwd", &passwd).gzip();
    for (n, number) in numbers.iter().enumerate() {
        let made = Image::new(vec![Layer::busybox(), layer.clone()], json!({ "User": number }));
        let reference = registry.push("user", &n.to_string(), &made);
        node.try_pull(&reference, None).await.unwrap();
        let mut config = node.sh(&format!("c{n}"), "id -u");
        config.image = Some(specs::image(&reference));
        let status = node.try_create(&pod, config.clone()).await.expect_err(number);
        assert!(status.message().contains(number), "{status}");
        // Nor as a group.
        let made = Image::new(vec![Layer::busybox(), layer.clone()], json!({ "User": format!("1000:{number}") }));
        let reference = registry.push("group", &n.to_string(), &made);
        node.try_pull(&reference, None).await.unwrap();
        config.metadata.as_mut().unwrap().name = format!("g{n}");
        config.image = Some(specs::image(&reference));
        node.try_create(&pod, config).await.expect_err(number);
    }
    for number in [-1, 1 << 31, 1 << 32, i64::MAX] {
        let mut config = node.sh("asked", "id -u");
        config.image = Some(specs::image(&registry.reference("user:0")));
        specs::security(&mut config).run_as_user = Some(Int64Value { value: number });
        let status = node.try_create(&pod, config).await.expect_err("a user out of bounds");
        assert!(status.message().contains("run_as_user") && status.message().contains(&number.to_string()), "{status}");
    }
    node.finish().await;
}

/// Lines that come with HOME or a user's name do not get into /etc/passwd, nor into the environment.
#[tokio::test]
async fn lines_that_are_smuggled_in() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let pod = node.up(node.pod("lines")).await;
    let evil = "/root\nevil:x:0:0::/:/bin/sh";
    let made =
        Image::new(vec![Layer::busybox()], json!({ "Env": [format!("HOME={evil}"), "PATH=/bin"], "User": "1234" }));
    let reference = registry.push("home", "1", &made);
    node.try_pull(&reference, None).await.unwrap();
    let script = "grep -c ^evil /etc/passwd; grep -c ^evil /etc/group; id -u";
    for own in [false, true] {
        let mut config = node.sh(&format!("c-{own}"), script);
        config.image = Some(specs::image(&reference));
        if own {
            config.envs = vec![specs::env("HOME", evil)];
        }
        // Refused is as good.
        if let Ok(ctr) = node.try_create(&pod, config).await {
            node.try_start(&ctr).await.unwrap();
            node.exited(&ctr).await;
            let out = crate::harness::logs::stream(&crate::harness::logs::read(&ctr.log), "stdout");
            assert_eq!(out, "0\n0\n1234\n");
        }
    }
    let made = Image::new(vec![Layer::busybox()], json!({ "User": "bin\nevil:x:0:0::/:/bin/sh" }));
    let reference = registry.push("name", "1", &made);
    node.try_pull(&reference, None).await.unwrap();
    let mut config = node.sh("name", "id -u");
    config.image = Some(specs::image(&reference));
    node.try_create(&pod, config).await.expect_err("a user with a line break");
    node.finish().await;
}

/// Users are looked up in the image, not on the host that a link of the image names.
#[tokio::test]
async fn a_passwd_that_leads_out() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let pod = node.up(node.pod("passwd")).await;
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("passwd"), "ghost:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(outside.join("group"), "ghost:x:0:\n").unwrap();
    let host = outside.to_str().unwrap();
    let up = "../".repeat(12);
    let cases = [
        ("file", Tar::new().dir("etc", 0o755).symlink("etc/passwd", &format!("{host}/passwd"))),
        ("relative", Tar::new().dir("etc", 0o755).symlink("etc/passwd", &format!("{up}{host}/passwd"))),
        ("folder", Tar::new().file("etc/.wh.passwd", "").symlink("etc", host)),
    ];
    for (name, tar) in cases {
        let layers = vec![Layer::busybox(), Tar::new().file(".wh.etc", "").gzip(), tar.gzip()];
        let reference = registry.push("passwd", name, &Image::new(layers, json!({ "User": "ghost" })));
        node.try_pull(&reference, None).await.unwrap();
        let mut config = node.sh(name, "id -u");
        config.image = Some(specs::image(&reference));
        let status = node.try_create(&pod, config.clone()).await.expect_err(name);
        assert!(status.message().contains("ghost"), "{name}: {status}");
        // With a number it comes up, or not; the host's folder gets no resolv.conf, hosts, or hostname either way.
        specs::security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        if let Ok(ctr) = node.try_create(&pod, config).await {
            let _ = node.try_start(&ctr).await;
        }
        let mut there: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
        there.sort();
        assert_eq!(there, ["group", "passwd"], "{name}");
    }
    node.finish().await;
}

/// Volumes that an image asks for are folders of the container.
#[tokio::test]
async fn volumes_of_an_image_that_climb_out() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let pod = node.up(node.pod("volumes")).await;
    let outside = node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let host = outside.to_str().unwrap();
    let up = "../".repeat(15);
    for (n, volume) in
        [format!("{up}{host}"), format!("/data/{up}{host}"), format!("/link{host}"), "/link".into(), "/..".into()]
            .iter()
            .enumerate()
    {
        let layers = vec![Layer::busybox(), Tar::new().symlink("link", "/").symlink("linked", host).gzip()];
        let reference =
            registry.push("volume", &n.to_string(), &Image::new(layers, json!({ "Volumes": { volume: {} } })));
        node.try_pull(&reference, None).await.unwrap();
        let mut config = node.sh(
            &format!("c{n}"),
            &format!("cat {volume}/secret {host}/secret /linked/secret 2>/dev/null; touch {volume}/new; true"),
        );
        config.image = Some(specs::image(&reference));
        if let Ok(ctr) = node.try_create(&pod, config).await
            && node.try_start(&ctr).await.is_ok()
        {
            node.exited(&ctr).await;
            let out = crate::harness::logs::stream(&crate::harness::logs::read(&ctr.log), "stdout");
            assert_eq!(out, "", "{volume}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{volume}");
    }
    node.finish().await;
}

/// What an image's labels and a pod's annotations say does not reach the runtime, nor systemd, as orders.
#[tokio::test]
async fn labels_and_annotations_are_no_orders() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let labels = json!({
        "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri-o.userns-mode": "auto",
        "podwright.dev/privileged": "true", "org.systemd.property.ExecStartPre": "'/bin/touch /evil'", "run.oci.hooks": "/evil",
    });
    let reference = registry.push("labels", "1", &Image::new(vec![Layer::busybox()], json!({ "Labels": labels })));
    node.try_pull(&reference, None).await.unwrap();
    let annotations = [
        ("org.systemd.property.CollectMode", "'inactive-or-failed'\nExecStart=/evil"),
        ("run.oci.hooks.stdout", "/evil"),
    ];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut pod = node.pod("labels");
    pod.annotations = annotations.clone().into();
    let pod = node.up(pod).await;
    let mut config = node.sleeper("c");
    config.image = Some(specs::image(&reference));
    config.annotations = annotations.into();
    let ctr = node.launch(&pod, config).await;
    let status = node.status(&ctr).await;
    assert!(status.labels.is_empty(), "{:?}", status.labels);
    let bundle = node.dir().join("state/pods").join(&pod.id).join("containers").join(&ctr.id).join("config.json");
    let spec = fs::read_to_string(&bundle).unwrap();
    for order in ["org.systemd.property", "run.oci.hooks", "io.kubernetes.cri-o", "podwright.dev/privileged"] {
        assert!(!spec.contains(order), "{order} is in the OCI spec");
    }
    node.finish().await;
}

/// Names and values of sysctls reach one file each, of the pod's own namespaces (CVE-2022-0811).
#[tokio::test]
async fn sysctls_that_carry_others() {
    let node = Node::start().await;
    let core = "/proc/sys/kernel/core_pattern";
    let before = fs::read_to_string(core).unwrap();
    for (n, (name, value)) in [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/evil"),
        ("net.ipv4.ip_forward\nkernel.core_pattern", "|/evil"),
        ("kernel.core_pattern", "|/evil"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("net.ipv4.../../../kernel/core_pattern", "|/evil"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut pod = node.pod(&format!("sysctl-{n}"));
        pod.linux.as_mut().unwrap().sysctls = [(name.to_owned(), value.to_owned())].into();
        let status = node.run_pod(pod, "").await.expect_err(name);
        assert!(!status.message().is_empty(), "{name}");
        assert_eq!(fs::read_to_string(core).unwrap(), before, "{name}={value}");
    }
    node.finish().await;
}
