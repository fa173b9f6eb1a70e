//! Frames there and back, and bytes that are none.

use proptest::prelude::*;

use super::super::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9/ =._-]{0,40}", "\\PC{0,20}", Just("a\0b".to_owned())]
}

fn headers() -> impl Strategy<Value = Headers> {
    prop::collection::vec(("[a-z][a-z0-9-]{0,20}", text()), 0..6)
        .prop_map(|list| list.iter().fold(Headers::new(), |headers, (name, value)| headers.with(name, value)))
}

fn id() -> impl Strategy<Value = u32> {
    1..=0x7fff_ffffu32
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (id(), 0..=0x7fff_ffffu32, 0..8u8, any::<bool>(), any::<bool>(), headers()).prop_map(
            |(stream, associated, priority, fin, unidirectional, headers)| Frame::SynStream {
                stream,
                associated,
                priority,
                fin,
                unidirectional,
                headers
            }
        ),
        (id(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply { stream, fin, headers }),
        (id(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers { stream, fin, headers }),
        (id(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status: ResetStatus(status) }),
        (any::<bool>(), prop::collection::vec((0..0x100_0000u32, any::<u32>()), 0..5))
            .prop_map(|(clear, entries)| Frame::Settings { clear, entries }),
        any::<u32>().prop_map(Frame::Ping),
        (0..=0x7fff_ffffu32, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (0..=0x7fff_ffffu32, 0..=0x7fff_ffffu32).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Sent {
    Control(Frame),
    Data(u32, Vec<u8>, bool),
}

fn sent() -> impl Strategy<Value = Sent> {
    let data = (id(), prop::collection::vec(any::<u8>(), 0..300), any::<bool>());
    prop_oneof![frame().prop_map(Sent::Control), data.prop_map(|(id, data, fin)| Sent::Data(id, data, fin))]
}

/// Decodes what comes in pieces of these sizes; parts of one data frame are put together again.
fn decode(bytes: &[u8], pieces: &[usize]) -> Result<Vec<Sent>, FrameError> {
    let mut decoder = Decoder::new(&Limits::default());
    let mut pieces = pieces.iter().cycle();
    let (mut have, mut begin, mut open) = (0, 0, false);
    let mut found = Vec::new();
    while have < bytes.len() {
        have = bytes.len().min(have + pieces.next().unwrap());
        while let Some((used, input)) = decoder.decode(&bytes[begin..have])? {
            assert!(used > 0 && begin + used <= have);
            begin += used;
            match input {
                Input::Control(frame) => found.push(Sent::Control(frame)),
                Input::Data { stream, data, fin } => {
                    match found.last_mut() {
                        Some(Sent::Data(_, text, end)) if open => {
                            text.extend_from_slice(data);
                            *end = fin;
                        }
                        _ => found.push(Sent::Data(stream, data.to_vec(), fin)),
                    }
                    open = decoder.in_data();
                }
                Input::Unknown => {}
            }
        }
        assert!(have - begin <= decoder.most());
    }
    Ok(found)
}

fn encode(frames: &[Sent], compress: bool) -> Vec<u8> {
    let mut encoder = Encoder::new(&Limits { compress, ..Limits::default() }).unwrap();
    let mut out = Vec::new();
    for frame in frames {
        match frame {
            Sent::Control(frame) => encoder.control(frame, &mut out).unwrap(),
            Sent::Data(stream, data, fin) => {
                Encoder::data(*stream, data.len(), *fin, &mut out);
                out.extend_from_slice(data);
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        frames in prop::collection::vec(sent(), 0..12),
        compress: bool,
        pieces in prop::collection::vec(1..200usize, 1..8),
    ) {
        prop_assert_eq!(decode(&encode(&frames, compress), &pieces), Ok(frames));
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = decode(&bytes, &[64]);
    }

    #[test]
    fn no_damage_does_harm(
        frames in prop::collection::vec(sent(), 1..8),
        compress: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode(&frames, compress);
        for (place, byte) in damage {
            *place.get_mut(&mut bytes) = byte;
        }
        let _ = decode(&bytes, &[1, 100]);
    }
}

/// A SYN_STREAM of the peer that Kubernetes' clients have, for `Streamtype: error`.
#[test]
fn frames_of_another_implementation_are_understood() {
    let mut body = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    body.extend(compressed(b"\0\0\0\x01\0\0\0\nstreamtype\0\0\0\x05error"));
    let frame = control(1, &body);
    let mut decoder = Decoder::new(&Limits::default());
    let (used, input) = decoder.decode(&frame).unwrap().unwrap();
    assert_eq!(used, frame.len());
    let Input::Control(Frame::SynStream { stream: 1, headers, .. }) = input else { panic!("{input:?}") };
    assert_eq!(headers.get("streamType"), Some("error"));
}

/// A control frame of version 3.
fn control(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32).to_be_bytes();
    [&[0x80, 3, 0, kind, 0], &len[1..], body].concat()
}

/// The block as the first one of its connection.
fn compressed(block: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    super::super::zip::Deflater::new(true).unwrap().deflate(block, &mut out).unwrap();
    out
}

#[test]
fn what_is_wrong_is_said() {
    let decode = |bytes: &[u8]| Decoder::new(&Limits::default()).decode(bytes).map(|_| ());
    let syn = |block: &[u8]| control(1, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &compressed(block)].concat());
    let header = |name: &str, value: &str| {
        let mut out = (name.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
        out
    };
    let most = Limits::default().control_frame;
    assert_eq!(decode(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
    assert_eq!(
        decode(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        Err(FrameError::TooLong { kind: 1, len: 0xff_ffff, most })
    );
    assert_eq!(decode(&control(6, &[0; 5])), Err(FrameError::Length { kind: 6, len: 5 }));
    assert_eq!(decode(&control(4, &[0, 0, 0, 9])), Err(FrameError::Length { kind: 4, len: 4 }));
    assert_eq!(decode(&control(3, &[0; 8])), Err(FrameError::StreamZero("RST_STREAM")));
    assert_eq!(decode(&[0, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::StreamZero("data")));
    assert_eq!(decode(&syn(&[0, 0, 0xff, 0xff])), Err(FrameError::TooManyHeaders { count: 0xffff, most: 100 }));
    assert_eq!(decode(&syn(&[0, 0, 0, 1])), Err(FrameError::HeaderBlock("it ends early")));
    assert_eq!(decode(&syn(&[0, 0, 0, 0, 1])), Err(FrameError::HeaderBlock("bytes after the last header")));
    assert_eq!(
        decode(&syn(&[&[0, 0, 0, 1][..], &header("Port", "80")].concat())),
        Err(FrameError::HeaderName { name: "Port".to_owned() })
    );
    assert_eq!(
        decode(&syn(&[&[0, 0, 0, 2][..], &header("port", "80"), &header("port", "81")].concat())),
        Err(FrameError::HeaderTwice { name: "port".to_owned() })
    );
    assert!(matches!(decode(&control(2, &[0, 0, 0, 1, 0xff, 0xff, 1, 2, 3])), Err(FrameError::Zlib(_))));
}

/// 4 MiB of headers in a frame of 4 KiB.
#[test]
fn a_header_block_that_swells_is_cut_off() {
    let mut block = vec![0, 0, 0, 1, 0, 0, 0, 1, b'a'];
    block.extend_from_slice(&(4u32 << 20).to_be_bytes());
    block.resize(block.len() + (4 << 20), b'b');
    let frame = control(2, &[&[0, 0, 0, 1][..], &compressed(&block)].concat());
    assert!(frame.len() < 8 * 1024);
    let limits = Limits::default();
    assert_eq!(Decoder::new(&limits).decode(&frame).map(|_| ()), Err(FrameError::HeadersTooLong(limits.header_block)));
}

#[test]
fn a_frame_of_an_unknown_type_is_passed_over() {
    let bytes = [control(10, &[1, 2, 3]), control(6, &[0, 0, 0, 7])].concat();
    assert_eq!(decode(&bytes, &[1]), Ok(vec![Sent::Control(Frame::Ping(7))]));
}
