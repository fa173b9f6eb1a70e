//! Device rules on cgroup v2. libcontainer leaves them out there without a word, and a container
//! with CAP_MKNOD, which is in the default set, could then make and open any disk of the node.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{attempt, failure};
use crate::sys::bpf;
use crate::types::ErrorKind;
use crate::wire::Failure;

/// Most rules taken: far more than there are devices to hand in.
const MAX_RULES: usize = 1000;

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// What every container has (the devices that the runtime specification demands) and may do (making
/// a node gives no access to what is behind it).
const ALWAYS: [Rule; 11] = [
    Rule { allow: true, kind: Some(CHAR), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    Rule::character(1, Some(3)),
    Rule::character(1, Some(5)),
    Rule::character(1, Some(7)),
    Rule::character(1, Some(8)),
    Rule::character(1, Some(9)),
    Rule::character(5, Some(0)),
    Rule::character(5, Some(1)),
    Rule::character(5, Some(2)),
    Rule::character(136, None),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    fn is_for_all(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }

    /// For cgroup v1, which knows no rule for devices of all kinds but the one for all access to all.
    fn line(&self) -> Result<String, Failure> {
        if self.is_for_all() {
            return Ok("a".to_owned());
        }
        let kind = match self.kind {
            Some(BLOCK) => 'b',
            Some(_) => 'c',
            None => return Err(failure(ErrorKind::Unimplemented, "device rules for all kinds on cgroup v1")),
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let access: String =
            letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| *letter).collect();
        Ok(format!("{kind} {}:{} {access}", number(self.major), number(self.minor)))
    }

    const fn character(major: u32, minor: Option<u32>) -> Self {
        Self { allow: true, kind: Some(CHAR), major: Some(major), minor, access: ALL }
    }
}

/// Puts the spec's rules in force for a container on a node with cgroup v2, before it runs.
pub(super) fn restrict(rules: Option<&Value>, cgroups: &[PathBuf]) -> Result<(), Failure> {
    if !enforced_here() {
        return Ok(());
    }
    let Some(rules) = rules.and_then(Value::as_array) else { return Ok(()) };
    let rules = parse(rules)?;
    for path in cgroups {
        attach(path, &rules)?;
    }
    Ok(())
}

/// cgroup v2 alone is on this machine, where such things are ours to do.
pub(super) fn enforced_here() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The same as lines for the device controller of cgroup v1: whether to allow, and what.
pub(super) fn lines(rules: &Value) -> Result<Vec<(bool, String)>, Failure> {
    let rules = rules.as_array().map(Vec::as_slice).unwrap_or_default();
    parse(rules)?.iter().map(|rule| rule.line().map(|line| (rule.allow, line))).collect()
}

fn attach(cgroup: &Path, rules: &[Rule]) -> Result<(), Failure> {
    let folder = attempt(File::open(cgroup), || format!("opening cgroup {cgroup:?}"))?;
    attempt(bpf::attach_device_program(folder, &program(rules)), || format!("device rules for cgroup {cgroup:?}"))
}

fn parse(rules: &[Value]) -> Result<Vec<Rule>, Failure> {
    let invalid = || failure(ErrorKind::InvalidArgument, "the container's OCI spec has no valid device rules");
    if rules.len() > MAX_RULES {
        return Err(invalid());
    }
    let number = |rule: &Value, key| match rule.get(key).and_then(Value::as_i64) {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| invalid()),
    };
    let one = |rule: &Value| {
        let kind = match rule.get("type").and_then(Value::as_str).unwrap_or("a") {
            "a" | "" => None,
            "b" => Some(BLOCK),
            "c" | "u" => Some(CHAR),
            _ => return Err(invalid()),
        };
        let letters = rule.get("access").and_then(Value::as_str).unwrap_or("rwm");
        let access = letters.chars().try_fold(0, |sum, letter| match letter {
            'r' => Ok(sum | READ),
            'w' => Ok(sum | WRITE),
            'm' => Ok(sum | MKNOD),
            _ => Err(invalid()),
        })?;
        let allow = rule.get("allow").and_then(Value::as_bool).unwrap_or(false);
        Ok(Rule { allow, kind, major: number(rule, "major")?, minor: number(rule, "minor")?, access })
    };
    // A rule for all devices stands for everything before it; what every container has follows it.
    let mut parsed = rules.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let first = usize::from(parsed.first().is_some_and(|rule| !rule.allow && rule.is_for_all()));
    parsed.splice(first..first, ALWAYS);
    Ok(parsed)
}

