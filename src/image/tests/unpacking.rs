//! What good archives become.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use tar::{EntryType, Header};

use super::archives::{Meta, PLAIN, Tar, digest, feed, gzip, unpack_tar};
use super::is_root;
use crate::image::error::ImageError;
use crate::image::record::PathBytes;
use crate::image::unpack::Wanted;

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0u8; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value[..length].to_vec())
}

fn good(tar: Tar) -> (tempfile::TempDir, crate::image::unpack::Summary) {
    let (outer, result) = unpack_tar(&tar.finish());
    (outer, result.unwrap())
}

#[test]
fn modes_owners_times_and_kinds_arrive() {
    if !is_root() {
        return;
    }
    let special = Meta { mode: 0o6755, uid: 1_000_000, gid: 70_000, mtime: 1_600_000_000 };
    let mut device = Header::new_gnu();
    device.set_path("dev/null").unwrap();
    device.set_entry_type(EntryType::Char);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_mode(0o666);
    device.set_size(0);
    device.set_cksum();
    let tar = Tar::default()
        .folder_with("./", Meta { mode: 0o700, ..PLAIN })
        .folder_with("dir/", Meta { mode: 0o1777, uid: 5, gid: 6, mtime: 1_500_000_000 })
        .raw(EntryType::Regular, b"dir/setuid", b"", special, b"content")
        .raw(EntryType::Symlink, b"dir/link", b"/nowhere/../x", special, b"")
        .hardlink("dir/hard", "dir/setuid")
        .folder("dev")
        .block(device.as_bytes(), b"")
        .raw(EntryType::Fifo, b"pipe", b"", special, b"");
    let (outer, summary) = good(tar);
    let fs_root = outer.path().join("fs");
    let stat = |path: &str| fs::symlink_metadata(fs_root.join(path)).unwrap();
    assert_eq!(stat("").mode() & 0o7777, 0o700);
    let dir = stat("dir");
    assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid(), dir.mtime()), (0o1777, 5, 6, 1_500_000_000));
    let file = stat("dir/setuid");
    assert_eq!(
        (file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()),
        (0o6755, 1_000_000, 70_000, 1_600_000_000)
    );
    assert_eq!(fs::read(fs_root.join("dir/hard")).unwrap(), b"content");
    assert_eq!(stat("dir/hard").ino(), file.ino());
    assert_eq!(fs::read_link(fs_root.join("dir/link")).unwrap(), Path::new("/nowhere/../x"));
    assert_eq!((stat("dir/link").uid(), stat("dir/link").mtime()), (1_000_000, 1_600_000_000));
    let null = stat("dev/null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o666));
    let pipe = stat("pipe");
    assert!(pipe.file_type().is_fifo());
    assert_eq!(pipe.mode() & 0o7777, 0o6755);
    assert_eq!(summary.implied, []);
    assert_eq!(summary.inodes, 7);
}

#[test]
fn whiteouts_become_overlayfs_own() {
    if !is_root() {
        return;
    }
    let tar = Tar::default()
        .file("etc/.wh.gone", b"")
        .folder("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/stays", b"x")
        .file(".wh..wh.plnk/123", b"aufs")
        .file(".wh..wh.aufs", b"")
        // Deleted below and made anew: only what this layer has may show.
        .file(".wh.anew", b"")
        .folder("anew")
        .file("later/x", b"")
        .file(".wh.later", b"");
    let (outer, summary) = good(tar);
    let fs_root = outer.path().join("fs");
    let gone = fs::symlink_metadata(fs_root.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["opaque", "anew", "later"] {
        assert_eq!(xattr(&fs_root.join(opaque), "trusted.overlay.opaque"), Some(b"y".to_vec()), "{opaque}");
    }
    assert!(fs_root.join("opaque/stays").exists() && fs_root.join("later/x").exists());
    assert!(!fs_root.join(".wh..wh.plnk").exists() && !fs_root.join(".wh..wh.aufs").exists());
    assert_eq!(summary.implied, [PathBytes(b"".to_vec()), PathBytes(b"etc".to_vec())]);
}

#[test]
fn attributes_of_images_are_capabilities_and_user_ones() {
    if !is_root() {
        return;
    }
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"with\nnewline"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .file("f", b"x")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .folder("d");
    let (outer, _) = good(tar);
    let file = outer.path().join("fs/f");
    assert_eq!(xattr(&file, "security.capability"), Some(capability.to_vec()));
    assert_eq!(xattr(&file, "user.note"), Some(b"with\nnewline".to_vec()));
    for refused in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque"] {
        assert_eq!(xattr(&file, refused), None, "{refused}");
    }
    assert_eq!(xattr(&outer.path().join("fs/d"), "trusted.overlay.opaque"), None);
}

