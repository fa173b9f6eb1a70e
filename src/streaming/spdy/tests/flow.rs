//! Windows, back-pressure and whose turn it is.

use super::*;

/// Reads frames until there are so many bytes of data in them, then until nothing more comes for a moment.
async fn settles_at(raw: &mut Raw, bytes: usize) {
    let mut got = 0;
    loop {
        let frame = if got < bytes {
            soon(raw.any()).await
        } else {
            let Ok(frame) = tokio::time::timeout(Duration::from_millis(200), raw.any()).await else { break };
            frame
        };
        match frame {
            Got::Data { data, .. } => got += data.len(),
            Got::End => break,
            Got::Frame(_) => {}
        }
    }
    assert_eq!(got, bytes);
}

/// A server's stream 1 that writes without end.
async fn writer(incoming: &mut Incoming) -> tokio::task::JoinHandle<usize> {
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    tokio::spawn(async move {
        let mut sent = 0;
        while let Ok(len) = stream.write(&[7; 10_000]).await {
            sent += len;
        }
        sent
    })
}

#[tokio::test]
async fn a_peer_that_heeds_windows_is_sent_no_more_than_it_grants() {
    let (_server, mut incoming, mut raw) = server(Limits::default());
    raw.heed().await;
    raw.syn(1).await;
    let writer = writer(&mut incoming).await;
    settles_at(&mut raw, 65536).await;
    // The connection's window is used up, too.
    raw.send(Frame::WindowUpdate { stream: 1, delta: 1000 }).await;
    settles_at(&mut raw, 0).await;
    raw.send(Frame::WindowUpdate { stream: 0, delta: 300 }).await;
    settles_at(&mut raw, 300).await;
    raw.send(Frame::WindowUpdate { stream: 0, delta: 5000 }).await;
    settles_at(&mut raw, 700).await;
    raw.send(Frame::Settings { clear: false, entries: vec![(INITIAL_WINDOW_SIZE, 65536 + 50)] }).await;
    settles_at(&mut raw, 50).await;
    drop(raw);
    assert!(soon(writer).await.unwrap() < 65536 + 1050 + Limits::default().send_buffer + 10_000);
}

/// The server's first word may come late.
#[tokio::test]
async fn a_client_keeps_to_the_first_window_until_it_is_granted_more() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let ((handle, _incoming), mut raw) = (Connection::client(near, Limits::default()), Raw::new(far));
    let mut stream = handle.open(Headers::new().with("streamtype", "data"), false).unwrap();
    let writer = tokio::spawn(async move { stream.write_all(&vec![7; 1 << 20]).await });
    assert!(matches!(soon(raw.next()).await, Got::Frame(Frame::SynStream { stream: 1, .. })));
    settles_at(&mut raw, 65536).await;
    writer.abort();
}

#[tokio::test]
async fn an_end_needs_no_window() {
    let (_server, mut incoming, mut raw) = server(Limits::default());
    raw.heed().await;
    raw.syn(1).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    stream.write_all(&vec![1; 65536]).await.unwrap();
    settles_at(&mut raw, 65536).await;
    tokio::spawn(async move { stream.shutdown().await });
    assert_eq!(soon(raw.next()).await, Got::Data { stream: 1, data: vec![], fin: true });
}

#[tokio::test]
async fn a_peer_that_heeds_no_windows_is_held_by_the_transport_alone() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let writer = writer(&mut incoming).await;
    let mut got = 0;
    while got < 10 << 20 {
        match soon(raw.next()).await {
            Got::Data { data, .. } => got += data.len(),
            Got::Frame(_) => {}
            Got::End => panic!(),
        }
    }
    // Not reading any more stops the writer: what it got rid of is what the buffers on the way hold.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (_, _, outgoing) = server.left();
    assert!(outgoing <= Limits::default().send_buffer, "{outgoing}");
    drop(raw);
    let sent = soon(writer).await.unwrap();
    assert!(sent < got + 512 * 1024, "{sent} of {got}");
}

