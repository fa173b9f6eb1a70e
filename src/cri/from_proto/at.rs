//! Where in a request a value stands, for messages.

use std::fmt::{self, Display};

use crate::types::{ErrorKind, HasKind};

/// A request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason} (got {value:?})")]
pub struct DecodeError {
    /// Path of the field, such as `config.mounts[3].host_path`.
    pub field: String,
    /// What was given, cut to a readable length.
    pub value: String,
    /// What is wanted.
    pub reason: String,
}

impl HasKind for DecodeError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// The path of a field. It lives on the stack and becomes text only in an error.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Field(&'static str),
    Index(usize),
    Key(&'a str),
}

impl<'a> At<'a> {
    /// A field of the request itself.
    pub const fn root(name: &'static str) -> Self {
        Self { parent: None, step: Step::Field(name) }
    }

    /// A field of this message.
    pub const fn field(&'a self, name: &'static str) -> Self {
        Self { parent: Some(self), step: Step::Field(name) }
    }

    /// An element of this list.
    pub const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    /// An entry of this map.
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }

    /// This field is wrong.
    pub fn bad(&self, value: impl Display, reason: impl Into<String>) -> DecodeError {
        DecodeError { field: self.to_string(), value: cut(&value.to_string(), 80), reason: reason.into() }
    }
}

impl Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_none() => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{:?}]", cut(key, 80)),
        }
    }
}

fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_clients_write_it() {
        let config = At::root("config");
        let mounts = config.field("mounts");
        let third = mounts.index(3);
        assert_eq!(third.field("host_path").to_string(), "config.mounts[3].host_path");
        let sysctls = config.field("sysctls");
        let error = sysctls.key("a\nb").bad("x".repeat(200), "want less");
        assert_eq!(error.field, r#"config.sysctls["a\nb"]"#);
        assert_eq!(error.value.chars().count(), 81);
    }
}
