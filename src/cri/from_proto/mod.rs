//! Requests to the domain's own types, with everything checked that can be checked without looking
//! at the machine.
//!
//! Every wrong value gives InvalidArgument with the path of the field, the value and what is wanted.
//! Nothing is dropped in silence: what the domain has no place for is an error that names it.

mod at;
mod check;
mod container;
mod image;
mod mounts;
mod namespaces;
mod network;
mod pod;
mod resources;
mod security;
mod sysctls;
mod update;

pub use at::{At, DecodeError};
pub use container::container;
pub use image::{auth, image_name};
pub use pod::pod;
pub use update::{container_update, pod_update};

use std::time::Duration;

/// The id of a request: not empty and no longer than any id. Whether it exists is for the domain to say.
pub fn id<'a>(name: &'static str, value: &'a str) -> Result<&'a str, DecodeError> {
    let at = At::root(name);
    check::length(&at, value, 1, 128)?;
    check::no_control(&at, value)?;
    Ok(value)
}

/// A runtime handler's name; empty is the default. Whether there is one is for the domain to say.
pub fn handler(value: &str) -> Result<&str, DecodeError> {
    let at = At::root("runtime_handler");
    check::length(&at, value, 0, check::MAX_NAME)?;
    check::no_control(&at, value)?;
    Ok(value)
}

/// Seconds, not negative, at most some hundred years.
pub fn seconds(name: &'static str, value: i64) -> Result<Duration, DecodeError> {
    let limit = i64::from(u32::MAX);
    match u64::try_from(value) {
        Ok(seconds) if value <= limit => Ok(Duration::from_secs(seconds)),
        _ => Err(At::root(name).bad(value, format!("want 0 to {limit} seconds"))),
    }
}

/// A command to execute: a program and its arguments.
pub fn command(name: &'static str, words: Vec<String>) -> Result<Vec<String>, DecodeError> {
    let at = At::root(name);
    if words.first().is_none_or(String::is_empty) {
        return Err(at.bad("", "want a program to run"));
    }
    check::words(&at, words)
}

/// The config of a request; a client that left it out gets told its name.
pub fn required<T>(at: &At<'_>, value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or_else(|| at.bad("", "is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_fields() {
        assert!(id("pod_sandbox_id", "abc").is_ok());
        assert!(id("pod_sandbox_id", "").is_err());
        assert!(id("pod_sandbox_id", &"a".repeat(129)).is_err());
        assert!(id("pod_sandbox_id", "a\nb").is_err());
        assert_eq!(seconds("timeout", 3), Ok(Duration::from_secs(3)));
        assert!(seconds("timeout", -1).is_err());
        assert!(seconds("timeout", i64::MAX).is_err());
        assert!(command("cmd", vec![]).is_err());
        assert!(command("cmd", vec![String::new()]).is_err());
        assert!(command("cmd", vec!["a".into(), "b\0c".into()]).is_err());
        assert!(command("cmd", vec!["sh".into(), "-c".into(), "echo\n".into()]).is_ok());
    }
}
