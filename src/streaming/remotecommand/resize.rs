//! The resize stream: JSON objects, one after the other, each with a terminal's new size.

use std::io;
use std::os::fd::AsFd;

use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest object, bytes.
const MAX_OBJECT: usize = 1024;

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// Sets the terminal's size as told, until `stream` ends or talks nonsense.
pub(super) async fn follow(mut stream: impl AsyncRead + Unpin, terminal: Option<impl AsFd>) {
    let mut sizes = Sizes::default();
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let Ok(size) = sizes.push(&buffer[..count]) else { return };
        if let (Some(size), Some(terminal)) = (size, &terminal) {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            // Fails once the terminal is gone, and then nobody minds.
            let _ = tcsetwinsize(terminal, size);
        }
    }
}

/// Cuts bytes into objects.
#[derive(Default)]
struct Sizes(Vec<u8>);

impl Sizes {
    /// Takes the next bytes; gives the last size that is complete in them, if any.
    fn push(&mut self, bytes: &[u8]) -> io::Result<Option<Size>> {
        self.0.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut last = None;
        loop {
            match objects.next() {
                Some(Ok(size)) => last = Some(size),
                Some(Err(error)) if !error.is_eof() => return Err(error.into()),
                _ => break,
            }
        }
        let used = objects.byte_offset();
        self.0.drain(..used);
        if self.0.len() > MAX_OBJECT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(last.filter(|size| size.width > 0 && size.height > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(size: Option<Size>) -> Option<(u16, u16)> {
        size.map(|size| (size.width, size.height))
    }

    #[test]
    fn objects_come_whole_in_pieces_and_many_at_once() {
        let mut sizes = Sizes::default();
        assert_eq!(pair(sizes.push(b"{\"Width\":80,\"Height\":24}\n").unwrap()), Some((80, 24)));
        assert_eq!(pair(sizes.push(b"{\"Width\":100,\"Hei").unwrap()), None);
        assert_eq!(pair(sizes.push(b"ght\":30}{\"Width\":1,").unwrap()), Some((100, 30)));
        assert_eq!(pair(sizes.push(b"\"Height\":2} {\"width\":3,\"height\":4}").unwrap()), Some((3, 4)));
        assert_eq!(pair(sizes.push(b"{\"Width\":0,\"Height\":0}").unwrap()), None);
        assert_eq!(pair(sizes.push(b"{\"Width\":7,\"Height\":8,\"more\":[1]}").unwrap()), Some((7, 8)));
    }

    #[test]
    fn nonsense_and_endless_objects_end_it() {
        for bad in ["[]", "x", "{\"Width\":-1,\"Height\":1}", "{\"Width\":65536,\"Height\":1}"] {
            assert!(Sizes::default().push(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut sizes = Sizes::default();
        assert!(sizes.push(b"{\"more\":\"").is_ok());
        assert!((0..100).any(|_| sizes.push(&[b'a'; 256]).is_err()));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 1..50usize) {
            let mut sizes = Sizes::default();
            for piece in bytes.chunks(cut) {
                if sizes.push(piece).is_err() {
                    break;
                }
                prop_assert!(sizes.0.len() <= MAX_OBJECT + 50);
            }
        }
    }
}
