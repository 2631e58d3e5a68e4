//! Makes state snapshots beside the running state: on the blocking pool the log is replayed onto the previous snapshot, so that
//! apply never pauses and nothing is copied under it. One partition at a time.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use trunkline_proto::{LogIndex, Offset, PartitionCount, PartitionId};

use super::{Floor, types};
use crate::{
    core::Partition,
    store::{
        Health, Manifest, Payload, Reader, StoreError, StoredLogId, WriterHandle, reader, snapshot,
        verify::decode_state,
    },
};

/// Snapshots kept of each partition.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Bytes of log read at a time while replaying.
const REPLAY_BYTES: usize = 4 << 20;

/// How much log may follow the newest snapshot before another one is made: what a restart replays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotEvery {
    /// Entries since the last snapshot.
    pub entries: u64,
    /// Bytes of entries since the last snapshot.
    pub bytes: u64,
}

impl Default for SnapshotEvery {
    /// About a second of replay.
    fn default() -> Self {
        Self { entries: 100_000, bytes: 256 << 20 }
    }
}

/// Counts what one partition has applied since its last snapshot, and asks for the next one.
#[derive(Debug)]
pub struct Pace {
    partition: PartitionId,
    every: SnapshotEvery,
    entries: u64,
    bytes: u64,
    requests: mpsc::Sender<(PartitionId, LogIndex)>,
}

impl Pace {
    /// `entries` stand in the log after the newest snapshot already.
    pub fn new(partition: PartitionId, every: SnapshotEvery, requests: mpsc::Sender<(PartitionId, LogIndex)>) -> Self {
        Self { partition, every, entries: 0, bytes: 0, requests }
    }

    pub(super) fn applied(&mut self, index: LogIndex, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes as u64;
        if self.entries < self.every.entries && self.bytes < self.every.bytes {
            return;
        }
        // where the snapshotter is busy the next entry asks again
        if self.requests.try_send((self.partition, index)).is_ok() {
            self.entries = 0;
            self.bytes = 0;
        }
    }

    pub(super) fn installed(&mut self, _index: LogIndex) {
        self.entries = 0;
        self.bytes = 0;
    }
}

/// The task that makes snapshots of a broker's partitions, one after the other.
#[derive(Debug)]
pub struct Snapshotter {
    requests: mpsc::Sender<(PartitionId, LogIndex)>,
    turn: Turn,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Whose turn it is to replay: a second state is in memory meanwhile, so it is one partition's at a time.
pub(crate) type Turn = Arc<Semaphore>;

impl Snapshotter {
    /// Starts the task; `readers` holds one per partition, in order, each with where its log begins. Its queue holds one request
    /// per partition.
    pub fn start(readers: Vec<(Reader, Floor)>, count: PartitionCount, writer: WriterHandle, health: Health) -> Self {
        let (requests, mut queue) = mpsc::channel::<(PartitionId, LogIndex)>(readers.len().max(1));
        let (stop, turn) = (CancellationToken::new(), Turn::new(Semaphore::new(1)));
        let (stopped, turns) = (stop.clone(), Arc::clone(&turn));
        let readers = Arc::new(readers);
        let task = tokio::spawn(async move {
            while let Some(Some((partition, through))) = stopped.run_until_cancelled(queue.recv()).await {
                let Some((reader, floor)) = readers.get(usize::from(partition.0)).cloned() else { continue };
                let (writer, stop) = (writer.clone(), stopped.clone());
                // the semaphore is never closed
                let Some(Ok(_turn)) = stopped.run_until_cancelled(turns.acquire()).await else { break };
                let made = tokio::task::spawn_blocking(move || {
                    let make = || make(&reader, count, &writer, through, &stop);
                    // a trim may delete what is being read: damage is there the second time too
                    make().or_else(|_| make())?;
                    snapshot::retain(&writer, &reader, SNAPSHOTS_KEPT, floor.trimmed())
                });
                let made = made.await;
                match made {
                    Ok(Ok(())) => {}
                    Ok(Err(error @ StoreError::Damaged { .. })) => health.damage(partition, &error.to_string()),
                    Ok(Err(error)) => tracing::warn!(%partition, %error, "no snapshot was made"),
                    Err(error) => tracing::error!(%partition, %error, "the snapshot task ended"),
                }
            }
        });
        Self { requests, turn, stop, task }
    }

    /// For a partition's [`Pace`].
    pub fn requests(&self) -> mpsc::Sender<(PartitionId, LogIndex)> {
        self.requests.clone()
    }

    /// For others that replay.
    pub(crate) fn turn(&self) -> Turn {
        Arc::clone(&self.turn)
    }

