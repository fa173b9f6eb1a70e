//! Any text as a header block (stored, so that the fuzzer sees through zlib), and any bytes as compressed ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwright_fuzz::spdy::{Decoder, Encoder, Frame, Input, Limits};

/// The head of a zlib stream with the dictionary of SPDY/3.
const HEAD: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

fn reply(block: &[u8]) -> Vec<u8> {
    let body = [&[0, 0, 0, 1][..], block].concat();
    let len = (body.len() as u32).to_be_bytes();
    [&[0x80, 3, 0, 2, 0][..], &len[1..], &body].concat()
}

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let _ = Decoder::new(&limits).decode(&reply(bytes));
    let _ = Decoder::new(&limits).decode(&reply(&[&HEAD, bytes].concat()));

    let bytes = &bytes[..bytes.len().min(0xffff)];
    let len = bytes.len() as u16;
    let stored = [&HEAD[..], &[0], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes].concat();
    let frame = reply(&stored);
    let Ok(Some((used, Input::Control(first)))) = Decoder::new(&limits).decode(&frame) else { return };
    assert_eq!(used, frame.len());
    let Frame::SynReply { headers, .. } = &first else { panic!("{first:?}") };
    assert!(headers.len() <= limits.headers && bytes.len() <= limits.header_block);
    for compress in [false, true] {
        let mut out = Vec::new();
        Encoder::new(&Limits { compress, ..limits.clone() }).unwrap().control(&first, &mut out).unwrap();
        let again = Decoder::new(&limits).decode(&out).unwrap().unwrap().1;
        assert_eq!(again, Input::Control(first.clone()));
    }
});
