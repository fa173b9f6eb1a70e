//! Peers that mean harm, or are out of order.

use super::*;

/// What the connection ends with, the peer having seen this goodbye, and that at once.
async fn goodbye(server: Handle, raw: Raw) -> End {
    let most = Limits::default().linger / 2;
    tokio::time::timeout(most, hear_goodbye(server, raw)).await.expect("the goodbye is late")
}

async fn hear_goodbye(server: Handle, mut raw: Raw) -> End {
    loop {
        match soon(raw.any()).await {
            Got::Frame(Frame::GoAway { status, .. }) => break assert_eq!(status, 1),
            Got::End => panic!("no goodbye"),
            _ => {}
        }
    }
    drop(raw);
    soon(server.closed()).await
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let (server, _incoming, mut raw) = server(Limits::default());
    raw.io.write_all(b"\x80GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(matches!(goodbye(server, raw).await, End::Protocol(_)));
}

#[tokio::test]
async fn a_giant_control_frame_ends_the_connection_before_it_is_read() {
    let (server, _incoming, mut raw) = server(Limits::default());
    raw.io.write_all(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).await.unwrap();
    let end = goodbye(server, raw).await;
    assert!(end.to_string().contains("16777215 bytes"), "{end}");
}

/// A data frame of 16 MiB is passed on as it comes; it is the buffer that bounds it.
#[tokio::test]
async fn a_giant_data_frame_is_never_held_whole() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let sender = tokio::spawn(async move {
        raw.data(1, &vec![9; MAX_BODY], true).await;
        raw
    });
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, unread, _) = server.left();
    assert!(unread <= (1 << 20) + (64 << 10), "{unread}");
    let len = soon(tokio::io::copy(&mut stream, &mut tokio::io::sink())).await.unwrap();
    assert_eq!(len, MAX_BODY as u64);
    soon(sender).await.unwrap();
}

#[tokio::test]
async fn headers_that_swell_end_the_connection() {
    let (server, _incoming, mut raw) = server(Limits::default());
    let headers = Headers::new().with("a", &"b".repeat(1 << 20));
    raw.send(Frame::SynStream { stream: 1, associated: 0, priority: 0, fin: false, unidirectional: false, headers })
        .await;
    assert!(goodbye(server, raw).await.to_string().contains("header block of more than"));
}

#[tokio::test]
async fn streams_out_of_order_end_the_connection() {
    for streams in [[3, 1], [1, 1], [2, 4]] {
        let (server, _incoming, mut raw) = server(Limits::default());
        for stream in streams {
            raw.syn(stream).await;
        }
        assert!(matches!(goodbye(server, raw).await, End::Protocol(_)));
    }
}

#[tokio::test]
async fn data_for_a_stream_that_never_was_ends_the_connection() {
    let (server, _incoming, mut raw) = server(Limits::default());
    raw.data(5, b"x", false).await;
    assert!(matches!(goodbye(server, raw).await, End::Protocol(_)));
}

#[tokio::test]
async fn data_after_the_end_resets_the_stream() {
    let (_server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    raw.data(1, b"all", true).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let mut text = Vec::new();
    soon(stream.read_to_end(&mut text)).await.unwrap();
    raw.data(1, b"more", false).await;
    loop {
        if let Got::Frame(Frame::RstStream { stream: 1, status }) = soon(raw.next()).await {
            break assert_eq!(status, ResetStatus::STREAM_ALREADY_CLOSED);
        }
    }
}

/// Thousands of streams: those beyond the limit are refused, and make room again once they are over.
#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let (server, mut incoming, mut raw) = server(Limits { streams: 100, ..Limits::default() });
    let mut refused = 0;
    for n in 0..5000 {
        raw.syn(2 * n + 1).await;
        if n >= 100 {
            assert!(matches!(
                soon(raw.next()).await,
                Got::Frame(Frame::RstStream { status: ResetStatus::REFUSED_STREAM, .. })
            ));
            refused += 1;
        }
    }
    assert_eq!((refused, server.left().0), (4900, 100));
    // One that the peer resets while the application holds it still counts: its memory is still there.
    let held = soon(incoming.next()).await.unwrap().accept(Headers::new());
    raw.send(Frame::RstStream { stream: 1, status: ResetStatus::CANCEL }).await;
    raw.syn(20_001).await;
    while !matches!(soon(raw.next()).await, Got::Frame(Frame::RstStream { stream: 20_001, .. })) {}
    drop(held);
    raw.syn(20_003).await;
    raw.send(Frame::Ping(1)).await;
    while !matches!(soon(raw.any()).await, Got::Frame(Frame::Ping(1))) {}
    assert_eq!(server.left().0, 100);
}

/// Streams that are opened and reset at once leave nothing behind.
#[tokio::test]
async fn streams_reset_as_soon_as_they_are_opened_leave_nothing() {
    let (server, _incoming, mut raw) = server(Limits::default());
    for n in 0..20_000 {
        raw.syn(2 * n + 1).await;
        raw.send(Frame::RstStream { stream: 2 * n + 1, status: ResetStatus::CANCEL }).await;
    }
    raw.send(Frame::Ping(1)).await;
    while !matches!(soon(raw.any()).await, Got::Frame(Frame::Ping(1))) {}
    assert_eq!(server.left(), (0, 0, 0));
}

