//! Every request gets its HTTP answer (attacks A1 to A12).

use std::time::Duration;

use tokio::{io::AsyncReadExt, time::Instant};
use trunkline_edge::{config::Registration, uplink::UplinkError};
use trunkline_proto::{
    RecordKind,
    v1::{self, CloseCause},
};

use crate::support::{Edge, RawClient, api, record, request};

async fn status(edge: &Edge, bytes: &[u8]) -> (u16, String) {
    let mut client = RawClient::dial(edge.address).await;
    client.send(bytes).await;
    let head = client.head().await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
}

#[tokio::test]
async fn bad_requests_are_answered_and_closed() {
    let edge = Edge::echo();
    let good = request("/echo");
    let cases = [
        (good.replace("/echo", "/nowhere"), 404),
        (good.replace("GET", "POST"), 405),
        (good.replace("Version: 13", "Version: 8"), 426),
        (good.replace("Host: localhost\r\n", ""), 400),
        (good.replace("Upgrade: websocket\r\n", ""), 426),
        (good.replace("/echo", &format!("/{}", "x".repeat(65_536))), 414),
        (good.replace("Host:", &format!("X: {}\r\nHost:", "x".repeat(1 << 20))), 431),
        (good.replace("Host:", &format!("{}Host:", "X: y\r\n".repeat(200))), 431),
        (format!("{good}GET /admin HTTP/1.1\r\n\r\n"), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), 400),
    ];
    for (bytes, expected) in cases {
        let mut client = RawClient::dial(edge.address).await;
        client.send(bytes.as_bytes()).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{head}");
        assert!(head.contains("application/problem+json"), "{head}");
        let body = client.rest().await;
        assert!(body.starts_with(b"{\"type\":"), "the answer is complete, then the end");
    }
    assert!(edge.log.is_empty(), "nothing of it reaches the log");
    edge.stop().await;
}

