//! Mounts whose way leads through what a container changes meanwhile, and devices that are not what they seem
//! (CVE-2021-30465, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2025-62161, CVE-2025-62596).

use std::fs;
use std::path::Path;

use podwright::proto::Mount;

use crate::harness::fake_registry::{Access, FakeRegistry};
use crate::harness::image::{Image, Layer, Tar};
use crate::harness::{Node, logs, specs};

/// Rounds of the race; each is a container whose mounts are made while links are swapped.
const ROUNDS: usize = 25;

/// One container swaps a folder of a shared volume for a link to the host's folders, all the time, while others are
/// created that have a mount below it: nothing may be made outside, and nobody sees the host.
#[tokio::test]
async fn a_volume_that_is_swapped_while_it_is_mounted() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("race")).await;
    let (shared, inner, outside) = (node.dir().join("shared"), node.dir().join("inner"), node.dir().join("outside"));
    for folder in [&shared, &inner, &outside, &shared.join("way")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(node.dir().join("of-the-host"), "secret").unwrap();
    fs::write(inner.join("mark"), "inner").unwrap();
    // As seen from the host; in the container it leads to a folder that is not there.
    let target = outside.display();
    let up = "../".repeat(12);
    let swap = format!(
        "cd /shared; mkdir -p a; ln -s {target} b; ln -s {up}{target} c; echo swapping; \
         while :; do for x in b a c a; do mv -T way spare; mv -T $x way; mv -T way $x; mv -T spare way; done; done 2>/dev/null"
    );
    let mut attacker = node.sh("attacker", &swap);
    attacker.mounts = vec![specs::bind(&shared, "/shared")];
    let attacker = node.launch(&pod, attacker).await;
    node.logged(&attacker, "swapping").await;
    let mut whole = 0;
    for round in 0..ROUNDS {
        let script = format!(
            "cat /shared/way/in/mark; for p in /of-the-host /shared/way/of-the-host /shared/way/../of-the-host {}/of-the-host; \
             do cat $p 2>/dev/null; done; true",
            node.dir().display()
        );
        let mut victim = node.sh(&format!("victim-{round}"), &script);
        victim.mounts = vec![specs::bind(&shared, "/shared"), specs::bind(&inner, "/shared/way/in")];
        // That the creation fails when the ground moves is fine.
        let Ok(ctr) = node.try_create(&pod, victim).await else { continue };
        if node.try_start(&ctr).await.is_ok() {
            node.exited(&ctr).await;
            let out = logs::stream(&logs::read(&ctr.log), "stdout");
            assert!(!out.contains("secret"), "the host's file was seen in round {round}: {out}");
            whole += 1;
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "made outside in round {round}");
        node.remove_container(&ctr.id).await.unwrap();
    }
    println!("{whole} of {ROUNDS} containers came up during the race");
    node.finish().await;
}

/// A folder at /dev in which `null`, `console` and `ptmx` are links to files of the kernel: masks and terminals must
/// not be made of what they lead to.
#[tokio::test]
async fn devices_that_are_links() {
    let node = Node::ready().await;
    let pod = node.up(node.pod("links")).await;
    let core = "/proc/sys/kernel/core_pattern";
    let before = fs::read_to_string(core).unwrap();
    for tty in [false, true] {
        let dev = node.dir().join(format!("dev-{tty}"));
        fs::create_dir(&dev).unwrap();
        for name in ["null", "console", "zero", "full", "tty", "random", "urandom"] {
            std::os::unix::fs::symlink(core, dev.join(name)).unwrap();
        }
        let script = "for p in /dev/null /dev/console /proc/kcore /proc/keys /proc/timer_list; do \
                      (echo '|/evil' > $p) ; done 2>&1; cat /proc/kcore /proc/timer_list /proc/keys 2>&1 | head -c 300";
        let mut config = node.sh(&format!("c-{tty}"), script);
        config.tty = tty;
        config.mounts = vec![specs::bind(&dev, "/dev")];
        if let Ok(ctr) = node.try_create(&pod, config).await
            && node.try_start(&ctr).await.is_ok()
        {
            node.exited(&ctr).await;
            let out = logs::stream(&logs::read(&ctr.log), "stdout");
            assert!(out.lines().all(|line| line.trim() != before.trim()), "a mask shows {core}: {out}");
        }
        assert_eq!(fs::read_to_string(core).unwrap(), before, "tty {tty}");
    }
    node.finish().await;
}

