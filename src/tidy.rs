//! Checks on the sources themselves: what rustc and clippy do not see to.

use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file.
const MAX_LINES: usize = 600;

/// The rooms, lower ones first; those on one line do not know each other.
const ROOMS: &[&[&str]] = &[
    &["types", "proto"],
    &["sys"],
    &["wire"],
    &["store"],
    &["config", "cgroup", "container"],
    &["image", "snapshot", "network", "launch", "cdi"],
    &["pod", "stats"],
    &["streaming"],
    &["cri", "kubelet", "monitor"],
    &["app"],
    &["cli"],
];

/// Rooms that generated protobuf types reach.
const PROTO: [&str; 3] = ["cri", "kubelet", "cli"];

/// A source file: path from the repository's top, and text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Whether all of it is tests.
    fn tests(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }

    /// Lines of code that are not in a test module at the file's end, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take_while(|line| *line != "mod tests {");
        lines.enumerate().map(|(n, line)| (n + 1, line.trim())).filter(|(_, line)| !line.starts_with("//"))
    }

    /// The room it stands in: `src/ROOM.rs` or `src/ROOM/…`.
    fn room(&self) -> Option<&str> {
        let name = self.path.strip_prefix("src/")?.split('/').next()?;
        Some(name.strip_suffix(".rs").unwrap_or(name))
    }
}

fn sources(endings: &[&str]) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "conformance", "benches", "build"].iter().map(|name| top.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| endings.iter().any(|e| ending == *e)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(top).unwrap().to_str().unwrap().to_owned(), text });
            }
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn no_file_is_long() {
    let long = |file: &Source| file.text.lines().count() > MAX_LINES;
    let found: Vec<_> = sources(&["rs", "sh", "py"]).into_iter().filter(long).map(|file| file.path).collect();
    assert!(found.is_empty(), "over {MAX_LINES} lines: {found:?}");
}

#[test]
fn every_module_says_what_it_is() {
    let mute = |file: &Source| !file.tests() && !file.text.starts_with("//!");
    let found: Vec<_> = sources(&["rs"]).into_iter().filter(mute).map(|file| file.path).collect();
    assert!(found.is_empty(), "no //! at the top: {found:?}");
}

#[test]
fn unsafe_stands_in_its_rooms_only() {
    let marks =
        [concat!("un", "safe {"), concat!("un", "safe fn"), concat!("un", "safe impl"), concat!("un", "safe_code")];
    let mut found = Vec::new();
    for file in sources(&["rs"]) {
        if file.path.starts_with("src/sys/") || file.path.starts_with("src/pause/") {
            continue;
        }
        let lines = file.text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        found.extend(
            lines.filter(|line| marks.iter().any(|m| line.contains(m))).map(|line| format!("{}: {line}", file.path)),
        );
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn lints_are_expected_not_allowed() {
    let mark = concat!("allow", "(");
    let mut found = Vec::new();
    for file in sources(&["rs"]) {
        for line in file.text.lines().map(str::trim) {
            if (line.starts_with("#[") || line.starts_with("#![")) && line.contains(mark) {
                found.push(format!("{}: {line}", file.path));
            }
        }
    }
    assert!(found.is_empty(), "use #[expect(…, reason = …)]: {found:#?}");
}

#[test]
fn rooms_import_from_below() {
    let level = |room: &str| ROOMS.iter().position(|rooms| rooms.contains(&room));
    let mut found = Vec::new();
    for file in sources(&["rs"]).iter().filter(|file| !file.tests()) {
        let Some(room) = file.room().filter(|room| !["lib", "main", "bin", "pause", "tidy"].contains(room)) else {
            continue;
        };
        let Some(own) = level(room) else { panic!("{}: room {room} is not among ROOMS", file.path) };
        for (n, line) in file.code() {
            for part in line.split("crate::").skip(1) {
                let other = part.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
                let Some(theirs) = level(other) else { panic!("{}:{n}: import one room a line: {line}", file.path) };
                let wire_types = other == "proto" && !PROTO.contains(&room);
                if other != room && (theirs >= own || wire_types) {
                    found.push(format!("{}:{n}: {line}", file.path));
                }
            }
        }
    }
    assert!(found.is_empty(), "imports from above or beside: {found:#?}");
}
