//! The registry on folders of its own.

use super::*;
use proptest::prelude::*;

fn file(kind: &str, device: &str, env: &str) -> String {
    format!(
        "cdiVersion: \"0.6.0\"\nkind: {kind}\ncontainerEdits:\n  env: [\"ALL={kind}\"]\n\
         devices:\n- name: \"{device}\"\n  containerEdits:\n    env: [\"{env}\"]\n"
    )
}

struct Bed {
    _folder: tempfile::TempDir,
    low: PathBuf,
    high: PathBuf,
    registry: Registry,
}

fn bed() -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let (low, high) = (folder.path().join("low"), folder.path().join("high"));
    fs::create_dir(&low).unwrap();
    let registry = Registry::new(true, vec![low.clone(), high.clone()]);
    Bed { _folder: folder, low, high, registry }
}

impl Bed {
    fn env(&self, devices: &[&str]) -> Result<Vec<String>, CdiError> {
        let names: Vec<String> = devices.iter().map(|name| (*name).to_owned()).collect();
        let text = |edits: Value| edits["env"][0].as_str().unwrap().to_owned();
        self.registry.edits(&names).map(|edits| edits.into_iter().map(text).collect())
    }
}

#[test]
fn a_files_own_edits_come_once_and_first() {
    let bed = bed();
    assert_eq!(bed.env(&[]), Ok(vec![]));
    fs::write(bed.low.join("a.yaml"), file("v.com/gpu", "0", "GPU=0")).unwrap();
    fs::write(bed.low.join("b.yaml"), file("v.com/nic", "0", "NIC=0")).unwrap();
    let got = bed.env(&["v.com/gpu=0", "v.com/nic=0", "v.com/gpu=0"]).unwrap();
    assert_eq!(got, ["ALL=v.com/gpu", "GPU=0", "ALL=v.com/nic", "NIC=0", "GPU=0"]);
}

#[test]
fn changes_are_seen_and_the_later_folder_wins() {
    let bed = bed();
    let path = bed.low.join("a.yaml");
    fs::write(&path, file("v.com/gpu", "0", "A=1")).unwrap();
    assert_eq!(bed.env(&["v.com/gpu=0"]).unwrap()[1], "A=1");
    fs::write(&path, file("v.com/gpu", "0", "A=22")).unwrap();
    assert_eq!(bed.env(&["v.com/gpu=0"]).unwrap()[1], "A=22");
    fs::create_dir(&bed.high).unwrap();
    fs::write(bed.high.join("z.json"), file("v.com/gpu", "0", "A=3")).unwrap();
    assert_eq!(bed.env(&["v.com/gpu=0"]).unwrap()[1], "A=3");
    fs::remove_dir_all(&bed.high).unwrap();
    assert_eq!(bed.env(&["v.com/gpu=0"]).unwrap()[1], "A=22");
    fs::write(bed.low.join("same.yaml"), file("v.com/gpu", "0", "A=4")).unwrap();
    assert!(matches!(bed.env(&["v.com/gpu=0"]), Err(CdiError::Conflict { .. })));
}

#[test]
fn what_is_there_is_told_with_what_is_wrong() {
    let bed = bed();
    let good = bed.low.join("good.yaml");
    fs::write(&good, file("v.com/gpu", "0", "A=1")).unwrap();
    fs::write(bed.low.join("bad.yaml"), "{{{").unwrap();
    let told = bed.registry.inspect();
    assert_eq!((told.dirs, told.files), (vec![bed.low.clone(), bed.high.clone()], vec![good]));
    assert_eq!(told.problems.keys().collect::<Vec<_>>(), [&bed.low.join("bad.yaml")]);
    assert_eq!(Registry::new(false, vec![bed.low.clone()]).inspect(), Inspection::default());
}

