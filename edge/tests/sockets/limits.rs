//! How many may come, how often, from where (attack rows A8 to A12). After each refusal the same shard serves others.

use std::time::{Duration, Instant};

use trunkline_proto::{
    RecordKind,
    v1::{self, CloseCause},
};

use crate::support::{Edge, RawClient, api, code, frame, request};

/// The answer's status, to a request with these headers.
async fn status(edge: &Edge, headers: &str) -> u16 {
    let mut client = RawClient::dial(edge.address).await;
    client.send(request("/echo").replace("Host:", &format!("{headers}Host:")).as_bytes()).await;
    client.head().await.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_gets_them_back() {
    let edge = Edge::start_with(vec![api("echo", |_| ())], |edge| edge.max_connections_per_address = 3);
    // one of the three has not said a word
    let silent = RawClient::dial(edge.address).await;
    let (one, _) = edge.connect_raw("/echo").await;
    let (two, _) = edge.connect_raw("/echo").await;
    let mut refused = RawClient::dial(edge.address).await;
    let head = refused.head().await;
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: "), "{head}");
    drop((silent, one));
    assert_eq!(edge.log.closed().await.2, CloseCause::ClientVanished);
    let back = async { while status(&edge, "").await != 101 {} };
    tokio::time::timeout(crate::support::PATIENCE, back).await.expect("a place is given back");
    drop(two);
    edge.stop().await;
}

#[tokio::test]
async fn an_address_may_come_so_often() {
    let edge = Edge::start_with(vec![api("echo", |_| ())], |edge| edge.max_handshakes_per_address = 1);
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(status(&edge, "").await);
    }
    assert_eq!(answers[..2], [101, 101]);
    // a slow machine may earn another one meanwhile
    assert!(answers.iter().filter(|answer| **answer == 429).count() >= 5, "{answers:?}");
    edge.stop().await;
}

#[tokio::test]
async fn a12_an_address_is_believed_of_trusted_proxies_only() {
    let forwarded = |n: u32| format!("X-Forwarded-For: 1.1.1.1, 198.51.100.{n}\r\nForwarded: for=9.9.9.9\r\n");
    let edge = Edge::start_with(vec![api("echo", |_| ())], |edge| {
        edge.trusted_proxies = vec!["127.0.0.0/8".to_owned()];
        edge.max_handshakes_per_address = 1;
    });
    for n in 0..20 {
        assert_eq!(status(&edge, &forwarded(n)).await, 101, "each is another client");
    }
    assert_eq!(edge.log.opened().await.1.peer, "198.51.100.0:0");
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(status(&edge, &forwarded(7)).await);
    }
    assert!(answers.contains(&429), "{answers:?}");
    edge.stop().await;

    let edge = Edge::start_with(vec![api("echo", |_| ())], |edge| edge.max_handshakes_per_address = 1);
    let mut answers = Vec::new();
    for n in 0..10 {
        answers.push(status(&edge, &forwarded(n)).await);
    }
    assert!(answers.iter().filter(|answer| **answer == 429).count() >= 5, "the header is forged: {answers:?}");
    assert!(edge.log.opened().await.1.peer.starts_with("127.0.0.1:"));
    edge.stop().await;
}

