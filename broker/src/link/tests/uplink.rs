use std::time::Duration;

use trunkline_proto::{
    Batch, ConnectionId, Offset, PartitionId, Record, RecordKind, Source,
    link::Frame,
    v1::{self, link as pb},
};

use super::support::{Broker, Edge, Options, Stream, batch, connection, hello, message, until};
use crate::core::Verdict;

/// Kinds of all records that were not refused, in order.
async fn kinds(broker: &Broker) -> Vec<RecordKind> {
    let mut kinds = Vec::new();
    let mut after = trunkline_proto::LogIndex(0);
    loop {
        let entries = broker.node.read_log(PartitionId(0), after, 1 << 20).await.unwrap().entries;
        let Some(last) = entries.last() else { return kinds };
        after = last.index;
        kinds.extend(entries.iter().flat_map(|entry| entry.records().map(|(_, record)| record.kind)));
    }
}

#[tokio::test]
async fn batches_are_applied_in_order_and_answered() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    assert_eq!((edge.welcome.incarnation, edge.welcome.partition_count, edge.welcome.broker), (1, 1, 1));
    assert_eq!((edge.welcome.cluster.as_str(), edge.welcome.grace_ms), ("test", 30_000));
    assert_eq!(edge.welcome.leaders.len(), 1);
    let (mut stream, attached) = edge.attach(0, 0).await;
    assert_eq!(attached.last_sequence, 0);
    assert_ne!(Offset(attached.start), Offset::ZERO);
    stream.send(batch(1, &[edge.opened(connection(1), &[]), message(connection(1), "a")])).await;
    for sequence in 2..=50 {
        stream.send(batch(sequence, &[message(connection(1), "b")])).await;
    }
    stream.applied(50).await;
    let kinds = kinds(&broker).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == RecordKind::MessageReceived).count(), 50);
    broker.stop().await;
}