#[test]
fn long_names_come_from_gnu_and_pax_headers() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let link = "t".repeat(300);
    let tar = Tar::default()
        .raw(EntryType::GNULongName, b"././@LongLink", b"", PLAIN, format!("{long}\0").as_bytes())
        .file("cut", b"gnu")
        .raw(EntryType::GNULongLink, b"././@LongLink", b"", PLAIN, format!("{link}\0").as_bytes())
        .symlink("link", "cut")
        .pax(&[("path", b"p\xc3\xa4x/name"), ("mtime", b"1.5"), ("size", b"3")])
        .file("short", b"pax")
        .raw(EntryType::XGlobalHeader, b"g", b"", PLAIN, b"20 comment=whatever\n")
        .file("last", b"end");
    let (outer, summary) = good(tar);
    let fs_root = outer.path().join("fs");
    assert_eq!(fs::read(fs_root.join(&long)).unwrap(), b"gnu");
    assert_eq!(fs::read_link(fs_root.join("link")).unwrap(), Path::new(&link));
    let pax = fs_root.join("p\u{e4}x/name");
    assert_eq!(fs::read(&pax).unwrap(), b"pax");
    assert_eq!((fs::metadata(&pax).unwrap().mtime(), fs::metadata(&pax).unwrap().mtime_nsec()), (1, 500_000_000));
    assert_eq!(fs::read(fs_root.join("last")).unwrap(), b"end");
    assert_eq!(summary.implied.len(), 3);
}

#[test]
fn sparse_files_have_their_holes_in_every_format() {
    let (first, second) = ([1u8; 512], [2u8; 100]);
    let data = [&first[..], &second[..]].concat();
    let mut old = Header::new_gnu();
    old.set_path("old").unwrap();
    old.set_entry_type(EntryType::GNUSparse);
    old.set_mode(0o644);
    old.set_mtime(0);
    old.set_size(data.len() as u64);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 30);
    gnu.sparse[0].set_offset(4096);
    gnu.sparse[0].set_length(512);
    gnu.sparse[1].set_offset(1 << 29);
    gnu.sparse[1].set_length(100);
    old.set_cksum();
    let map = "2\n4096\n512\n536870912\n100\n";
    let mut with_map = map.as_bytes().to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(&data);
    let size = (1u64 << 30).to_string();
    let tar = Tar::default()
        .block(old.as_bytes(), &data)
        .pax(&[("GNU.sparse.map", b"4096,512,536870912,100"), ("GNU.sparse.size", size.as_bytes())])
        .file("zero-one", &data)
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .file("GNUSparseFile.0/one", &with_map)
        .file("after", b"still in step");
    let (outer, _) = good(tar);
    for name in ["old", "zero-one", "one"] {
        let path = outer.path().join("fs").join(name);
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.len(), 1 << 30, "{name}");
        assert!(stat.blocks() * 512 < 1 << 20, "{name} takes no space");
        let mut at = [0u8; 100];
        let file = fs::File::open(&path).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut at, 1 << 29).unwrap();
        assert_eq!(at, second, "{name}");
    }
    assert_eq!(fs::read(outer.path().join("fs/after")).unwrap(), b"still in step");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tar = Tar::default()
        .file("a", b"first")
        .hardlink("b", "a")
        .file("a", b"second, longer")
        .folder("to-file")
        .file("to-file/x", b"")
        .file("to-file", b"now a file")
        .file("to-folder", b"was a file")
        .file("to-folder2", b"")
        .folder("to-folder2")
        .symlink("to-link", "a")
        .file("to-link", b"own content")
        .folder("twice")
        .folder_with("twice", Meta { mode: 0o711, ..PLAIN });
    let (outer, _) = good(tar);
    let read = |name: &str| fs::read(outer.path().join("fs").join(name)).unwrap();
    assert_eq!(read("a"), b"second, longer");
    assert_eq!(read("b"), b"first", "another name of the old file is not written through");
    assert_eq!(read("to-file"), b"now a file");
    assert_eq!(read("to-link"), b"own content");
    assert!(outer.path().join("fs/to-folder2").is_dir());
    assert_eq!(fs::metadata(outer.path().join("fs/twice")).unwrap().mode() & 0o7777, 0o711);
}