#[test]
fn a_change_that_the_times_do_not_show_is_seen() {
    let bed = bed();
    let path = bed.low.join("a.yaml");
    fs::write(&path, file("v.com/gpu", "0", "A=1")).unwrap();
    // As many bytes, as soon as can be: a coarse clock tells the same time.
    for n in (1..=9).cycle().take(200) {
        let text = file("v.com/gpu", "0", &format!("A={n}"));
        fs::write(&path, text).unwrap();
        assert_eq!(bed.env(&["v.com/gpu=0"]).unwrap()[1], format!("A={n}"));
    }
}

#[tokio::test]
async fn files_are_read_when_they_come() {
    let bed = bed();
    bed.registry.watch();
    let known = async |path: &Path| {
        let shared = bed.registry.0.clone();
        let path = path.to_owned();
        // Looks at what the watch has read; nothing here reads.
        let wait = async move {
            while !shared.files.lock().unwrap().contains_key(&path) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.expect("nobody read it");
    };
    fs::write(bed.low.join("a.yaml"), file("v.com/gpu", "0", "A=1")).unwrap();
    known(&bed.low.join("a.yaml")).await;
    fs::create_dir(&bed.high).unwrap();
    fs::write(bed.high.join("b.yaml"), "{{{").unwrap();
    known(&bed.high.join("b.yaml")).await;
    assert!(bed.registry.0.files.lock().unwrap()[&bed.high.join("b.yaml")].spec.is_err());
}

#[test]
fn a_bad_file_hides_no_good_one_and_is_named() {
    let bed = bed();
    fs::write(bed.low.join("good.yaml"), file("v.com/gpu", "0", "A=1")).unwrap();
    for (name, text) in [
        ("empty.yaml", ""),
        ("list.json", "[1,2"),
        ("version.yaml", "cdiVersion: \"x.y\"\nkind: v.com/bad\ndevices: []\n"),
        ("kind.yaml", "cdiVersion: \"0.6.0\"\nkind: \"\"\ndevices: [{name: a, containerEdits: {env: [A=1]}}]\n"),
        ("deep.json", &"[".repeat(100_000)),
    ] {
        fs::write(bed.low.join(name), text).unwrap();
    }
    rustix::fs::mknodat(rustix::fs::CWD, bed.low.join("fifo.yaml"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    fs::File::create(bed.low.join("huge.yaml")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(bed.env(&["v.com/gpu=0"]).unwrap()[1], "A=1");
    let error = bed.env(&["v.com/gpu=1"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("v.com/gpu=1") && text.contains("deep.json cannot be used"), "{text}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let off = Registry::new(false, vec![bed.low]).edits(&["v.com/gpu=0".to_owned()]).unwrap_err();
    assert!(matches!(off, CdiError::Disabled { .. }));
}

#[test]
fn annotations_name_devices() {
    let of = |value: &str| {
        annotated(&[("cdi.k8s.io/x".to_owned(), value.to_owned()), ("other".to_owned(), "?".to_owned())].into())
    };
    assert_eq!(of("v.com/gpu=0,v.com/gpu=1").unwrap(), ["v.com/gpu=0", "v.com/gpu=1"]);
    for bad in ["", "gpu", "v.com/gpu=0,", "v.com/gpu=", "a\n"] {
        assert_eq!(of(bad).unwrap_err().0, "cdi.k8s.io/x", "{bad:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever stands in a file, the daemon goes on.
    #[test]
    fn no_file_is_a_reason_to_panic(
        version in "[0-9.v]{0,8}|\\PC{0,5}",
        kind in "[a-z./=]{0,12}|\\PC{0,8}",
        rest in "\\PC{0,60}",
    ) {
        let bed = bed();
        let text = format!("cdiVersion: {version:?}\nkind: {kind:?}\ndevices:\n- name: a\n  containerEdits: {{env: [A=1]}}\n{rest}");
        fs::write(bed.low.join("a.yaml"), text).unwrap();
        let _ = bed.env(&["v.com/gpu=0"]);
    }
}
