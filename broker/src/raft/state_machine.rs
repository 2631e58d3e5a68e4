//! Step 10 of the walk, between openraft and `core/partition.rs`: committed entries, in order, into the state; refused sets and closed
//! connections to the writer; what was applied to the tail and to whoever waits for it.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
    type_config::alias::{SnapshotMetaOf, SnapshotOf},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use trunkline_proto::{ConnectionId, Entry, LogIndex, PartitionId, v1};

use super::{
    floor::Floor,
    log_store::Log,
    snapshotter::Pace,
    transfer::{SnapshotData, Transfers},
    types::{self, EntryBytes, LogId, Members, Response, Types},
};
use crate::{
    core::{AppliedEntry, LoggedEntry, Partition, Refusal},
    metrics::store::{LOG_RETAINED_BYTES, PARTITION_APPLIED_OFFSET, PARTITION_COMMIT_LAG},
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

/// Connections that an entry closed, and how they came to be.
pub type SharedClosed = Arc<[(ConnectionId, v1::Opening)]>;

/// Refused sets and closed connections on their way to disk: readers of the log look here first.
#[derive(Clone, Debug, Default)]
pub struct Unwritten {
    refused: Arc<Mutex<BTreeMap<LogIndex, SharedRefused>>>,
    closed: Arc<Mutex<BTreeMap<ConnectionId, v1::Opening>>>,
}

impl Unwritten {
    /// Those of `entries` that are not on disk yet, to be looked up before the disk is read.
    pub fn between(&self, after: LogIndex, through: LogIndex) -> Vec<(LogIndex, SharedRefused)> {
        if after >= through {
            return Vec::new();
        }
        let pending = self.refused.lock();
        pending.range(LogIndex(after.0 + 1)..=through).map(|(index, refused)| (*index, Arc::clone(refused))).collect()
    }

    fn insert(&self, index: LogIndex, refused: SharedRefused) {
        self.refused.lock().insert(index, refused);
    }

    fn remove(&self, index: LogIndex) {
        self.refused.lock().remove(&index);
    }

    /// How a closed connection came to be, if it is not on disk yet.
    pub fn closed(&self, connection: &ConnectionId) -> Option<v1::Opening> {
        self.closed.lock().get(connection).cloned()
    }

    fn close(&self, closed: &[(ConnectionId, v1::Opening)]) {
        if !closed.is_empty() {
            self.closed.lock().extend(closed.iter().cloned());
        }
    }

    fn written(&self, closed: &[(ConnectionId, v1::Opening)]) {
        let mut pending = self.closed.lock();
        closed.iter().for_each(|(id, _)| drop(pending.remove(id)));
    }

    fn remove_through(&self, last: LogIndex) {
        self.refused.lock().retain(|index, _| *index > last);
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
    unwritten: Unwritten,
    sink: Arc<dyn AppliedSink>,
    /// Term of the last applied entry: whoever leads in that term has applied everything before it.
    term: watch::Sender<u64>,
    pace: Pace,
    floor: Floor,
    transfers: Transfers,
    applied_gauge: metrics::Gauge,
    lag_gauge: metrics::Gauge,
    retained_gauge: metrics::Gauge,
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
    pub unwritten: Unwritten,
    /// Is told what is applied.
    pub sink: Arc<dyn AppliedSink>,
    /// Is told the term of what is applied.
    pub term: watch::Sender<u64>,
    /// Decides when a snapshot is due.
    pub pace: Pace,
    /// Where the readable log begins, shared with its readers.
    pub floor: Floor,
    /// Snapshots that are being sent.
    pub transfers: Transfers,
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
            unwritten: parts.unwritten,
            sink: parts.sink,
            term: parts.term,
            pace: parts.pace,
            floor: parts.floor,
            transfers: parts.transfers,
            retained_gauge: metrics::gauge!(LOG_RETAINED_BYTES, "partition" => label.clone()),
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
        let (applied, first) = {
            let mut state = self.state.write();
            let applied = state.apply(index, &entry);
            // before the lock is let go: a connection is in the state or here
            self.unwritten.close(&applied.closed);
            (applied, state.first_retained())
        };
        self.floor.raise(first);
        if !applied.refused.is_empty() {
            self.store_refused(index, applied.refused.clone().into()).await;
        }
        if !applied.closed.is_empty() {
            self.store_closed(index, applied.closed.clone().into()).await;
        }
        let logged = LoggedEntry { index, entry, refused: applied.refused.clone() };
        Ok(Arc::new(AppliedEntry { logged, applied }))
    }

    /// Queues an entry's refused set. Not awaited on disk: a replay comes to the same, and a snapshot's manifest is queued later.
    async fn store_refused(&self, index: LogIndex, refused: SharedRefused) {
        self.unwritten.insert(index, Arc::clone(&refused));
        let pending = self.unwritten.clone();
        // after a failed write it stays: readers go on seeing it
        let done = Box::new(move |outcome: Result<(), _>| {
            if outcome.is_ok() {
                pending.remove(index);
            }
        });
        self.writer.submit(self.partition, Write::Refused { index, refused }, Some(done)).await;
    }

    /// As [`StateMachine::store_refused`], for the connections that an entry closed.
    async fn store_closed(&self, index: LogIndex, closed: SharedClosed) {
        let (pending, written) = (self.unwritten.clone(), Arc::clone(&closed));
        let done = Box::new(move |outcome: Result<(), _>| {
            if outcome.is_ok() {
                pending.written(&written);
            }
        });
        self.writer.submit(self.partition, Write::Closed { index, closed }, Some(done)).await;
    }

    fn advance(&mut self, id: LogId) {
        self.applied = Some(id);
        let term = id.committed_leader_id().term;
        self.term.send_if_modified(|last| std::mem::replace(last, term) != term);
    }

    /// The snapshot where retention trims, if it is made.
    async fn at_trim_point(&self) -> io::Result<Option<Manifest>> {
        let Some(trimmed) = self.floor.trimmed() else { return Ok(None) };
        let reader = self.reader.clone();
        let found = tokio::task::spawn_blocking(move || snapshot::newest(&reader, trimmed));
        let found = found.await.map_err(io::Error::other)??;
        Ok(found.filter(|manifest| manifest.last.index == trimmed))
    }

    /// A snapshot of the state as it is, for openraft's own tests, which apply what is in no log.
    #[cfg(test)]
    fn live_builder(&self) -> Builder {
        let nothing = crate::store::StoredLogId { term: 0, index: LogIndex(0) };
        let state = self.state.read();
        let bytes = state.encode();
        let manifest = Manifest {
            last: self.applied.as_ref().map_or(nothing, types::to_stored),
            membership: types::to_stored_members(&self.members),
            digest: state.digest(),
            state_digest: state.state_digest(),
            bytes: bytes.len() as u64,
            crc: crc32fast::hash(&bytes),
        };
        snapshot::write(&self.writer, self.partition, &manifest, &bytes).unwrap();
        Builder { manifest: Some(manifest), reader: self.reader.clone(), transfers: self.transfers.clone() }
    }
}

/// What is kept in a snapshot's meta.
pub(super) fn meta(manifest: &Manifest) -> io::Result<SnapshotMetaOf<Types>> {
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
            self.retained_gauge.set(self.state.read().retained_bytes() as f64);
        }
        Ok(())
    }

    // openraft asks for one when retention has had a snapshot made where it trims: that one is the answer. Nothing is encoded here
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        #[cfg(test)]
        if force {
            return Some(self.live_builder());
        }
        let _ = force;
        let builder = self.get_snapshot_builder().await;
        builder.manifest.is_some().then_some(builder)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let manifest = self.at_trim_point().await.unwrap_or_else(|error| {
            tracing::warn!(partition = %self.partition, %error, "the snapshot at the trim point cannot be read");
            None
        });
        Builder { manifest, reader: self.reader.clone(), transfers: self.transfers.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let Some(last) = meta.last_log_id else { return Ok(()) };
        let (reader, writer) = (self.reader.clone(), self.writer.clone());
        let install = tokio::task::spawn_blocking(move || install(&reader, &writer, last, &snapshot));
        let state = install.await.map_err(io::Error::other)??;
        // readers are told before the state is there: what they find is never older than what they are told
        self.floor.raise(LogIndex(last.index + 1));
        self.log.installed(last);
        self.unwritten.remove_through(LogIndex(last.index));
        *self.state.write() = state;
        self.members = meta.last_membership.clone();
        self.advance(last);
        self.log.mark_applied(last.index + 1);
        self.pace.installed(LogIndex(last.index));
        self.sink.installed(LogIndex(last.index));
        Ok(())
    }

    // openraft sends this to peers whose log it has purged. The oldest that will do: what follows it they get from the log, so
    // that they end up with everything that is retained
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotData>>, io::Error> {
        let (reader, purged) = (self.reader.clone(), self.log.purged());
        let from = purged.map_or(LogIndex(0), |purged| LogIndex(purged.index));
        let oldest = tokio::task::spawn_blocking(move || snapshot::oldest(&reader, from));
        let Some(manifest) = oldest.await.map_err(io::Error::other)?? else { return Ok(None) };
        let (meta, reader) = (meta(&manifest)?, self.reader.clone());
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::stored(reader, manifest, &self.transfers) }))
    }
}

