//! `fields.md` says of every field that CRI's configurations have which test proves it, and names tests that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Whole messages that are refused, and a number that may be missing.
const PASSED_OVER: [&str; 3] = ["WindowsPodSandboxConfig", "WindowsContainerConfig", "Int64Value"];
/// Where messages stand that have no section of their own, as `MESSAGE: field, field`.
const SMALL: &str = "Parts of these";

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Type and name of each field of each message.
fn messages(proto: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let (mut found, mut name, mut in_enum) = (BTreeMap::<_, Vec<_>>::new(), None::<String>, false);
    for line in proto.lines() {
        let line = line.split("//").next().unwrap_or_default();
        if let Some(rest) = line.strip_prefix("message ") {
            name = Some(rest.split(['{', ' ']).next().unwrap_or_default().to_owned());
            found.entry(name.clone().unwrap()).or_default();
        } else if line.starts_with('}') {
            name = None;
        } else if let Some(name) = &name {
            in_enum = (in_enum || line.trim_start().starts_with("enum ")) && !line.contains('}');
            if let Some((left, _)) = line.split_once('=').filter(|_| !in_enum) {
                let words: Vec<_> = left.split([' ', '<', '>', ',']).filter(|word| !word.is_empty()).collect();
                if let [.., kind, field] = words[..] {
                    found.get_mut(name).unwrap().push((kind.to_owned(), field.to_owned()));
                }
            }
        }
    }
    found
}

/// The rows of each section, as cells.
fn sections(text: &str) -> BTreeMap<&str, Vec<Vec<&str>>> {
    let (mut found, mut name) = (BTreeMap::<_, Vec<_>>::new(), "");
    for line in text.lines() {
        match line.strip_prefix("## ") {
            Some(heading) => name = heading,
            None if line.starts_with("| ") && !line.starts_with("| field") && !line.starts_with("| message") => {
                found.entry(name).or_default().push(line.trim_matches('|').split(" | ").map(str::trim).collect());
            }
            None => {}
        }
    }
    found
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

#[test]
fn every_field_has_a_line() {
    let messages = messages(&fs::read_to_string(at("proto/runtime/v1/api.proto")).unwrap());
    let text = fs::read_to_string(at("conformance/fields.md")).unwrap();
    let sections = sections(&text);
    let small: BTreeMap<&str, &str> = sections[SMALL].iter().filter_map(|row| row[0].split_once(": ")).collect();
    let (mut missing, mut seen) = (Vec::new(), BTreeSet::new());
    let mut next = vec!["PodSandboxConfig", "ContainerConfig"];
    while let Some(name) = next.pop() {
        if !seen.insert(name) || PASSED_OVER.contains(&name) {
            continue;
        }
        let rows = sections.get(name).map(|rows| rows.iter().map(|row| row[0]).collect::<Vec<_>>().join(" "));
        let listed = rows.or_else(|| small.get(name).map(|&fields| fields.to_owned())).unwrap_or_default();
        for (kind, field) in &messages[name] {
            if !words(&listed).contains(field.as_str()) {
                missing.push(format!("{name}.{field}"));
            }
            if messages.contains_key(kind) {
                next.push(kind);
            }
        }
    }
    assert!(seen.len() > 25, "{seen:?}");
    assert_eq!(missing, Vec::<String>::new(), "not in fields.md");
}

#[test]
fn every_line_names_tests_that_exist() {
    let text = fs::read_to_string(at("conformance/fields.md")).unwrap();
    let sections = sections(&text);
    let mut wrong = Vec::new();
    for (section, rows) in &sections {
        for row in rows {
            let (what, proof) = (row[row.len().min(2) - 1], row.last().unwrap());
            let elsewhere = what.strip_prefix("see ").is_some_and(|name| sections.contains_key(name));
            let repeats = proof.starts_with("the same") && section.ends_with("Resources");
            let mut names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
            if names.is_empty() && !elsewhere && !repeats {
                wrong.push(format!("{section}, {}: no test", row[0]));
            }
            let mut topic = "";
            for name in names.drain(..) {
                if name.ends_with(".rs") {
                    if !at("src").join(name).is_file() {
                        wrong.push(format!("{section}: no file {name}"));
                    }
                    continue;
                }
                let (path, test) = name.rsplit_once("::").unwrap_or((topic, name));
                topic = path;
                if !exists(path.trim_end_matches("::*"), test) {
                    wrong.push(format!("{section}: no test {path}::{test}"));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

fn exists(topic: &str, test: &str) -> bool {
    let path = topic.replace("::", "/");
    let sources = [format!("conformance/{path}.rs"), format!("conformance/{path}/mod.rs")];
    let start = format!("fn {}", test.trim_end_matches('*'));
    sources.iter().filter_map(|path| fs::read_to_string(at(path)).ok()).any(|source| {
        source.split(&start).skip(1).any(|rest| test.ends_with('*') || rest.starts_with('(')) || test == "*"
    })
}
