//! Versions of the CNI specification.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A released version of the specification. The order is that of the releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Version {
    /// 0.1.0
    #[serde(rename = "0.1.0")]
    V0_1_0,
    /// 0.2.0: VERSION
    #[serde(rename = "0.2.0")]
    V0_2_0,
    /// 0.3.0: chains
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0: CHECK; DEL is given the result of ADD
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0: GC, STATUS
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As configurations write it; empty text means 0.1.0, the version from before the key existed.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// `1.1.0`
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_versions_parse_in_order() {
        let texts = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        let parsed: Vec<_> = texts.iter().map(|text| Version::parse(text).unwrap()).collect();
        assert!(parsed.is_sorted());
        assert_eq!(parsed, Version::ALL);
        assert_eq!(Version::parse(""), Some(Version::V0_1_0));
        for text in ["1.2.0", "0.3", "v1.0.0", " 1.0.0", "1.0.0-rc1", "2"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
