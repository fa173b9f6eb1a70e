//! The small checks that everything here is made of.

use std::collections::{BTreeMap, HashMap};

use super::{At, DecodeError};

/// Longest name, uid or namespace, bytes: a DNS subdomain.
pub const MAX_NAME: usize = 253;
/// Longest path, bytes, as the kernel has it.
pub const MAX_PATH: usize = 4095;
/// Most elements of any list and entries of any map.
pub const MAX_LIST: usize = 4096;
/// Longest argument or environment entry, bytes, as the kernel has it (MAX_ARG_STRLEN).
const MAX_WORD: usize = 128 << 10;
/// Longest key of a label or annotation, bytes: a DNS prefix, `/` and a name, with room to spare.
const MAX_KEY: usize = 512;
/// Longest value of a label, bytes.
const MAX_LABEL: usize = 4 << 10;
/// Most bytes in all annotations of one object, as Kubernetes has it (256 KiB), with room to spare; the same for labels.
const MAX_IN_ALL: usize = 512 << 10;

/// Between `low` and `high` bytes.
pub fn length(at: &At<'_>, text: &str, low: usize, high: usize) -> Result<(), DecodeError> {
    match text.len() {
        0 if low > 0 => Err(at.bad(text, "is empty")),
        n if n < low || n > high => Err(at.bad(text, format!("has {n} bytes, want {low} to {high}"))),
        _ => Ok(()),
    }
}

/// No control characters: they have no place in names and forge lines in files and logs.
pub fn no_control(at: &At<'_>, text: &str) -> Result<(), DecodeError> {
    if text.chars().any(char::is_control) { Err(at.bad(text, "has control characters")) } else { Ok(()) }
}

/// A name that may become a part of a path: not empty, bounded, no separators, not `.` or `..`.
pub fn name(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    length(at, &text, 1, MAX_NAME)?;
    no_control(at, &text)?;
    if text.contains('/') || text == "." || text == ".." {
        return Err(at.bad(text, "must not be or hold a path"));
    }
    Ok(text)
}

/// Bounded text without control characters; may be empty.
pub fn label_text(at: &At<'_>, text: String) -> Result<String, DecodeError> {
    length(at, &text, 0, MAX_LABEL)?;
    no_control(at, &text)?;
    Ok(text)
}

/// An absolute path without `..`.
pub fn absolute(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    length(at, &path, 1, MAX_PATH)?;
    no_control(at, &path)?;
    if !path.starts_with('/') {
        return Err(at.bad(path, "want an absolute path"));
    }
    no_climbing(at, &path)?;
    Ok(path)
}

/// Empty, or [`absolute`].
pub fn absolute_or_empty(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    if path.is_empty() { Ok(path) } else { absolute(at, path) }
}

/// Empty, or a relative path without `..`.
pub fn relative_or_empty(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    length(at, &path, 0, MAX_PATH)?;
    no_control(at, &path)?;
    if path.starts_with('/') {
        return Err(at.bad(path, "want a relative path"));
    }
    no_climbing(at, &path)?;
    Ok(path)
}

fn no_climbing(at: &At<'_>, path: &str) -> Result<(), DecodeError> {
    let climbs = path.split('/').any(|part| part == "..");
    if climbs { Err(at.bad(path, "must not have \"..\" in it")) } else { Ok(()) }
}

/// At most [`MAX_LIST`] elements.
pub fn count(at: &At<'_>, count: usize) -> Result<(), DecodeError> {
    if count > MAX_LIST { Err(at.bad(count, format!("want at most {MAX_LIST} entries"))) } else { Ok(()) }
}

/// Arguments: bounded, no NUL.
pub fn words(at: &At<'_>, words: Vec<String>) -> Result<Vec<String>, DecodeError> {
    count(at, words.len())?;
    for (index, text) in words.iter().enumerate() {
        word(&at.index(index), text.as_bytes())?;
    }
    Ok(words)
}

/// What execve takes as one string.
pub fn word(at: &At<'_>, bytes: &[u8]) -> Result<(), DecodeError> {
    if bytes.len() >= MAX_WORD {
        return Err(at.bad(bytes.len(), format!("want less than {MAX_WORD} bytes")));
    }
    if bytes.contains(&0) {
        return Err(at.bad(String::from_utf8_lossy(bytes), "has a NUL in it"));
    }
    Ok(())
}