#[test]
fn every_compression_and_any_split_gives_the_same() {
    let mut tar = Tar::default().folder("d");
    for i in 0..50 {
        tar = tar.file(&format!("d/{i}"), &vec![i as u8; i * 997]);
    }
    let tar = tar.finish();
    let half = tar.len() / 2;
    let members = [gzip(&tar[..half]), gzip(&tar[half..])].concat();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for (blob, name) in [(&tar, "plain"), (&gzip(&tar), "gzip"), (&members, "two members"), (&zstd, "zstd")] {
        for size in [1, 4096, 1 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let wanted = Wanted { blob: digest(blob), size: blob.len() as u64, diff_id: digest(&tar) };
            let summary = feed(blob, size, wanted, folder.path()).unwrap();
            assert_eq!(summary.inodes, 52, "{name} {size}");
            assert_eq!(fs::read(folder.path().join("d/49")).unwrap(), vec![49u8; 49 * 997]);
        }
    }
}

#[test]
fn wrong_bytes_are_told_from_wrong_archives() {
    let tar = Tar::default().file("f", b"content").finish();
    let blob = gzip(&tar);
    let good = Wanted { blob: digest(&blob), size: blob.len() as u64, diff_id: digest(&tar) };
    let mut flipped = blob.clone();
    flipped[20] ^= 0x55;
    let short = &blob[..blob.len() - 9];
    for (bytes, wanted, want) in [
        (&blob[..], Wanted { blob: digest(b"other"), ..good }, "wanted"),
        (&blob, Wanted { diff_id: digest(b"other"), ..good }, "the config promises"),
        (&flipped, good, "wanted"),
        (short, good, "wanted"),
        (&blob, Wanted { size: 3, ..good }, "wanted 3 bytes"),
        // As promised, but no gzip stream after all.
        (short, Wanted { blob: digest(short), size: short.len() as u64, ..good }, "gzip stream is damaged"),
        (b"BZh9xxxx", Wanted { blob: digest(b"BZh9xxxx"), size: 8, ..good }, "bzip2"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let error = feed(bytes, 10, wanted, folder.path()).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(want), "{want}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let cut = Tar::default().file("f", &[1; 5000]).unfinished();
    let cut = &cut[..3000];
    let wanted = Wanted { blob: digest(cut), size: cut.len() as u64, diff_id: digest(cut) };
    let error = feed(cut, 100, wanted, folder.path()).unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }) && error.to_string().contains("cut short"), "{error}");
}

#[test]
fn implied_folders_are_as_old_as_what_is_in_them() {
    let old = Meta { mtime: 1_000, ..PLAIN };
    let tar = Tar::default().raw(EntryType::Regular, b"a/b/old", b"", old, b"").file("a/b/new", b"").raw(
        EntryType::Regular,
        b"a/c/older",
        b"",
        old,
        b"",
    );
    let (outer, _) = good(tar);
    let mtime = |path: &str| fs::metadata(outer.path().join("fs").join(path)).unwrap().mtime();
    assert_eq!(
        [mtime("a"), mtime("a/b"), mtime("a/c"), mtime("")],
        [1_700_000_000, 1_700_000_000, 1_000, 1_700_000_000]
    );
}
