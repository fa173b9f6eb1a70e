//! Archives that attack. None may touch anything outside its folder; most are refused.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::archives::{Meta, PLAIN, Tar, unpack_tar};
use crate::image::error::ImageError;
use crate::types::{ErrorKind, HasKind};

/// Everything in the folder around `fs`, to see what got out.
fn outside(outer: &Path) -> Vec<String> {
    let names = fs::read_dir(outer).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "fs").collect()
}

#[test]
fn paths_that_climb_are_refused() {
    for path in ["../x", "a/../../x", "./../x", "/../x", "a/b/../../../x", ".."] {
        for kind in [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link, EntryType::Fifo] {
            let tar = Tar::default().raw(kind, path.as_bytes(), b"y", PLAIN, b"").finish();
            let (outer, result) = unpack_tar(&tar);
            let error = result.unwrap_err();
            assert!(matches!(error, ImageError::Layer { .. }), "{path}: {error}");
            assert!(error.to_string().contains("climbs out"), "{path}: {error}");
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert_eq!(outside(outer.path()), Vec::<String>::new());
        }
    }
    let (_outer, result) = unpack_tar(&Tar::default().hardlink("h", "../../etc/passwd").finish());
    assert!(result.unwrap_err().to_string().contains("climbs out"));
}

#[test]
fn absolute_paths_mean_the_layers_root() {
    let tar = Tar::default().file("/podwright-must-not-be-here", b"x").hardlink("/h", "/podwright-must-not-be-here");
    let (outer, result) = unpack_tar(&tar.finish());
    result.unwrap();
    assert!(outer.path().join("fs/podwright-must-not-be-here").exists() && outer.path().join("fs/h").exists());
    assert!(!Path::new("/podwright-must-not-be-here").exists());
}

#[test]
fn nothing_is_written_through_symlinks_out_of_the_layer() {
    let outside_file = tempfile::tempdir().unwrap();
    let target = outside_file.path().to_str().unwrap();
    let depth = "../".repeat(20);
    for link in [
        target.to_owned(),
        format!("{depth}{target}"),
        "..".into(),
        "../..".into(),
        "/".into(),
        "/proc/self/root".into(),
    ] {
        let base = || Tar::default().symlink("l", &link);
        for tar in [
            base().file("l/escaped", b"x"),
            base().folder("l/escaped"),
            base().symlink("l/escaped", "y"),
            base().file("f", b"").hardlink("l/escaped", "f"),
            base().raw(EntryType::Fifo, b"l/escaped", b"", PLAIN, b""),
            base().file("l/.wh.escaped", b""),
            // Twice through.
            base().symlink("m", "l").file("m/escaped", b"x"),
        ] {
            let (outer, _) = unpack_tar(&tar.finish());
            assert_eq!(outside(outer.path()), Vec::<String>::new(), "{link}");
            assert_eq!(outside(outside_file.path()), Vec::<String>::new(), "{link}");
            assert!(fs::symlink_metadata(outer.path().join("escaped")).is_err());
        }
    }
    assert!(!Path::new("/escaped").exists());
}

#[test]
fn a_link_is_replaced_not_followed() {
    let victim = tempfile::tempdir().unwrap();
    let file = victim.path().join("victim");
    fs::write(&file, "unharmed").unwrap();
    let target = file.to_str().unwrap();
    let special = Meta { mode: 0o4777, uid: 7, gid: 7, mtime: 1 };
    for kind in [EntryType::Regular, EntryType::Directory, EntryType::Fifo, EntryType::Symlink] {
        let tar = Tar::default().symlink("l", target).raw(kind, b"l", b"elsewhere", special, b"");
        let (_outer, result) = unpack_tar(&tar.finish());
        result.unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"unharmed");
        let stat = fs::metadata(&file).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&stat) & 0o7777, 0o644);
    }
    // A hard link to a symlink is another symlink, and does not reach its target.
    let tar = Tar::default().symlink("l", target).hardlink("h", "l").file("h", b"attack");
    let (_outer, result) = unpack_tar(&tar.finish());
    result.unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"unharmed");
}

#[test]
fn hard_links_do_not_reach_outside() {
    let victim = tempfile::tempdir().unwrap();
    fs::write(victim.path().join("victim"), "unharmed").unwrap();
    let target = victim.path().to_str().unwrap();
    let tar = Tar::default().symlink("d", target).hardlink("h", "d/victim").file("h", b"attack");
    let (_outer, _) = unpack_tar(&tar.finish());
    assert_eq!(fs::read(victim.path().join("victim")).unwrap(), b"unharmed");
}

#[test]
fn symlinks_inside_the_layer_are_followed_inside_the_layer() {
    let tar = Tar::default().folder("usr").folder("usr/bin").symlink("bin", "usr/bin").file("bin/sh", b"x");
    let (outer, result) = unpack_tar(&tar.symlink("abs", "/usr").file("abs/lib/y", b"").finish());
    result.unwrap();
    assert!(outer.path().join("fs/usr/bin/sh").is_file() && outer.path().join("fs/usr/lib/y").is_file());
    assert!(fs::symlink_metadata(outer.path().join("fs/bin")).unwrap().is_symlink());
}

