//! Channels in WebSocket messages: the first byte says which, the rest is data. Pure.
//!
//! In the base64 variants the first byte is the channel's digit and the rest is base64, so that messages are text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::Message;

use super::copy::HEADROOM;

/// The channel that closes others, from v5 on.
const CLOSE: u8 = 255;

/// How messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Codec {
    /// Text rather than bytes.
    pub(super) base64: bool,
    /// A client can close a channel.
    pub(super) closes: bool,
}

/// What a message means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Data for a channel; may be empty.
    Data(u8, Bytes),
    /// The client ends a channel.
    Close(u8),
    /// Nothing.
    Nothing,
}

impl Codec {
    /// Reads a message's payload. An error says what is wrong with it.
    pub(super) fn decode(self, mut payload: Bytes) -> Result<Incoming, &'static str> {
        let Some(&first) = payload.first() else { return Ok(Incoming::Nothing) };
        payload.advance(1);
        if self.closes && first == CLOSE {
            return match payload[..] {
                [channel] => Ok(Incoming::Close(channel)),
                _ => Err("want one channel after the close signal"),
            };
        }
        if !self.base64 {
            return Ok(Incoming::Data(first, payload));
        }
        let channel = first.checked_sub(b'0').ok_or("want a channel's digit first")?;
        let data = STANDARD.decode(&payload).map_err(|_| "want base64 after the channel's digit")?;
        Ok(Incoming::Data(channel, data.into()))
    }

    /// Makes a message of what follows the first [`HEADROOM`] bytes of `chunk`.
    pub(super) fn encode(self, channel: u8, mut chunk: BytesMut) -> Message {
        let data = chunk.get(HEADROOM..).unwrap_or_default();
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0'.wrapping_add(channel)));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        match chunk.first_mut() {
            Some(first) => *first = channel,
            None => chunk.extend_from_slice(&[channel]),
        }
        Message::Binary(chunk.freeze())
    }
}

/// A chunk with `data`, as [`Codec::encode`] takes it.
pub(super) fn chunk(data: &[u8]) -> BytesMut {
    let mut chunk = BytesMut::zeroed(HEADROOM);
    chunk.extend_from_slice(data);
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: Codec = Codec { base64: false, closes: false };
    const V5: Codec = Codec { base64: false, closes: true };
    const TEXT: Codec = Codec { base64: true, closes: false };

    fn decode(codec: Codec, payload: &[u8]) -> Result<Incoming, &'static str> {
        codec.decode(Bytes::copy_from_slice(payload))
    }

    #[test]
    fn messages_as_clients_send_them() {
        let data = |channel, data: &'static [u8]| Ok(Incoming::Data(channel, Bytes::from_static(data)));
        assert_eq!(decode(V4, b""), Ok(Incoming::Nothing));
        assert_eq!(decode(V4, b"\0abc"), data(0, b"abc"));
        assert_eq!(decode(V4, b"\0"), data(0, b""));
        assert_eq!(decode(V4, b"\xff\0"), data(255, b"\0"));
        assert_eq!(decode(V5, b"\xff\0"), Ok(Incoming::Close(0)));
        assert!(decode(V5, b"\xff").is_err() && decode(V5, b"\xff\0\0").is_err());
        assert_eq!(decode(TEXT, b"0Zm9vCg=="), data(0, b"foo\n"));
        assert_eq!(decode(TEXT, b"4"), data(4, b""));
        assert!(decode(TEXT, b"0Zm9").is_err() && decode(TEXT, b"\0Zm9v").is_err());
    }

    #[test]
    fn messages_as_clients_read_them() {
        assert_eq!(V5.encode(1, chunk(b"\n")), Message::Binary(Bytes::from_static(b"\x01\n")));
        assert_eq!(V5.encode(3, chunk(b"")), Message::Binary(Bytes::from_static(b"\x03")));
        assert_eq!(TEXT.encode(1, chunk(b"\n")), Message::text("1Cg=="));
        assert_eq!(V4.encode(2, BytesMut::new()), Message::Binary(Bytes::from_static(b"\x02")));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(data in proptest::collection::vec(any::<u8>(), 0..100), channel in 0..9u8, base64: bool) {
            let codec = Codec { base64, closes: true };
            let payload = codec.encode(channel, chunk(&data)).into_data();
            prop_assert_eq!(codec.decode(payload), Ok(Incoming::Data(channel, data.into())));
        }

        #[test]
        fn any_payload_is_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..64), base64: bool, closes: bool) {
            let _ = Codec { base64, closes }.decode(data.into());
        }
    }
}
