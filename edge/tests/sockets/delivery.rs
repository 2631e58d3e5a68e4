//! What the log delivers reaches the right sockets, once and in order.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use trunkline_edge::inbox::ShardInput;
use trunkline_proto::{
    ConnectionId, RecordKind,
    v1::{self, CloseCause},
};

use crate::support::{Edge, PATIENCE, api, code, frame, joined, left, published, pushed, record};

async fn text(client: &mut WebSocketStream<TcpStream>) -> String {
    let message = timeout(PATIENCE, client.next()).await.expect("a message in time");
    message.expect("a message").unwrap().into_text().unwrap().to_string()
}

#[tokio::test]
async fn pushes_arrive_in_order_and_messages_go_the_other_way() {
    let edge = Edge::echo();
    let (mut client, id) = edge.connect("/echo").await;
    for round in 0..50 {
        edge.deliver((0..20).map(|number| pushed(id, &format!("{round}.{number}"))).collect()).await;
    }
    edge.push(ConnectionId([9; 16]), "to nobody").await;
    for round in 0..50 {
        for number in 0..20 {
            assert_eq!(text(&mut client).await, format!("{round}.{number}"));
        }
    }
    edge.push(id, &"x".repeat(500_000)).await;
    assert_eq!(text(&mut client).await.len(), 500_000);
    client.send(Message::text("hello")).await.unwrap();
    client.send(Message::binary(vec![0, 159])).await.unwrap();
    assert_eq!(edge.log.message().await, &b"hello"[..]);
    assert_eq!(edge.log.message().await, &[0, 159][..]);
    client.close(None).await.unwrap();
    assert_eq!(edge.log.closed().await, (1005, String::new(), CloseCause::Client));
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn publishes_reach_the_members_of_that_moment_in_order() {
    let edge = Edge::start(vec![api("echo", |_| ()), api("other", |_| ())]);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(edge.connect("/echo").await);
    }
    let (mut stranger, _) = edge.connect("/other").await;
    let (first, last) = (clients[0].1, clients[19].1);
    let mut records: Vec<_> = clients.iter().map(|(_, id)| joined(*id, "room")).collect();
    records.push(published("room", "echo", "all", &[]));
    records.push(published("room", "echo", "but the first", &[first]));
    records.push(left(last, "room"));
    records.push(published("room", "echo", "but the last", &[]));
    records.push(joined(last, "room"));
    records.push(published("empty", "echo", "nobody", &[]));
    records.push(published("", "echo", "api", &[]));
    records.push(published("room", "echo", "end", &[]));
    edge.deliver(records).await;
    edge.send(ShardInput::Unlogged(published("room", "echo", "unlogged", &[]))).await;
    for (client, id) in &mut clients {
        let mut expected = vec!["all", "but the first", "but the last", "api", "end", "unlogged"];
        if *id == first {
            expected.remove(1);
        }
        if *id == last {
            expected.remove(2);
        }
        for text_expected in expected {
            assert_eq!(text(client).await, text_expected);
        }
    }
    edge.deliver(vec![published("", "other", "for you", &[])]).await;
    assert_eq!(text(&mut stranger).await, "for you", "and nothing else");
    drop(edge);
}

#[tokio::test]
async fn publishes_of_one_turn_go_out_in_one_write() {
    let edge = Edge::echo();
    let (mut client, id) = edge.connect_raw("/echo").await;
    let mut records = vec![joined(id, "room")];
    records.extend((0..50).map(|number| published("room", "echo", &format!("{number:03}"), &[])));
    edge.deliver(records).await;
    let mut bytes = [0; 4096];
    let read = timeout(PATIENCE, client.stream.read(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(read, 50 * 5);
    drop(edge);
}

#[tokio::test]
async fn slow_consumer_is_closed_and_others_are_not_slowed() {
    let edge = Edge::start(vec![api("echo", |api| api.max_queue = trunkline_proto::units::HumanSize(1 << 20))]);
    let (mut slow, slow_id) = edge.connect_raw("/echo").await;
    let (mut well, well_id) = edge.connect("/echo").await;
    edge.deliver(vec![joined(slow_id, "room"), joined(well_id, "room")]).await;
    let payload = "x".repeat(100_000);
    let mut sent = 0;
    // the kernel takes some megabytes before the queue does
    while edge.log.is_empty() && sent < 1000 {
        edge.deliver(vec![published("room", "echo", &payload, &[])]).await;
        assert_eq!(text(&mut well).await.len(), payload.len());
        sent += 1;
    }
    assert_eq!(edge.log.closed().await, (1013, "too slow".to_owned(), CloseCause::SlowConsumer));
    // what it then reads are whole frames and at their end the reason
    let bytes = slow.rest().await;
    let mut rest = &bytes[..];
    while rest[0] == 0x81 {
        rest = &rest[10 + payload.len()..];
    }
    assert_eq!((rest[0], code(&rest[2..])), (0x88, 1013));
    edge.push(well_id, "still here").await;
    assert_eq!(text(&mut well).await, "still here");
    drop(edge);
}

#[tokio::test]
async fn handler_closes_with_its_code_after_what_it_pushed() {
    let edge = Edge::echo();
    let (mut client, id) = edge.connect_raw("/echo").await;
    let close = v1::CloseRequested { code: 4001, reason: "enough".to_owned() };
    let after = pushed(id, "after");
    edge.deliver(vec![pushed(id, "bye"), record(RecordKind::CloseRequested, id, &close), after]).await;
    assert_eq!(client.frame().await, Some((0x81, b"bye".to_vec())));
    assert_eq!(client.frame().await, Some((0x88, b"\x0f\xa1enough".to_vec())));
    assert_eq!(edge.log.closed().await, (4001, "enough".to_owned(), CloseCause::Handler));
    client.send(&[frame(0x81, b"late"), frame(0x88, b"\x0f\xa1")].concat()).await;
    assert_eq!(client.rest().await, b"");
    assert!(edge.log.is_empty(), "nothing after the close");
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn reading_stops_while_there_is_no_room_and_goes_on_after() {
    let edge = Edge::echo();
    let (mut client, id) = edge.connect_raw("/echo").await;
    for pause in [true, false] {
        if pause {
            edge.log.set_paused(true);
        } else {
            edge.log.set_room(false);
        }
        client.send(&frame(0x81, b"waits")).await;
        // deliveries go on
        edge.push(id, "down").await;
        assert_eq!(client.frame().await, Some((0x81, b"down".to_vec())));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(edge.log.is_empty());
        edge.log.set_paused(false);
        edge.log.set_room(true);
        assert_eq!(edge.log.message().await, &b"waits"[..]);
    }
    drop(client);
    edge.log.closed().await;
    edge.stop().await;
}