#[test]
fn malformed_entries_are_named() {
    let deep = "d/".repeat(45);
    let mut many = Tar::default();
    let mut path = String::new();
    for _ in 0..10 {
        path.push_str(&deep);
        many = many.pax(&[("path", format!("{path}x").as_bytes())]).file("x", b"");
    }
    let over = |field: &str, value: &[u8]| Tar::default().pax(&[(field, value)]).file("f", b"");
    for (tar, want) in [
        (Tar::default().file("d/x", b"").hardlink("d", "d/x"), "not there"),
        (Tar::default().pax(&[("SCHILY.xattr.security.capability", b"rubbish")]).file("f", b""), "does not take"),
        (Tar::default().file("f", b"").folder("f/x"), "no folder"),
        (Tar::default().file("f", b"").file("f/x", b""), "no folder"),
        (Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b""), "too many symlinks"),
        (Tar::default().folder("d").hardlink("h", "d"), "hard link to a folder"),
        (Tar::default().hardlink("h", "."), "hard link to the root"),
        (Tar::default().file(".wh.", b""), "without a name"),
        (Tar::default().file(".wh..", b""), "without a name"),
        (Tar::default().file("d/.wh...", b""), "without a name"),
        (Tar::default().file(".wh.a/b", b""), "below a whiteout"),
        (Tar::default().symlink("l", ""), "symlink to nothing"),
        (Tar::default().symlink("/", "x"), "is no folder"),
        (Tar::default().raw(EntryType::new(b'Z'), b"z", b"", PLAIN, b""), "unknown type"),
        (over("uid", b"4294967295"), "malformed uid"),
        (over("gid", b"99999999999"), "malformed gid"),
        (over("size", b"-1"), "PAX record"),
        (over("path", b"a\0b"), "NUL"),
        (over("path", &[b'a'; 5000]), "too long"),
        (over("path", &[b'a'; 300]), "too long"),
        (many, "more than 256 components"),
        (over("GNU.sparse.map", b"0,1"), "sparse map"),
        (Tar::default().pax(&[("GNU.sparse.map", b"0,9"), ("GNU.sparse.size", b"5")]).file("f", &[1; 9]), "sparse map"),
        (
            Tar::default().pax(&[("GNU.sparse.map", b"4,2,0,2"), ("GNU.sparse.size", b"9")]).file("f", &[1; 4]),
            "sparse map",
        ),
        (
            Tar::default()
                .pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"99999999999999999")])
                .file("f", &[1]),
            "larger than",
        ),
    ] {
        let (outer, result) = unpack_tar(&tar.finish());
        let error = result.expect_err(want).to_string();
        assert!(error.contains(want), "{want}: {error}");
        assert_eq!(outside(outer.path()), Vec::<String>::new());
    }
}

#[test]
fn extension_headers_are_bounded() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(50 << 30);
    header.set_cksum();
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        header.set_entry_type(kind);
        header.set_cksum();
        let (_outer, result) = unpack_tar(&Tar::default().block(header.as_bytes(), b"").finish());
        assert!(result.unwrap_err().to_string().contains("extension header"));
    }
    // A thousand sparse pieces a block, without end.
    let mut map = b"70000\n".to_vec();
    map.resize(512, b'1');
    let tar =
        Tar::default().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")]);
    let (_outer, result) = unpack_tar(&tar.file("f", &map).finish());
    assert!(result.unwrap_err().to_string().contains("sparse map"));
}

#[test]
fn a_bomb_of_implied_folders_is_bounded() {
    let mut tar = Tar::default();
    for i in 0..1400 {
        let path = format!("{}/{i}/{}/f", "n".repeat(200), ["m".repeat(200).as_str(); 15].join("/"));
        tar = tar.pax(&[("path", path.as_bytes())]).file("x", b"");
    }
    let (_outer, result) = unpack_tar(&tar.finish());
    assert!(result.unwrap_err().to_string().contains("leaves too much"));
}

/// Names of few letters, so that entries of one archive meet.
fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof!["[ab]", Just("..".to_owned()), Just(".wh.a".to_owned()), Just(".wh..wh..opq".to_owned())],
        1..4,
    )
    .prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a sequence of entries does, it stays inside.
    #[test]
    fn random_archives_stay_inside(
        entries in proptest::collection::vec((0..5usize, path(), prop_oneof![path(), Just("/".to_owned()), Just("../../../a".to_owned())]), 1..12)
    ) {
        let kinds = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link, EntryType::Fifo];
        let mut tar = Tar::default();
        for (kind, path, link) in &entries {
            tar = tar.raw(kinds[*kind], path.as_bytes(), link.as_bytes(), PLAIN, b"");
        }
        let (outer, result) = unpack_tar(&tar.finish());
        // Never the node's fault.
        prop_assert!(matches!(result, Ok(_) | Err(ImageError::Layer { .. })), "{:?}", result);
        prop_assert_eq!(outside(outer.path()), Vec::<String>::new());
        prop_assert!(!Path::new("/a").exists() && !Path::new("/b").exists());
    }
}