#[tokio::test]
async fn a_resent_batch_is_applied_once_and_a_gap_is_asked_for() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    let first = batch(1, &[edge.opened(connection(1), &[])]);
    stream.send(first.clone()).await;
    stream.applied(1).await;
    stream.send(first).await;
    stream.applied(1).await;
    stream.send(batch(3, &[message(connection(1), "three")])).await;
    let last = stream.wait(|frame| match frame {
        Frame::Resend { last } => Some(*last),
        _ => None,
    });
    assert_eq!(last.await, 1);
    stream.send(batch(2, &[message(connection(1), "two")])).await;
    stream.send(batch(3, &[message(connection(1), "three")])).await;
    stream.applied(3).await;
    assert_eq!(
        kinds(&broker).await,
        [
            RecordKind::EdgeAttached,
            RecordKind::ConnectionOpened,
            RecordKind::MessageReceived,
            RecordKind::MessageReceived
        ]
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_reconnected_edge_goes_on_where_it_was() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    stream.applied(1).await;
    // sent, and the answer is lost with the connection
    stream.send(batch(2, &[message(connection(1), "two")])).await;
    until("2 applied", || {
        broker.node.partition(PartitionId(0)).unwrap().state.read().edge("a").unwrap().last_sequence == 2
    })
    .await;
    edge.connection.close(0u32.into(), b"");
    let edge = Edge::connect(&broker, "a", 1, edge.welcome.incarnation).await;
    let (mut stream, attached) = edge.attach(0, 0).await;
    assert_eq!(attached.last_sequence, 2);
    stream.send(batch(3, &[message(connection(1), "three")])).await;
    stream.applied(3).await;
    // the same process asking anew is granted the same incarnation
    assert_eq!(Edge::connect(&broker, "a", 1, 0).await.welcome.incarnation, 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_twin_replaces_the_older_process() {
    let broker = Broker::start(Options { partitions: 2, ..Options::default() }).await;
    let mut old = Edge::connect(&broker, "a", 1, 0).await;
    let (mut old_0, _) = old.attach(0, 0).await;
    let (mut old_1, _) = old.attach(1, 0).await;
    old_0.send(batch(1, &[old.opened(connection(2), &[])])).await;
    old_0.applied(1).await;
    let new = Edge::connect(&broker, "a", 2, 0).await;
    assert_eq!(new.welcome.incarnation, 2);
    assert_eq!(old_0.goodbye().await, pb::Reason::Replaced);
    assert_eq!(old_1.goodbye().await, pb::Reason::Replaced);
    assert_eq!(old.control.goodbye().await, pb::Reason::Replaced);
    // what the older had open is closed by the broker
    let partition = broker.node.partition(PartitionId(0)).unwrap();
    until("closed", || partition.state.read().connection_count() == 0).await;
    assert!(kinds(&broker).await.contains(&RecordKind::ConnectionClosed));
    // and it does not come back
    let (connection, _endpoint) = Edge::dial(&broker, "a").await;
    let mut control = Stream::open(&connection).await;
    control.send(hello("a", 1, 1)).await;
    assert_eq!(control.goodbye().await, pb::Reason::Replaced);
    drop(new);
    broker.stop().await;
}

#[tokio::test]
async fn a_silent_edge_is_lost_and_its_connections_are_closed() {
    let grace = Duration::from_millis(1200);
    let broker = Broker::start(Options { grace, ..Options::default() }).await;
    let mut edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    // more than one chunk of closes
    for (sequence, chunk) in (1..).zip(0u16..3) {
        let records: Vec<_> = (0..500u16)
            .map(|n| {
                let mut id = [9; 16];
                id[2..4].copy_from_slice(&(chunk * 500 + n).to_be_bytes());
                edge.opened(trunkline_proto::ConnectionId(id), &[])
            })
            .collect();
        stream.send(batch(sequence, &records)).await;
    }
    stream.applied(3).await;
    let partition = broker.node.partition(PartitionId(0)).unwrap();
    assert_eq!(partition.state.read().connection_count(), 1500);
    // as long as it pings it is not lost
    for _ in 0..8 {
        edge.control.send(Frame::Ping).await;
        tokio::time::sleep(grace / 4).await;
    }
    assert_eq!(partition.state.read().connection_count(), 1500);
    // then it is silent
    assert_eq!(stream.goodbye().await, pb::Reason::Lost);
    assert_eq!(edge.control.goodbye().await, pb::Reason::Lost);
    until("all closed", || partition.state.read().connection_count() == 0).await;
    // a lost incarnation is not let in again; a new one is
    let edge = Edge::connect(&broker, "a", 1, 1).await;
    let mut stream = Stream::open(&edge.connection).await;
    stream.send(edge.attach_frame(0, 0, Vec::new())).await;
    assert_eq!(stream.goodbye().await, pb::Reason::Lost);
    assert_eq!(Edge::connect(&broker, "a", 3, 0).await.welcome.incarnation, 2);
    broker.stop().await;
}

#[tokio::test]
async fn an_edge_that_asks_for_what_is_trimmed_begins_anew_and_what_it_had_open_is_closed_once() {
    let broker = Broker::start(Options { tail_bytes: 1, partitions: 2, ..Options::default() }).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, attached) = edge.attach(0, 0).await;
    let (other, _) = edge.attach(1, 0).await;
    stream.send(batch(1, &[edge.opened(connection(2), &[]), edge.opened(connection(4), &[])])).await;
    stream.applied(1).await;
    stream.send(batch(2, &[message(connection(2), "x")])).await;
    stream.applied(2).await;
    drop(stream);
    let partition = broker.node.partition(PartitionId(0)).unwrap();
    let through = Offset::end_of(partition.tail.applied());
    let trimmed = v1::Trimmed { through: through.0, ..Default::default() };
    let trimmed = Record::new(RecordKind::Trimmed, ConnectionId::NONE, "", &trimmed);
    let appended = partition.append.append(Batch::new(Source::Leader, &[trimmed])).await.unwrap();
    assert_eq!(appended.verdict(0), Verdict::Applied);
    let (mut stream, _) = edge.attach(0, attached.start).await;
    assert_eq!(stream.goodbye().await, pb::Reason::Lost);
    // the log says nothing of that yet: the edge closes its sockets and comes back as another
    assert!(!partition.state.read().edge("a").unwrap().lost);
    assert_eq!(partition.state.read().connection_count(), 2);
    drop((stream, other, edge));
    let edge = Edge::connect(&broker, "a", 3, 0).await;
    assert_eq!(edge.welcome.incarnation, 2);
    let _attached = edge.attach(0, 0).await;
    until("closed", || partition.state.read().connection_count() == 0).await;
    let read = broker.node.read_log(PartitionId(0), through.index(), 1 << 20).await.unwrap();
    let records: Vec<_> = read.entries.iter().flat_map(|entry| entry.records().collect::<Vec<_>>()).collect();
    let closed = |n: u8| {
        let is_it = |record: &Record| record.kind == RecordKind::ConnectionClosed && record.connection == connection(n);
        records.iter().filter(|(_, record)| is_it(record)).count()
    };
    assert_eq!((closed(2), closed(4)), (1, 1));
    broker.stop().await;
}

#[tokio::test]
async fn a_restarted_broker_gives_a_fresh_grace_and_then_closes_what_is_left() {
    let options = Options { grace: Duration::from_millis(1000), ..Options::default() };
    let broker = Broker::start(options).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    stream.applied(1).await;
    let broker = broker.restart(options).await;
    let partition = broker.node.partition(PartitionId(0)).unwrap();
    assert_eq!(partition.state.read().connection_count(), 1, "not judged by silence before the start");
    until("closed", || partition.state.read().connection_count() == 0).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_shutdown_says_so_on_every_stream() {
    let broker = Broker::start(Options::default()).await;
    let mut edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    stream.applied(1).await;
    let stopping = tokio::spawn(broker.stop());
    assert_eq!(stream.goodbye().await, pb::Reason::Shutdown);
    assert_eq!(edge.control.goodbye().await, pb::Reason::Shutdown);
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_shutdown_reaches_a_stream_that_waits_for_a_log_that_stalls() {
    let broker = Broker::start(Options { partitions: 2, ..Options::default() }).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (_first, _) = edge.attach(0, 0).await;
    let writer = broker.node.writer();
    let paused = writer.pause();
    let mut stream = Stream::open(&edge.connection).await;
    stream.send(edge.attach_frame(1, 0, Vec::new())).await;
    until("the stream waits", || broker.link.sessions.cursors().iter().any(|(id, ..)| *id == PartitionId(1))).await;
    broker.link.shutdown.cancel();
    assert_eq!(stream.goodbye().await, pb::Reason::Shutdown);
    drop(paused);
    broker.stop().await;
}

#[tokio::test]
async fn a_full_window_stops_reading_and_nothing_is_lost() {
    // each batch alone is larger than the window
    let broker = Broker::start(Options { in_flight_bytes: 1000, ..Options::default() }).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    let text = "z".repeat(5000);
    for sequence in 2..=100 {
        stream.send(batch(sequence, &[message(connection(1), &text)])).await;
    }
    stream.applied(100).await;
    assert_eq!(kinds(&broker).await.iter().filter(|kind| **kind == RecordKind::MessageReceived).count(), 99);
    broker.stop().await;
}

#[tokio::test]
async fn the_largest_message_passes() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    let text = "m".repeat(trunkline_proto::limits::MESSAGE_BYTES_MAX);
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    stream.send(batch(2, &[message(connection(1), &text)])).await;
    stream.applied(2).await;
    broker.push(connection(1), &text).await;
    let pushed = stream.wait(|frame| match frame {
        Frame::Deliveries(deliveries) => Some(deliveries.deliveries[0].record.bytes().len()),
        _ => None,
    });
    assert!(pushed.await > text.len());
    broker.stop().await;
}
