//! Writing limits to the cgroups of a container, all or none.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind as IoKind, Write as _};
use std::path::{Path, PathBuf};

use super::{Limit, properties};
use crate::cgroup::{CgroupError, MOUNT, scope_of, systemd, tree};

/// Puts limits in force in a container's cgroup folders (one on v2, one per hierarchy on v1). systemd
/// is told of those that it would set back. Blocks.
///
/// # Errors
/// The first limit that the kernel or systemd refuses.
pub fn set(folders: &[PathBuf], limits: &[Limit]) -> Result<(), CgroupError> {
    tell_systemd(folders, limits)?;
    // Some values are refused as long as others are as they were: memory above memory and swap, a
    // quota beyond what the parent's period allows. So what fails is tried again after the rest.
    let mut left: Vec<&Limit> = limits.iter().collect();
    loop {
        let before = left.len();
        let mut first = None;
        let mut failed = Vec::new();
        for limit in left {
            if let Err(error) = write_limit(folders, limit) {
                first.get_or_insert(error);
                failed.push(limit);
            }
        }
        match first {
            None => return Ok(()),
            Some(error) if failed.len() == before => return Err(error),
            Some(_) => left = failed,
        }
    }
}

/// As [`set`] for a container that may be running: if a limit is refused, all are put back as they
/// were. Memory that is in use and cannot be reclaimed is not taken away. Blocks.
///
/// # Errors
/// The first limit that is refused; [`CgroupError::Half`] also names what could not be put back.
pub fn change(folders: &[PathBuf], limits: &[Limit]) -> Result<(), CgroupError> {
    for limit in limits.iter().filter(|limit| limit.file == "memory.max") {
        make_room(folders, limit)?;
    }
    let before: Vec<Limit> = limits.iter().filter_map(|limit| present(folders, limit)).collect();
    let Err(error) = set(folders, limits) else { return Ok(()) };
    match set(folders, &before) {
        Ok(()) => Err(error),
        Err(restore) => Err(CgroupError::Half { cause: Box::new(error), restore: Box::new(restore) }),
    }
}

/// v2 kills where v1 refuses: a `memory.max` below what is in use, after the kernel has tried to
/// reclaim. The same is tried here first, and refused.
fn make_room(folders: &[PathBuf], limit: &Limit) -> Result<(), CgroupError> {
    let (Some(folder), Ok(most)) = (folder_of(folders, limit), limit.value.parse::<u64>()) else { return Ok(()) };
    let usage = || fs::read_to_string(folder.join("memory.current")).ok()?.trim().parse::<u64>().ok();
    let Some(over) = usage().and_then(|usage| usage.checked_sub(most)).filter(|over| *over > 0) else { return Ok(()) };
    // Older kernels have no such file; one that reclaims less than asked says so by EAGAIN.
    let _ = write(&folder.join("memory.reclaim"), &over.to_string());
    match usage() {
        Some(usage) if usage > most => Err(CgroupError::InUse { limit: most, usage }),
        _ => Ok(()),
    }
}

fn tell_systemd(folders: &[PathBuf], limits: &[Limit]) -> Result<(), CgroupError> {
    let known = properties::of(limits);
    if known.is_empty() {
        return Ok(());
    }
    for unit in folders.iter().filter_map(|folder| scope_of(folder)) {
        let list: Vec<(&str, systemd::Property<'_>)> =
            known.iter().map(|(name, value)| (*name, value.as_property())).collect();
        systemd::set(unit, &list).map_err(|source| CgroupError::Properties { unit: unit.to_owned(), source })?;
    }
    Ok(())
}

fn write_limit(folders: &[PathBuf], limit: &Limit) -> Result<(), CgroupError> {
    let Limit { controller, file, value, optional } = limit;
    let Some(folder) = folder_of(folders, limit) else {
        if *optional {
            return Ok(());
        }
        return Err(CgroupError::NoController { file: file.clone(), controller: controller.clone() });
    };
    let path = folder.join(file);
    let mut written = write(&path, value);
    if written.as_ref().is_err_and(|error| error.kind() == IoKind::NotFound) && !optional && folder.exists() {
        // A cgroup above may not have passed the controller on.
        tree::hand_down_controllers(folder);
        written = write(&path, value);
    }
    match written {
        Err(error) if *optional && error.kind() == IoKind::NotFound => Ok(()),
        Err(source) => Err(CgroupError::Refused { file: file.clone(), value: value.clone(), source }),
        Ok(()) => Ok(()),
    }
}

/// What is in force now, in the form in which it can be put back.
fn present(folders: &[PathBuf], limit: &Limit) -> Option<Limit> {
    let text = fs::read_to_string(folder_of(folders, limit)?.join(&limit.file)).ok()?;
    Some(Limit { value: text.trim_end().to_owned(), ..limit.clone() })
}

/// The hierarchy that a limit belongs to.
fn folder_of<'a>(folders: &'a [PathBuf], limit: &Limit) -> Option<&'a Path> {
    let serves = |folder: &&PathBuf| {
        let name = folder.strip_prefix(MOUNT).ok().and_then(|path| path.iter().next()).and_then(|name| name.to_str());
        name.is_some_and(|name| name.split(',').any(|part| part == limit.controller))
    };
    match folders {
        [only] if scope_of(only).is_some() || Path::new(MOUNT).join("cgroup.controllers").exists() => Some(only),
        _ => folders.iter().find(serves).map(PathBuf::as_path),
    }
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    // A write of nothing does nothing; an empty line empties a set. Some files take a line at a time.
    let text = if text.is_empty() { "\n" } else { text };
    let mut file = OpenOptions::new().write(true).open(file)?;
    text.split_inclusive('\n').try_for_each(|line| file.write_all(line.as_bytes()))
}
