//! Any bytes, in any pieces, through the decoder; what is understood must survive being encoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwright_fuzz::spdy::{Decoder, Encoder, Frame, Input, Limits};

/// Control frames, and data put together again, of bytes that come in pieces.
fn decode(bytes: &[u8], pieces: impl Fn(usize) -> usize) -> (Vec<Frame>, Vec<(u32, Vec<u8>)>) {
    let mut decoder = Decoder::new(&Limits::default());
    let (mut frames, mut data) = (Vec::new(), Vec::<(u32, Vec<u8>)>::new());
    let (mut at, mut have, mut piece) = (0, 0, 0);
    'all: while have < bytes.len() {
        have = bytes.len().min(have + pieces(piece).max(1));
        piece += 1;
        loop {
            match decoder.decode(&bytes[at..have]) {
                Ok(Some((used, input))) => {
                    assert!(used > 0 && used <= have - at);
                    at += used;
                    match input {
                        Input::Control(frame) => frames.push(frame),
                        Input::Data { stream, data: part, .. } => match data.last_mut() {
                            Some((last, text)) if *last == stream => text.extend_from_slice(part),
                            _ => data.push((stream, part.to_vec())),
                        },
                        Input::Unknown => {}
                    }
                }
                Ok(None) => break,
                Err(_) => break 'all,
            }
        }
        assert!(have - at <= decoder.most(), "more is kept than a frame");
    }
    (frames, data)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, |_| usize::MAX / 2);
    let parts = decode(bytes, |n| 1 + n % 7);
    assert_eq!(whole, parts, "pieces make a difference");
    for compress in [false, true] {
        let mut encoder = Encoder::new(&Limits { compress, ..Limits::default() }).unwrap();
        let mut out = Vec::new();
        for frame in &whole.0 {
            encoder.control(frame, &mut out).unwrap();
        }
        // Headers that compress worse here than at the peer may make a frame too large.
        let (again, _) = decode(&out, |_| usize::MAX / 2);
        assert!(again == whole.0 || out.len() > Limits::default().control_frame, "{again:?}\n{:?}", whole.0);
    }
});