/// An eBPF program that lets the last matching rule decide, and refuses what none matches.
fn program(rules: &[Rule]) -> Vec<u64> {
    const ALLOWED: u64 = 0;
    const CONTEXT: u64 = 1;
    const ACCESS: u64 = 2;
    const KIND: u64 = 3;
    const MAJOR: u64 = 4;
    const MINOR: u64 = 5;
    const SCRATCH: u64 = 6;
    let encode = |code: u64, to: u64, from: u64, offset: u64, value: u32| {
        code | to << 8 | from << 12 | (offset & 0xffff) << 16 | u64::from(value) << 32
    };
    let load = |to, offset| encode(0x61, to, CONTEXT, offset, 0);
    let copy = |to, from| encode(0xbc, to, from, 0, 0);
    let and = |to, mask| encode(0x54, to, 0, 0, mask);
    let shift_right = |to, by| encode(0x74, to, 0, 0, by);
    let set = |to, value| encode(0xb4, to, 0, 0, value);
    let unless_equal = |register, value, skip| encode(0x56, register, 0, skip, value);
    let if_equal = |register, value, skip| encode(0x16, register, 0, skip, value);
    let exit = encode(0x95, 0, 0, 0, 0);
    // struct bpf_cgroup_dev_ctx: access and kind in one word, major, minor.
    let mut program = vec![load(ACCESS, 0), copy(KIND, ACCESS), and(KIND, 0xffff), shift_right(ACCESS, 16)];
    program.extend([load(MAJOR, 4), load(MINOR, 8)]);
    for rule in rules.iter().rev() {
        // Built from its end, so that a test knows how much there is to skip.
        let mut block = vec![set(ALLOWED, u32::from(rule.allow)), exit];
        for (register, wanted) in [(MINOR, rule.minor), (MAJOR, rule.major), (KIND, rule.kind)] {
            if let Some(wanted) = wanted {
                block.insert(0, unless_equal(register, wanted, block.len() as u64));
            }
        }
        if rule.access != ALL {
            // All that is asked for must be allowed; any of it may be refused.
            let test = match rule.allow {
                true => {
                    [copy(SCRATCH, ACCESS), and(SCRATCH, !rule.access), unless_equal(SCRATCH, 0, block.len() as u64)]
                }
                false => [copy(SCRATCH, ACCESS), and(SCRATCH, rule.access), if_equal(SCRATCH, 0, block.len() as u64)],
            };
            block.splice(0..0, test);
        }
        program.extend(block);
        if rule.is_for_all() {
            // The kernel refuses programs with a part that is never reached.
            return program;
        }
    }
    program.extend([set(ALLOWED, 0), exit]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    /// What a process in a cgroup with these rules can open for reading and for writing.
    fn opens(rules: &Value) -> Vec<(&'static str, bool, bool)> {
        let root = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/unified"
        };
        let cgroup = Path::new(root).join(format!("pw-devices-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        attach(&cgroup, &parse(rules.as_array().unwrap()).unwrap()).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let pid = crate::sys::fork::fork_unchecked(|| {
            fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
            for name in ["/dev/null", "/dev/kmsg", "/dev/loop-control", "/dev/vda"] {
                let result = [File::open(name).is_ok(), fs::OpenOptions::new().write(true).open(name).is_ok()];
                rustix::io::write(&write, &result.map(u8::from)).unwrap();
            }
            0
        })
        .unwrap();
        drop(write);
        rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut File::from(read), &mut bytes).unwrap();
        super::super::cgroup::destroy(&[cgroup]).unwrap();
        let names = ["null", "kmsg", "loop", "vda"];
        names.into_iter().zip(bytes.chunks(2)).map(|(name, pair)| (name, pair[0] == 1, pair[1] == 1)).collect()
    }

    #[test]
    fn the_kernel_follows_the_rules() {
        let deny = json!({"allow": false, "access": "rwm"});
        let got = opens(&json!([deny, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]));
        assert_eq!(got, [("null", true, true), ("kmsg", true, false), ("loop", false, false), ("vda", false, false)]);
        let got = opens(
            &json!([deny, {"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"}]),
        );
        assert_eq!(got[0], ("null", true, true));
        assert_eq!(got[1], ("kmsg", true, false));
    }

    #[test]
    fn rules_as_lines_for_v1() {
        let rules = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "wm"},
        ]);
        let lines = lines(&rules).unwrap();
        assert_eq!(lines[0], (false, "a".to_owned()));
        assert_eq!(lines[3], (true, "c 1:3 rwm".to_owned()));
        assert_eq!(lines[lines.len() - 2..], [(true, "b 8:* r".to_owned()), (false, "c 1:11 wm".to_owned())]);
    }

    #[test]
    fn odd_rules_are_refused() {
        for rule in [json!({"type": "x"}), json!({"access": "z"}), json!({"major": -2}), json!({"minor": 1u64 << 40})] {
            assert!(parse(std::slice::from_ref(&rule)).is_err(), "{rule}");
        }
    }
}
