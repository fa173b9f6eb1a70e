//! `podwright check`: what this machine lacks for running pods, each with its cure.
//!
//! [`facts`] looks, and changes nothing; [`evaluate`] judges, and does not look.

mod evaluate;
mod facts;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cdi::Registry;
use crate::network::Settings;

/// Command line of `podwright check`.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Print JSON instead of lines
    #[arg(long)]
    pub json: bool,
}

/// What of the daemon's configuration is checked.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Folder of images, layers and records.
    pub root: PathBuf,
    /// Folder of what does not survive a reboot.
    pub state: PathBuf,
    /// Pod networks.
    pub network: Settings,
    /// Devices by name.
    pub devices: Registry,
    /// Folder of the runtime handlers, and the default one's name.
    pub handlers: (PathBuf, String),
    /// The monitor program; `None`: the one beside this program.
    pub monitor: Option<PathBuf>,
    /// AppArmor is to be used.
    pub apparmor: bool,
    /// The profile that RuntimeDefault stands for; empty: the built-in one.
    pub apparmor_profile: String,
    /// SELinux is to be used.
    pub selinux: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Some pods will not run, or not well.
    Warn,
    /// No pod will run.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub finding: String,
    /// What to do about it; `None` where nothing needs doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4} {}: {}", self.level, self.name, self.finding)?;
        if let Some(cure) = &self.cure {
            write!(f, " — cure: {cure}")?;
        }
        Ok(())
    }
}

/// Looks at this machine.
pub fn check(subject: &Subject) -> Vec<Finding> {
    evaluate::evaluate(&facts::gather(subject))
}

/// Checks this machine and prints the findings. The exit code is 1 if any of them is [`Level::Fail`].
pub fn run(args: &Args, subject: &Subject, out: &mut impl Write) -> io::Result<ExitCode> {
    let findings = check(subject);
    print(&findings, args.json, out)?;
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(findings: &[Finding], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "result": worst, "findings": findings }))?;
        return writeln!(out);
    }
    for finding in findings {
        writeln!(out, "{finding}")?;
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => writeln!(out, "this machine is ready"),
        (0, warnings) => writeln!(out, "this machine can run pods, with {warnings} warnings"),
        (failures, _) => writeln!(out, "this machine cannot run pods: {failures} failures"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let finding = |level, cure: Option<&str>| Finding {
            name: "thing",
            level,
            finding: "is so".into(),
            cure: cure.map(str::to_owned),
        };
        vec![finding(Level::Ok, None), finding(Level::Warn, None), finding(Level::Fail, Some("do that"))]
    }

    #[test]
    fn lines_and_json() {
        let text = |json| {
            let mut out = Vec::new();
            print(&findings(), json, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(false),
            "ok   thing: is so\nwarn thing: is so\nFAIL thing: is so — cure: do that\n\
             this machine cannot run pods: 1 failures\n"
        );
        let json: serde_json::Value = serde_json::from_str(&text(true)).unwrap();
        assert_eq!((&json["result"], &json["findings"][2]["cure"]), (&"fail".into(), &"do that".into()));
        assert_eq!(json["findings"][0].get("cure"), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let subject = Subject {
            root: folder.path().join("not/there/yet"),
            state: folder.path().into(),
            network: Settings { conf_dir: folder.path().join("cni"), ..Settings::default() },
            devices: Registry::new(true, vec![folder.path().join("cdi")]),
            handlers: (folder.path().join("handlers"), "youki".into()),
            monitor: None,
            apparmor: true,
            apparmor_profile: String::new(),
            selinux: false,
        };
        let findings = check(&subject);
        assert!(findings.len() > 15, "{findings:?}");
        for finding in &findings {
            assert_eq!(finding.cure.is_none(), finding.level == Level::Ok, "{finding}");
        }
        assert!(!subject.root.exists(), "looking changes nothing");
    }
}
