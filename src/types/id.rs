//! Identifiers of sandboxes and containers.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Length of an id in characters: 32 random bytes in lowercase hexadecimal, as clients expect.
const LENGTH: usize = 64;

/// The text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: want 64 lowercase hexadecimal characters")]
pub struct IdError(String);

fn random() -> String {
    let mut bytes = [0u8; LENGTH / 2];
    // getrandom fails only where the kernel has no entropy source at all.
    if let Err(error) = getrandom::fill(&mut bytes) {
        panic!("no random numbers from the kernel: {error}");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check(text: &str) -> Result<(), IdError> {
    let fine = text.len() == LENGTH && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if fine { Ok(()) } else { Err(IdError(text.chars().take(80).collect())) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh random id.
            pub fn generate() -> Self {
                Self(random())
            }

            /// Takes exactly 64 lowercase hexadecimal characters.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.to_owned()))
            }

            /// The whole id.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 characters, for people.
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }

        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                Path::new(&self.0)
            }
        }
    };
}

id! {
    /// The id of a pod sandbox.
    PodId
}
id! {
    /// The id of a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_parse_and_differ() {
        let (a, b) = (PodId::generate(), PodId::generate());
        assert_ne!(a, b);
        assert_eq!(PodId::parse(a.as_str()), Ok(a));
    }

    #[test]
    fn path_like_or_short_text_is_no_id() {
        for text in ["", "abc", "../../etc", &"A".repeat(64), &"a".repeat(65)] {
            assert!(ContainerId::parse(text).is_err(), "{text}");
        }
    }
}
