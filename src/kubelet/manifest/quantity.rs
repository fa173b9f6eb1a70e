//! Kubernetes quantities: `100m`, `1.5`, `128Mi`, `2e3`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// The text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity: want a number of 0 or more with a suffix such as m, k, M, Ki, Mi or none")]
pub struct QuantityError(String);

/// An amount, exact to a thousandth; finer parts are rounded up, as Kubernetes does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    milli: i128,
}

impl Quantity {
    /// From thousandths.
    pub const fn from_milli(milli: i128) -> Self {
        Self { milli }
    }

    /// Parses a quantity of 0 or more.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        read(text).ok_or_else(|| QuantityError(text.chars().take(80).collect()))
    }

    /// In whole units, rounded up.
    pub fn value(self) -> i64 {
        i64::try_from(self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) > 0)).unwrap_or(i64::MAX)
    }

    /// In thousandths.
    pub fn milli(self) -> i64 {
        i64::try_from(self.milli).unwrap_or(i64::MAX)
    }

    /// How often `divisor` fits, rounded up; the amount itself for a divisor of 0.
    pub fn divided_by(self, divisor: Self) -> i64 {
        let divisor = if divisor.milli == 0 { 1000 } else { divisor.milli };
        i64::try_from((self.milli + divisor - 1).div_euclid(divisor)).unwrap_or(i64::MAX)
    }

    /// The sum, capped at the largest amount.
    pub fn plus(self, other: Self) -> Self {
        Self { milli: self.milli.saturating_add(other.milli) }
    }
}

/// A power of ten per decimal suffix, as an exponent.
fn decimal_exponent(suffix: &str) -> Option<i32> {
    Some(match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| (-12..=18).contains(e))?,
    })
}

fn binary_factor(suffix: &str) -> Option<i128> {
    let power = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|known| *known == suffix)?;
    Some(1i128 << (10 * (power + 1)))
}

fn read(text: &str) -> Option<Quantity> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // 18 digits on either side keep all products below far inside an i128.
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = i32::try_from(fraction.len()).ok()?;
    let (factor, exponent) = match binary_factor(suffix) {
        Some(factor) => (factor, 3 - scale),
        None => (1, decimal_exponent(suffix)? + 3 - scale),
    };
    let product = digits.checked_mul(factor)?;
    let ten = 10i128.checked_pow(exponent.unsigned_abs())?;
    let milli = if exponent >= 0 { product.checked_mul(ten)? } else { product / ten + i128::from(product % ten > 0) };
    // Kubernetes caps quantities at 2^63-1 units.
    Some(Quantity { milli: milli.min(i128::from(i64::MAX) * 1000) })
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 100m or 64Mi")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                Quantity::parse(text).map_err(E::custom)
            }
            // YAML writes `cpu: 1` and `cpu: 0.5` as numbers.
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suffixes_scale() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            (".5", 500),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("2e3", 2_000_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("1n", 1),
            ("250u", 1),
        ] {
            assert_eq!(Quantity::parse(text), Ok(Quantity { milli }), "{text}");
        }
        for bad in ["", "-1", "1 Mi", "Mi", "1mi", "1.2.3", "0x10", "1e99", "9999999999999999999", "1KiB", "."] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whole_units_round_up() {
        assert_eq!(Quantity::parse("1m").map(Quantity::value), Ok(1));
        assert_eq!(Quantity::parse("1500m").map(Quantity::value), Ok(2));
        let divided = Quantity { milli: 1500 }.divided_by(Quantity { milli: 1 });
        assert_eq!(divided, 1500);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn numbers_read_back(number in 0i64..1_000_000_000_000) {
            prop_assert_eq!(Quantity::parse(&number.to_string()).map(Quantity::value), Ok(number));
        }
    }
}
