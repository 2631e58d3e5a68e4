//! Brokers that are away, dead or replaced while the log is trimmed.

use trunkline_proto::{ConnectionId, RecordKind, Source, v1};

use super::*;
use crate::{
    core::Refusal,
    store::{self, Reader, StoredEntry},
};

/// What a replica has of a partition's log: entries and refused records.
type Retained = (Vec<StoredEntry>, Vec<(LogIndex, Vec<(u16, Refusal)>)>);

impl Cluster {
    /// Messages, the last one twice: the second is refused.
    async fn talk(&self, partition: u16, sequences: std::ops::RangeInclusive<u64>) {
        let last = *sequences.end();
        for sequence in sequences {
            self.say(partition, sequence).await;
        }
        self.say(partition, last).await;
    }

    /// Trims a partition up to `keep` entries before its end; gives the last entry that goes.
    async fn trim(&self, partition: u16, keep: u64) -> LogIndex {
        let leader = self.node(self.leader(partition).unwrap());
        let through = LogIndex(handle(leader, partition).tail.applied().0 - keep);
        let body = v1::Trimmed { through: Offset::end_of(through).0, ..Default::default() };
        let record = Record::new(RecordKind::Trimmed, ConnectionId::NONE, "", &body);
        let trimmed = self.append(partition, || Batch::new(Source::Leader, std::slice::from_ref(&record))).await;
        assert_eq!(trimmed, Verdict::Applied);
        through
    }

    fn reader(&self, id: u64, partition: u16) -> Reader {
        self.node(id).reader(PartitionId(partition)).unwrap()
    }

    /// Whether a broker has nothing of a partition's log up to `through`, all the rest, and the snapshot between.
    fn is_gone(&self, id: u64, partition: u16, through: LogIndex) -> bool {
        let reader = self.reader(id, partition);
        let snapshots = store::snapshot::list(&reader).unwrap();
        self.node(id).earliest(PartitionId(partition)).index().0 == through.0 + 1
            && reader.first_on_disk().unwrap() == Some(LogIndex(through.0 + 1))
            && reader.purged().unwrap().map(|purged| purged.index) == Some(through)
            && snapshots.last().map(|oldest| oldest.last.index) == Some(through)
    }

    async fn gone(&self, ids: &[u64], partition: u16, through: LogIndex) {
        eventually(|| ids.iter().all(|id| self.is_gone(*id, partition, through)).then_some(())).await;
    }

    /// What a broker has on disk.
    fn retained(&self, id: u64, partition: u16) -> Retained {
        let reader = self.reader(id, partition);
        let (first, end) = (self.node(id).earliest(PartitionId(partition)).index(), reader.end().unwrap());
        let entries = reader.entries(first, LogIndex(end), usize::MAX).unwrap();
        (entries, reader.refused(first, LogIndex(end)).unwrap())
    }

    /// Waits until two brokers have the same on disk: refused sets are written behind their entries, and so is what others hold.
    async fn same_on_disk(&self, one: u64, other: u64, partition: u16) {
        let is_all = |(entries, refused): &Retained| {
            entries.last().is_some_and(|last| last.id.index == handle(self.node(one), partition).tail.applied())
                && !refused.is_empty()
        };
        let same = || {
            let retained = self.retained(one, partition);
            is_all(&retained) && retained == self.retained(other, partition)
        };
        eventually(|| same().then_some(())).await;
    }

    async fn follower(&self, partition: u16) -> u64 {
        let leader = eventually(|| self.leader(partition)).await;
        (1..=3).find(|id| *id != leader).unwrap()
    }

    /// Where the snapshot ends that a broker has got since it was started; it began with none of its own.
    fn joined_at(&self, id: u64, partition: u16) -> LogIndex {
        handle(self.node(id), partition).tail.since()
    }
}

