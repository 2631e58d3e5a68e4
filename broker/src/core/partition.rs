//! Step 11 of the walk. Pure apply: dedup, connections, channels, groups → effects. From `raft/state_machine.rs`, to
//! `tail.rs`.

use std::collections::BTreeMap;

use trunkline_proto::{Batch, Entry, LogIndex, Offset, PartitionCount, PartitionId, RecordKind, Source, Timestamp, v1};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    apis::Apis,
    channels::Channels,
    commands::Origin,
    connections::Connections,
    dedup::{CommandKey, Dedup},
    edges::Edges,
    effects::{Applied, BatchOutcome, Done, Refusal, Reply},
    events::From,
    groups::Groups,
    names::Names,
    outbox::Outbox,
    records::{Located, Logged},
    retained::Retained,
};

/// Newest semantics of apply that this program knows. A log begins with `APPLY_VERSION_FIRST` and goes over to a later one by an
/// ApplyVersion record, which is appended only once every member knows it. Whatever changes what apply makes of an entry that a log may
/// hold already raises this, and is done from that version on only; `tests/recorded.rs` fails otherwise.
pub const APPLY_VERSION: u32 = 1;
/// What a log begins with, whoever replays it.
const APPLY_VERSION_FIRST: u32 = 1;

/// A partition's state: a function of its log alone.
#[derive(Clone, Debug)]
pub struct Partition {
    pub(super) id: PartitionId,
    pub(super) count: PartitionCount,
    pub(super) applied: LogIndex,
    pub(super) time: Timestamp,
    /// Rolling, over entries and verdicts.
    pub(super) digest: u64,
    pub(super) apply_version: u32,
    pub(super) trimmed: Offset,
    pub(super) retained: Retained,
    pub(super) apis: Apis,
    /// Handler groups that decide registrations.
    pub(super) registrars: Names,
    pub(super) edges: Edges,
    pub(super) connections: Connections,
    pub(super) channels: Channels,
    pub(super) groups: Groups,
    pub(super) outbox: Outbox,
    /// Per source: offset of the last forward taken.
    pub(super) watermarks: BTreeMap<PartitionId, Offset>,
    pub(super) dedup: Dedup,
}

impl Partition {
    /// The state before the first entry.
    pub fn new(id: PartitionId, count: PartitionCount) -> Self {
        Self {
            id,
            count,
            applied: LogIndex(0),
            time: Timestamp(0),
            digest: 0,
            apply_version: APPLY_VERSION_FIRST,
            trimmed: Offset::ZERO,
            retained: Retained::default(),
            apis: Apis::default(),
            registrars: Names::default(),
            edges: Edges::default(),
            connections: Connections::default(),
            channels: Channels::default(),
            groups: Groups::default(),
            outbox: Outbox::default(),
            watermarks: BTreeMap::new(),
            dedup: Dedup::default(),
        }
    }

    /// Applies one committed entry; indexes only grow. Same state and entry give the same outcome on every replica. Cannot
    /// fail: what is wrong with a record is a refusal.
    pub fn apply(&mut self, index: LogIndex, entry: &Entry) -> Applied {
        let out = self.fold(index, entry, u16::MAX);
        self.digest = roll(self.digest, index, entry, &out);
        self.retained.push(index, self.time, entry);
        out
    }

    /// The state after the record at `position` of the entry, with nothing of the records behind it: history only, nothing may
    /// be applied after it. Each batch is judged as a whole, as [`Partition::apply`] judges it (its sequence, epoch or
    /// predecessor), and so is its HandlerCommitted with all its outcomes, which comes first. The digest is that of an entry
    /// that ends there; at or beyond the last record it is the entry's own.
    pub fn apply_until(&mut self, index: LogIndex, entry: &Entry, position: u16) {
        if position == u16::MAX {
            self.apply(index, entry);
            return;
        }
        let mut out = self.fold(index, entry, position);
        out.refused.retain(|(refused, _)| *refused <= position);
        let entry = cut(entry, position);
        self.digest = roll(self.digest, index, &entry, &out);
        self.retained.push(index, self.time, &entry);
    }

