//! Partitions' logs and states without sockets: entries as an edge and the leaders would make them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use trunkline_broker::{
    append::{Appended, Handle, Pending},
    core::Partition,
    node::{Node, NodeConfig, PartitionHandle, SnapshotEvery},
    raft::snapshotter,
    store::{Db, Health, Reader, Writer, identity, marks},
};
use trunkline_proto::{
    Batch, ConnectionId, Entry, LogIndex, PartitionCount, PartitionId, Record, RecordKind, Source, Timestamp, v1,
};

use crate::scenarios::disk::noise;

/// Records of a batch.
const BATCH_RECORDS: u64 = 512;
/// Batches on their way to the log.
const IN_FLIGHT: usize = 32;
const EDGE: &str = "bench";
const API: &str = "bench";
/// The cluster that a broker's configuration names by default.
const CLUSTER: &str = "trunkline";

/// Reproducible noise: SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What a log is filled with.
#[derive(Clone, Copy)]
pub(crate) struct Contents {
    pub(crate) connections: u64,
    /// That connections and messages are spread over.
    pub(crate) partitions: PartitionCount,
    /// Channels that the connections are spread over, each in one; 0: none.
    pub(crate) channels: u64,
    /// Messages, each of a connection picked at random.
    pub(crate) messages: u64,
    pub(crate) payload: usize,
}

impl Contents {
    /// The edge attaches to a partition, opens its connections there and sends their messages.
    pub(crate) fn batches(self, partition: PartitionId) -> impl Iterator<Item = Batch> {
        // partition 0 grants the incarnation, the others are told
        let incarnation = u64::from(partition.0 != 0);
        let attach = v1::EdgeAttached { edge: EDGE.into(), incarnation, nonce: vec![7].into() };
        let attach = Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &attach);
        let mut random = Random::new(1);
        let payload = Bytes::from(noise(self.payload + 4096));
        let connections = self.share(self.connections, partition);
        let total = connections + self.share(self.messages, partition);
        // the partition's n-th connection
        let nth = move |n| n * u64::from(self.partitions.get()) + u64::from(partition.0);
        let numbered = (0..total.div_ceil(BATCH_RECORDS)).map(move |batch| {
            let first = batch * BATCH_RECORDS;
            let records = (first..total.min(first + BATCH_RECORDS)).map(|n| match n < connections {
                true => self.opened(nth(n)),
                false => {
                    let random = random.next();
                    self.message(nth(random % connections.max(1)), random, &payload)
                }
            });
            let source = v1::EdgeSource { edge: EDGE.into(), incarnation: 1, sequence: batch + 1 };
            Batch::new(Source::Edge(source), &records.collect::<Vec<_>>())
        });
        std::iter::once(Batch::new(Source::Leader, &[attach])).chain(numbered)
    }

    /// Of so many numbers from 0, those that leave the partition's as the remainder.
    fn share(self, total: u64, partition: PartitionId) -> u64 {
        let partitions = u64::from(self.partitions.get());
        (total + partitions - 1 - u64::from(partition.0)) / partitions
    }

    fn opened(self, n: u64) -> Record {
        let channels = if self.channels == 0 { Vec::new() } else { vec![format!("channel-{}", n % self.channels)] };
        let body = v1::ConnectionOpened {
            edge: EDGE.into(),
            incarnation: 1,
            path: "/bench".into(),
            peer: format!("192.0.2.{}:{}", n % 256, 1024 + n % 60_000),
            channels,
            ..Default::default()
        };
        Record::new(RecordKind::ConnectionOpened, id(n, self.partitions), API, &body)
    }

    fn message(self, connection: u64, random: u64, payload: &Bytes) -> Record {
        // a window that moves over the noise, so that no two messages are alike for a compressor
        let at = (random >> 52) as usize;
        let payload = payload.slice(at..at + self.payload);
        let body = v1::MessageReceived { kind: v1::MessageKind::Binary.into(), payload };
        Record::new(RecordKind::MessageReceived, id(connection, self.partitions), API, &body)
    }
}

/// Connection `n`: ids are random, but for their partition, which is the remainder of `n`.
fn id(n: u64, partitions: PartitionCount) -> ConnectionId {
    let (mut random, mut id, count) = (Random::new(n), [0; 16], partitions.get());
    id[..8].copy_from_slice(&random.next().to_le_bytes());
    id[8..].copy_from_slice(&random.next().to_le_bytes());
    let slots = u16::MAX / count;
    let slot = u16::from_be_bytes([id[0], id[1]]) % slots;
    // both fit: slot < 65535 / count, and the remainder is below the count
    id[..2].copy_from_slice(&(slot * count + (n % u64::from(count)) as u16).to_be_bytes());
    ConnectionId(id)
}

/// What is in a partition's filled log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Filled {
    pub(crate) last: LogIndex,
    pub(crate) digest: u64,
    pub(crate) state_digest: u64,
}

impl Filled {
    pub(crate) fn of(state: &Partition) -> Self {
        Self { last: state.applied(), digest: state.digest(), state_digest: state.state_digest() }
    }
}

/// Appends the contents through a broker's own node, to all partitions at once, each batch synced and applied, none refused. No
/// snapshot is made. What is in each partition.
pub(crate) async fn fill(dir: &Path, contents: Contents) -> anyhow::Result<Vec<Filled>> {
    let mut config = NodeConfig::new(dir, CLUSTER, contents.partitions);
    config.snapshot_every = SnapshotEvery { entries: u64::MAX, bytes: u64::MAX };
    let node = Node::open(config).await?;
    let filled = append_everywhere(&node, contents).await;
    // before the process ends, whatever happened
    node.shutdown().await;
    filled
}

