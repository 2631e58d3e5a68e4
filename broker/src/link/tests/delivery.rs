use std::time::Duration;

use bytes::Bytes;
use trunkline_proto::{
    Batch, Offset, PartitionId, Record, RecordKind, Source,
    link::Frame,
    v1::{self, link as pb},
};

use super::support::{Broker, Edge, Options, Stream, batch, connection, message, published, text_of};

/// Deliveries until one is `last`, each with its offset.
async fn deliveries(stream: &mut Stream, last: &str) -> Vec<(Offset, String)> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(_, text): &(Offset, String)| text != last) {
        if let Some(Frame::Deliveries(frame)) = stream.next().await {
            assert!(frame.deliveries.last().is_some_and(|delivery| delivery.offset <= frame.through));
            seen.extend(frame.deliveries.iter().map(|delivery| (delivery.offset, text_of(delivery))));
        }
    }
    seen
}

fn texts(seen: &[(Offset, String)]) -> Vec<&str> {
    seen.iter().map(|(_, text)| text.as_str()).collect()
}

#[tokio::test]
async fn an_edge_gets_what_concerns_it_and_only_that() {
    let broker = Broker::start(Options::default()).await;
    let member = Edge::connect(&broker, "member", 1, 0).await;
    let other = Edge::connect(&broker, "other", 2, 0).await;
    let (mut member_stream, _) = member.attach(0, 0).await;
    let (mut other_stream, _) = other.attach(0, 0).await;
    member_stream.send(batch(1, &[member.opened(connection(1), &["room"])])).await;
    other_stream.send(batch(1, &[other.opened(connection(2), &[])])).await;
    other_stream.applied(1).await;
    let mut got = deliveries(&mut member_stream, "joined room").await;
    broker.publish("room", "one").await;
    broker.push(connection(2), "for the other").await;
    broker.push(connection(1), "end").await;
    got.extend(deliveries(&mut member_stream, "pushed end").await);
    assert_eq!(texts(&got), ["joined room", "published room one", "pushed end"]);
    assert!(got.is_sorted_by_key(|(offset, _)| *offset));
    assert_eq!(texts(&deliveries(&mut other_stream, "pushed for the other").await), ["pushed for the other"]);
    broker.stop().await;
}

#[tokio::test]
async fn with_nothing_to_deliver_progress_is_told() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    let offset = broker.publish("nobody", "x").await;
    let progress = stream.wait(|frame| match frame {
        Frame::Progress { offset } => Some(*offset),
        Frame::Deliveries(deliveries) => panic!("{deliveries:?}"),
        _ => None,
    });
    assert!(progress.await >= offset);
    broker.stop().await;
}

/// What an edge that reconnects has been sent in all, without repeats.
async fn reconnect_at_every_delivery(options: Options) {
    let broker = Broker::start(options).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &["room"])])).await;
    stream.applied(1).await;
    let mut expected = vec!["joined room".to_owned()];
    for n in 0..60 {
        if n % 3 == 0 {
            broker.push(connection(1), &format!("{n}")).await;
            expected.push(format!("pushed {n}"));
        } else {
            // large enough to leave a small tail soon
            let text = format!("{n} {}", "x".repeat(20_000));
            broker.publish("room", &text).await;
            expected.push(format!("published room {text}"));
        }
    }
    let (mut got, mut after) = (Vec::new(), Offset::ZERO);
    while got.len() < expected.len() {
        // takes one frame, and is gone
        let (mut stream, _) = edge.attach(0, after.0).await;
        let frame = stream.wait(|frame| match frame {
            Frame::Deliveries(deliveries) => Some(deliveries.clone()),
            _ => None,
        });
        let frame = frame.await;
        assert!(frame.deliveries.iter().all(|delivery| delivery.offset > after), "repeated");
        got.extend(frame.deliveries.iter().map(text_of));
        after = frame.through;
    }
    assert_eq!(got, expected);
    broker.stop().await;
}

#[tokio::test]
async fn catching_up_from_the_tail_loses_and_repeats_nothing() {
    reconnect_at_every_delivery(Options::default()).await;
}

#[tokio::test]
async fn catching_up_from_the_log_loses_and_repeats_nothing() {
    reconnect_at_every_delivery(Options { tail_bytes: 1, ..Options::default() }).await;
}

/// Openings without room or under an id in use, told to an edge that attaches when they are `tail_bytes` and some in the past.
async fn refused_openings_are_answered(tail_bytes: usize) {
    let broker = Broker::start(Options { tail_bytes, ..Options::default() }).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, attached) = edge.attach(0, 0).await;
    let body = v1::ConnectionOpened {
        edge: "a".to_owned(),
        incarnation: edge.welcome.incarnation,
        peer: "p".repeat(5000),
        ..Default::default()
    };
    let too_long = Record::new(RecordKind::ConnectionOpened, connection(2), "chat", &body);
    let (opened, twice) = (edge.opened(connection(1), &[]), edge.opened(connection(1), &[]));
    stream.send(batch(1, &[opened, too_long, twice])).await;
    stream.applied(1).await;
    broker.publish("room", "end").await;
    let (mut stream, _) = edge.attach(0, attached.start).await;
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let frame = stream.wait(|frame| match frame {
            Frame::Deliveries(deliveries) => Some(deliveries.clone()),
            Frame::Progress { offset } => panic!("nothing more up to {offset}: {answers:?}"),
            _ => None,
        });
        let rejected =
            frame.await.deliveries.into_iter().filter(|one| one.record.kind == RecordKind::ConnectionRejected);
        answers.extend(rejected.map(|one| {
            let status = one.record.decode::<v1::ConnectionRejected>().unwrap().status;
            (one.record.connection, status, one.offset.position())
        }));
    }
    assert_eq!(answers, [(connection(2), 503, 1), (connection(1), 409, 2)]);
    broker.stop().await;
}

