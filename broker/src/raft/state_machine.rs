//! Step 10 of the walk, between openraft and `core/partition.rs`: committed entries, in order, into the state; refused sets to the
//! writer; what was applied to the tail and to whoever waits for it.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use bytes::Bytes;
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
    type_config::alias::{SnapshotMetaOf, SnapshotOf},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use trunkline_proto::{Entry, LogIndex, PartitionId};

use super::{
    log_store::Log,
    snapshotter::Pace,
    types::{self, EntryBytes, LogId, Members, Response, Types},
};
use crate::{
    core::{AppliedEntry, LoggedEntry, Partition, Refusal},
    metrics::store::{PARTITION_APPLIED_OFFSET, PARTITION_COMMIT_LAG},
    store::{Manifest, Reader, StoreError, Write, WriterHandle, snapshot},
};

/// Who is told what is applied: the tail (step 12). Called on the group's task, in order; must not block.
pub trait AppliedSink: Send + Sync + fmt::Debug {
    /// An entry with records.
    fn entry_applied(&self, entry: Arc<AppliedEntry>);
    /// An entry without records: blank or membership.
    fn passed(&self, index: LogIndex);
    /// A snapshot has replaced everything up to here.
    fn installed(&self, index: LogIndex);
}

/// Positions of an entry's refused records and why, shared between apply, writer and readers.
pub type SharedRefused = Arc<[(u16, Refusal)]>;

/// Refused sets on their way to disk: readers of the log look here first.
#[derive(Clone, Debug, Default)]
pub struct PendingRefused(Arc<Mutex<BTreeMap<LogIndex, SharedRefused>>>);

impl PendingRefused {
    /// Those of `entries` that are not on disk yet, to be looked up before the disk is read.
    pub fn between(&self, after: LogIndex, through: LogIndex) -> Vec<(LogIndex, SharedRefused)> {
        if after >= through {
            return Vec::new();
        }
        let pending = self.0.lock();
        pending.range(LogIndex(after.0 + 1)..=through).map(|(index, refused)| (*index, Arc::clone(refused))).collect()
    }

    fn insert(&self, index: LogIndex, refused: SharedRefused) {
        self.0.lock().insert(index, refused);
    }

    fn remove(&self, index: LogIndex) {
        self.0.lock().remove(&index);
    }
}

/// A snapshot on its way: the state, and the retained part of the log that must come with it. A replica that joined by a
/// state alone would have a hole where consumers' offsets point (reference: dependencies 1.5).
#[derive(Debug)]
pub struct SnapshotData {
    /// The encoded state.
    pub state: SnapshotState,
    /// First and last index of the log entries the sender retains up to the snapshot; `None` if it retains none.
    pub retained: Option<(LogIndex, LogIndex)>,
}

/// Where a snapshot's state is.
#[derive(Debug)]
pub enum SnapshotState {
    /// In memory.
    Bytes(Bytes),
    /// On disk, read when it is needed: openraft asks for the current snapshot to look at its position only.
    Stored(Reader, Box<Manifest>),
}

impl SnapshotState {
    pub(super) async fn load(self) -> Result<Bytes, StoreError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Stored(reader, manifest) => {
                let load = tokio::task::spawn_blocking(move || snapshot::load(&reader, &manifest));
                Ok(load.await.map_err(|error| StoreError::Task(error.to_string()))??.into())
            }
        }
    }
}

/// What a state machine begins with: a snapshot, or nothing.
#[derive(Debug)]
pub struct Initial {
    /// The state.
    pub state: Partition,
    /// The last entry in it.
    pub applied: Option<LogId>,
    /// The membership as of then.
    pub members: Members,
}

/// One partition's state, as openraft drives it.
#[derive(Debug)]
pub struct StateMachine {
    partition: PartitionId,
    state: Arc<RwLock<Partition>>,
    applied: Option<LogId>,
    members: Members,
    log: Log,
    reader: Reader,
    writer: WriterHandle,
    refused: PendingRefused,
    sink: Arc<dyn AppliedSink>,
    /// Term of the last applied entry: whoever leads in that term has applied everything before it.
    term: watch::Sender<u64>,
    pace: Pace,
    applied_gauge: metrics::Gauge,
    lag_gauge: metrics::Gauge,
}