/// Checks a snapshot that was received and puts it in the place of everything before it, durably: openraft drops the log it covers.
/// Blocks.
fn install(reader: &Reader, writer: &WriterHandle, last: LogId, snapshot: &SnapshotData) -> io::Result<Partition> {
    let (manifest, partition) = (snapshot.manifest(), reader.partition());
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a received snapshot {what}"));
    if manifest.last != types::to_stored(&last) {
        return Err(refused("is of another entry than was said"));
    }
    let bytes = snapshot.load()?;
    let state = Partition::decode(&bytes).map_err(|error| refused(&format!("does not decode: {error}")))?;
    if (state.digest(), state.id(), state.applied()) != (manifest.digest, partition, manifest.last.index) {
        return Err(refused("is not what its manifest says"));
    }
    if !snapshot.is_in(reader) {
        snapshot::write_chunks(writer, partition, manifest.last.index, &bytes)?;
    }
    snapshot::install(writer, partition, manifest)?;
    Ok(state)
}

/// Chunks go over the wire as they are stored.
const _: () = assert!(trunkline_proto::peer::SNAPSHOT_CHUNK_BYTES == snapshot::CHUNK_BYTES);

/// Answers with a stored snapshot.
#[derive(Debug)]
pub struct Builder {
    manifest: Option<Manifest>,
    reader: Reader,
    transfers: Transfers,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotData>, io::Error> {
        let manifest =
            self.manifest.clone().ok_or_else(|| io::Error::other("there is no snapshot at the trim point"))?;
        let meta = meta(&manifest)?;
        let snapshot = SnapshotData::stored(self.reader.clone(), manifest, &self.transfers);
        Ok(Snapshot { meta, snapshot })
    }
}
