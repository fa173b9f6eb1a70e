//! Pod uids.

use sha2::{Digest as _, Sha256};

/// A fresh random uid.
pub fn random() -> String {
    let mut bytes = [0u8; 16];
    // getrandom fails only where the kernel has no entropy source at all.
    if let Err(error) = getrandom::fill(&mut bytes) {
        panic!("no random numbers from the kernel: {error}");
    }
    format(bytes, 4)
}

/// The same uid for the same parts, always.
pub fn derived(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    let digest = hash.finalize();
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    format(bytes, 8)
}

/// RFC 9562 form with its version and variant bits.
fn format(mut bytes: [u8; 16], version: u8) -> String {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_look_like_uids() {
        let (a, b) = (random(), random());
        assert_ne!(a, b);
        assert_eq!((a.len(), &a[14..15]), (36, "4"));
        assert_eq!(derived(&["x", "y"]), derived(&["x", "y"]));
        assert_ne!(derived(&["x", "y"]), derived(&["xy", ""]));
        assert_eq!(&derived(&[])[14..15], "8");
    }
}
