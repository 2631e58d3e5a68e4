//! Sockets that speak HTTP/2 badly or not at all (reliability A37 to A43): what becomes of them, and that others are served meanwhile.

use std::{io::ErrorKind, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::tests::Served;
use crate::{access::Access, handlers::tests::broker::PATIENCE, tcp::Limits};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types and flags of RFC 9113.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
/// POST http `/`, from the static table.
const REQUEST: [u8; 3] = [0x83, 0x86, 0x84];

const LEASE: Duration = Duration::from_secs(2);

async fn served(limits: Limits) -> Served {
    Served::start_within(1, Access::default(), limits, LEASE).await
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A socket that has greeted.
async fn greeted(served: &Served) -> TcpStream {
    let mut socket = TcpStream::connect(served.address).await.unwrap();
    socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    socket
}

/// Everything that still comes, until the server ends the connection.
async fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match timeout(PATIENCE, socket.read_to_end(&mut bytes)).await.expect("the connection is ended") {
        Ok(_) => {}
        Err(error) => assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}"),
    }
    bytes
}

/// The error code of the last GOAWAY among frames.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    let mut code = None;
    while let Some((head, after)) = bytes.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, after)) = after.split_at_checked(length) else { break };
        if head[3] == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        bytes = after;
    }
    code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_says_nothing_is_not_waited_for() {
    let served = served(Limits { patience: Duration::from_millis(200), ..Limits::default() }).await;
    for said in [&b""[..], &PREFACE[..10], &PREFACE[..23]] {
        let mut socket = TcpStream::connect(served.address).await.unwrap();
        socket.write_all(said).await.unwrap();
        assert!(rest(&mut socket).await.is_empty());
    }
    // one that goes on a byte at a time has no longer
    let mut socket = TcpStream::connect(served.address).await.unwrap();
    let begun = Instant::now();
    for byte in PREFACE {
        if socket.write_all(&[*byte]).await.is_err() || begun.elapsed() > PATIENCE {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() < PATIENCE && rest(&mut socket).await.is_empty());
    served.works().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_greets_and_answers_no_ping_is_gone_with_the_lease() {
    let served = served(Limits::default()).await;
    let mut socket = greeted(&served).await;
    rest(&mut socket).await;
    served.works().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_beyond_the_bound_are_closed_and_make_room_when_they_end() {
    let limits = Limits { connections: 64, per_address: 3, patience: Duration::from_secs(600) };
    let served = served(limits).await;
    served.works().await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(served.address).await.unwrap());
    }
    let mut beyond = TcpStream::connect(served.address).await.unwrap();
    assert!(rest(&mut beyond).await.is_empty(), "closed at once");
    served.works().await;
    drop(held);
    let begun = Instant::now();
    loop {
        let mut socket = greeted(&served).await;
        let mut first = [0; 9];
        if matches!(timeout(PATIENCE, socket.read_exact(&mut first)).await, Ok(Ok(_))) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "there is room again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_reset_as_fast_as_they_are_opened_end_the_connection() {
    let served = served(Limits::default()).await;
    let mut socket = greeted(&served).await;
    let mut flood = Vec::new();
    for stream in (1..20_000u32).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &REQUEST));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    // the end of the connection may come while this is sent
    let _ = timeout(PATIENCE, socket.write_all(&flood)).await.unwrap();
    assert!(matches!(goaway(&rest(&mut socket).await), None | Some(ENHANCE_YOUR_CALM)));
    served.works().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_that_we_must_reset_end_the_connection() {
    let served = served(Limits::default()).await;
    let mut socket = greeted(&served).await;
    let mut flood = Vec::new();
    for stream in (1..20_000u32).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &REQUEST));
        // a window may not grow by nothing (RFC 9113, section 6.9)
        flood.extend(frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes()));
    }
    let _ = timeout(PATIENCE, socket.write_all(&flood)).await.unwrap();
    assert_ne!(goaway(&rest(&mut socket).await), Some(0), "it is no orderly end");
    served.works().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn headers_without_end_end_the_connection() {
    let served = served(Limits::default()).await;
    let mut socket = greeted(&served).await;
    socket.write_all(&frame(HEADERS, 0, 1, &REQUEST)).await.unwrap();
    // a literal of 127 bytes, again and again
    let literal: Vec<u8> = [&[0x40, 0x01, b'a', 0x7e][..], &[b'x'; 126]].concat();
    let flood = frame(CONTINUATION, 0, 1, &literal.repeat(100));
    let mut sent = 0;
    while sent < 64 << 20 && matches!(timeout(PATIENCE, socket.write_all(&flood)).await, Ok(Ok(()))) {
        sent += flood.len();
    }
    assert!(sent < 64 << 20, "it was all read");
    served.works().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_floods_and_reads_nothing_is_not_kept() {
    let served = served(Limits { patience: Duration::from_secs(1), ..Limits::default() }).await;
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let flood = flood.repeat(10_000);
        let mut socket = greeted(&served).await;
        let mut sent = 0;
        let begun = Instant::now();
        // answers that nobody reads stop the reading, and who takes none of them is closed
        while let Ok(()) = timeout(PATIENCE, socket.write_all(&flood)).await.expect("the connection is ended") {
            sent += flood.len();
            assert!(sent < 256 << 20 && begun.elapsed() < 2 * PATIENCE, "{sent}");
        }
        served.works().await;
    }
    served.stop().await;
}
