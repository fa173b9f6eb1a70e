//! The engines at work, each on real containers. They need root and, for `runc`, `crun` and `runsc`,
//! those programs.

mod bed;
mod confinement;

use std::fs;

use serde_json::json;

use super::*;
use crate::wire::{StagedMount, StagedPropagation};
use bed::{Bed, as_monitor, process};

/// From create to delete, with an exec in between, and a census.
fn lifecycle(engine: &str) {
    as_monitor(|| {
        if engine == "crun" {
            bed::hide_unified();
        }
        let mut bed = Bed::new();
        let script = "echo started; until [ -e /go ]; do sleep 0.01; done; exit 7";
        let spec = bed.make(engine, &["sh", "-c", script], |_| {});
        let mut running = bed.create(&spec).unwrap();
        bed.start(&spec, &mut running).unwrap();
        let (code, output) = bed.exec(&spec, running.pid, process(&["sh", "-c", "echo from exec; exit 3"])).unwrap();
        assert_eq!((code, output.as_str()), (3, "from exec\n"));
        // However long the exec took, init has waited.
        fs::write(format!("/proc/{}/root/go", running.pid), "").unwrap();
        assert_eq!(bed.exit_code(running.pid), 7);
        assert_eq!(bed::text(&running.output), "started\n");
        drop(running);
        bed.delete(&spec);
        bed.delete(&spec);
        bed.census(&[&spec]);
    });
}

#[test]
fn youki_lives_and_dies() {
    lifecycle("youki");
}

#[test]
fn runc_lives_and_dies() {
    lifecycle("runc");
}

#[test]
fn crun_lives_and_dies() {
    lifecycle("crun");
}