#[tokio::test]
async fn what_is_read_is_granted_again() {
    let limits = Limits { stream_window: 64 * 1024, buffer: 128 * 1024, ..Limits::default() };
    let (_server, mut incoming, mut raw) = server(limits);
    raw.heed().await;
    raw.syn(1).await;
    raw.data(1, &[1; 40_000], false).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let mut text = vec![0; 40_000];
    soon(stream.read_exact(&mut text)).await.unwrap();
    loop {
        if let Got::Frame(Frame::WindowUpdate { stream: 1, delta }) = soon(raw.any()).await {
            assert!((32 * 1024..=40_000).contains(&delta), "{delta}");
            break;
        }
    }
    raw.data(1, &[2; 40_000], false).await;
    soon(stream.read_exact(&mut text)).await.unwrap();
    loop {
        if let Got::Frame(Frame::WindowUpdate { stream: 0, delta }) = soon(raw.any()).await {
            assert!((64 * 1024..=80_000).contains(&delta), "{delta}");
            break;
        }
    }
}

#[tokio::test]
async fn data_beyond_the_window_resets_the_stream_and_spares_the_others() {
    let limits = Limits { stream_window: 64 * 1024, ..Limits::default() };
    let (_server, mut incoming, mut raw) = server(limits);
    raw.heed().await;
    raw.syn(1).await;
    raw.syn(3).await;
    raw.data(1, &vec![1; 65536], false).await;
    raw.data(1, &[1], false).await;
    raw.data(3, b"fine", true).await;
    // The first is reset before anyone took it.
    raw.send(Frame::Ping(1)).await;
    let mut reset = None;
    loop {
        match soon(raw.any()).await {
            Got::Frame(Frame::RstStream { stream: 1, status }) => reset = Some(status),
            Got::Frame(Frame::Ping(_)) => break,
            _ => {}
        }
    }
    let mut three = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let mut text = String::new();
    soon(three.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "fine");
    if reset.is_none() {
        reset = loop {
            if let Got::Frame(Frame::RstStream { stream: 1, status }) = soon(raw.any()).await {
                break Some(status);
            }
        };
    }
    assert_eq!(reset, Some(ResetStatus::FLOW_CONTROL_ERROR));
}

#[tokio::test]
async fn data_beyond_the_connections_window_ends_it() {
    let limits = Limits { stream_window: 64 * 1024, buffer: 64 * 1024, ..Limits::default() };
    let (server, _incoming, mut raw) = server(limits);
    raw.heed().await;
    for stream in [1, 3] {
        raw.syn(stream).await;
        raw.data(stream, &vec![1; 40_000], false).await;
    }
    assert_eq!(soon(raw.next()).await, Got::Frame(Frame::GoAway { last: 3, status: 1 }));
    drop(raw);
    assert!(matches!(soon(server.closed()).await, End::Protocol(_)));
}

#[tokio::test]
async fn a_window_that_overflows_resets_or_ends() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let _stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    raw.send(Frame::WindowUpdate { stream: 1, delta: 0x7fff_ffff }).await;
    loop {
        if let Got::Frame(Frame::RstStream { stream: 1, status }) = soon(raw.any()).await {
            break assert_eq!(status, ResetStatus::FLOW_CONTROL_ERROR);
        }
    }
    raw.send(Frame::WindowUpdate { stream: 0, delta: 0x7fff_ffff }).await;
    assert_eq!(soon(raw.next()).await, Got::Frame(Frame::GoAway { last: 1, status: 1 }));
    drop(raw);
    assert!(matches!(soon(server.closed()).await, End::Protocol(_)));
}