/// What the runtime writes to /proc goes to the kernel's, or the container is not made: not to a volume that lies
/// there, and not through a link of the image.
#[tokio::test]
async fn a_proc_that_is_none() {
    let node = Node::start().await;
    let registry = FakeRegistry::start(Access::Anonymous).await;
    let outside = node.dir().join("outside");
    fs::create_dir_all(outside.join("self/attr")).unwrap();
    let volume = node.dir().join("proc");
    fs::create_dir_all(volume.join("self/attr")).unwrap();
    fs::write(volume.join("self/attr/exec"), "").unwrap();
    let link = |name: &str, to: &str| {
        Image::new(vec![Layer::busybox(), Tar::new().symlink(name, to).gzip()], serde_json::json!({}))
    };
    let host = outside.to_str().unwrap();
    let images = [
        registry.push("proc", "absolute", &link("proc", host)),
        registry.push("proc", "relative", &link("proc", &format!("{}{host}", "../".repeat(10)))),
        registry.push("sys", "absolute", &link("sys", host)),
        registry.push("dev", "absolute", &link("dev", host)),
        registry.push("plain", "1", &Image::new(vec![Layer::busybox()], serde_json::json!({}))),
    ];
    for reference in &images {
        node.try_pull(reference, None).await.unwrap();
    }
    let linked = registry.push("linked", "1", &link("way", "/proc"));
    node.try_pull(&linked, None).await.unwrap();
    let pod = node.up(node.pod("proc")).await;
    let tree = |folder: &Path| {
        let mut found: Vec<_> = walk(folder).into_iter().collect();
        found.sort();
        found
    };
    let before = tree(&outside);
    for (n, reference) in images.iter().take(4).enumerate() {
        let mut config = node.sh(&format!("image-{n}"), "grep -c . /proc/self/status; ls /dev/null");
        config.image = Some(specs::image(reference));
        if let Ok(ctr) = node.try_create(&pod, config).await
            && node.try_start(&ctr).await.is_ok()
        {
            node.exited(&ctr).await;
        }
        assert_eq!(tree(&outside), before, "{reference}");
    }
    for target in ["/proc", "/proc/self", "/proc/sys", "/proc/self/attr", "/proc/../proc"] {
        let mut config = node.sh(&format!("mount{}", target.replace('/', "-").replace('.', "_")), "true");
        config.image = Some(specs::image(&images[4]));
        config.mounts = vec![specs::bind(&volume, target)];
        let refused = match node.try_create(&pod, config).await {
            Err(status) => Err(status),
            Ok(ctr) => node.try_start(&ctr).await,
        };
        let status = refused.expect_err(target);
        assert!(status.message().contains("proc"), "{target}: {status}");
    }
    // By way of a link of the image it may come up, but reaches nothing that the runtime writes to.
    let mut config = node.sh("linked", "cat /proc/self/attr/current >/dev/null 2>&1; true");
    config.image = Some(specs::image(&linked));
    config.mounts = vec![specs::bind(&volume, "/way/self/attr")];
    if let Ok(ctr) = node.try_create(&pod, config).await {
        let _ = node.try_start(&ctr).await;
    }
    assert_eq!(fs::read_to_string(volume.join("self/attr/exec")).unwrap(), "");
    // The host's own, read-only, beside it: what node exporters do.
    let mut config = node.sh("beside", "grep -c . /host/proc/1/status >/dev/null && echo seen");
    config.image = Some(specs::image(&images[4]));
    config.mounts = vec![Mount { readonly: true, ..specs::bind("/proc", "/host/proc") }];
    assert_eq!(node.outcome(&pod, config).await.1, "seen\n");
    node.finish().await;
}

/// All paths below a folder, links not followed.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}