#[test]
fn a_missing_program_is_told_at_start() {
    as_monitor(|| {
        let mut bed = Bed::new();
        for (program, want, code) in [
            ("nope", r#"exec: "nope": executable file not found in $PATH"#, 127),
            ("/bin/nope", r#"exec: "/bin/nope": no such file or directory"#, 127),
            ("data", r#"exec: "data": permission denied"#, 126),
            ("garbage", r#"exec: "garbage": exec format error"#, 126),
        ] {
            let spec = bed.make("youki", &[program], |_| {});
            let mut running = bed.create(&spec).unwrap();
            assert_eq!(bed.start(&spec, &mut running).unwrap_err().message, want);
            assert_eq!(bed.exit_code(running.pid), code, "{program}");
            bed.delete(&spec);
        }
        let spec = bed.make("youki", &["sleep", "100"], |_| {});
        let mut running = bed.create(&spec).unwrap();
        bed.start(&spec, &mut running).unwrap();
        let error = bed.exec(&spec, running.pid, process(&["nope"])).unwrap_err();
        assert_eq!(error.message, r#"exec: "nope": executable file not found in $PATH"#);
        assert_eq!(error.kind, ErrorKind::NotFound);
        let mut elsewhere = process(&["true"]);
        elsewhere["cwd"] = json!("/nowhere");
        let error = bed.exec(&spec, running.pid, elsewhere).unwrap_err();
        assert!(error.message.contains("/nowhere"), "{error}");
        drop(running);
        bed.delete(&spec);
        bed.census(&[&spec]);
    });
}

#[test]
fn a_start_that_cannot_be_noted_is_none() {
    as_monitor(|| {
        crate::sys::fork::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        crate::sys::mounts::set_root_propagation(crate::sys::mounts::Propagation::Slave).unwrap();
        let mut bed = Bed::new();
        let spec = bed.make("youki", &["sh", "-c", "echo started"], |_| {});
        let mut running = bed.create(&spec).unwrap();
        let Engine::Youki { root, .. } = &spec.engine else { panic!() };
        let state = root.join(spec.container.as_str()).join("state.json");
        rustix::mount::mount_bind(&state, &state).unwrap();
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(&state, flags, "").unwrap();
        let error = bed.start(&spec, &mut running).unwrap_err();
        assert!(error.message.contains("state.json"), "{error}");
        rustix::mount::unmount(&state, rustix::mount::UnmountFlags::empty()).unwrap();
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut output = [rustix::event::PollFd::new(&running.output, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut output, Some(&second)), Ok(0), "init was told to go on");
        bed.delete(&spec);
        assert_eq!(bed.exit_code(running.pid), 137);
        drop(running);
        bed.census(&[&spec]);
    });
}

#[test]
fn binaries_tell_of_a_missing_program_at_create() {
    as_monitor(|| {
        bed::hide_unified();
        let mut bed = Bed::new();
        for engine in ["runc", "crun"] {
            let spec = bed.make(engine, &["nope"], |_| {});
            let error = bed.create(&spec).map(|_| ()).unwrap_err();
            assert!(
                error.message.contains("nope") && error.message.contains("not found in $PATH"),
                "{engine}: {error}"
            );
            bed.delete(&spec);
        }
        bed.census(&[]);
    });
}

#[test]
fn a_failed_create_names_the_cause_and_leaves_nothing() {
    as_monitor(|| {
        let mut bed = Bed::new();
        let spec = bed.make("youki", &["true"], |made| {
            let mount = json!({"destination": "/x", "type": "bind", "source": "/does/not/exist", "options": ["rbind"]});
            made.config["mounts"].as_array_mut().unwrap().push(mount);
        });
        let error = bed.create(&spec).map(|_| ()).unwrap_err();
        assert!(error.message.contains("/does/not/exist"), "{error}");
        bed.delete(&spec);
        let spec2 = bed.make("youki", &["true"], |made| made.spec.rootfs.lower.push("/not/a/layer".into()));
        let error = bed.create(&spec2).map(|_| ()).unwrap_err();
        assert!(error.message.contains("layers") && error.message.contains("No such file"), "{error}");
        bed.delete(&spec2);
        let spec3 = bed.make("youki", &["true"], |made| made.config["process"]["cwd"] = json!("/bin/sh/x"));
        let error = bed.create(&spec3).map(|_| ()).unwrap_err();
        assert!(error.message.contains("/bin/sh/x"), "{error}");
        bed.delete(&spec3);
        bed.census(&[&spec, &spec2, &spec3]);
    });
}

#[test]
fn a_created_container_can_be_deleted_with_its_child_cgroups() {
    as_monitor(|| {
        bed::hide_unified();
        let mut bed = Bed::new();
        for engine in ["youki", "runc", "crun"] {
            let spec = bed.make(engine, &["sleep", "100"], |_| {});
            let running = bed.create(&spec).unwrap();
            for path in spec.cgroups.iter().filter(|path| path.exists()) {
                fs::create_dir_all(path.join("deep/deeper")).unwrap();
            }
            bed.delete(&spec);
            assert_eq!(bed.exit_code(running.pid), 137, "{engine}");
        }
        bed.census(&[]);
    });
}

#[test]
fn a_missing_working_directory_is_made() {
    as_monitor(|| {
        let mut bed = Bed::new();
        for readonly in [false, true] {
            let spec = bed.make("youki", &["sh", "-c", "pwd; stat -c %u:%a ."], |made| {
                made.config["process"]["cwd"] = json!("/new/folder");
                made.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
                made.config["root"]["readonly"] = json!(readonly);
                if readonly {
                    made.spec.folders = vec!["/new/folder".into()];
                }
            });
            assert_eq!(bed.run(&spec), (0, "/new/folder\n0:755\n".to_owned()));
        }
        bed.census(&[]);
    });
}

#[test]
fn staged_mounts_have_their_own_propagation_and_owners() {
    as_monitor(|| {
        let mut bed = Bed::new();
        let base = bed.folder.path().to_owned();
        let names = ["private", "slave", "shared", "mapped"];
        for name in names {
            fs::create_dir_all(base.join("host").join(name)).unwrap();
            fs::create_dir_all(base.join("staged").join(name)).unwrap();
            fs::write(base.join("host").join(name).join("file"), "").unwrap();
        }
        // A shared mount to be a peer of, in a namespace of this test's own.
        crate::sys::fork::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        crate::sys::mounts::set_root_propagation(crate::sys::mounts::Propagation::Slave).unwrap();
        rustix::mount::mount_bind(base.join("host"), base.join("host")).unwrap();
        let change = rustix::mount::MountPropagationFlags::SHARED;
        rustix::mount::mount_change(base.join("host"), change).unwrap();
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let script = "grep ' /m/' /proc/self/mountinfo | sort; stat -c %u /m/mapped/file";
        for engine in ["youki", "runc"] {
            let spec = bed.make(engine, &["sh", "-c", script], |made| {
                for name in names {
                    let staged = base.join("staged").join(name);
                    let destination = format!("/m/{name}");
                    let mount =
                        json!({"destination": destination, "type": "bind", "source": staged, "options": ["rbind"]});
                    made.config["mounts"].as_array_mut().unwrap().push(mount);
                    made.config["linux"]["rootfsPropagation"] = json!("rshared");
                    made.spec.mounts.push(StagedMount {
                        source: base.join("host").join(name),
                        staged,
                        propagation: match name {
                            "slave" => StagedPropagation::Slave,
                            "shared" => StagedPropagation::Shared,
                            _ => StagedPropagation::Private,
                        },
                        image: None,
                        idmap: (name == "mapped")
                            .then(|| crate::wire::IdMaps { uids: vec![(0, 1000, 10)], gids: vec![(0, 1000, 10)] }),
                    });
                }
            });
            let (code, output) = bed.run(&spec);
            assert_eq!(code, 0, "{output}");
            let line = |name: &str| {
                output.lines().find(|line| line.contains(&format!(" /m/{name} "))).unwrap_or_else(|| panic!("{output}"))
            };
            let peer =
                before.lines().find(|line| line.contains(&format!(" {} ", base.join("host").display()))).unwrap();
            let group =
                peer.split_whitespace().find(|word| word.starts_with("shared:")).unwrap().trim_start_matches("shared:");
            assert!(line("shared").contains(&format!(" shared:{group} ")), "{engine}: {output}\n{peer}");
            assert!(line("slave").contains(&format!(" master:{group} ")), "{engine}: {output}");
            assert!(!line("private").contains(&format!("master:{group} ")), "{engine}: {output}");
            assert!(!line("private").contains(&format!("shared:{group} ")), "{engine}: {output}");
            assert_eq!(output.lines().last(), Some("1000"), "{engine}: {output}");
        }
        let ours = |text: &str| text.lines().filter(|line| line.contains(&*base.to_string_lossy())).count();
        assert_eq!(ours(&fs::read_to_string("/proc/self/mountinfo").unwrap()), ours(&before));
    });
}

#[test]
fn a_terminal_is_handed_out() {
    as_monitor(|| {
        let mut bed = Bed::new();
        for engine in ["youki", "runc"] {
            let script = "test -t 0 && test -t 1 && test -t 2 && readlink /proc/self/fd/0 && stat -c %t /dev/console";
            let spec = bed.make(engine, &["sh", "-c", script], |made| {
                made.config["process"]["terminal"] = json!(true);
            });
            let (mut running, terminal) = bed.create_on_terminal(&spec);
            bed.start(&spec, &mut running).unwrap();
            assert_eq!(bed.exit_code(running.pid), 0, "{engine}");
            assert_eq!(bed::terminal_text(&terminal), "/dev/pts/0\r\n88\r\n", "{engine}");
            bed.delete(&spec);
        }
        bed.census(&[]);
    });
}

#[test]
fn exec_joins_the_cgroups_and_namespaces_of_init() {
    as_monitor(|| {
        let mut bed = Bed::new();
        let spec = bed.make("youki", &["sleep", "100"], |_| {});
        let mut running = bed.create(&spec).unwrap();
        bed.start(&spec, &mut running).unwrap();
        let script = "for i in 1 self; do grep -v systemd /proc/$i/cgroup; readlink /proc/$i/ns/mnt /proc/$i/ns/net \
            /proc/$i/ns/ipc /proc/$i/ns/uts /proc/$i/ns/pid; done; cat /proc/self/cgroup >&2";
        let (code, output) = bed.exec(&spec, running.pid, process(&["sh", "-c", script])).unwrap();
        assert_eq!(code, 0, "{output}");
        let lines: Vec<&str> = output.lines().take(output.lines().count() / 3 * 3).collect();
        let own: Vec<&str> = output.lines().filter(|line| line.contains("pw-engine-test")).collect();
        assert!(own.len() >= 3, "in no cgroup of the container: {output}");
        let init = fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).unwrap();
        assert!(own.iter().all(|line| init.contains(line)), "{output} {init}");
        for kind in ["mnt:", "net:", "ipc:", "uts:", "pid:"] {
            let found: std::collections::BTreeSet<_> = lines.iter().filter(|line| line.starts_with(kind)).collect();
            assert_eq!(found.len(), 1, "{output}");
        }
        // Nothing of it stays in libcontainer's folder.
        let Engine::Youki { root, .. } = &spec.engine else { panic!() };
        let left: Vec<_> =
            fs::read_dir(root.join(spec.container.as_str())).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        drop(running);
        bed.delete(&spec);
        bed.census(&[&spec]);
    });
}

#[test]
fn read_only_roots_of_one_and_of_two_layers() {
    as_monitor(|| {
        let mut bed = Bed::new();
        let second = bed.folder.path().join("second");
        fs::create_dir_all(second.join("extra")).unwrap();
        for layers in [1, 2] {
            let spec = bed.make("youki", &["sh", "-c", "touch /etc/x; ls -d /extra /bin/sh 2>/dev/null"], |made| {
                made.spec.rootfs.upper = None;
                // There is nowhere to make mount points.
                made.config["mounts"] = json!(made.config["mounts"].as_array().unwrap()[..2]);
                made.config["linux"]["maskedPaths"] = json!([]);
                made.config["linux"]["readonlyPaths"] = json!([]);
                if layers == 2 {
                    made.spec.rootfs.lower.insert(0, second.clone());
                }
            });
            let (_, output) = bed.run(&spec);
            assert!(output.contains("Read-only file system") && output.contains("/bin/sh"), "{output}");
            assert_eq!(output.contains("/extra"), layers == 2, "{output}");
        }
        bed.census(&[]);
    });
}

/// Times of one engine, in milliseconds: `ENGINE=youki cargo nextest run --run-ignored only measure`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let engine = std::env::var("ENGINE").unwrap_or_else(|_| "youki".to_owned());
    as_monitor(|| {
        if engine == "crun" {
            bed::hide_unified();
        }
        let mut bed = Bed::new();
        let compiler = crate::launch::seccomp::SeccompCompiler::new(bed.folder.path().join("seccomp"));
        let profile = crate::launch::seccomp::default_profile(0).unwrap();
        let bpf = compiler.bpf_file(&profile).unwrap();
        let mut times: [Vec<f64>; 5] = Default::default();
        for _ in 0..60 {
            let spec = bed.make(&engine, &["true"], |made| {
                made.config["linux"]["seccomp"] = serde_json::to_value(&profile).unwrap();
                made.spec.confinement.bpf = Some(bpf.clone());
            });
            let mut last = std::time::Instant::now();
            let mut lap = |index: usize| {
                times[index].push(last.elapsed().as_secs_f64() * 1000.0);
                last = std::time::Instant::now();
            };
            let mut running = bed.create(&spec).unwrap();
            lap(0);
            bed.start(&spec, &mut running).unwrap();
            lap(1);
            bed.exit_code(running.pid);
            lap(2);
            bed.delete(&spec);
            lap(3);
        }
        let spec = bed.make(&engine, &["sleep", "1000"], |made| made.spec.confinement.bpf = Some(bpf.clone()));
        let mut running = bed.create(&spec).unwrap();
        bed.start(&spec, &mut running).unwrap();
        for _ in 0..60 {
            let start = std::time::Instant::now();
            bed.exec(&spec, running.pid, process(&["true"])).unwrap();
            times[4].push(start.elapsed().as_secs_f64() * 1000.0);
        }
        drop(running);
        bed.delete(&spec);
        for (name, mut times) in ["create", "start", "wait", "delete", "exec"].into_iter().zip(times) {
            times.sort_by(f64::total_cmp);
            println!("{engine} {name}: min {:.2} median {:.2} p90 {:.2} ms", times[0], times[30], times[54]);
        }
    });
}

/// gVisor: needs `runsc` installed, or its path in RUNSC.
#[test]
#[ignore = "needs gVisor"]
fn runsc_lives_and_dies() {
    lifecycle("runsc");
}