async fn append_everywhere(node: &Node, contents: Contents) -> anyhow::Result<Vec<Filled>> {
    node.wait_ready().await.map_err(anyhow::Error::msg)?;
    let mut appending = Vec::new();
    for id in contents.partitions.iter() {
        let partition = node.partition(id).with_context(|| format!("no partition {id}"))?.clone();
        appending.push(tokio::spawn(append_all(partition, contents)));
    }
    let mut filled = Vec::new();
    for partition in appending {
        filled.push(partition.await??);
    }
    Ok(filled)
}

async fn append_all(partition: PartitionHandle, contents: Contents) -> anyhow::Result<Filled> {
    // the edge's batches count from its attachment
    let mut batches = contents.batches(partition.id);
    let attach = batches.next().context("no batches")?;
    applied(enqueue(&partition.append, attach).await?).await?;
    let mut pending = std::collections::VecDeque::new();
    for batch in batches {
        if pending.len() >= IN_FLIGHT
            && let Some(oldest) = pending.pop_front()
        {
            applied(oldest).await?;
        }
        pending.push_back(enqueue(&partition.append, batch).await?);
    }
    for last in pending {
        applied(last).await?;
    }
    Ok(Filled::of(&partition.state.read()))
}

async fn enqueue(append: &Handle, batch: Batch) -> anyhow::Result<Pending> {
    Ok(append.enqueue(batch).await?)
}

async fn applied(pending: Pending) -> anyhow::Result<Appended> {
    let appended = pending.await??;
    ensure!(appended.entry.applied.refused.is_empty(), "refused: {:?}", appended.entry.applied.refused.first());
    Ok(appended)
}

/// Makes snapshots of a stopped broker's whole logs, one after the other, as its snapshotter would. Blocks.
pub(crate) fn snapshot(dir: &Path, count: PartitionCount, filled: &[Filled]) -> anyhow::Result<()> {
    let _folder = identity::open_existing(dir)?;
    let marks = marks::read(dir, count)?;
    let db = std::sync::Arc::new(Db::open(dir, count, false)?);
    let mut writer = Writer::start(db.clone(), dir.to_owned(), marks, Health::new())?;
    let made = count.iter().zip(filled).try_for_each(|(id, filled)| {
        let reader = Reader::new(db.clone(), id);
        snapshotter::make(&reader, count, &writer.handle(), filled.last, &CancellationToken::new())
    });
    writer.stop();
    Ok(made?)
}

/// Folds a stopped broker's log into a state, as its snapshotter does. Blocks.
pub(crate) fn replay(dir: &Path, count: PartitionCount, id: PartitionId, last: LogIndex) -> anyhow::Result<Partition> {
    let _folder = identity::open_existing(dir)?;
    let db = std::sync::Arc::new(Db::open_read_only(dir, count)?);
    let reader = Reader::new(db, id);
    let mut replay = snapshotter::Replay::from_newest(&reader, count, last)?;
    replay.run(last, &CancellationToken::new())?;
    Ok(replay.state)
}

/// A partition's state with these contents, and nothing else: no log, no tail. And how long applying took, without making what
/// was applied.
pub(crate) fn state(contents: Contents, id: PartitionId) -> anyhow::Result<(Partition, Duration)> {
    let (mut state, mut took) = (Partition::new(id, contents.partitions), Duration::ZERO);
    for (n, batch) in (1..).zip(contents.batches(id)) {
        let entry = Entry { time: Timestamp(n), batches: vec![batch] };
        let started = Instant::now();
        let applied = state.apply(LogIndex(n), &entry);
        took += started.elapsed();
        ensure!(applied.refused.is_empty(), "refused: {:?}", applied.refused.first());
    }
    Ok((state, took))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PartitionCount = PartitionCount::new(1).unwrap();
    const THREE: PartitionCount = PartitionCount::new(3).unwrap();
    const SMALL: Contents = Contents { connections: 700, partitions: ONE, channels: 10, messages: 1500, payload: 128 };

    #[test]
    fn a_state_holds_what_it_was_filled_with() {
        let (state, _) = state(SMALL, PartitionId(0)).unwrap();
        assert_eq!(state.connection_count(), 700);
        assert_eq!(state.channel_count(), 10);
        assert_eq!(state.channel_members("channel-3").count(), 70);
    }

    #[tokio::test]
    async fn filled_logs_replay_to_the_same_states_with_snapshots_and_without() {
        let dir = tempfile::tempdir().unwrap();
        let filled = fill(dir.path(), Contents { partitions: THREE, ..SMALL }).await.unwrap();
        let replayed = || {
            let states =
                THREE.iter().zip(&filled).map(|(id, filled)| replay(dir.path(), THREE, id, filled.last).unwrap());
            states.collect::<Vec<_>>()
        };
        let states = replayed();
        assert_eq!(states.iter().map(Filled::of).collect::<Vec<_>>(), filled);
        assert_eq!(states.iter().map(Partition::connection_count).collect::<Vec<_>>(), [234, 233, 233]);
        snapshot(dir.path(), THREE, &filled).unwrap();
        assert_eq!(replayed().iter().map(Filled::of).collect::<Vec<_>>(), filled);
    }
}
