//! Frames to bytes and back.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest frame taken, bytes: an exec with two outputs of 16 MiB in base64 fits.
pub const MAX_FRAME: usize = 48 << 20;

/// Largest frame a monitor takes, bytes: a process with the longest arguments and environment execve
/// would accept fits. A monitor is small and stays so.
pub const MAX_CALL: usize = 8 << 20;

/// The bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The length field is over [`MAX_FRAME`].
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The body is not what it should be.
    #[error("a frame that cannot be read")]
    Json(#[from] serde_json::Error),
}

/// One frame, length first.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let length = bytes.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME => bytes[..4].copy_from_slice(&prefix.to_le_bytes()),
        _ => return Err(CodecError::TooLong(length)),
    }
    Ok(bytes)
}

/// The first whole frame in `buffer` and how many bytes it took; `None`: more bytes are needed.
pub fn decode<T: DeserializeOwned>(buffer: &[u8]) -> Result<Option<(T, usize)>, CodecError> {
    let Some((prefix, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > MAX_FRAME {
        return Err(CodecError::TooLong(length));
    }
    match rest.get(..length) {
        Some(body) => Ok(Some((serde_json::from_slice(body)?, 4 + length))),
        None => Ok(None),
    }
}

/// Bytes as base64 text.
pub mod base64_bytes {
    use super::{Deserialize, Deserializer, Serialize, Serializer};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::value::RawValue;

    /// To text, which is copied as it is: there may be megabytes of it, and nothing in it to be escaped.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
        text.push('"');
        STANDARD.encode_string(bytes, &mut text);
        text.push('"');
        RawValue::from_string(text).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }

    /// From text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Bytes(#[serde(with = "base64_bytes")] Vec<u8>);

    #[test]
    fn bytes_come_back_and_are_plain_text_between() {
        for length in [0, 1, 2, 3, 4, 1000] {
            let bytes = Bytes((0..length).map(|n| (n * 7) as u8).collect());
            let frame = encode(&bytes).unwrap();
            assert_eq!(decode::<Bytes>(&frame).unwrap().unwrap(), (bytes, frame.len()));
        }
        assert_eq!(encode(&Bytes(vec![0xfb, 0xff, b'"'])).unwrap(), b"\x06\0\0\0\"+/8i\"");
        assert_eq!(serde_json::to_value(Bytes(vec![1])).unwrap(), "AQ==");
    }
}
