//! Nothing twice, nothing lost, in order; and a full shard holds back the feed.

use proptest::prelude::*;
use tokio::time::timeout;
use trunkline_proto::{ConnectionId, LogIndex, Timestamp, v1};

use super::*;
use crate::inbox::{SHARD_INBOX_MAX, ShardInbox, inbox};

const P: PartitionId = PartitionId(0);

fn shards(count: usize) -> (Downlink, Vec<ShardInbox>) {
    let (handles, inboxes) = (0..count).map(|_| inbox()).unzip();
    (Downlink::new(handles), inboxes)
}

fn at(index: u64) -> Offset {
    Offset::new(LogIndex(index), 0)
}

/// A connection that shard `shard` of at most 256 owns.
fn connection(shard: u8) -> ConnectionId {
    ConnectionId([9, 9, shard, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])
}

fn pushed(shard: u8) -> Record {
    Record::new(RecordKind::Pushed, connection(shard), "chat", &v1::Pushed::default())
}

fn published() -> Record {
    Record::new(RecordKind::Published, ConnectionId::NONE, "chat", &v1::Published::default())
}

fn frame(through: u64, deliveries: impl IntoIterator<Item = (u64, Record)>) -> Deliveries {
    let deliveries = deliveries.into_iter().map(|(index, record)| Delivery { offset: at(index), record });
    Deliveries { applied_at: Timestamp(5), through: at(through), deliveries: deliveries.collect() }
}

/// Entry indexes a shard has been handed so far.
fn handed(inbox: &mut ShardInbox) -> Vec<u64> {
    let mut offsets = Vec::new();
    while let Ok(input) = inbox.inputs.try_recv() {
        match input {
            ShardInput::Deliveries(partition, deliveries) => {
                assert_eq!((partition, deliveries.applied_at), (P, Timestamp(5)));
                offsets.extend(deliveries.deliveries.iter().map(|delivery| delivery.offset.index().0));
            }
            ShardInput::Unlogged(_) => offsets.push(0),
            other => panic!("{other:?}"),
        }
    }
    offsets
}

#[tokio::test]
async fn publishes_go_to_all_and_the_rest_to_the_owner() {
    let (downlink, mut inboxes) = shards(3);
    let mut feed = Feed::new(P, downlink);
    feed.take(frame(9, [(1, pushed(1)), (2, published()), (3, pushed(2)), (3, pushed(1))])).unwrap();
    feed.take(frame(12, [(10, pushed(4))])).unwrap();
    feed.take_unlogged(&published());
    feed.hand_over().await;
    assert_eq!(feed.seen(), at(12));
    assert_eq!(inboxes.iter_mut().map(handed).collect::<Vec<_>>(), [vec![2, 0], vec![1, 2, 3, 10, 0], vec![2, 3, 0]]);
}