/// What a state machine works with.
#[derive(Debug)]
pub struct Parts {
    /// Its log.
    pub log: Log,
    /// Reads snapshots.
    pub reader: Reader,
    /// Writes refused sets and snapshots.
    pub writer: WriterHandle,
    /// Shared with the readers of the log.
    pub refused: PendingRefused,
    /// Is told what is applied.
    pub sink: Arc<dyn AppliedSink>,
    /// Is told the term of what is applied.
    pub term: watch::Sender<u64>,
    /// Decides when a snapshot is due.
    pub pace: Pace,
}

impl StateMachine {
    /// A state machine that goes on from `initial`.
    pub fn new(initial: Initial, parts: Parts) -> Self {
        let partition = parts.reader.partition();
        let label = partition.to_string();
        if let Some(applied) = &initial.applied {
            parts.log.mark_applied(applied.index + 1);
        }
        Self {
            partition,
            state: Arc::new(RwLock::new(initial.state)),
            applied: initial.applied,
            members: initial.members,
            log: parts.log,
            reader: parts.reader,
            writer: parts.writer,
            refused: parts.refused,
            sink: parts.sink,
            term: parts.term,
            pace: parts.pace,
            applied_gauge: metrics::gauge!(PARTITION_APPLIED_OFFSET, "partition" => label.clone()),
            lag_gauge: metrics::gauge!(PARTITION_COMMIT_LAG, "partition" => label),
        }
    }

    /// The state, shared with everyone who reads it.
    pub fn state(&self) -> Arc<RwLock<Partition>> {
        Arc::clone(&self.state)
    }

    async fn apply_entry(&mut self, index: LogIndex, bytes: &EntryBytes) -> Result<Arc<AppliedEntry>, io::Error> {
        // leaders append only what parses: anything else is damage, and the group stops
        let entry = Entry::parse(&bytes.0).map_err(|error| {
            let place = format!("partition {} index {index}", self.partition);
            io::Error::from(StoreError::Damaged { place, reason: format!("entry: {error}") })
        })?;
        let applied = self.state.write().apply(index, &entry);
        if !applied.refused.is_empty() {
            self.store_refused(index, applied.refused.clone().into()).await;
        }
        let logged = LoggedEntry { index, entry, refused: applied.refused.clone() };
        Ok(Arc::new(AppliedEntry { logged, applied }))
    }

    /// Queues an entry's refused set. Not awaited on disk: a replay comes to the same, and a snapshot's manifest is queued later.
    async fn store_refused(&self, index: LogIndex, refused: SharedRefused) {
        self.refused.insert(index, Arc::clone(&refused));
        let pending = self.refused.clone();
        // after a failed write it stays: readers go on seeing it
        let done = Box::new(move |outcome: Result<(), _>| {
            if outcome.is_ok() {
                pending.remove(index);
            }
        });
        self.writer.submit(self.partition, Write::Refused { index, refused }, Some(done)).await;
    }

    fn advance(&mut self, id: LogId) {
        self.applied = Some(id);
        let term = id.committed_leader_id().term;
        self.term.send_if_modified(|last| std::mem::replace(last, term) != term);
    }

    /// A snapshot of the state as it is. Encodes under the state's read lock: used only where openraft must have a snapshot at
    /// once; the background snapshots are replays beside the running state (snapshotter.rs).
    fn live(&self) -> Option<(Manifest, Bytes)> {
        let last = types::to_stored(self.applied.as_ref()?);
        let state = self.state.read();
        let bytes = state.encode();
        let manifest = Manifest {
            last,
            membership: types::to_stored_members(&self.members),
            digest: state.digest(),
            state_digest: state.state_digest(),
            bytes: bytes.len() as u64,
            crc: crc32fast::hash(&bytes),
        };
        Some((manifest, bytes.into()))
    }

    async fn newest(&self) -> Result<Option<Manifest>, io::Error> {
        let reader = self.reader.clone();
        let newest = tokio::task::spawn_blocking(move || snapshot::newest(&reader, LogIndex(u64::MAX)));
        Ok(newest.await.map_err(io::Error::other)??)
    }

    async fn store(&self, manifest: Manifest, state: Bytes) -> Result<(), io::Error> {
        let (writer, partition) = (self.writer.clone(), self.partition);
        let write = tokio::task::spawn_blocking(move || snapshot::write(&writer, partition, &manifest, &state));
        Ok(write.await.map_err(io::Error::other)??)
    }
}