    /// Applies an entry's records up to the one at `through`.
    fn fold(&mut self, index: LogIndex, entry: &Entry, through: u16) -> Applied {
        debug_assert!(index > self.applied);
        self.time = self.time.max(entry.time);
        self.dedup.expire(self.time);
        let mut out = Applied::new(self.time, entry.batches.len());
        let mut first = 0;
        for batch in &entry.batches {
            if is_after(batch, first, through) {
                break;
            }
            let reply = self.apply_batch(&Located { index, first, through, batch }, &mut out);
            out.outcomes.push(BatchOutcome { first, count: batch.count, reply });
            first = first.saturating_add(batch.count);
        }
        self.applied = index;
        out
    }

    /// Notes an entry of the Raft log that holds no records.
    pub fn skip(&mut self, index: LogIndex) {
        self.applied = self.applied.max(index);
    }

    fn apply_batch(&mut self, batch: &Located<'_>, out: &mut Applied) -> Reply {
        match &batch.batch.source {
            Source::Edge(source) => self.apply_edge(source, batch, out),
            Source::Commit => self.apply_commit(batch, out),
            Source::Submit(source) => self.apply_submit(source, batch, out),
            Source::Forward(source) => self.apply_forward(source, batch, out),
            Source::Leader => self.apply_leader(batch, out),
        }
    }

    /// Events of an edge: the batch in sequence and of the current incarnation or not at all, then record by record.
    fn apply_edge(&mut self, source: &v1::EdgeSource, batch: &Located<'_>, out: &mut Applied) -> Reply {
        let edge = match self.edges.admit(source) {
            Ok(edge) => edge,
            Err((refusal, reply)) => return refuse(batch, &refusal, reply, out),
        };
        let from = From { edge, incarnation: source.incarnation };
        for logged in batch.taken() {
            let verdict = self.event(from, &logged, out);
            out.note(logged.position(), verdict);
        }
        Reply::Edge { last_sequence: source.sequence }
    }

    /// A handler's outcomes and its commands: all or nothing, but that a single command may be refused alone.
    fn apply_commit(&mut self, batch: &Located<'_>, out: &mut Applied) -> Reply {
        let group = match self.commit(batch) {
            Ok(group) => group,
            Err(refusal) => return refuse(batch, &refusal, Reply::None, out),
        };
        for logged in batch.taken().skip(1) {
            let verdict = self.command(Origin::Commit(&group), &logged, out);
            out.note(logged.position(), verdict);
        }
        Reply::None
    }

    /// The outcomes of a commit; tells the group.
    fn commit(&mut self, batch: &Located<'_>) -> Result<String, Refusal> {
        let mut records = batch.records();
        let head = records.next().ok_or(Refusal::Malformed)?;
        if head.record.kind != RecordKind::HandlerCommitted || !records.all(|logged| logged.record.kind.is_command()) {
            return Err(Refusal::Malformed);
        }
        let body: v1::HandlerCommitted = head.decode()?;
        if body.commands != u32::from(batch.batch.count) - 1 {
            return Err(Refusal::Malformed);
        }
        let group = body.group.clone();
        self.groups.commit(body, batch.index, self.time, &self.apis)?;
        Ok(group)
    }

    /// Commands that acknowledge nothing, each alone, each once per idempotency key.
    fn apply_submit(&mut self, source: &v1::SubmitSource, batch: &Located<'_>, out: &mut Applied) -> Reply {
        for (n, logged) in (0..).zip(batch.taken()) {
            let key = (!source.key.is_empty()).then(|| CommandKey::new(source, source.first_command.wrapping_add(n)));
            let verdict = match key {
                None => self.command(Origin::Submit, &logged, out),
                Some(key) => self.command_once(key, &logged, out),
            };
            out.note(logged.position(), verdict);
        }
        Reply::None
    }

