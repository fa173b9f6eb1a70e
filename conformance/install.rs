//! `make install`, as a packager calls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All files and links below a folder.
fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() { files(&entry.path(), all) } else { all.push(entry.path()) }
    }
}

/// Where the links of a Markdown text lead, but for other sites and places in itself.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let here = targets.filter_map(|target| target.split('#').next());
    here.filter(|target| !target.is_empty() && !target.contains("://")).collect()
}

#[test]
fn all_that_is_linked_to_is_installed_and_the_unit_starts_what_is() {
    if Command::new("make").arg("--version").output().is_err() {
        println!("SKIPPED: make is not installed; apt-get install make");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (target, out) = (place.path().join("target"), place.path().join("out"));
    // The programs need not be built for this.
    fs::create_dir_all(target.join("release")).unwrap();
    for program in ["podwright", "podwright-monitor"] {
        fs::write(target.join("release").join(program), "").unwrap();
    }
    for prefix in ["/usr", "/usr/local"] {
        let mut make = Command::new("make");
        make.args(["-s", "install", &format!("PREFIX={prefix}")]).arg(format!("DESTDIR={}", out.display()));
        make.env("CARGO_TARGET_DIR", &target).env_remove("MAKEFLAGS").current_dir(env!("CARGO_MANIFEST_DIR"));
        let made = make.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let base = out.join(prefix.trim_start_matches('/'));
        let unit = fs::read_to_string(base.join("lib/systemd/system/podwright.service")).unwrap();
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        assert_eq!(start, format!("{prefix}/bin/podwright serve"));
        assert!(out.join(start.split(' ').next().unwrap().trim_start_matches('/')).exists());
        let mut installed = Vec::new();
        files(&base.join("share/doc"), &mut installed);
        let texts = installed.iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
        let mut count = 0;
        for path in texts {
            let text = fs::read_to_string(path).unwrap();
            for link in links(&text) {
                assert!(path.parent().unwrap().join(link).exists(), "{}: {link}", path.display());
                count += 1;
            }
        }
        assert!(count > 10, "{count} links");
    }
}