#[tokio::test]
async fn a_refused_opening_is_answered_from_the_tail() {
    refused_openings_are_answered(16 << 20).await;
}

#[tokio::test]
async fn a_refused_opening_is_answered_from_the_log() {
    refused_openings_are_answered(1).await;
}

#[tokio::test]
async fn several_deliveries_of_one_offset_stay_in_one_frame() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, attached) = edge.attach(0, 0).await;
    let channels: Vec<String> = (0..100).map(|n| format!("{n}-{}", "c".repeat(200))).collect();
    let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
    stream.send(batch(1, &[edge.opened(connection(1), &channels)])).await;
    stream.applied(1).await;
    let (mut stream, _) = edge.attach(0, attached.start).await;
    let frame = stream.wait(|frame| match frame {
        Frame::Deliveries(deliveries) => Some(deliveries.clone()),
        _ => None,
    });
    assert_eq!(frame.await.deliveries.len(), 100);
    broker.stop().await;
}

#[tokio::test]
async fn a_slow_edge_holds_back_nobody_else() {
    let broker = Broker::start(Options { tail_bytes: 1 << 20, ..Options::default() }).await;
    let slow = Edge::connect(&broker, "slow", 1, 0).await;
    let fast = Edge::connect(&broker, "fast", 2, 0).await;
    let (mut slow_stream, _) = slow.attach(0, 0).await;
    let (mut fast_stream, _) = fast.attach(0, 0).await;
    slow_stream.send(batch(1, &[slow.opened(connection(1), &["room"])])).await;
    slow_stream.applied(1).await;
    fast_stream.send(batch(1, &[fast.opened(connection(2), &["room"])])).await;
    fast_stream.applied(1).await;
    let text = "y".repeat(1 << 20);
    for n in 0..24 {
        broker.publish("room", &format!("{n}{text}")).await;
    }
    broker.publish("room", "end").await;
    // more than any window: the slow one has read nothing of it yet
    let fast_got = deliveries(&mut fast_stream, "published room end").await;
    let slow_got = deliveries(&mut slow_stream, "published room end").await;
    let published = |got: &[(Offset, String)]| got.iter().filter(|(_, text)| text.starts_with("published")).count();
    assert_eq!((published(&fast_got), published(&slow_got)), (25, 25));
    broker.stop().await;
}

#[tokio::test]
async fn unlogged_publishes_reach_the_edges_with_members() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let bystander = Edge::connect(&broker, "b", 2, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    let (mut bystander_stream, _) = bystander.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &["room"])])).await;
    stream.applied(1).await;
    broker.link.publish_unlogged(&published("room", "typing"));
    let unlogged = stream.wait(|frame| match frame {
        Frame::Unlogged(record) => Some(record.clone()),
        _ => None,
    });
    assert_eq!(unlogged.await.decode::<v1::Published>().unwrap().payload, "typing");
    let to_all = v1::Published { api: "chat".to_owned(), payload: Bytes::from_static(b"all"), ..Default::default() };
    let to_all = Record::new(RecordKind::Published, trunkline_proto::ConnectionId::NONE, "chat", &to_all);
    broker.link.publish_unlogged(&to_all);
    let unlogged = bystander_stream.wait(|frame| match frame {
        Frame::Unlogged(record) => Some(record.clone()),
        _ => None,
    });
    assert_eq!(unlogged.await.decode::<v1::Published>().unwrap().payload, "all", "and the channel's did not come");
    broker.stop().await;
}

#[tokio::test]
async fn sockets_are_paused_while_their_group_is_too_far_behind() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let assigned = v1::HandlerAssigned {
        group: "workers".to_owned(),
        member: "m".to_owned(),
        epoch: 1,
        start: Some(v1::Start { at: Some(v1::start::At::Earliest(true)) }),
        ..Default::default()
    };
    let assigned = Record::new(RecordKind::HandlerAssigned, trunkline_proto::ConnectionId::NONE, "", &assigned);
    let partition = broker.node.partition(PartitionId(0)).unwrap();
    partition.append.append(Batch::new(Source::Leader, &[assigned])).await.unwrap();
    let api = pb::Api { name: "chat".to_owned(), handler_group: "workers".to_owned(), max_handler_lag: 10 };
    let (mut stream, _) = edge.attach_with(0, 0, vec![api]).await;
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    for sequence in 2..=12 {
        stream.send(batch(sequence, &[message(connection(1), "x")])).await;
    }
    let paused = |frame: &Frame| match frame {
        Frame::Pause(pause) => Some(pause.apis.clone()),
        _ => None,
    };
    assert_eq!(stream.wait(paused).await, ["chat"]);
    // an operator moves the group to the end
    let reset = v1::GroupReset {
        group: "workers".to_owned(),
        start: Some(v1::Start { at: Some(v1::start::At::Latest(true)) }),
        through: Offset::end_of(partition.tail.applied()).0,
    };
    let reset = Record::new(RecordKind::GroupReset, trunkline_proto::ConnectionId::NONE, "", &reset);
    partition.append.append(Batch::new(Source::Leader, &[reset])).await.unwrap();
    assert_eq!(stream.wait(paused).await, Vec::<String>::new());
    tokio::time::timeout(Duration::from_secs(5), broker.stop()).await.unwrap();
}