#[tokio::test]
async fn a_follower_away_across_a_trim_gets_the_snapshot_and_what_is_retained_and_can_lead() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.talk(0, 2..=20).await;
    let away = cluster.follower(0).await;
    cluster.stop(away).await;
    cluster.talk(0, 21..=60).await;
    let through = cluster.trim(0, 15).await;
    cluster.talk(0, 61..=80).await;
    let leader = cluster.leader(0).unwrap();
    cluster.gone(&[leader], 0, through).await;
    cluster.start(away).await;
    cluster.ready(&[away]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.gone(&[1, 2, 3], 0, through).await;
    cluster.same_on_disk(leader, away, 0).await;
    assert_eq!(cluster.joined_at(away, 0), through);
    cluster.node(leader).transfer_leader(PartitionId(0), away).await.unwrap();
    eventually(|| (cluster.leader(0) == Some(away)).then_some(())).await;
    let earliest = cluster.node(away).earliest(PartitionId(0));
    let read = |node: Node, after| async move { node.read_log(PartitionId(0), after, 1).await };
    let first = read(cluster.node(away).clone(), through).await.unwrap().entries;
    let before = read(cluster.node(leader).clone(), through).await.unwrap().entries;
    assert_eq!(format!("{first:?}"), format!("{before:?}"));
    assert!(first[0].index >= earliest.index());
    let trimmed = read(cluster.node(away).clone(), LogIndex(through.0 - 1)).await.unwrap_err();
    assert_eq!(trimmed, ReadError::Trimmed { earliest });
    cluster.talk(0, 81..=85).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_follower_away_catches_up_from_the_log_and_gets_no_snapshot() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.talk(0, 2..=40).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    let away = cluster.follower(0).await;
    cluster.stop(away).await;
    // what it has had already goes: it needs nothing of that
    let through = cluster.trim(0, 30).await;
    cluster.talk(0, 41..=200).await;
    let leader = cluster.leader(0).unwrap();
    cluster.gone(&[leader], 0, through).await;
    cluster.start(away).await;
    cluster.ready(&[away]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.same_on_disk(leader, away, 0).await;
    cluster.gone(&[away], 0, through).await;
    assert_eq!(cluster.joined_at(away, 0), LogIndex(0), "it got a snapshot");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_dead_follower_does_not_keep_what_is_trimmed() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.talk(0, 2..=20).await;
    let dead = cluster.follower(0).await;
    cluster.stop(dead).await;
    let alive: Vec<u64> = (1..=3).filter(|id| *id != dead).collect();
    let mut through = LogIndex(0);
    for round in 1..=4 {
        cluster.talk(0, round * 20 + 1..=round * 20 + 20).await;
        through = cluster.trim(0, 5).await;
        cluster.gone(&alive, 0, through).await;
    }
    cluster.start(dead).await;
    cluster.ready(&[dead]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(cluster.joined_at(dead, 0), through);
    cluster.stop_all().await;
}

#[tokio::test]
async fn another_leads_between_a_trim_and_the_purge() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.talk(0, 2..=40).await;
    let leader = cluster.leader(0).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let held = cluster.node(leader).hold_trims().await;
    let through = cluster.trim(0, 10).await;
    cluster.node(leader).transfer_leader(PartitionId(0), others[0]).await.unwrap();
    cluster.talk(0, 41..=50).await;
    cluster.gone(&others, 0, through).await;
    assert!(!cluster.is_gone(leader, 0, through), "it was held");
    drop(held);
    cluster.gone(&[leader], 0, through).await;
    // and one that stops before it has purged does so when it is back
    let leader = eventually(|| cluster.leader(0)).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let held = cluster.node(leader).hold_trims().await;
    let through = cluster.trim(0, 5).await;
    drop(held);
    cluster.stop(leader).await;
    cluster.talk(0, 51..=60).await;
    cluster.gone(&others, 0, through).await;
    cluster.start(leader).await;
    cluster.ready(&[leader]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.gone(&[1, 2, 3], 0, through).await;
    cluster.same_on_disk(leader, others[0], 0).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_follower_that_is_slow_for_long_does_not_keep_what_is_trimmed_and_gets_a_snapshot() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.talk(0, 2..=10).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    let (leader, slow) = (cluster.leader(0).unwrap(), cluster.follower(0).await);
    // it answers each append in time, and is minutes behind
    cluster.node(slow).drag(Duration::from_secs(3));
    cluster.talk(0, 11..=60).await;
    let before = handle(cluster.node(slow), 0).tail.applied();
    let through = cluster.trim(0, 5).await;
    cluster.gone(&[leader], 0, through).await;
    eventually(|| (cluster.joined_at(slow, 0) == through).then_some(())).await;
    assert!(before.0 + 40 < through.0, "it was behind when the log was trimmed: {before} of {through}");
    cluster.node(slow).drag(Duration::ZERO);
    cluster.talk(0, 61..=80).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.gone(&[1, 2, 3], 0, through).await;
    cluster.same_on_disk(leader, slow, 0).await;
    cluster.stop_all().await;
}
