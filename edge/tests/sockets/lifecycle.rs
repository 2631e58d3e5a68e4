//! How connections end, and the shard with them.

use std::time::Duration;

use tokio::time::Instant;
use trunkline_edge::{accept, inbox::ShardInput};
use trunkline_proto::{units::HumanDuration, v1::CloseCause};

use crate::support::{Edge, RawClient, api, code, request};

#[tokio::test]
async fn drain_closes_all_spread_over_its_time_and_the_shard_ends() {
    let edge = Edge::echo();
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(edge.connect_raw("/echo").await.0);
    }
    edge.send(ShardInput::StopAccepting).await;
    let spread = Duration::from_secs(1);
    edge.send(ShardInput::CloseAll { cause: CloseCause::EdgeDrained, spread, record: true, decided: None }).await;
    let (mut times, began) = (Vec::new(), Instant::now());
    for client in &mut clients {
        let (first, payload) = client.frame().await.unwrap();
        assert_eq!((first, code(&payload)), (0x88, 1012));
        times.push(began.elapsed());
    }
    assert!(*times.last().unwrap() > Duration::from_millis(300), "not all at once: {times:?}");
    for _ in 0..30 {
        let (code, _, cause) = edge.log.closed().await;
        assert_eq!((code, cause), (1012, CloseCause::EdgeDrained));
    }
    assert!(tokio::net::TcpStream::connect(edge.address).await.is_err(), "nobody listens any more");
    drop(clients);
    edge.stop().await;
}

#[tokio::test]
async fn lost_incarnation_closes_all_and_records_nothing() {
    let edge = Edge::echo();
    let (mut client, _) = edge.connect_raw("/echo").await;
    let (cause, spread) = (CloseCause::EdgeLost, Duration::ZERO);
    let close = ShardInput::CloseAll { cause, spread, record: false, decided: None };
    edge.send(close).await;
    let (first, payload) = client.frame().await.unwrap();
    assert_eq!((first, code(&payload)), (0x88, 1012));
    assert!(edge.log.is_empty());
    // the next incarnation takes new ones at once
    let (_next, _) = edge.connect_raw("/echo").await;
    drop(edge);
}

#[tokio::test]
async fn silent_client_is_pinged_then_closed() {
    let edge = Edge::start(vec![api("echo", |api| {
        api.ping_interval = HumanDuration(Duration::from_millis(300));
        api.ping_timeout = HumanDuration(Duration::from_millis(300));
    })]);
    let (mut client, _) = edge.connect_raw("/echo").await;
    assert_eq!(client.frame().await, Some((0x89, vec![])));
    let (first, payload) = client.frame().await.unwrap();
    assert_eq!((first, code(&payload)), (0x88, 1001));
    assert_eq!(edge.log.closed().await, (1001, "no pong".to_owned(), CloseCause::PingTimeout));
    // it never answers the close frame: TCP ends all the same
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn client_that_never_answers_a_close_is_dropped_after_five_seconds() {
    let edge = Edge::start(vec![api("echo", |api| api.idle_timeout = HumanDuration(Duration::from_millis(200)))]);
    let (mut client, _) = edge.connect_raw("/echo").await;
    let began = Instant::now();
    assert_eq!(client.frame().await.unwrap().0, 0x88);
    assert_eq!(client.rest().await, b"");
    assert!((Duration::from_secs(4)..Duration::from_secs(7)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(edge.apis[0].connections(), 0);
}

#[tokio::test]
async fn reset_connection_is_recorded_once() {
    let edge = Edge::echo();
    let (client, _) = edge.connect_raw("/echo").await;
    client.stream.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(edge.log.closed().await, (1006, String::new(), CloseCause::ClientVanished));
    edge.stop().await;
}

#[tokio::test]
async fn port_that_is_taken_is_not_shared_by_mistake() {
    let listeners = accept::bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
    let address = listeners[0].local_addr().unwrap();
    assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
    assert!(accept::bind(address, 1).is_err());
    assert!(accept::bind(address, 2).is_err());
}

#[tokio::test]
async fn many_come_and_go() {
    let edge = Edge::echo();
    for _ in 0..20 {
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = RawClient::dial(edge.address).await;
            client.send(request("/echo").as_bytes()).await;
            clients.push(client);
        }
        for client in &mut clients {
            assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        }
    }
    let mut open = 0i32;
    for _ in 0..800 {
        match edge.log.next().await.kind {
            trunkline_proto::RecordKind::ConnectionOpened => open += 1,
            _ => open -= 1,
        }
        assert!(open >= 0);
    }
    assert_eq!(open, 0);
    edge.stop().await;
}
