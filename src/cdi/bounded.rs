//! A YAML or JSON document as a value that is not much larger than its text: aliases repeat what they name, and a few of
//! them would fill the memory.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Values and bytes of strings for each byte of text. Without aliases, two of text make one.
const SWELLING: usize = 8;
/// Small documents may do as they like.
const ALWAYS: usize = 64 << 10;

/// Brackets that may be open at once, wherever they stand; a CDI file needs eight. The parser's time for each word grows
/// with those around it.
const MAX_NESTING: usize = 256;

/// Reads a document.
///
/// # Errors
/// It is none, nests too deep, or swells.
pub(super) fn parse(text: &[u8]) -> Result<Value, String> {
    let mut open = 0_usize;
    for byte in text {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => continue,
        }
        if open > MAX_NESTING {
            return Err(format!("nests deeper than {MAX_NESTING}"));
        }
    }
    let left = Cell::new(text.len().saturating_mul(SWELLING).saturating_add(ALWAYS));
    let read = Bounded(&left).deserialize(serde_yaml_ng::Deserializer::from_slice(text));
    read.map_err(|error| format!("cannot be parsed: {error}"))
}

/// What may be still to come.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

impl Bounded<'_> {
    fn spend<E: Error>(self, cost: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(cost + 1);
        self.0.set(left.ok_or_else(|| E::custom("swells by its aliases"))?);
        Ok(())
    }

    fn value<E: Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.spend(0).map(|()| value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.value(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.value(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.value(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.value(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.spend(value.len()).map(|()| value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.value(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.spend(key.len())?;
            map.insert(key, entries.next_value_seed(self)?);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_what_they_were() {
        let text = "a: [1, -2, 0.5, true, ~, \"x\", y]\nb: &b {c: d}\ne: [*b, *b]\n7: 0x10\n";
        let want = json!({
            "a": [1, -2, 0.5, true, null, "x", "y"], "b": {"c": "d"}, "e": [{"c": "d"}, {"c": "d"}], "7": 16,
        });
        assert_eq!(parse(text.as_bytes()).unwrap(), want);
        assert_eq!(parse(want.to_string().as_bytes()).unwrap(), want);
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_yaml_ng::from_str::<Value>(text).unwrap());
        assert!(parse(b"").is_err() && parse(b"[1, 2").is_err());
        let nested = |depth: usize| parse(format!("{}1{}", "[".repeat(depth), "]".repeat(depth)).as_bytes());
        assert!(nested(100).is_ok() && nested(MAX_NESTING + 1).unwrap_err().contains("nests"));
    }

    #[test]
    fn what_takes_room_in_the_text_may_take_it_in_memory() {
        let list = format!("[{}]", "1,".repeat(500_000));
        assert_eq!(parse(list.as_bytes()).unwrap().as_array().unwrap().len(), 500_000);
        let swollen = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(10_000), "*a,".repeat(1000));
        assert!(parse(swollen.as_bytes()).unwrap_err().contains("aliases"));
    }
}
