use std::os::unix::fs::{MetadataExt as _, symlink};

use super::super::manifest::parse;
use super::super::qos::CgroupDriver;
use super::super::translate::Origin;
use super::*;

fn node() -> Node {
    Node {
        name: "n".to_owned(),
        memory: 1 << 30,
        cpu_milli: 1000,
        pod_dns: proto::DnsConfig::default(),
        host_dns: proto::DnsConfig::default(),
        driver: CgroupDriver::Cgroupfs,
        cgroup_v2: false,
        selinux: false,
        recursive_read_only: Vec::new(),
    }
}

fn job(spec: &str) -> PodJob {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: A, b: B}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{key: k}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{x: y}}}}\nspec:\n{spec}"
    );
    let mut manifest = parse(&text, "f").unwrap();
    let document = manifest.pods.remove(0);
    PodJob {
        pod: document.pod,
        objects: manifest.objects,
        uid: "u".to_owned(),
        hash: String::new(),
        owner: String::new(),
        origin: Origin::default(),
    }
}

fn dirs(root: &Path) -> Dirs {
    Dirs { pods: root.join("pods"), logs: root.join("logs"), seccomp: root.join("seccomp") }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn remove_pod(path: &Path) -> Result<(), VolumeError> {
    remove_content(fs::File::open(path).unwrap().as_fd())?;
    remove_tree(path)
}

fn may_mount() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn files_come_from_all_sources() {
    let job = job("  containers: [{name: a, image: i, resources: {limits: {memory: 1Mi}}}]
  volumes:
  - name: v
    projected:
      defaultMode: 0600
      sources:
      - configMap: {name: c, items: [{key: a, path: d/x, mode: 0444}]}
      - secret: {name: s}
      - downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}, {path: m, resourceFieldRef: {containerName: a, resource: limits.memory}}]}
");
    let files = files(&job, &node(), &job.pod.spec.volumes[0]).unwrap();
    let shown: Vec<String> = files
        .iter()
        .map(|(path, file)| format!("{path} {:o} {}", file.mode, String::from_utf8_lossy(&file.bytes)))
        .collect();
    assert_eq!(shown, ["d/x 444 A", "key 600 k", "l 600 x=\"y\"", "m 600 1048576"]);
}