#[tokio::test]
async fn shards_that_get_nothing_are_not_woken_and_publishes_are_shared() {
    let (downlink, mut inboxes) = shards(2);
    let mut feed = Feed::new(P, downlink);
    feed.take(frame(1, [(1, pushed(0))])).unwrap();
    feed.take(frame(5, [])).unwrap();
    feed.hand_over().await;
    assert!(inboxes[1].inputs.try_recv().is_err());
    assert_eq!((handed(&mut inboxes[0]), feed.seen()), (vec![1], at(5)));
    feed.take(frame(6, [(6, published())])).unwrap();
    feed.hand_over().await;
    let both: Vec<_> = inboxes.iter_mut().map(|inbox| inbox.inputs.try_recv().unwrap()).collect();
    match &both[..] {
        [ShardInput::Deliveries(_, one), ShardInput::Deliveries(_, other)] => assert!(Arc::ptr_eq(one, other)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_seen_is_dropped_after_a_reconnect() {
    let (downlink, mut inboxes) = shards(1);
    let mut feed = Feed::new(P, downlink);
    feed.attached(at(4)).unwrap();
    feed.take(frame(6, [(4, pushed(0)), (5, pushed(0)), (6, pushed(0))])).unwrap();
    feed.progress(at(8));
    feed.attached(at(8)).unwrap();
    feed.take(frame(9, [(6, pushed(0)), (8, pushed(0)), (9, pushed(0))])).unwrap();
    feed.attached(at(3)).unwrap();
    feed.take(frame(7, [(6, pushed(0)), (7, pushed(0))])).unwrap();
    feed.hand_over().await;
    assert_eq!((handed(&mut inboxes[0]), feed.seen()), (vec![5, 6, 9], at(9)));
}

#[tokio::test]
async fn gaps_and_disorder_are_named() {
    let mut feed = Feed::new(P, shards(1).0);
    feed.attached(at(100)).unwrap();
    assert_eq!(feed.attached(at(101)), Err(FeedError::Gap { start: at(101), seen: at(100) }));
    let disorder = frame(110, [(105, pushed(0)), (104, pushed(0))]);
    assert_eq!(feed.take(disorder), Err(FeedError::Order { at: at(104) }));
    assert_eq!(feed.take(frame(103, [(104, pushed(0))])), Err(FeedError::Order { at: at(103) }));
    assert_eq!(feed.seen(), at(100));
}

#[tokio::test]
async fn backpressure_of_one_shard_and_a_cut_hand_over_loses_and_repeats_nothing() {
    let (downlink, mut inboxes) = shards(2);
    let mut feed = Feed::new(P, downlink);
    let most = SHARD_INBOX_MAX as u64;
    for index in 1..=most {
        feed.take(frame(index, [(index, pushed(0))])).unwrap();
        feed.hand_over().await;
    }
    feed.take(frame(most + 1, [(most + 1, published())])).unwrap();
    for _ in 0..3 {
        assert!(timeout(Duration::from_millis(10), feed.hand_over()).await.is_err(), "shard 0 has no room");
    }
    assert_eq!(handed(&mut inboxes[1]), Vec::<u64>::new(), "order: shard 0 comes first, and nobody overtakes");
    assert_eq!(handed(&mut inboxes[0]), (1..=most).collect::<Vec<_>>());
    feed.hand_over().await;
    assert_eq!((handed(&mut inboxes[0]), handed(&mut inboxes[1])), (vec![most + 1], vec![most + 1]));
}

#[tokio::test]
async fn released_shards_end_and_deliveries_go_nowhere() {
    let (downlink, mut inboxes) = shards(1);
    let mut feed = Feed::new(P, downlink.clone());
    feed.take(frame(1, [(1, pushed(0))])).unwrap();
    downlink.release();
    feed.take(frame(2, [(2, pushed(0))])).unwrap();
    feed.hand_over().await;
    assert_eq!(feed.seen(), at(2));
    assert!(inboxes[0].inputs.recv().await.is_none());
}

proptest! {
    /// A broker that resends from anywhere at or before what was seen, cut into frames anywhere.
    #[test]
    fn each_offset_reaches_its_shard_once_in_order(
        owners in proptest::collection::vec(proptest::option::of(0u8..3), 1..60),
        cuts in proptest::collection::vec((0usize..60, 1usize..20), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (downlink, mut inboxes) = shards(3);
            let mut feed = Feed::new(P, downlink);
            let mut got = vec![Vec::new(); 3];
            for (back, length) in cuts.into_iter().chain([(0, owners.len())]) {
                let seen = feed.seen().index().0 as usize;
                let start = seen.saturating_sub(back);
                let end = (start + length).min(owners.len());
                let record = |index: usize| owners[index].map_or_else(published, pushed);
                let deliveries = (start..end).map(|index| (index as u64 + 1, record(index)));
                feed.take(frame(end.max(start) as u64, deliveries)).unwrap();
                feed.hand_over().await;
                for (shard, inbox) in inboxes.iter_mut().enumerate() {
                    got[shard].extend(handed(inbox));
                }
            }
            let through = feed.seen().index().0;
            for (shard, got) in got.iter().enumerate() {
                let own = |index: &u64| owners[*index as usize - 1].is_none_or(|owner| usize::from(owner) == shard);
                assert_eq!(got, &(1..=through).filter(own).collect::<Vec<_>>());
            }
        });
    }
}
