//! Streams of well-behaved peers.

use std::io::ErrorKind;

use super::*;

#[tokio::test]
async fn streams_carry_both_ways_and_end_one_half_at_a_time() {
    let ((_server, mut incoming), (client, _)) = pair(Limits::default());
    let echo = tokio::spawn(async move {
        let opening = incoming.next().await.unwrap();
        assert_eq!(opening.headers().get("streamType"), Some("stdin"));
        let mut stream = opening.accept(Headers::new().with("answer", "yes"));
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        text.reverse();
        stream.write_all(&text).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(stream.write_all(b"more").await.is_err());
        incoming
    });
    let mut stream = client.open(Headers::new().with("streamType", "stdin"), false).unwrap();
    assert_eq!(soon(stream.reply()).await.unwrap().get("answer"), Some("yes"));
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "cba");
    let mut incoming = soon(echo).await.unwrap();
    client.close();
    assert!(soon(incoming.next()).await.is_none());
    drop(stream);
}

#[tokio::test]
async fn many_streams_at_once_keep_apart() {
    let ((_server, mut incoming), (client, _)) = pair(Limits::default());
    tokio::spawn(async move {
        while let Some(opening) = incoming.next().await {
            let stream = opening.accept(Headers::new());
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
    let mut all = tokio::task::JoinSet::new();
    for n in 0..500u32 {
        let client = client.clone();
        all.spawn(async move {
            let stream = client.open(Headers::new(), false).unwrap();
            stream.reply().await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let text: Vec<u8> = (0..20_000u32).flat_map(|i| (i ^ n).to_le_bytes()).collect();
            let mut back = Vec::new();
            let send = async {
                write.write_all(&text).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let (_, len) = tokio::join!(send, read.read_to_end(&mut back));
            assert_eq!(len.unwrap(), text.len());
            assert!(back == text);
        });
    }
    soon(all.join_all()).await;
    assert_eq!(client.left(), (0, 0, 0), "streams, bytes received and bytes to be sent that are left");
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_reset_after_what_was_ended() {
    let (_server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    raw.syn(3).await;
    let mut first = soon(incoming.next()).await.unwrap().accept(Headers::new());
    first.write_all(b"the last words").await.unwrap();
    first.shutdown().await.unwrap();
    drop(first);
    let mut second = soon(incoming.next()).await.unwrap().accept(Headers::new());
    second.write_all(b"x").await.unwrap();
    second.flush().await.unwrap();
    drop(second);
    // Frames of one stream keep their order; whose turn it is between the two does not matter.
    let (mut words, mut ends) = ([Vec::new(), Vec::new()], Vec::new());
    while ends.len() < 2 {
        match soon(raw.next()).await {
            Got::Frame(Frame::SynReply { .. }) => {}
            Got::Data { stream, data, fin } => {
                words[stream as usize / 2].extend(data);
                assert!(stream == 1 || !fin);
            }
            Got::Frame(Frame::RstStream { stream, status: ResetStatus::CANCEL }) => {
                ends.push(stream);
                assert_eq!(words[stream as usize / 2], if stream == 1 { &b"the last words"[..] } else { b"x" });
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_reset_and_a_refusal_reach_the_other_end() {
    let ((_server, mut incoming), (client, _)) = pair(Limits::default());
    let mut one = client.open(Headers::new(), false).unwrap();
    let two = client.open(Headers::new(), false).unwrap();
    let three = client.open(Headers::new(), false).unwrap();
    let accepted = soon(incoming.next()).await.unwrap().accept(Headers::new());
    accepted.reset(ResetStatus::INTERNAL_ERROR);
    soon(incoming.next()).await.unwrap().reject(ResetStatus::PROTOCOL_ERROR);
    drop(soon(incoming.next()).await.unwrap());
    let error = soon(one.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("internal error"), "{error}");
    assert!(soon(two.reply()).await.unwrap_err().to_string().contains("protocol error"));
    assert!(soon(three.reply()).await.unwrap_err().to_string().contains("refused"));
    assert!(one.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_reset_of_a_stream_nobody_took_takes_it_from_the_queue() {
    let (_server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    raw.send(Frame::RstStream { stream: 1, status: ResetStatus::CANCEL }).await;
    raw.syn(3).await;
    raw.send(Frame::Ping(1)).await;
    loop {
        if soon(raw.any()).await == Got::Frame(Frame::Ping(1)) {
            break;
        }
    }
    assert_eq!(soon(incoming.next()).await.unwrap().accept(Headers::new()).id(), 3);
}

#[tokio::test]
async fn closing_sends_all_that_was_written_and_says_goodbye() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let text = vec![b'z'; 300_000];
    let writer = tokio::spawn(async move {
        stream.write_all(&text).await.unwrap();
        stream
    });
    let mut got = 0;
    let mut stream = None;
    loop {
        match soon(raw.next()).await {
            Got::Data { data, .. } => got += data.len(),
            Got::Frame(Frame::SynReply { .. }) => {}
            Got::Frame(Frame::GoAway { last: 1, status: 0 }) => break,
            other => panic!("{other:?}"),
        }
        if got > 200_000 && stream.is_none() {
            stream = Some(());
            server.close();
        }
    }
    // Closing stops the writer; what it had handed over has arrived.
    assert!(got >= 200_000);
    drop(writer);
    assert_eq!(soon(raw.next()).await, Got::End);
    drop(raw);
    assert_eq!(soon(server.closed()).await, End::Closed);
}

#[tokio::test]
async fn the_last_handle_closes_the_connection() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    stream.write_all(b"status").await.unwrap();
    stream.shutdown().await.unwrap();
    drop((server, incoming, stream));
    let mut frames = Vec::new();
    loop {
        match soon(raw.next()).await {
            Got::End => break,
            got => frames.push(got),
        }
    }
    assert!(frames.contains(&Got::Frame(Frame::GoAway { last: 1, status: 0 })), "{frames:?}");
    let data = frames.iter().filter_map(|got| match got {
        Got::Data { data, .. } => Some(data.as_slice()),
        _ => None,
    });
    assert_eq!(data.collect::<Vec<_>>().concat(), b"status");
}

#[tokio::test]
async fn a_goodbye_of_the_peer_lets_streams_end() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    raw.send(Frame::GoAway { last: 0, status: 0 }).await;
    assert!(soon(incoming.next()).await.is_none());
    raw.data(1, b"still here", true).await;
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "still here");
    assert!(matches!(server.open(Headers::new(), false), Err(OpenError::Closing)));
    stream.shutdown().await.unwrap();
    drop(stream);
    while soon(raw.next()).await != Got::End {}
    drop(raw);
    assert_eq!(soon(server.closed()).await, End::GoAway);
}

#[tokio::test]
async fn a_peer_that_is_gone_fails_its_streams() {
    let (server, mut incoming, mut raw) = server(Limits::default());
    raw.syn(1).await;
    raw.data(1, b"before", false).await;
    let mut stream = soon(incoming.next()).await.unwrap().accept(Headers::new());
    let mut text = vec![0; 6];
    soon(stream.read_exact(&mut text)).await.unwrap();
    drop(raw);
    assert_eq!(soon(stream.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(soon(stream.write_all(b"x")).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(soon(server.closed()).await, End::Hangup);
    assert!(soon(incoming.next()).await.is_none());
}

#[tokio::test]
async fn pings_come_back() {
    let (_server, _incoming, mut raw) = server(Limits::default());
    raw.send(Frame::Ping(77)).await;
    loop {
        match soon(raw.any()).await {
            Got::Frame(Frame::Ping(id)) => break assert_eq!(id, 77),
            Got::End => panic!(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_its_answers_do_not_count() {
    let short = Duration::from_millis(40);
    let limits = Limits { ping: Some(short), idle: Some(short * 10), linger: short, ..Limits::default() };
    let (server, _incoming, mut raw) = server(limits);
    let mut pings = 0;
    loop {
        match soon(raw.any()).await {
            Got::Frame(Frame::Ping(2)) => {
                pings += 1;
                raw.send(Frame::Ping(2)).await;
            }
            Got::Frame(Frame::GoAway { .. }) => break,
            Got::End => panic!(),
            _ => {}
        }
    }
    assert!(pings > 1);
    assert_eq!(soon(server.closed()).await, End::Idle);
}
