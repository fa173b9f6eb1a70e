//! What a process finds itself to be, asked from inside, under our Executor and under runc.

use serde_json::{Value, json};

use super::bed::{Bed, Made, as_monitor, process};
use crate::launch::seccomp::{SeccompCompiler, default_profile};
use crate::sys::caps;

/// Prints all that should not depend on who made the container.
const INSPECT: &str = "grep -E '^(Cap|Seccomp|NoNew|Groups|Sig[BI]|Uid|Gid|Umask)' /proc/self/status; ls -l /proc/self/fd | \
    sed 's/.* \\([0-9]* -> \\)/\\1/; s/:\\[.*//; /^total/d; s,/proc/[0-9]*/fd,FD,'; pwd; env | sort; cat /proc/self/oom_score_adj; \
    cat /proc/self/limits | grep -E 'open files|core'; stat -c '%n %a %t:%T' /dev/null /dev/ptmx /dev/shm /proc/kcore; \
    cat /proc/self/sessionid; ls -l /proc/self/ns | sed 's/.* \\([a-z_]* -> [a-z]*\\).*/\\1/'";

fn mask(names: &[&str]) -> u64 {
    names.iter().filter_map(|name| caps::from_name(name)).fold(0, |set, bit| set | bit)
}

/// The same confinement in the spec, for runc, and in ours.
fn confine(made: &mut Made, sets: Value, no_new_privs: bool, user: Value) {
    let set = |name: &str| -> u64 {
        let names: Vec<&str> = sets[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        mask(&names)
    };
    made.spec.confinement.capabilities = crate::wire::Capabilities {
        bounding: set("bounding"),
        permitted: set("permitted"),
        effective: set("effective"),
        inheritable: set("inheritable"),
        ambient: set("ambient"),
    };
    made.spec.confinement.no_new_privs = no_new_privs;
    made.config["process"]["capabilities"] = sets;
    made.config["process"]["noNewPrivileges"] = json!(no_new_privs);
    made.config["process"]["user"] = user;
}

/// The default profile: in the spec, for runc, and compiled.
fn filter(made: &mut Made, compiler: &SeccompCompiler) {
    let profile = default_profile(made.spec.confinement.capabilities.bounding).unwrap();
    made.config["linux"]["seccomp"] = serde_json::to_value(&profile).unwrap();
    made.spec.confinement.bpf = Some(compiler.bpf_file(&profile).unwrap());
}

#[test]
fn init_and_exec_are_as_runc_makes_them() {
    as_monitor(|| {
        let mut bed = Bed::new();
        // Dirt in the parent, none of which may reach a container.
        rustix::thread::set_thread_groups(&[rustix::process::Gid::from_raw(33)]).unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let dirt = std::fs::File::open("/etc/passwd").unwrap();
        let some = ["CAP_KILL", "CAP_NET_RAW", "CAP_SETUID"];
        let cases = [
            (
                json!({"bounding": super::bed::CAPABILITIES, "permitted": super::bed::CAPABILITIES, "effective": super::bed::CAPABILITIES}),
                false,
                json!({"uid": 0, "gid": 0}),
            ),
            (
                json!({"bounding": some, "permitted": some, "effective": some}),
                true,
                json!({"uid": 0, "gid": 0, "additionalGids": [5, 6]}),
            ),
            (
                json!({"bounding": some, "permitted": some, "effective": some}),
                false,
                json!({"uid": 1000, "gid": 1001, "additionalGids": [5]}),
            ),
            (
                json!({"bounding": some, "permitted": some, "effective": some, "inheritable": some, "ambient": ["CAP_KILL"]}),
                false,
                json!({"uid": 1000, "gid": 1001}),
            ),
            (
                json!({"bounding": [], "permitted": [], "effective": []}),
                true,
                json!({"uid": 1000, "gid": 0, "umask": 63}),
            ),
            (
                json!({"bounding": ["CAP_SYS_RESOURCE", "CAP_KILL"], "permitted": ["CAP_SYS_RESOURCE", "CAP_KILL"], "effective": ["CAP_SYS_RESOURCE", "CAP_KILL"]}),
                false,
                json!({"uid": 0, "gid": 0}),
            ),
        ];
        let compiler = SeccompCompiler::new(bed.folder.path().join("seccomp"));
        for (filtered, (sets, no_new_privs, user)) in
            [false, true].into_iter().cycle().zip(cases.clone().into_iter().chain(cases.into_iter().skip(1)))
        {
            let mut results = Vec::new();
            for engine in ["runc", "youki"] {
                let make = |made: &mut Made| {
                    confine(made, sets.clone(), no_new_privs, user.clone());
                    if filtered {
                        filter(made, &compiler);
                    }
                };
                let spec = bed.make(engine, &["sh", "-c", INSPECT], make);
                let (code, init) = bed.run(&spec);
                assert_eq!(code, 0, "{engine}: {init}");
                assert_eq!(init.contains("Seccomp:\t2"), filtered, "{engine}: {init}");
                let spec = bed.make(engine, &["sleep", "100"], make);
                let mut running = bed.create(&spec).unwrap();
                bed.start(&spec, &mut running).unwrap();
                let mut inspect = process(&["sh", "-c", INSPECT]);
                inspect["capabilities"] = sets.clone();
                inspect["noNewPrivileges"] = json!(no_new_privs);
                inspect["user"] = user.clone();
                // runc 1.1 overlooks it in exec.
                inspect["user"].as_object_mut().unwrap().remove("umask");
                let (code, exec) = bed.exec(&spec, running.pid, inspect).unwrap();
                assert_eq!(code, 0, "{engine}: {exec}");
                drop(running);
                bed.delete(&spec);
                // runc hands on what its caller ignores.
                let clean = |text: String| -> Vec<String> {
                    let lines = text.lines().map(str::to_owned);
                    let lines = lines.filter(|line| engine == "youki" || !line.starts_with("SigIgn"));
                    lines.filter(|line| line != "SigIgn:\t0000000000000000").collect()
                };
                results.push((clean(init), clean(exec)));
            }
            let (runc, youki) = (&results[0], &results[1]);
            assert_eq!(youki.0, runc.0, "init, {sets} {user}");
            assert_eq!(youki.1, runc.1, "exec, {sets} {user}");
        }
        drop(dirt);
        bed.census(&[]);
    });
}

#[test]
fn the_filter_holds_in_init_and_exec() {
    as_monitor(|| {
        let mut bed = Bed::new();
        let compiler = SeccompCompiler::new(bed.folder.path().join("seccomp"));
        // With CAP_SYS_ADMIN kept out of the profile's sight, only the filter can refuse.
        let all: Vec<&str> = super::bed::CAPABILITIES.into_iter().chain(["CAP_SYS_ADMIN"]).collect();
        let sets = json!({"bounding": all, "permitted": all, "effective": all});
        let script = "mount -t tmpfs x /tmp 2>&1 | grep -c 'Operation not permitted\\|permission denied'";
        for no_new_privs in [false, true] {
            let spec = bed.make("youki", &["sh", "-c", &format!("{script}; sleep 100")], |made| {
                filter(made, &compiler);
                confine(made, sets.clone(), no_new_privs, json!({"uid": 0, "gid": 0}));
            });
            let mut running = bed.create(&spec).unwrap();
            bed.start(&spec, &mut running).unwrap();
            assert_eq!(bed.exec(&spec, running.pid, process(&["sh", "-c", script])).unwrap(), (0, "1\n".to_owned()));
            bed.delete(&spec);
            assert_eq!(super::bed::text(&running.output), "1\n");
        }
        let spec = bed.make("youki", &["true"], |made| made.spec.confinement.bpf = Some("/does/not/exist.bpf".into()));
        let error = bed.create(&spec).map(|_| ()).unwrap_err();
        assert!(error.message.contains("/does/not/exist.bpf"), "no container without its filter: {error}");
        bed.delete(&spec);
    });
}

#[test]
fn init_waits_without_more_than_it_will_have() {
    as_monitor(|| {
        let mut bed = Bed::new();
        let compiler = SeccompCompiler::new(bed.folder.path().join("seccomp"));
        for (no_new_privs, want) in [(false, mask(&["CAP_KILL", "CAP_SYS_ADMIN"])), (true, mask(&["CAP_KILL"]))] {
            let spec = bed.make("youki", &["true"], |made| {
                let sets = json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
                confine(made, sets, no_new_privs, json!({"uid": 0, "gid": 0}));
                filter(made, &compiler);
            });
            let running = bed.create(&spec).unwrap();
            let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid)).unwrap();
            let set = |name| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                u64::from_str_radix(line.trim(), 16).unwrap()
            };
            assert_eq!((set("CapPrm:"), set("CapBnd:")), (want, mask(&["CAP_KILL"])));
            bed.delete(&spec);
        }
    });
}