/// Every element checked by `check`.
pub fn list<T, U>(
    at: &At<'_>,
    items: Vec<T>,
    check: impl Fn(&At<'_>, T) -> Result<U, DecodeError>,
) -> Result<Vec<U>, DecodeError> {
    count(at, items.len())?;
    items.into_iter().enumerate().map(|(index, item)| check(&at.index(index), item)).collect()
}

/// Labels.
pub fn labels(at: &At<'_>, map: HashMap<String, String>) -> Result<BTreeMap<String, String>, DecodeError> {
    count(at, map.len())?;
    for (key, value) in &map {
        let at = at.key(key);
        length(&at, key, 1, MAX_KEY)?;
        no_control(&at, key)?;
        length(&at, value, 0, MAX_LABEL)?;
        no_control(&at, value)?;
    }
    in_all(at, &map)?;
    Ok(map.into_iter().collect())
}

/// Annotations, whose values may be whole documents.
pub fn annotations(at: &At<'_>, map: HashMap<String, String>) -> Result<BTreeMap<String, String>, DecodeError> {
    count(at, map.len())?;
    for (key, value) in &map {
        let at = at.key(key);
        length(&at, key, 1, MAX_KEY)?;
        no_control(&at, key)?;
        if value.contains('\0') {
            return Err(at.bad(value, "has a NUL in it"));
        }
    }
    in_all(at, &map)?;
    Ok(map.into_iter().collect())
}

/// At most [`MAX_IN_ALL`] bytes of names and values.
fn in_all(at: &At<'_>, map: &HashMap<String, String>) -> Result<(), DecodeError> {
    let total: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > MAX_IN_ALL { Err(at.bad(total, format!("want at most {MAX_IN_ALL} bytes in all"))) } else { Ok(()) }
}

/// A number from `low` to `high`.
pub fn range(at: &At<'_>, value: i64, low: i64, high: i64) -> Result<i64, DecodeError> {
    if (low..=high).contains(&value) { Ok(value) } else { Err(at.bad(value, format!("want {low} to {high}"))) }
}

/// A uid or gid. The highest number stands for "none" in the kernel.
pub fn user_id(at: &At<'_>, value: i64) -> Result<i64, DecodeError> {
    range(at, value, 0, i64::from(u32::MAX) - 1)
}

/// Only bytes that `fine` takes; `wanted` names them.
pub fn known_chars(at: &At<'_>, text: &str, fine: impl Fn(u8) -> bool, wanted: &str) -> Result<(), DecodeError> {
    if text.bytes().all(fine) { Ok(()) } else { Err(at.bad(text, format!("want only {wanted}"))) }
}

/// A value of an enum.
pub fn known<T: TryFrom<i32>>(at: &At<'_>, value: i32) -> Result<T, DecodeError> {
    T::try_from(value).map_err(|_| at.bad(value, "is no value of this enum"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: At<'static> = At::root("f");

    #[test]
    fn names() {
        for good in ["a", "busybox-1", "kube.system", "Ünï", &"a".repeat(253)] {
            assert!(name(&AT, good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../a", "a\nb", "a\0", "a\u{7f}", &"a".repeat(254)] {
            assert!(name(&AT, bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        for good in ["/", "/a", "/a/..b/c", "/var/log/pods/ns_name_uid"] {
            assert!(absolute(&AT, good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "a", "./a", "/a/../b", "/..", "/a\n", &format!("/{}", "a".repeat(4096))] {
            assert!(absolute(&AT, bad.to_owned()).is_err(), "{bad}");
        }
        for good in ["", "a/0.log", "a", "a..b"] {
            assert!(relative_or_empty(&AT, good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["/a", "../a", "a/../../b", "a/..", "a\0"] {
            assert!(relative_or_empty(&AT, bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn maps_are_bounded() {
        let one = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        assert!(labels(&AT, one("io.kubernetes.pod.name", "a")).is_ok());
        assert!(labels(&AT, one("", "a")).is_err());
        assert!(labels(&AT, one("a", "b\nc")).is_err());
        assert!(labels(&AT, one("a", &"b".repeat(5000))).is_err());
        assert!(annotations(&AT, one("a", "{\n\"json\": 1}\n")).is_ok());
        assert!(annotations(&AT, one("a\n", "b")).is_err());
        assert!(annotations(&AT, one("a", &"b".repeat(600 << 10))).is_err());
        let long = |n: usize| (0..n).map(|n| (n.to_string(), "b".repeat(4000))).collect();
        assert!(labels(&AT, long(100)).is_ok() && annotations(&AT, long(100)).is_ok());
        assert!(labels(&AT, long(200)).is_err() && annotations(&AT, long(200)).is_err());
        let many = (0..5000).map(|n| (n.to_string(), String::new())).collect();
        assert!(labels(&AT, many).is_err());
    }

    proptest! {
        #[test]
        fn a_name_taken_stays_inside_its_folder(text in "\\PC{0,300}") {
            if let Ok(name) = name(&AT, text) {
                let path = std::path::Path::new("/base").join(&name);
                prop_assert_eq!(path.components().count(), 3);
                prop_assert!(path.starts_with("/base"));
            }
        }

        #[test]
        fn a_relative_path_taken_stays_inside_its_folder(text in "[a./]{0,12}") {
            if let Ok(relative) = relative_or_empty(&AT, text) {
                let mut depth = 0i32;
                for part in relative.split('/') {
                    depth += match part { "" | "." => 0, ".." => -1, _ => 1 };
                    prop_assert!(depth >= 0);
                }
            }
        }
    }
}
