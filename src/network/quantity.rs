//! Kubernetes quantities (`10M`, `1.5Gi`, `2e6`), as far as whole, positive numbers go.

/// The value, rounded up to a whole number; `None` if it is no quantity, or not from 0 to 2^64-1.
pub fn parse(text: &str) -> Option<u64> {
    if text.len() > 64 {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (base, exponent) = scale(suffix)?;
    // digits * base^exponent / 10^(digits after the point), rounded up
    let mut divisor = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let mut value = digits;
    if exponent >= 0 {
        value = value.checked_mul(base.checked_pow(exponent.unsigned_abs())?)?;
    } else {
        divisor = divisor.checked_mul(base.checked_pow(exponent.unsigned_abs())?)?;
    }
    u64::try_from(value.div_ceil(divisor)).ok()
}

/// What a suffix multiplies by: base and exponent.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let at = |list: &[&str]| list.iter().position(|known| *known == suffix).and_then(|i| i32::try_from(i).ok());
    if let Some(i) = at(&decimal) {
        return Some((10, (i - 3) * 3));
    }
    if let Some(i) = at(&binary) {
        return Some((1024, i + 1));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    exponent.parse().ok().filter(|exponent| (-36..=36).contains(exponent)).map(|exponent| (10, exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_in_all_notations() {
        for (text, want) in [
            ("0", 0),
            ("10M", 10_000_000),
            ("1.5k", 1500),
            ("1Ki", 1024),
            ("0.5Mi", 524_288),
            ("2e6", 2_000_000),
            ("2E3", 2000),
            ("1500m", 2),
            ("1n", 1),
            (".5", 1),
            ("5.", 5),
            ("+7", 7),
            ("1E", 1_000_000_000_000_000_000),
            ("25e-1", 3),
        ] {
            assert_eq!(parse(text), Some(want), "{text}");
        }
        for text in ["", "-1", "k", "1.2.3", "1K", "1kk", "1 M", "0x10", "100E", "1e99", "e6", "++1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
