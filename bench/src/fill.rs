//! A partition's log and state without sockets: entries as an edge and its leader would make them.

use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use trunkline_broker::{
    append::{Appended, Handle, Pending},
    core::Partition,
    node::{Node, NodeConfig, SnapshotEvery},
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
    /// Channels that the connections are spread over, each in one; 0: none.
    pub(crate) channels: u64,
    /// Messages, each of a connection picked at random.
    pub(crate) messages: u64,
    pub(crate) payload: usize,
}

impl Contents {
    /// The edge attaches, opens its connections and sends messages.
    pub(crate) fn batches(self) -> impl Iterator<Item = Batch> {
        let attach = v1::EdgeAttached { edge: EDGE.into(), incarnation: 0, nonce: vec![7].into() };
        let attach = Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &attach);
        let mut random = Random::new(1);
        let payload = Bytes::from(noise(self.payload + 4096));
        let total = self.connections + self.messages;
        let numbered = (0..total.div_ceil(BATCH_RECORDS)).map(move |batch| {
            let first = batch * BATCH_RECORDS;
            let records = (first..total.min(first + BATCH_RECORDS))
                .map(|n| if n < self.connections { self.opened(n) } else { self.message(random.next(), &payload) });
            let source = v1::EdgeSource { edge: EDGE.into(), incarnation: 1, sequence: batch + 1 };
            Batch::new(Source::Edge(source), &records.collect::<Vec<_>>())
        });
        std::iter::once(Batch::new(Source::Leader, &[attach])).chain(numbered)
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
        Record::new(RecordKind::ConnectionOpened, id(n), API, &body)
    }

    fn message(self, random: u64, payload: &Bytes) -> Record {
        // a window that moves over the noise, so that no two messages are alike for a compressor
        let at = (random >> 52) as usize;
        let payload = payload.slice(at..at + self.payload);
        let body = v1::MessageReceived { kind: v1::MessageKind::Binary.into(), payload };
        Record::new(RecordKind::MessageReceived, id(random % self.connections.max(1)), API, &body)
    }
}

/// Connection `n`: ids are random.
fn id(n: u64) -> ConnectionId {
    let (mut random, mut id) = (Random::new(n), [0; 16]);
    id[..8].copy_from_slice(&random.next().to_le_bytes());
    id[8..].copy_from_slice(&random.next().to_le_bytes());
    ConnectionId(id)
}

/// What is in a filled log.
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

/// Appends the contents through a broker's own node, each batch synced and applied, none refused. No snapshot is made.
pub(crate) async fn fill(dir: &Path, contents: Contents) -> anyhow::Result<Filled> {
    let mut config = NodeConfig::new(dir, CLUSTER, one_partition()?);
    config.snapshot_every = SnapshotEvery { entries: u64::MAX, bytes: u64::MAX };
    let node = Node::open(config).await?;
    let filled = append_all(&node, contents).await;
    // before the process ends, whatever happened
    node.shutdown().await;
    filled
}

async fn append_all(node: &Node, contents: Contents) -> anyhow::Result<Filled> {
    node.wait_ready().await.map_err(anyhow::Error::msg)?;
    let partition = node.partition(PartitionId(0)).context("no partition 0")?;
    // the edge's batches count from its attachment
    let mut batches = contents.batches();
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

/// Makes a snapshot of a stopped broker's whole log, as its snapshotter would. Blocks.
pub(crate) fn snapshot(dir: &Path, last: LogIndex) -> anyhow::Result<()> {
    let count = one_partition()?;
    let _folder = identity::open_existing(dir)?;
    let marks = marks::read(dir, count)?;
    let db = std::sync::Arc::new(Db::open(dir, count, false)?);
    let reader = Reader::new(db.clone(), PartitionId(0));
    let mut writer = Writer::start(db, dir.to_owned(), marks, Health::new())?;
    let made = snapshotter::make(&reader, count, &writer.handle(), last, &CancellationToken::new());
    writer.stop();
    Ok(made?)
}

/// Folds a stopped broker's log into a state, as its snapshotter does. Blocks.
pub(crate) fn replay(dir: &Path, last: LogIndex) -> anyhow::Result<Partition> {
    let count = one_partition()?;
    let _folder = identity::open_existing(dir)?;
    let db = std::sync::Arc::new(Db::open_read_only(dir, count)?);
    let reader = Reader::new(db, PartitionId(0));
    let mut replay = snapshotter::Replay::from_newest(&reader, count, last)?;
    replay.run(last, &CancellationToken::new())?;
    Ok(replay.state)
}

/// A state with these contents, and nothing else: no log, no tail.
pub(crate) fn state(contents: Contents) -> anyhow::Result<Partition> {
    let mut state = Partition::new(PartitionId(0), one_partition()?);
    for (n, batch) in (1..).zip(contents.batches()) {
        let applied = state.apply(LogIndex(n), &Entry { time: Timestamp(n), batches: vec![batch] });
        ensure!(applied.refused.is_empty(), "refused: {:?}", applied.refused.first());
    }
    Ok(state)
}

fn one_partition() -> anyhow::Result<PartitionCount> {
    PartitionCount::new(1).context("one partition")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Contents = Contents { connections: 700, channels: 10, messages: 1500, payload: 128 };

    #[test]
    fn a_state_holds_what_it_was_filled_with() {
        let state = state(SMALL).unwrap();
        assert_eq!(state.connection_count(), 700);
        assert_eq!(state.channel_count(), 10);
        assert_eq!(state.channel_members("channel-3").count(), 70);
    }

    #[tokio::test]
    async fn a_filled_log_replays_to_the_same_state_with_a_snapshot_and_without() {
        let dir = tempfile::tempdir().unwrap();
        let filled = fill(dir.path(), SMALL).await.unwrap();
        assert_eq!(Filled::of(&replay(dir.path(), filled.last).unwrap()), filled);
        snapshot(dir.path(), filled.last).unwrap();
        assert_eq!(Filled::of(&replay(dir.path(), filled.last).unwrap()), filled);
    }
}
