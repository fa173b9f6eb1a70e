//! Command line of podwright-monitor. Only the daemon calls it.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::types::PodId;

/// What a monitor needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The pod it serves.
    pub pod: PodId,
    /// The pod's folder under the state folder; exists.
    pub dir: PathBuf,
}

/// Reads `--pod ID --dir PATH`, without the program's name.
///
/// # Errors
/// A sentence for people.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let (mut pod, mut dir) = (None, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{} needs a value", argument.display()));
        match argument.to_str() {
            Some("--pod") => {
                pod = Some(PodId::parse(&value()?.to_string_lossy()).map_err(|error| error.to_string())?);
            }
            Some("--dir") => dir = Some(PathBuf::from(value()?)),
            _ => return Err(format!("unknown argument {}", argument.display())),
        }
    }
    let dir = dir.filter(|dir| dir.is_absolute()).ok_or("--dir wants an absolute path")?;
    Ok(Options { pod: pod.ok_or("--pod is missing")?, dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_arguments_are_needed() {
        let id = "a".repeat(64);
        let read = |arguments: &[&str]| parse(arguments.iter().map(OsString::from));
        assert_eq!(read(&["--pod", &id, "--dir", "/d"]).unwrap().dir, PathBuf::from("/d"));
        for bad in [&[][..], &["--pod", &id], &["--dir", "/d"], &["--pod", "x", "--dir", "/d"], &["--dir"], &["-x"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(read(&["--pod", &id, "--dir", "relative"]).is_err());
    }
}
