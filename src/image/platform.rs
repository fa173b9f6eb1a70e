//! Which variant of an image fits this machine.

use std::fmt;

use serde::Deserialize;

/// Operating system, architecture and variant, in Go's names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, …
    #[serde(default)]
    pub architecture: String,
    /// `v8`, `v7`, …; empty: the architecture's usual one.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `self` runs on `machine`: the smaller the better, `None`: not at all.
    pub fn distance(&self, machine: &Platform) -> Option<u32> {
        let (image, machine) = (self.normalised(), machine.normalised());
        if image.os != machine.os {
            return None;
        }
        if image.architecture == machine.architecture {
            // A machine runs its own variant and older ones; the newest of those is the best.
            let (image, machine) = (image.level()?, machine.level()?);
            return machine.checked_sub(image);
        }
        // 64-bit ARM machines run 32-bit images where there is nothing better.
        if machine.architecture == "arm64" && image.architecture == "arm" {
            return image.level().and_then(|level| 8u32.checked_sub(level)).map(|older| 100 + older);
        }
        None
    }

    fn normalised(&self) -> Self {
        let architecture = match self.architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            "armhf" | "armel" => "arm",
            other => other,
        };
        let variant = match (architecture, self.variant.as_str()) {
            ("arm64", "" | "8" | "v8.0") => "v8",
            ("arm", "" | "7") => "v7",
            ("arm", "5") => "v5",
            ("arm", "6") => "v6",
            ("arm", "8") => "v8",
            ("amd64", "" | "1") => "v1",
            (_, other) => other,
        };
        Self { os: self.os.to_lowercase(), architecture: architecture.into(), variant: variant.into() }
    }

    /// The variant as a number: `v7` is 7. Where an architecture has none, 0. `v8.2` counts as 8.
    fn level(&self) -> Option<u32> {
        if self.variant.is_empty() {
            return Some(0);
        }
        let digits = self.variant.strip_prefix('v')?;
        digits.split('.').next()?.parse().ok()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn the_best_variant_is_the_newest_that_runs() {
        for (machine, offers, want) in [
            ("linux/amd64", vec!["linux/arm64/v8", "linux/amd64"], Some(1)),
            ("linux/amd64", vec!["linux/amd64/v3", "windows/amd64"], None),
            ("linux/amd64/v3", vec!["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/arm64/v8", vec!["linux/arm/v7", "linux/arm64"], Some(1)),
            ("linux/arm64", vec!["linux/arm/v5", "linux/arm/v7"], Some(1)),
            ("linux/arm/v7", vec!["linux/arm/v5", "linux/arm/v6", "linux/arm64"], Some(1)),
            ("linux/arm/v6", vec!["linux/arm/v7"], None),
            ("linux/riscv64", vec!["linux/riscv64"], Some(0)),
            ("linux/amd64", vec!["unknown/unknown", "linux/x86_64"], Some(1)),
        ] {
            let machine = platform(machine);
            let best = offers
                .iter()
                .enumerate()
                .filter_map(|(i, offer)| Some((platform(offer).distance(&machine)?, i)))
                .min()
                .map(|(_, i)| i);
            assert_eq!(best, want, "{machine} {offers:?}");
        }
    }
}
