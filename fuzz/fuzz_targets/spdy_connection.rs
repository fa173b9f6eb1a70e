//! Any bytes as a client of a server that echoes: it must not panic, hang, or hold more than its limits.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use podwright_fuzz::spdy::{Connection, Headers, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        // The first byte chooses how much is sent at once, and whether the echo reads.
        let (how, bytes) = bytes.split_first().unwrap_or((&0, &[]));
        let (near, far) = tokio::io::duplex(4096);
        let limits = Limits {
            streams: 8,
            stream_window: 64 * 1024,
            buffer: 64 * 1024,
            linger: Duration::from_millis(5),
            drain: Duration::from_millis(5),
            ..Limits::default()
        };
        let (server, mut incoming) = Connection::server(near, limits);
        let lazy = how & 1 == 1;
        let echo = tokio::spawn(async move {
            while let Some(opening) = incoming.next().await {
                let mut stream = opening.accept(Headers::new());
                tokio::spawn(async move {
                    let mut part = [0; 512];
                    while !lazy {
                        match stream.read(&mut part).await {
                            Ok(0) => return stream.shutdown().await,
                            Ok(len) => stream.write_all(&part[..len]).await?,
                            Err(error) => return Err(error),
                        }
                    }
                    stream.write_all(b"no").await
                });
            }
        });
        let (mut read, mut write) = tokio::io::split(far);
        let drain = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        for part in bytes.chunks(1 + usize::from(how >> 1) * 64) {
            if write.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = write.shutdown().await;
        drop(write);
        let end = tokio::time::timeout(Duration::from_secs(5), server.closed()).await;
        assert!(end.is_ok(), "it does not end");
        drain.abort();
        echo.abort();
    });
});