#[test]
fn a_missing_key_is_an_error() {
    let job = job("  containers: [{name: a, image: i}]
  volumes: [{name: v, configMap: {name: c, items: [{key: none, path: x}]}}]
");
    assert_eq!(files(&job, &node(), &job.pod.spec.volumes[0]), Err("there is no key \"none\"".to_owned()));
}

#[test]
fn volumes_are_made_kept_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let job = job("  containers: [{name: a, image: i, volumeMounts: [{name: e, mountPath: /e}]}]
  volumes: [{name: e, emptyDir: {}}, {name: v, configMap: {name: c, defaultMode: 0640}}]
");
    prepare(&job, &node(), &dirs).unwrap();
    let volumes = dirs.pod(&job).join("volumes");
    assert_eq!(mode(&volumes.join("e")), 0o777);
    assert_eq!((fs::read(volumes.join("v/a")).unwrap(), mode(&volumes.join("v/a"))), (b"A".to_vec(), 0o640));
    fs::write(volumes.join("e/kept"), "x").unwrap();
    prepare(&job, &node(), &dirs).unwrap();
    assert!(volumes.join("e/kept").exists());

    write_hosts(&job, &node(), &dirs, &["10.0.0.9".to_owned()]).unwrap();
    let mounts = container_mounts(&job, &job.pod.spec.containers[0], 0, &node(), &dirs, &[]).unwrap();
    let targets: Vec<&str> = mounts.iter().map(|mount| mount.container_path.as_str()).collect();
    assert_eq!(targets, ["/e", "/etc/hosts", "/dev/termination-log"]);
    assert_eq!(mode(Path::new(&mounts[2].host_path)), 0o666);

    remove_pod(&dirs.pod(&job)).unwrap();
    remove_tree(&dirs.pod(&job)).unwrap();
    assert!(!dirs.pod(&job).exists());
    remove_tree(&dirs.pod_logs(&job)).unwrap();
    assert!(!dirs.pod_logs(&job).exists());
}

#[test]
fn host_paths_must_be_what_they_say() {
    let root = tempfile::tempdir().unwrap();
    let check = |kind: HostPathType, name: &str| {
        let path = root.path().join(name).to_string_lossy().into_owned();
        host_path("v", &HostPath { path, kind }).map_err(|error| error.to_string())
    };
    fs::write(root.path().join("file"), "").unwrap();
    assert!(check(HostPathType::File, "file").is_ok());
    assert!(check(HostPathType::Unset, "none").is_ok());
    assert!(check(HostPathType::Directory, "file").unwrap_err().ends_with("want a folder"));
    assert!(check(HostPathType::Socket, "none").unwrap_err().ends_with("want a socket"));
    assert!(check(HostPathType::DirectoryOrCreate, "made").is_ok());
    assert!(check(HostPathType::Directory, "made").is_ok());
    assert!(check(HostPathType::FileOrCreate, "made-file").is_ok());
    assert!(root.path().join("made-file").is_file());
}

#[test]
fn memory_volumes_are_mounts_and_go_away() {
    if !may_mount() {
        eprintln!("skipped: not root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dirs = dirs(root.path());
    let job = job("  containers: [{name: a, image: i}]
  securityContext: {fsGroup: 1234}
  volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: s, secret: {secretName: s}}]
");
    prepare(&job, &node(), &dirs).unwrap();
    let volumes = dirs.pod(&job).join("volumes");
    assert_ne!(fs::metadata(volumes.join("m")).unwrap().dev(), fs::metadata(&volumes).unwrap().dev());
    assert!(fs::write(volumes.join("m/big"), vec![0; 2 << 20]).is_err());
    assert_eq!(fs::metadata(volumes.join("m")).unwrap().gid(), 1234);
    assert_eq!(mode(&volumes.join("s/key")), 0o644);
    prepare(&job, &node(), &dirs).unwrap();
    assert!(
        remove_tree(&dirs.pod(&job)).is_err() && volumes.join("s/key").exists(),
        "nothing below a mount is deleted"
    );
    remove_pod(&dirs.pod(&job)).unwrap();
    assert!(!dirs.pod(&job).exists());
}

#[test]
fn sub_paths_stay_inside_the_volume() {
    if !may_mount() {
        eprintln!("skipped: not root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (volume, target) = (root.path().join("volume"), root.path().join("target"));
    fs::create_dir_all(volume.join("in")).unwrap();
    fs::create_dir(root.path().join("secret")).unwrap();
    symlink("../secret", volume.join("out")).unwrap();
    symlink(root.path().join("secret"), volume.join("absolute")).unwrap();
    symlink("in", volume.join("link")).unwrap();

    let bind = |below: &str| subpath::bind(&volume, below, root.path(), Path::new("target"));
    bind("link/new/deep").unwrap();
    fs::write(target.join("x"), "x").unwrap();
    assert!(volume.join("in/new/deep/x").exists());
    // Both lead nowhere inside the volume, and nothing may be made for them outside.
    for below in ["out/evil", "absolute/evil"] {
        assert!(bind(below).is_err(), "{below}");
    }
    assert_eq!(fs::read_dir(root.path().join("secret")).unwrap().count(), 0);
    fs::write(volume.join("file"), "content").unwrap();
    bind("file").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"content");
    // What a link on the way leads to is not unmounted.
    fs::create_dir(root.path().join("victim")).unwrap();
    mounts::tmpfs(&root.path().join("victim"), "mode=0755").unwrap();
    symlink(root.path(), root.path().join("way")).unwrap();
    assert!(subpath::bind(&volume, "in", root.path(), Path::new("way/victim")).is_err());
    assert!(mounts::none_at(&root.path().join("victim")).is_err(), "still mounted");
    mounts::unmount_below(root.path()).unwrap();
    assert!(volume.join("in/new/deep/x").exists());
}

#[test]
fn a_folder_is_removed_wherever_it_was_moved_and_a_link_in_its_place_alone() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    for folder in ["pods/u/volumes/v", "victim/m"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("victim/file"), "").unwrap();
    fs::write(at("pods/u/pod.json"), "").unwrap();
    if may_mount() {
        mounts::tmpfs(&at("pods/u/volumes/v"), "mode=0755").unwrap();
        mounts::tmpfs(&at("victim/m"), "mode=0755").unwrap();
    } else {
        eprintln!("without mounts: not root");
    }
    let folder = fs::File::open(at("pods/u")).unwrap();
    fs::rename(at("pods/u"), at("moved")).unwrap();
    symlink(at("victim"), at("pods/u")).unwrap();
    remove_content(folder.as_fd()).unwrap();
    remove_tree(&at("pods/u")).unwrap();
    assert_eq!(fs::read_dir(at("pods")).unwrap().count(), 0);
    let left: Vec<_> = fs::read_dir(at("moved")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["pod.json"]);
    assert!(at("victim/file").exists());
    if may_mount() {
        assert!(mounts::none_at(&at("victim")).is_err(), "still mounted");
        mounts::unmount_below(&at("victim")).unwrap();
    }
}

#[test]
fn folders_in_folders_are_removed_however_deep() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("u/volumes/v");
    fs::create_dir_all(&volume).unwrap();
    let mut at = fs::File::open(&volume).unwrap();
    for _ in 0..10_000 {
        rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
        at = openat(&at, "d", OFlags::RDONLY, Mode::empty()).unwrap().into();
    }
    let path = root.path().join("u");
    let work = move || remove_pod(&path).unwrap();
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    assert!(!root.path().join("u").exists());
}