    fn command_once(&mut self, key: CommandKey, logged: &Logged<'_>, out: &mut Applied) -> Result<Done, Refusal> {
        let bytes = logged.whole();
        self.dedup.check(key, &bytes)?;
        let verdict = self.command(Origin::Submit, logged, out);
        self.dedup.remember(key, &bytes, logged.offset, self.time, &verdict);
        verdict
    }

    /// What another partition's log asks of this one: without gap and without repeat, or not at all.
    fn apply_forward(&mut self, source: &v1::ForwardSource, batch: &Located<'_>, out: &mut Applied) -> Reply {
        let Some(partition) = self.other(source.partition) else {
            return refuse(batch, &Refusal::Malformed, Reply::None, out);
        };
        let (offset, watermark) = (Offset(source.offset), self.watermark(partition));
        if Offset(source.predecessor) != watermark || offset <= watermark {
            return refuse(batch, &Refusal::ForwardGap, Reply::Watermark { offset: watermark }, out);
        }
        self.watermarks.insert(partition, offset);
        for logged in batch.taken() {
            let verdict = self.command(Origin::Forward(partition), &logged, out);
            out.note(logged.position(), verdict);
        }
        Reply::Watermark { offset }
    }

    /// The leader's bookkeeping, record by record; the reply is the last one's that has something to tell.
    fn apply_leader(&mut self, batch: &Located<'_>, out: &mut Applied) -> Reply {
        let mut reply = Reply::None;
        for logged in batch.taken() {
            let (told, verdict) = self.bookkeeping(&logged, out);
            out.note(logged.position(), verdict.map(|()| Done::Here));
            if told != Reply::None {
                reply = told;
            }
        }
        reply
    }

    fn bookkeeping(&mut self, logged: &Logged<'_>, out: &mut Applied) -> (Reply, Result<(), Refusal>) {
        let index = logged.offset.index();
        let verdict = match logged.record.kind {
            RecordKind::ConnectionClosed => self.closed_by_leader(logged, out),
            RecordKind::HandlerAssigned => match logged.decode::<v1::HandlerAssigned>() {
                Ok(body) => return self.groups.assign(&body, index, self.trimmed, self.time, &self.apis),
                Err(refusal) => Err(refusal),
            },
            RecordKind::GroupReset => match logged.decode::<v1::GroupReset>() {
                Ok(body) => return self.groups.reset(&body, index, self.trimmed, &self.apis),
                Err(refusal) => Err(refusal),
            },
            RecordKind::ParkedReleased => match logged.decode::<v1::ParkedReleased>() {
                Ok(body) => return self.groups.release(&body, self.trimmed),
                Err(refusal) => Err(refusal),
            },
            RecordKind::GroupDropped => logged.decode().and_then(|body| self.groups.forget(&body)),
            RecordKind::EdgeAttached => match logged.decode::<v1::EdgeAttached>() {
                // partition 0 grants incarnations
                Ok(body) => return self.edges.attach(&body, self.id == PartitionId(0), logged.offset),
                Err(refusal) => Err(refusal),
            },
            RecordKind::EdgeLost => logged.decode::<v1::EdgeLost>().and_then(|body| self.edges.lose(&body)),
            RecordKind::Forwarded => logged.decode::<v1::Forwarded>().and_then(|body| self.forwarded(&body)),
            RecordKind::Trimmed => logged.decode::<v1::Trimmed>().and_then(|body| self.trim(&body)),
            RecordKind::ApplyVersion => logged.decode::<v1::ApplyVersion>().and_then(|body| self.raise(body.version)),
            _ => Err(Refusal::Malformed),
        };
        (Reply::None, verdict)
    }

    fn forwarded(&mut self, body: &v1::Forwarded) -> Result<(), Refusal> {
        let target = self.other(body.target).ok_or(Refusal::Malformed)?;
        self.outbox.forwarded(target, Offset(body.through));
        Ok(())
    }