    /// Stops; waits for a snapshot under way to give up.
    pub async fn stop(self) {
        self.stop.cancel();
        // a panic was reported when it happened
        let _ = self.task.await;
    }
}

/// Makes a snapshot of the state after entry `through` and writes it. Blocks.
pub fn make(
    reader: &Reader,
    count: PartitionCount,
    writer: &WriterHandle,
    through: LogIndex,
    stop: &CancellationToken,
) -> Result<(), StoreError> {
    // a leader may have applied what its followers hold and its own disk does not yet
    let Some(written) = reader.last()? else { return Ok(()) };
    let through = through.min(written.index);
    let mut replay = Replay::from_newest(reader, count, through)?;
    if replay.last.is_some_and(|last| last.index >= through) || !replay.run(through, stop)? {
        return Ok(());
    }
    let Some(last) = replay.last else { return Ok(()) };
    let bytes = replay.state.encode();
    let manifest = Manifest {
        last,
        membership: replay.members,
        digest: replay.state.digest(),
        state_digest: replay.state.state_digest(),
        bytes: bytes.len() as u64,
        crc: crc32fast::hash(&bytes),
    };
    drop(replay.state);
    // a closed writer has told health already
    let _ = snapshot::write(writer, reader.partition(), &manifest, &bytes);
    Ok(())
}

/// A state that the log is folded into.
#[derive(Debug)]
pub struct Replay<'a> {
    reader: &'a Reader,
    /// The state so far.
    pub state: Partition,
    /// The last entry in it.
    pub last: Option<StoredLogId>,
    /// The membership so far, as stored.
    pub members: (Option<StoredLogId>, Vec<u8>),
}

impl<'a> Replay<'a> {
    /// Begins at the newest snapshot that covers nothing after `through`, or at the beginning.
    pub fn from_newest(reader: &'a Reader, count: PartitionCount, through: LogIndex) -> Result<Self, StoreError> {
        let mut found = snapshot::newest(reader, through)?;
        let decoded = loop {
            let Some(manifest) = found else { break None };
            match decode_state(reader, &manifest) {
                Ok(state) => break Some((manifest, state)),
                Err(error) => {
                    // one that was deleted while it was read is not damaged
                    found = snapshot::newest(reader, through)?;
                    if found.as_ref() == Some(&manifest) {
                        return Err(error);
                    }
                }
            }
        };
        Ok(match decoded {
            Some((manifest, state)) => Self { state, last: Some(manifest.last), members: manifest.membership, reader },
            None => Self {
                state: Partition::new(reader.partition(), count),
                last: None,
                members: (None, types::encode_membership(&openraft::Membership::default())),
                reader,
            },
        })
    }

    /// Folds in the entries up to and with `through`; `false` if stopped before.
    pub fn run(&mut self, through: LogIndex, stop: &CancellationToken) -> Result<bool, StoreError> {
        self.run_until(Offset::end_of(through), stop)
    }

    /// Folds in the records up to and with the one at `end`; `false` if stopped before. Within an entry the replay cannot go on
    /// ([`Partition::apply_until`]).
    pub fn run_until(&mut self, end: Offset, stop: &CancellationToken) -> Result<bool, StoreError> {
        let through = end.index();
        loop {
            let next = self.last.map_or(0, |last| last.index.0 + 1);
            if next > through.0 {
                return Ok(true);
            }
            if stop.is_cancelled() {
                return Ok(false);
            }
            let first = match self.last {
                Some(_) => LogIndex(next),
                None => self.beginning()?,
            };
            let entries = self.reader.entries(first, LogIndex(through.0 + 1), REPLAY_BYTES)?;
            if entries.is_empty() {
                return Err(StoreError::at(self.reader.partition(), first, "it is applied, but missing on disk"));
            }
            for entry in entries {
                let position = if entry.id.index == through { end.position() } else { u16::MAX };
                self.fold(entry.id, &entry.payload, position)?;
            }
        }
    }

    fn beginning(&self) -> Result<LogIndex, StoreError> {
        match self.reader.first()? {
            // Raft's indexes begin at 0 in openraft; a log that begins later needs a snapshot to begin with
            Some(first) if first.index.0 <= 1 => Ok(first.index),
            _ => Err(StoreError::at(
                self.reader.partition(),
                LogIndex(0),
                "no snapshot covers what the log no longer holds",
            )),
        }
    }

    fn fold(&mut self, id: StoredLogId, payload: &Payload, position: u16) -> Result<(), StoreError> {
        match payload {
            Payload::Entry(bytes) => {
                let entry = reader::parse(self.reader.partition(), id.index, bytes)?;
                self.state.apply_until(id.index, &entry, position);
            }
            Payload::Blank => self.state.skip(id.index),
            Payload::Membership(members) => {
                self.members = (Some(id), members.to_vec());
                self.state.skip(id.index);
            }
        }
        self.last = Some(id);
        Ok(())
    }
}