/// Frames that move nothing are taken for a while, whatever they are.
#[tokio::test]
async fn floods_of_frames_that_move_nothing_end_the_connection() {
    let settings = Frame::Settings { clear: false, entries: vec![(4, 100)] };
    let nowhere = Frame::WindowUpdate { stream: 99, delta: 1 };
    for frame in [Frame::Ping(1), settings, nowhere, Frame::RstStream { stream: 98, status: ResetStatus::CANCEL }] {
        let limits = Limits { idle_frames: 100, linger: Duration::from_millis(50), ..Limits::default() };
        let (server, _incoming, mut raw) = server(limits);
        let mut bytes = Vec::new();
        raw.encoder.control(&frame, &mut bytes).unwrap();
        let (mut read, mut write) = tokio::io::split(raw.io);
        let drain = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        let flood = tokio::spawn(async move { while write.write_all(&bytes).await.is_ok() {} });
        assert_eq!(soon(server.closed()).await, End::Flood, "{frame:?}");
        soon(flood).await.unwrap();
        drain.abort();
    }
}

/// A peer that asks for answers without end and takes none is not read any more.
#[tokio::test]
async fn answers_that_are_not_taken_stop_the_questions() {
    let (_server, _incoming, mut raw) = server(Limits::default());
    let mut sent = 0;
    loop {
        let pings = async {
            for n in 0..1000u32 {
                raw.send(Frame::Ping(2 * n + 1)).await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(300), pings).await.is_err() {
            break;
        }
        sent += 1000;
        assert!(sent < 100_000);
    }
}

#[tokio::test]
async fn a_peer_that_is_idle_is_cut() {
    let short = Duration::from_millis(50);
    let (server, _incoming, raw) = server(Limits { idle: Some(short), linger: short, ..Limits::default() });
    assert_eq!(soon(server.closed()).await, End::Idle);
    drop(raw);
}

/// One byte of a frame at a time, each in time for the idle limit, but not for the frame's.
#[tokio::test]
async fn a_frame_that_trickles_in_is_cut() {
    let limits = Limits {
        frame_time: Duration::from_millis(200),
        linger: Duration::from_millis(50),
        idle: Some(Duration::from_secs(60)),
        ..Limits::default()
    };
    let (server, _incoming, mut raw) = server(limits);
    let trickle = async {
        for byte in [0x80, 3, 0, 6, 0, 0, 0].into_iter().chain(std::iter::repeat(0)) {
            tokio::time::sleep(Duration::from_millis(40)).await;
            if raw.io.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        end = soon(server.closed()) => assert_eq!(end, End::SlowFrame),
        () = trickle => panic!("it was taken"),
    }
}

/// A closed connection does not wait for ever for a peer that takes nothing.
#[tokio::test]
async fn a_peer_that_takes_nothing_does_not_keep_a_closed_connection() {
    let (server, mut incoming, mut raw) = server(Limits { drain: Duration::from_millis(100), ..Limits::default() });
    raw.syn(1).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    stream.write_all(&[1; 120_000]).await.unwrap();
    tokio::spawn(async move { stream.shutdown().await });
    server.close();
    assert_eq!(soon(server.closed()).await, End::NotTaken);
}

/// A goodbye that is not answered is not waited for, either.
#[tokio::test]
async fn a_peer_that_does_not_leave_is_left() {
    let (server, _incoming, mut raw) = server(Limits { linger: Duration::from_millis(100), ..Limits::default() });
    server.close();
    let mut goodbye = false;
    loop {
        match soon(raw.next()).await {
            Got::Frame(Frame::GoAway { status: 0, .. }) => goodbye = true,
            Got::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(goodbye);
    assert_eq!(soon(server.closed()).await, End::Closed);
}

/// A peer that still sends while it is said goodbye to gets all there is for it.
#[tokio::test]
async fn what_a_peer_still_sends_does_not_cost_it_the_last_words() {
    let (server, mut incoming, raw) = server(Limits::default());
    let (mut read, mut write) = tokio::io::split(raw.io);
    let (mut encoder, mut decoder) = (raw.encoder, raw.decoder);
    let flood = tokio::spawn(async move {
        let mut out = Vec::new();
        let headers = Headers::new();
        let syn =
            Frame::SynStream { stream: 1, associated: 0, priority: 0, fin: false, unidirectional: false, headers };
        encoder.control(&syn, &mut out).unwrap();
        Encoder::data(1, MAX_BODY, false, &mut out);
        out.resize(out.len() + MAX_BODY, 0);
        write.write_all(&out).await
    });
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    stream.write_all(b"exit code 3").await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    server.close();
    let mut bytes = Vec::new();
    soon(read.read_to_end(&mut bytes)).await.unwrap();
    let (mut at, mut words) = (0, Vec::new());
    while let Some((used, input)) = decoder.decode(&bytes[at..]).unwrap() {
        at += used;
        if let Input::Data { data, .. } = input {
            words.extend_from_slice(data);
        }
    }
    assert_eq!(words, b"exit code 3");
    drop(read);
    flood.abort();
}