    /// The groups it names lose what they had not settled only where the log really goes that far: what they are told is true.
    fn trim(&mut self, body: &v1::Trimmed) -> Result<(), Refusal> {
        let through = Offset(body.through);
        if through <= self.trimmed || through > self.retention_limit(&body.skipping) {
            return Err(Refusal::NotOpen);
        }
        self.groups.skip(through, &body.skipping, &self.apis);
        self.trimmed = through;
        self.retained.trim(whole_entries(through));
        Ok(())
    }

    fn raise(&mut self, version: u32) -> Result<(), Refusal> {
        if version <= self.apply_version || version > APPLY_VERSION {
            return Err(Refusal::Malformed);
        }
        self.apply_version = version;
        Ok(())
    }

    /// Another partition of the cluster by its number.
    fn other(&self, number: u32) -> Option<PartitionId> {
        let partition = PartitionId(u16::try_from(number).ok()?);
        (partition != self.id && partition.0 < self.count.get()).then_some(partition)
    }
}

/// Refuses all of a batch.
fn refuse(batch: &Located<'_>, refusal: &Refusal, reply: Reply, out: &mut Applied) -> Reply {
    out.refuse_batch(batch.first, batch.batch.count, refusal);
    reply
}

/// Whether the batch, which begins at `first`, comes after the record at `position`. One without records does only where
/// another record comes between them.
fn is_after(batch: &Batch, first: u16, position: u16) -> bool {
    first > position.saturating_add(u16::from(batch.count == 0))
}

/// The last entry of which nothing after `through` remains.
pub(super) fn whole_entries(through: Offset) -> LogIndex {
    if through == Offset::end_of(through.index()) {
        through.index()
    } else {
        LogIndex(through.index().0.saturating_sub(1))
    }
}

/// The entry as if it ended with the record at `position`.
fn cut(entry: &Entry, position: u16) -> Entry {
    let (mut batches, mut first) = (Vec::with_capacity(entry.batches.len()), 0u16);
    for batch in &entry.batches {
        if is_after(batch, first, position) {
            break;
        }
        let room = position.saturating_add(1).saturating_sub(first);
        batches.push(if batch.count <= room { batch.clone() } else { first_records(batch, room) });
        first = first.saturating_add(batch.count);
    }
    Entry { time: entry.time, batches }
}

/// The batch's first `count` records, sharing the buffer.
fn first_records(batch: &Batch, count: u16) -> Batch {
    let records = batch.iter().take(usize::from(count)).map_while(Result::ok);
    let bytes: usize = records.map(|record| record.bytes().len()).sum();
    Batch { source: batch.source.clone(), count, records: batch.records.slice(..bytes) }
}

/// The digest after an entry: over the one before it, the entry's place, time and bytes, and what was refused.
fn roll(digest: u64, index: LogIndex, entry: &Entry, out: &Applied) -> u64 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&index.0.to_le_bytes());
    place[8..].copy_from_slice(&entry.time.0.to_le_bytes());
    let digest = xxh3_64_with_seed(&place, digest);
    let digest = entry.batches.iter().fold(digest, roll_batch);
    out.refused.iter().fold(digest, |digest, (position, _)| xxh3_64_with_seed(&position.to_le_bytes(), digest))
}

fn roll_batch(digest: u64, batch: &Batch) -> u64 {
    use prost::Message;
    let header = match &batch.source {
        Source::Edge(source) => xxh3_64(source.edge.as_bytes()) ^ source.incarnation.rotate_left(32) ^ source.sequence,
        Source::Submit(source) => xxh3_64(&source.encode_to_vec()),
        Source::Forward(source) => xxh3_64(&source.encode_to_vec()),
        Source::Commit | Source::Leader => 0,
    };
    let mut place = [0; 8 + 2 + 6];
    place[..8].copy_from_slice(&header.to_le_bytes());
    place[8..10].copy_from_slice(&batch.count.to_le_bytes());
    let name = batch.source.name().as_bytes();
    let tag = name.len().min(6);
    place[10..10 + tag].copy_from_slice(&name[..tag]);
    xxh3_64_with_seed(&batch.records, xxh3_64_with_seed(&place, digest))
}
