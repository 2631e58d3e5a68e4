//! The queue between shards and the link: budget, waiting, pauses, the end of an incarnation.

use std::time::Duration;

use bytes::BufMut;
use tokio::time::timeout;
use trunkline_proto::RecordKind;

use super::*;

const P0: PartitionId = PartitionId(0);
const P1: PartitionId = PartitionId(1);

fn uplink(budget: usize) -> Handle {
    Handle::new(PartitionCount::new(2).unwrap(), 7, budget)
}

/// A connection of partition 0 or 1.
fn connection(partition: u8) -> ConnectionId {
    ConnectionId([0, partition, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

fn bytes(length: usize) -> impl FnOnce(&mut BytesMut) {
    move |out| out.put_bytes(RecordKind::MessageReceived as u8, length)
}

async fn is_pending(future: impl Future) -> bool {
    timeout(Duration::from_millis(20), future).await.is_err()
}

#[tokio::test]
async fn records_go_to_the_partition_of_their_connection() {
    let uplink = uplink(1000);
    uplink.append(connection(0), bytes(10));
    uplink.append(connection(1), bytes(20));
    uplink.append(connection(1), bytes(30));
    let (zero, one) = (uplink.take(P0).unwrap(), uplink.take(P1).unwrap());
    assert_eq!((zero.sequence, zero.count, zero.records.len()), (1, 1, 10));
    assert_eq!((one.sequence, one.count, one.records.len()), (1, 2, 50));
    assert_eq!(uplink.inflight_bytes(), 60);
}

#[tokio::test]
async fn wake_comes_once_per_idle_sender_and_is_never_lost() {
    let uplink = uplink(1000);
    uplink.append(connection(0), bytes(1));
    uplink.append(connection(0), bytes(1));
    timeout(Duration::from_secs(5), uplink.ready(P0)).await.expect("appended before anyone waited");
    assert!(is_pending(uplink.ready(P0)).await, "the second append found the sender awake");
    uplink.take(P0).unwrap();
    uplink.append(connection(0), bytes(1));
    timeout(Duration::from_secs(5), uplink.ready(P0)).await.expect("all was sent, so it slept");
}

#[tokio::test]
async fn full_budget_stops_readers_until_a_quarter_is_free() {
    let uplink = uplink(100);
    for _ in 0..10 {
        assert!(uplink.has_room());
        uplink.append(connection(0), bytes(10));
        uplink.take(P0);
    }
    assert!(!uplink.has_room());
    uplink.append(connection(0), bytes(10));
    assert_eq!(uplink.inflight_bytes(), 110, "close records always get through");
    let mut waiting = Box::pin(uplink.wait_for_room());
    assert!(is_pending(&mut waiting).await);
    uplink.applied(P0, 2).unwrap();
    assert!(is_pending(&mut waiting).await, "no stop and go with every batch");
    uplink.applied(P0, 4).unwrap();
    timeout(Duration::from_secs(5), waiting).await.expect("there is room");
}

#[tokio::test]
async fn tracked_records_resolve_when_applied() {
    let uplink = uplink(1000);
    let mut receiver = uplink.append_tracked(connection(0), bytes(10));
    uplink.take(P0).unwrap();
    assert!(is_pending(&mut receiver).await);
    uplink.applied(P0, 1).unwrap();
    assert_eq!(receiver.await.unwrap(), Ok(()));
    assert_eq!(uplink.inflight_bytes(), 0);
}

#[tokio::test]
async fn flushed_waits_for_every_partition() {
    let uplink = uplink(1000);
    timeout(Duration::from_secs(5), uplink.flushed()).await.expect("nothing waits");
    uplink.append(connection(0), bytes(10));
    uplink.append(connection(1), bytes(10));
    let mut flushed = Box::pin(uplink.flushed());
    assert!(is_pending(&mut flushed).await);
    uplink.take(P0).unwrap();
    uplink.take(P1).unwrap();
    uplink.applied(P0, 1).unwrap();
    assert!(is_pending(&mut flushed).await);
    uplink.append(connection(0), bytes(10));
    uplink.applied(P1, 1).unwrap();
    timeout(Duration::from_secs(5), flushed).await.expect("what came later does not count");
}

#[tokio::test]
async fn lost_incarnation_drops_everything_and_the_next_starts_anew() {
    let uplink = uplink(20);
    let before = uplink.append_tracked(connection(0), bytes(30));
    uplink.take(P0).unwrap();
    let flushed = uplink.flushed();
    uplink.set_paused(P0, vec!["chat".to_owned()]);
    uplink.fence();
    assert_eq!(before.await.unwrap(), Err(UplinkError::Fenced));
    timeout(Duration::from_secs(5), flushed).await.expect("nothing is left to flush");
    assert!(uplink.has_room() && !uplink.is_paused(connection(0), "chat"));
    assert_eq!(uplink.append_tracked(connection(0), bytes(10)).await.unwrap(), Err(UplinkError::Fenced));
    uplink.append(connection(0), bytes(10));
    assert_eq!((uplink.inflight_bytes(), uplink.take(P0)), (0, None));

    uplink.restart(8);
    uplink.resume();
    assert_eq!(uplink.incarnation(), 8);
    uplink.append(connection(0), bytes(10));
    assert_eq!(uplink.take(P0).unwrap().sequence, 1);
    uplink.close();
    assert_eq!(uplink.append_tracked(connection(0), bytes(10)).await.unwrap(), Err(UplinkError::Closed));
}

#[tokio::test]
async fn each_clone_notices_each_change_of_the_pauses() {
    let uplink = uplink(1000);
    let other = uplink.clone();
    assert!(is_pending(uplink.pause_changed()).await);
    uplink.set_paused(P1, vec!["chat".to_owned()]);
    assert!(uplink.is_paused(connection(1), "chat"));
    assert!(!uplink.is_paused(connection(0), "chat") && !uplink.is_paused(connection(1), "news"));
    for handle in [&uplink, &other] {
        timeout(Duration::from_secs(5), handle.pause_changed()).await.expect("changed before it was waited for");
        assert!(is_pending(handle.pause_changed()).await);
    }
    uplink.set_paused(P1, vec!["chat".to_owned()]);
    assert!(is_pending(uplink.pause_changed()).await, "the same set again is no change");
    uplink.set_paused(P1, Vec::new());
    timeout(Duration::from_secs(5), uplink.pause_changed()).await.unwrap();
    assert!(!uplink.is_paused(connection(1), "chat"));
}

#[test]
fn both_kinds_of_pauses_are_counted_apart_and_while_they_last() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let uplink = ::metrics::with_local_recorder(&recorder, || uplink(10));
    let paused = |reason: &str| {
        let line = format!("trunkline_edge_paused_seconds_total{{reason=\"{reason}\"}} ");
        let rendered = recorder.handle().render();
        let value = rendered.lines().find_map(|rendered| rendered.strip_prefix(&line)).unwrap_or("0");
        value.parse::<u64>().unwrap()
    };
    uplink.set_paused(P1, vec!["chat".to_owned()]);
    uplink.count_pauses(Instant::now() + Duration::from_secs(60));
    assert_eq!((paused("handler_lag"), paused("uplink_full")), (60, 0));
    uplink.set_paused(P1, Vec::new());
    uplink.append(connection(0), bytes(20));
    uplink.count_pauses(Instant::now() + Duration::from_secs(30));
    assert_eq!((paused("handler_lag"), paused("uplink_full")), (60, 30));
}
