//! Writes the seed corpus, `corpus/TARGET/NAME` beside this file: what kubectl sends for an exec and a
//! port-forward, one of each frame, and openings of what is malformed. With `--check` it writes nothing, and fails if what
//! stands there is not what it would write: the code that encodes may have changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use podwright_fuzz::spdy::{Encoder, Frame, Headers, INITIAL_WINDOW_SIZE, Limits, ResetStatus};

fn main() {
    let syn = |stream, headers: Headers| Frame::SynStream {
        stream,
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers,
    };
    let kind = |kind| Headers::new().with("streamtype", kind);
    let port = |kind| Headers::new().with("streamtype", kind).with("port", "80").with("requestid", "0");
    let goodbye = [Frame::RstStream { stream: 1, status: ResetStatus::CANCEL }, Frame::GoAway { last: 0, status: 0 }];
    let exec: Vec<Frame> = ["error", "stdin", "stdout", "stderr", "resize"]
        .into_iter()
        .zip([1, 3, 5, 7, 9])
        .map(|(k, id)| syn(id, kind(k)))
        .collect();
    let forward = vec![syn(1, port("error")), syn(3, port("data"))];
    let control = vec![
        Frame::Settings { clear: true, entries: vec![(INITIAL_WINDOW_SIZE, 65536), (4, 100)] },
        Frame::WindowUpdate { stream: 0, delta: 1 << 20 },
        Frame::WindowUpdate { stream: 1, delta: 0x7fff_ffff },
        Frame::Ping(1),
        Frame::Headers { stream: 1, fin: true, headers: kind("x\0y") },
        Frame::SynReply { stream: 2, fin: true, headers: Headers::new() },
    ];
    let data = |stream, text: &[u8], fin| {
        let mut out = Vec::new();
        Encoder::data(stream, text.len(), fin, &mut out);
        [&out, text].concat()
    };
    let encode = |frames: &[Frame], compress| {
        let mut encoder = Encoder::new(&Limits { compress, ..Limits::default() }).unwrap();
        let mut out = Vec::new();
        frames.iter().for_each(|frame| encoder.control(frame, &mut out).unwrap());
        out
    };
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for compress in [true, false] {
        let how = if compress { "zlib" } else { "stored" };
        let stdin =
            [data(3, b"echo hello\n", false), data(9, br#"{"Width":80,"Height":24}"#, false), data(3, b"", true)];
        let mut all = encode(&exec, compress);
        all.extend(stdin.concat());
        all.extend(encode(&goodbye, compress));
        seeds.push((format!("exec-{how}"), all));
        let mut all = encode(&forward, compress);
        all.extend([data(1, b"", true), data(3, b"GET / HTTP/1.0\r\n\r\n", true)].concat());
        seeds.push((format!("port-forward-{how}"), all));
        let mut all = encode(&exec[..1], compress);
        all.extend(encode(&control, compress));
        seeds.push((format!("control-{how}"), all));
    }
    seeds.push(("unknown-type".to_owned(), vec![0x80, 3, 0, 10, 0, 0, 0, 1, 9, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]));
    seeds.push(("giant".to_owned(), vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff, 0]));
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let check = std::env::args().nth(1).is_some_and(|argument| argument == "--check");
    let mut wanted = BTreeSet::new();
    let mut write = |target: &str, name: &str, bytes: &[u8]| {
        let file = top.join(target).join(name);
        if check {
            let same = fs::read(&file).is_ok_and(|stands| stands == bytes);
            assert!(same, "{}: run `cargo run --bin seeds`", file.display());
        } else {
            fs::create_dir_all(top.join(target)).unwrap();
            fs::write(&file, bytes).unwrap();
        }
        wanted.insert(file);
    };
    for (name, bytes) in &seeds {
        write("spdy_frames", name, bytes);
        for how in [2u8, 3, 0xfe] {
            write("spdy_connection", &format!("{name}-{how}"), &[&[how], bytes.as_slice()].concat());
        }
    }
    let block = |headers: &[(&str, &str)]| {
        let mut out = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            out.extend((text.len() as u32).to_be_bytes());
            out.extend(text.as_bytes());
        }
        out
    };
    write("spdy_headers", "empty", &block(&[]));
    write("spdy_headers", "exec", &block(&[("streamtype", "error")]));
    write("spdy_headers", "port-forward", &block(&[("streamtype", "data"), ("port", "80"), ("requestid", "0")]));
    write("spdy_headers", "values", &block(&[("a", "1\x002\x003"), ("b", "")]));
    write("spdy_headers", "twice", &block(&[("a", "1"), ("a", "2")]));
    let mut long = block(&[("a", "1")]);
    long[7] = 0xff;
    write("spdy_headers", "cut-off", &long);
    let messages: [(&str, &[u8]); 6] = [
        ("stdin", b"\0echo hello\n"),
        ("close", &[255, 0]),
        ("resize", b"\x04{\"Width\":80,\"Height\":24}"),
        ("base64", b"0Zm9vCg=="),
        ("port", &[0, 80, 0]),
        ("empty", b""),
    ];
    for (name, bytes) in messages {
        write("websocket_channels", name, bytes);
    }
    for target in fs::read_dir(&top).unwrap() {
        for file in fs::read_dir(target.unwrap().path()).unwrap() {
            let file = file.unwrap().path();
            assert!(wanted.contains(&file), "{}: a seed that nothing writes any more", file.display());
        }
    }
}
