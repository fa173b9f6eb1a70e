//! Content digests (OCI image spec, "descriptor", section "Digests").

use std::fmt;

use serde::{Deserialize, Serialize};

/// The text is no digest that this runtime takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: want sha256:<64 lowercase hexadecimal characters>")]
pub struct DigestError(String);

/// A sha256 digest. (No registry in use serves another algorithm; one that does is refused by name.)
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// From the 32 bytes that SHA-256 gives.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses `sha256:<hex>`.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError(text.chars().take(120).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?;
        Self::from_hex(hex).ok_or_else(bad)
    }

    /// Parses 64 lowercase hexadecimal characters.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let value = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let raw = hex.as_bytes();
        if raw.len() != 64 {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (slot, pair) in bytes.iter_mut().zip(raw.chunks_exact(2)) {
            *slot = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// The hexadecimal part, which is safe as a file name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", &self.hex()[..12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lowercase_sha256_is_taken() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Digest::parse(&good).map(|d| d.to_string()), Ok(good));
        for bad in
            ["", "sha256:", "md5:00", &format!("sha256:{}", "0A".repeat(32)), &format!("sha512:{}", "0a".repeat(64))]
        {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