#[tokio::test]
async fn opened_record_says_what_the_client_asked() {
    let mut chat = api("chat", |api| api.path = "/rooms/{room}".parse().unwrap());
    chat.subprotocols = vec!["v2".to_owned(), "v1".to_owned()];
    let edge = Edge::start(vec![chat]);
    let asked = request("/rooms/42?token=x").replace(
        "Host:",
        "Sec-WebSocket-Protocol: v0, v1\r\nSec-WebSocket-Protocol: v2\r\nUser-Agent: test\r\nCookie: secret\r\nSec-WebSocket-Extensions: permessage-deflate\r\nHost:",
    );
    let (code, head) = status(&edge, asked.as_bytes()).await;
    assert_eq!(code, 101);
    assert!(head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    assert!(head.contains("\r\nSec-WebSocket-Protocol: v1\r\n"), "the first the client offered that is listed: {head}");
    assert!(!head.to_ascii_lowercase().contains("extensions"));
    let (_, opened) = edge.log.opened().await;
    assert_eq!((opened.edge.as_str(), opened.incarnation), ("e1", 7));
    assert_eq!((opened.path.as_str(), opened.query.as_str()), ("/rooms/42", "token=x"));
    assert_eq!((opened.parameters[0].name.as_str(), opened.parameters[0].value.as_str()), ("room", "42"));
    assert_eq!(opened.subprotocols, ["v0", "v1", "v2"]);
    let names: Vec<&str> = opened.headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(names, ["user-agent", "host"]);
    // the client is gone without a word
    assert_eq!(edge.log.closed().await, (1006, String::new(), CloseCause::ClientVanished));
    edge.stop().await;
}

#[tokio::test]
async fn foreign_origins_are_refused() {
    let edge = Edge::start(vec![api("echo", |api| api.origins = vec!["https://good.com".to_owned()])]);
    for (origin, expected) in [
        ("https://good.com", 101),
        ("https://good.com.evil.com", 403),
        ("http://good.com", 403),
        ("null", 403),
        ("HTTPS://good.com", 403),
    ] {
        let asked = request("/echo").replace("Host:", &format!("Origin: {origin}\r\nHost:"));
        assert_eq!(status(&edge, asked.as_bytes()).await.0, expected, "{origin}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn idle_strangers_are_closed_after_ten_seconds_and_others_served() {
    let edge = Edge::echo();
    let began = Instant::now();
    let mut silent = RawClient::dial(edge.address).await;
    let mut slow = RawClient::dial(edge.address).await;
    slow.send(b"GET /echo HTTP/1.1\r\nHost").await;
    let (_client, _) = edge.connect_raw("/echo").await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(14), slow.stream.read_to_end(&mut bytes)).await;
    read.expect("closed in time").unwrap();
    assert!(bytes.starts_with(b"HTTP/1.1 408 "));
    let _ = tokio::time::timeout(Duration::from_secs(4), silent.stream.read_to_end(&mut bytes)).await.expect("closed");
    assert!(began.elapsed() > Duration::from_secs(9));
}

#[tokio::test]
async fn handler_decides_about_a_registration() {
    let edge = Edge::start(vec![api("echo", |api| api.registration = Registration::Handler)]);
    // accepted
    let mut client = RawClient::dial(edge.address).await;
    client.send(request("/echo").replace("Host:", "Sec-WebSocket-Protocol: a, b\r\nHost:").as_bytes()).await;
    let (id, opened) = edge.log.opened().await;
    assert_eq!(opened.handler_group, "echo");
    let accepted = v1::ConnectionAccepted {
        subprotocol: "b".to_owned(),
        headers: vec![v1::Header { name: "X-Session".to_owned(), value: "1".to_owned() }],
        channels: vec!["room".to_owned()],
        ..Default::default()
    };
    edge.push(id, "welcome").await;
    let early = tokio::time::timeout(Duration::from_millis(100), client.stream.readable()).await;
    assert!(early.is_err(), "a delivery waits for the 101");
    edge.deliver(vec![record(RecordKind::ConnectionAccepted, id, &accepted)]).await;
    edge.deliver(vec![crate::support::joined(id, "room")]).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("Protocol: b\r\n") && head.contains("X-Session: 1\r\n"));
    assert_eq!(client.frame().await, Some((0x81, b"welcome".to_vec())));
    // rejected
    let mut client = RawClient::dial(edge.address).await;
    client.send(request("/echo").as_bytes()).await;
    let (id, _) = edge.log.opened().await;
    let rejected = v1::ConnectionRejected { status: 403, body: "not you".into() };
    edge.deliver(vec![record(RecordKind::ConnectionRejected, id, &rejected)]).await;
    assert!(client.head().await.starts_with("HTTP/1.1 403 "));
    assert_eq!(client.rest().await, b"not you");
    assert_eq!(edge.log.closed().await.2, CloseCause::Rejected);
    drop(edge);
}

#[tokio::test]
async fn registration_without_an_answer_times_out() {
    let edge = Edge::start(vec![api("echo", |api| {
        api.registration = Registration::Handler;
        api.registration_timeout = trunkline_proto::units::HumanDuration(Duration::from_millis(300));
    })]);
    assert_eq!(status(&edge, request("/echo").as_bytes()).await.0, 504);
    edge.log.opened().await;
    assert_eq!(edge.log.closed().await, (1006, String::new(), CloseCause::RegistrationTimeout));
    // who leaves meanwhile is recorded as such
    let mut client = RawClient::dial(edge.address).await;
    client.send(request("/echo").as_bytes()).await;
    edge.log.opened().await;
    drop(client);
    assert_eq!(edge.log.closed().await.2, CloseCause::ClientVanished);
    edge.stop().await;
}

#[tokio::test]
async fn nobody_sees_101_before_the_log_has_the_connection() {
    let edge = Edge::echo();
    edge.log.hold();
    let mut client = RawClient::dial(edge.address).await;
    client.send(request("/echo").as_bytes()).await;
    edge.log.opened().await;
    let early = tokio::time::timeout(Duration::from_millis(200), client.stream.readable()).await;
    assert!(early.is_err(), "no byte before it is applied");
    edge.log.decide(Ok(()));
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    // a fenced edge sends clients away and records nothing
    let mut client = RawClient::dial(edge.address).await;
    client.send(request("/echo").as_bytes()).await;
    edge.log.opened().await;
    edge.log.decide(Err(UplinkError::Fenced));
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nRetry-After: "), "{head}");
    assert!(edge.log.is_empty());
    drop(edge);
}

#[tokio::test]
async fn full_api_or_uplink_answers_503() {
    let edge = Edge::start(vec![api("echo", |api| api.max_connections = 1)]);
    let (first, _) = edge.connect_raw("/echo").await;
    let (code, head) = status(&edge, request("/echo").as_bytes()).await;
    assert!(code == 503 && head.contains("\r\nRetry-After: "), "{head}");
    drop(first);
    edge.log.closed().await;
    // the place is free once the socket is
    let (_second, _) = edge.connect_raw("/echo").await;
    edge.log.set_room(false);
    assert_eq!(status(&edge, request("/echo").as_bytes()).await.0, 503);
    drop(edge);
}