/// One stream is not read, the peer heeds no windows: the others go on until the buffer is full, then the
/// peer is held, and once the stream is read everything goes on, with nothing lost.
#[tokio::test]
async fn a_stream_nobody_reads_holds_the_peer_back_in_the_end() {
    let limits = Limits { buffer: 256 * 1024, ..Limits::default() };
    let (server, mut incoming, raw) = server(limits);
    let (mut near, far) = (raw.encoder, raw.io);
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    let sender = tokio::spawn(async move {
        let mut out = Vec::new();
        for stream in [1, 3] {
            let headers = Headers::new();
            let syn =
                Frame::SynStream { stream, associated: 0, priority: 0, fin: false, unidirectional: false, headers };
            near.control(&syn, &mut out).unwrap();
        }
        for _ in 0..100 {
            for (stream, byte) in [(1, 1u8), (3, 3)] {
                Encoder::data(stream, 10_000, false, &mut out);
                out.extend_from_slice(&[byte; 10_000]);
            }
        }
        Encoder::data(1, 0, true, &mut out);
        Encoder::data(3, 0, true, &mut out);
        write.write_all(&out).await.unwrap();
        write
    });
    let mut one = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let mut three = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let mut text = vec![0; 200_000];
    soon(three.read_exact(&mut text)).await.unwrap();
    assert!(text.iter().all(|byte| *byte == 3));
    // Now the unread stream fills the buffer.
    let mut rest = Vec::new();
    let full = async {
        while server.left().1 <= 256 * 1024 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        end = three.read_to_end(&mut rest) => panic!("{end:?}"),
        () = soon(full) => {}
    }
    let blocked = tokio::time::timeout(Duration::from_millis(300), three.read_to_end(&mut rest)).await;
    assert!(blocked.is_err());
    let (_, unread, _) = server.left();
    assert!(unread > 256 * 1024 && unread <= 256 * 1024 + 64 * 1024, "{unread}");
    assert!(!sender.is_finished());
    let mut first = Vec::new();
    let both = async { tokio::try_join!(one.read_to_end(&mut first), three.read_to_end(&mut rest)) };
    soon(both).await.unwrap();
    assert!(first.len() == 1_000_000 && first.iter().all(|byte| *byte == 1));
    assert_eq!(rest.len(), 800_000);
    soon(sender).await.unwrap();
}

/// A stream that sends as much as it can does not keep another one from its turn.
#[tokio::test]
async fn every_stream_has_its_turn() {
    let (_server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let _writer = writer(&mut incoming).await;
    let mut before = 0;
    while before < 1 << 20 {
        if let Got::Data { data, .. } = soon(raw.next()).await {
            before += data.len();
        }
    }
    raw.syn(3).await;
    let mut small = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let asked = tokio::spawn(async move {
        small.write_all(b"me too").await.unwrap();
        small
    });
    let mut between = 0;
    loop {
        match soon(raw.next()).await {
            Got::Data { stream: 3, .. } => break,
            Got::Data { data, .. } => between += data.len(),
            Got::Frame(_) => {}
            Got::End => panic!(),
        }
    }
    assert!(between < 512 * 1024, "{between}");
    drop(asked);
}

/// The writes and reads of a stream lose nothing when they are given up half way, again and again.
#[tokio::test]
async fn giving_up_a_read_or_a_write_loses_nothing() {
    let ((_server, mut incoming), (client, _)) = pair(Limits::default());
    let mut stream = client.open(Headers::new(), false).unwrap();
    let mut other = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let text: Vec<u8> = (0..400_000u32).flat_map(u32::to_le_bytes).collect();
    let expected = text.clone();
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while sent < text.len() {
            let end = text.len().min(sent + 3000);
            // Gives up every other time it would have to wait.
            tokio::select! { biased;
                len = stream.write(&text[sent..end]) => sent += len.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
        stream.shutdown().await.unwrap();
        stream
    });
    let mut got = Vec::new();
    let mut part = [0; 1111];
    loop {
        let len = tokio::select! { biased;
            len = other.read(&mut part) => len.unwrap(),
            () = tokio::task::yield_now() => continue,
        };
        if len == 0 {
            break;
        }
        got.extend_from_slice(&part[..len]);
    }
    assert!(got == expected);
    soon(sender).await.unwrap();
}