#[tokio::test]
async fn an_api_takes_so_many_handshakes_and_a_connection_sends_so_many_messages() {
    let edge = Edge::start(vec![api("echo", |api| api.max_handshakes = 1), api("chat", |api| api.max_messages = 5)]);
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(status(&edge, "").await);
    }
    assert_eq!(answers[..2], [101, 101]);
    assert!(answers.iter().filter(|answer| **answer == 503).count() >= 5, "{answers:?}");
    edge.stop().await;

    let edge = Edge::start(vec![api("chat", |api| api.max_messages = 5)]);
    let (mut client, _) = edge.connect_raw("/chat").await;
    let burst: Vec<u8> = (0..50).flat_map(|_| frame(0x81, b"x")).collect();
    client.send(&burst).await;
    let (opcode, payload) = client.frame().await.unwrap();
    assert_eq!((opcode, code(&payload)), (0x88, 1008));
    for _ in 0..10 {
        edge.log.message().await;
    }
    assert_eq!(edge.log.closed().await, (1008, "too many messages".to_owned(), CloseCause::RateLimited));
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn an_address_sends_so_many_messages_over_all_its_connections() {
    let edge = Edge::start(vec![api("chat", |api| api.max_messages_per_address = 5), api("echo", |_| ())]);
    let (mut quiet, _) = edge.connect_raw("/chat").await;
    let (mut elsewhere, _) = edge.connect_raw("/echo").await;
    let (begun, mut messages) = (Instant::now(), 0);
    for _ in 0..6 {
        let (mut client, _) = edge.connect_raw("/chat").await;
        let burst: Vec<u8> = (0..20).flat_map(|_| frame(0x81, b"x")).collect();
        client.send(&burst).await;
        let (opcode, payload) = client.frame().await.unwrap();
        assert_eq!((opcode, code(&payload)), (0x88, 1008));
        let closed = loop {
            let record = edge.log.next().await;
            match record.kind {
                RecordKind::MessageReceived => messages += 1,
                _ => break record.decode::<v1::ConnectionClosed>().unwrap(),
            }
        };
        assert_eq!((closed.code, closed.reason.as_str()), (1008, "too many messages from this address"));
    }
    // a new connection has no burst of its own
    let most = 10.0 + 5.0 * begun.elapsed().as_secs_f64() + 1.0;
    assert!(messages >= 10 && f64::from(messages) <= most, "{messages} of at most {most}");
    // who was quiet is as fast as his address may be, and another API is none of its business
    elsewhere.send(&frame(0x81, b"x")).await;
    edge.log.message().await;
    quiet.send(&(0..20).flat_map(|_| frame(0x81, b"x")).collect::<Vec<u8>>()).await;
    assert_eq!(code(&quiet.frame().await.unwrap().1), 1008);
    drop((quiet, elsewhere));
    edge.stop().await;
}

#[tokio::test]
async fn what_an_api_is_sent_beyond_its_rate_waits_and_nobody_is_closed() {
    let edge = Edge::start(vec![api("chat", |api| api.max_messages_per_api = 100), api("echo", |_| ())]);
    let (mut fast, _) = edge.connect_raw("/chat").await;
    let (mut quiet, _) = edge.connect_raw("/chat").await;
    let (mut elsewhere, _) = edge.connect_raw("/echo").await;
    let begun = Instant::now();
    fast.send(&(0..300).flat_map(|_| frame(0x81, b"f")).collect::<Vec<u8>>()).await;
    for _ in 0..300 {
        edge.log.message().await;
    }
    elsewhere.send(&frame(0x81, b"e")).await;
    edge.log.message().await;
    // two hundred at once, so that a hundred are owed, which takes a second
    quiet.send(&frame(0x81, b"q")).await;
    edge.log.message().await;
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
    // both are open still
    for client in [&mut fast, &mut quiet] {
        client.send(&frame(0x81, b"x")).await;
        edge.log.message().await;
    }
    drop((fast, quiet, elsewhere));
    edge.stop().await;
}

#[tokio::test]
async fn a10_a11_only_listed_origins_come_in_whatever_cookie_they_bring() {
    let edge = Edge::start(vec![api("echo", |api| {
        api.origins = vec!["https://good.com".to_owned()];
        api.origin_required = true;
    })]);
    for origin in [
        "null",
        "https://evil.com",
        "https://good.com.evil.com",
        "https://evilgood.com",
        "https://evil.com/https://good.com",
        "http://good.com",
        "https://good.com:8443",
        "https://good.com:443",
        "https://GOOD.com",
        "HTTPS://good.com",
        "https://good.com/",
        "https://good.com.",
        "https://good.com@evil.com",
        "",
    ] {
        for cookie in ["", "Cookie: session=valid\r\n"] {
            assert_eq!(status(&edge, &format!("Origin: {origin}\r\n{cookie}")).await, 403, "{origin:?}");
        }
    }
    assert_eq!(status(&edge, "").await, 403, "no browser");
    assert_eq!(status(&edge, "Origin: https://good.com\r\nOrigin: https://good.com\r\n").await, 400);
    assert_eq!(status(&edge, "Origin: https://good.com\r\n").await, 101);
    edge.stop().await;
}
