//! What an assignment reads, and that it ends with the member and the broker.

use trunkline_proto::{ConnectionId, Offset, PartitionId, RecordKind, v1};

use super::broker::{Broker, PATIENCE, ack, connection, join};
use crate::handlers::{
    cursor::{read_arrivals, read_record},
    flow::Arrival,
};

const P0: PartitionId = PartitionId(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn open_events_are_found_in_ranges_as_one_by_one() {
    let broker = Broker::start(1).await;
    let mut offsets = Vec::new();
    for n in 1..=9 {
        broker.opened(connection(0, n), "chat", "").await;
    }
    let text = "z".repeat(9000); // some ranges take more than one read
    for n in 0..240u8 {
        offsets.push(broker.message(connection(0, n % 9 + 1), "chat", &text).await);
    }
    // as leaders see it: nothing at an offset that was refused, or beyond
    offsets.extend([Offset(offsets[100].0 + 1), Offset(offsets[239].0 + 1)]);
    offsets.sort_unstable();
    let partition = broker.node.partition(P0).unwrap();
    let mut one_by_one = Vec::new();
    for offset in &offsets {
        let scanned = read_record(&broker.node, partition, *offset).await.unwrap();
        one_by_one.push(scanned.map(|scanned| scanned.arrival()));
    }
    assert_eq!(one_by_one.iter().filter(|arrival| arrival.is_none()).count(), 2);
    for stride in [1, 2, 63, 64, 65, 200] {
        let some = |all: &[_]| (0..all.len()).step_by(stride).collect::<Vec<_>>();
        let wanted: Vec<_> = some(&offsets).into_iter().map(|n| offsets[n]).collect();
        let expected: Vec<_> = some(&offsets).into_iter().map(|n| one_by_one[n]).collect();
        let found = read_arrivals(&broker.node, partition, &wanted).await.unwrap();
        assert_eq!(found.iter().map(|arrival| arrival.offset).collect::<Vec<_>>(), wanted);
        let there = |arrival: &Arrival| arrival.connection != ConnectionId::NONE;
        let found: Vec<_> = found.into_iter().map(|arrival| Some(arrival).filter(there)).collect();
        assert_eq!(found, expected, "every {stride}th");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn broker_stops_while_the_log_takes_no_assignment() {
    let broker = Broker::start(1).await;
    let writer = broker.node.writer();
    let paused = writer.pause();
    let _member = broker.join(join("chat", "a"));
    let begun = tokio::time::Instant::now();
    while broker.registry.members("chat").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the member joins");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    broker.shutdown.cancel();
    tokio::time::timeout(PATIENCE, broker.registry.drain()).await.expect("nobody waits for the log");
    drop(paused);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn member_that_goes_while_the_log_stalls_leaves_the_partition_to_the_next() {
    let broker = Broker::start(1).await;
    let offset = broker.opened(connection(0, 1), "chat", "").await;
    let writer = broker.node.writer();
    let paused = writer.pause();
    let gone = broker.join(join("chat", "a"));
    let begun = tokio::time::Instant::now();
    while broker.registry.members("chat").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the member joins");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    drop(gone);
    let mut next = broker.join(join("chat", "b"));
    drop(paused);
    assert_eq!(next.event().await.offset, offset.0);
    next.commit(0, vec![ack(offset.0)], vec![]).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_is_told_what_retention_took_of_its_start_until_it_has_settled_an_event() {
    let broker = Broker::start(1).await;
    broker.opened(connection(0, 1), "chat", "").await;
    let last = broker.message(connection(0, 1), "chat", "gone").await;
    let through = Offset::end_of(last.index());
    broker.lead(P0, RecordKind::Trimmed, &v1::Trimmed { through: through.0 }).await;
    let kept = broker.message(connection(0, 1), "chat", "kept").await;
    let starting = |group: &str, at| v1::Join { start: Some(v1::Start { at: Some(at) }), ..join(group, "m") };
    let told = Some(v1::TrimmedRange { from: last.0, through: through.0 });
    for (group, at, told) in [
        ("earliest", v1::start::At::Earliest(true), None),
        ("offset", v1::start::At::Offset(last.0), told),
        // nothing older is left: whether there was anything, nobody knows
        ("time", v1::start::At::Time(1), Some(v1::TrimmedRange { from: 1 << 16, through: through.0 })),
    ] {
        let mut member = broker.join(starting(group, at));
        member.assigned(1).await;
        assert_eq!(member.trimmed[&0], told, "{group}");
        assert_eq!(member.event().await.offset, kept.0, "{group}");
    }
    // nothing was settled: it is said again, and then no more
    let mut member = broker.join(join("offset", "m"));
    member.assigned(1).await;
    assert_eq!(member.trimmed[&0], told);
    let event = member.event().await;
    member.commit(0, vec![ack(event.offset)], Vec::new()).await;
    let mut member = broker.join(join("offset", "m"));
    member.assigned(1).await;
    assert_eq!(member.trimmed[&0], None);
    broker.stop().await;
}