/// What is kept in a snapshot's meta.
fn meta(manifest: &Manifest) -> io::Result<SnapshotMetaOf<Types>> {
    Ok(SnapshotMetaOf::<Types> {
        last_log_id: Some(types::from_stored(&manifest.last)),
        last_membership: types::from_stored_members(&manifest.membership)?,
    })
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Members), io::Error> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let index = LogIndex(entry.log_id.index);
            let mut response = Response(None);
            match &entry.payload {
                EntryPayload::Normal(bytes) => {
                    let applied = self.apply_entry(index, bytes).await?;
                    self.pace.applied(index, bytes.0.len());
                    self.sink.entry_applied(Arc::clone(&applied));
                    response = Response(Some(applied));
                }
                EntryPayload::Blank | EntryPayload::Membership(_) => {
                    self.state.write().skip(index);
                    if let EntryPayload::Membership(members) = &entry.payload {
                        self.members = Members::new(Some(entry.log_id), members.clone());
                    }
                    self.pace.applied(index, 0);
                    self.sink.passed(index);
                }
            }
            self.advance(entry.log_id);
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
        if let Some(applied) = &self.applied {
            self.log.mark_applied(applied.index + 1);
            self.applied_gauge.set(applied.index as f64);
            let last = self.log.last().map_or(0, |last| last.index);
            self.lag_gauge.set(last.saturating_sub(applied.index) as f64);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { snapshot: self.live(), reader: self.reader.clone(), writer: self.writer.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let Some(last) = meta.last_log_id else { return Ok(()) };
        let bytes = snapshot.state.load().await?;
        let decoded = bytes.clone();
        let state = tokio::task::spawn_blocking(move || {
            Partition::decode(&decoded).map(|state| (state.digest(), state.state_digest(), state))
        });
        let (digest, state_digest, state) = state.await.map_err(io::Error::other)?.map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a received snapshot does not decode: {error}"))
        })?;
        let manifest = Manifest {
            last: types::to_stored(&last),
            membership: types::to_stored_members(&meta.last_membership),
            digest,
            state_digest,
            bytes: bytes.len() as u64,
            crc: crc32fast::hash(&bytes),
        };
        // durable before it takes effect: openraft drops the log it covers
        if self.newest().await?.as_ref() != Some(&manifest) {
            self.store(manifest, bytes).await?;
        }
        *self.state.write() = state;
        self.members = meta.last_membership.clone();
        self.advance(last);
        self.log.mark_applied(last.index + 1);
        self.pace.installed(LogIndex(last.index));
        self.sink.installed(LogIndex(last.index));
        Ok(())
    }

    // openraft sends this to peers whose log it has purged: it must cover what is purged at any time
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotData>>, io::Error> {
        let newest = self.newest().await?;
        let covered = newest.as_ref().map(|manifest| types::from_stored(&manifest.last));
        let retained = self.retained().await?;
        if covered < self.log.purged()
            && let Some((manifest, bytes)) = self.live()
        {
            let data = SnapshotData { state: SnapshotState::Bytes(bytes), retained };
            return Ok(Some(Snapshot { meta: meta(&manifest)?, snapshot: data }));
        }
        let Some(manifest) = newest else { return Ok(None) };
        let meta = meta(&manifest)?;
        let state = SnapshotState::Stored(self.reader.clone(), Box::new(manifest));
        Ok(Some(Snapshot { meta, snapshot: SnapshotData { state, retained } }))
    }
}

impl StateMachine {
    async fn retained(&self) -> Result<Option<(LogIndex, LogIndex)>, io::Error> {
        let reader = self.reader.clone();
        let first = tokio::task::spawn_blocking(move || reader.first()).await.map_err(io::Error::other)??;
        Ok(first.zip(self.applied.as_ref()).map(|(first, last)| (first.index, LogIndex(last.index))))
    }
}

/// Makes the snapshot openraft asks for.
#[derive(Debug)]
pub struct Builder {
    snapshot: Option<(Manifest, Bytes)>,
    reader: Reader,
    writer: WriterHandle,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotData>, io::Error> {
        let Some((manifest, bytes)) = self.snapshot.take() else {
            // nothing is applied yet: there is nothing to write, and installing it changes nothing
            let data = SnapshotData { state: SnapshotState::Bytes(Bytes::new()), retained: None };
            return Ok(Snapshot { meta: SnapshotMetaOf::<Types>::default(), snapshot: data });
        };
        let (writer, reader, stored, state) =
            (self.writer.clone(), self.reader.clone(), manifest.clone(), bytes.clone());
        let write = tokio::task::spawn_blocking(move || snapshot::write(&writer, reader.partition(), &stored, &state));
        write.await.map_err(io::Error::other)??;
        let data = SnapshotData { state: SnapshotState::Bytes(bytes), retained: None };
        Ok(Snapshot { meta: meta(&manifest)?, snapshot: data })
    }
}
