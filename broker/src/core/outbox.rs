//! What this partition's log asks of other partitions: per target, in order, kept until the target has it. The leader sends it
//! at least once; the target's watermark makes it exactly once.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trunkline_proto::{Offset, PartitionId, Record};

use super::{
    effects::Refusal,
    snapshot::{Reader, SnapshotError, Writer},
};

/// Most forwards that wait for one target before commands for it are refused. Closes are never refused: they are bounded by
/// the connections there are.
pub const OUTBOX_MAX: usize = 100_000;

/// What one record of the log asks of a target.
#[derive(Clone, PartialEq, Debug)]
pub enum OutboxItem {
    /// The record itself: read it from the log at the source offset.
    Logged,
    /// Joins or leaves it means for channels of the target.
    Made(Box<[Record]>),
}

/// A forward that waits.
#[derive(Clone, Copy, Debug)]
pub struct OutboxEntry<'a> {
    /// Of the record that caused it: `offset` of its [`trunkline_proto::Source::Forward`].
    pub source: Offset,
    /// Of the forward before it to the same target: `predecessor` of its `Source::Forward`.
    pub predecessor: Offset,
    /// What to send.
    pub item: &'a OutboxItem,
}

#[derive(Clone, Default, Debug)]
struct Queue {
    items: VecDeque<(Offset, OutboxItem)>,
    /// Source offset of the last forward the target has.
    forwarded: Offset,
}

/// Forwards by target.
#[derive(Clone, Default, Debug)]
pub(super) struct Outbox {
    queues: BTreeMap<PartitionId, Queue>,
}

impl Outbox {
    /// Refuses when too much waits for the target.
    pub(super) fn room(&self, target: PartitionId) -> Result<(), Refusal> {
        let waiting = self.queues.get(&target).map_or(0, |queue| queue.items.len());
        if waiting < OUTBOX_MAX { Ok(()) } else { Err(Refusal::Limit) }
    }

    /// Appends a forward. At most one per source record and target.
    pub(super) fn push(&mut self, target: PartitionId, source: Offset, item: OutboxItem) {
        let queue = self.queues.entry(target).or_default();
        debug_assert!(queue.items.back().is_none_or(|(last, _)| *last < source));
        queue.items.push_back((source, item));
    }

    /// The target has everything up to `through`.
    pub(super) fn forwarded(&mut self, target: PartitionId, through: Offset) {
        let Some(queue) = self.queues.get_mut(&target) else { return };
        let done = queue.items.partition_point(|(source, _)| *source <= through);
        if let Some((source, _)) = queue.items.drain(..done).next_back() {
            queue.forwarded = source;
        }
        // a burst must not hold its memory for ever
        if queue.items.is_empty() {
            queue.items.shrink_to(64);
        }
    }

    /// Targets something waits for.
    pub(super) fn targets(&self) -> impl Iterator<Item = PartitionId> {
        self.queues.iter().filter(|(_, queue)| !queue.items.is_empty()).map(|(target, _)| *target)
    }

    /// Forwards that wait for `target`, those whose source is after `after`.
    pub(super) fn after(&self, target: PartitionId, after: Offset) -> impl Iterator<Item = OutboxEntry<'_>> {
        self.queues.get(&target).into_iter().flat_map(move |queue| {
            let start = queue.items.partition_point(|(source, _)| *source <= after);
            let before = start.checked_sub(1).and_then(|at| queue.items.get(at));
            let mut predecessor = before.map_or(queue.forwarded, |(source, _)| *source);
            queue.items.range(start..).map(move |(source, item)| OutboxEntry {
                source: *source,
                predecessor: std::mem::replace(&mut predecessor, *source),
                item,
            })
        })
    }

    /// Forwards that wait, for all targets.
    pub(super) fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.items.len()).sum()
    }

    /// The first record the log must keep because it is still to be forwarded.
    pub(super) fn first_logged(&self) -> Option<Offset> {
        let logged = self.queues.values().flat_map(|queue| {
            queue.items.iter().find(|(_, item)| *item == OutboxItem::Logged).map(|(source, _)| *source)
        });
        logged.min()
    }

    /// Whether each queue ascends from what was forwarded.
    pub(super) fn check(&self) -> Result<(), String> {
        for (target, queue) in &self.queues {
            let sources = std::iter::once(queue.forwarded).chain(queue.items.iter().map(|(source, _)| *source));
            if !sources.is_sorted_by(|one, next| one < next) {
                return Err(format!("outbox for partition {target} is out of order"));
            }
        }
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.queues.len());
        for (target, queue) in &self.queues {
            out.u16(target.0);
            out.u64(queue.forwarded.0);
            out.length(queue.items.len());
            for (source, item) in &queue.items {
                out.u64(source.0);
                match item {
                    OutboxItem::Logged => out.u32(0),
                    OutboxItem::Made(records) => {
                        out.u32(records.len() as u32);
                        records.iter().for_each(|record| out.bytes(record.bytes()));
                    }
                }
            }
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut outbox = Self::default();
        for _ in 0..input.length()? {
            let target = PartitionId(input.u16()?);
            let mut queue = Queue { forwarded: input.offset()?, ..Queue::default() };
            for _ in 0..input.length()? {
                queue.items.push_back((input.offset()?, decode_item(input)?));
            }
            outbox.queues.insert(target, queue);
        }
        Ok(outbox)
    }
}

fn decode_item(input: &mut Reader<'_>) -> Result<OutboxItem, SnapshotError> {
    let mut records = Vec::new();
    for _ in 0..input.u32()? {
        let mut bytes = Bytes::copy_from_slice(input.bytes()?);
        records.push(Record::split_from(&mut bytes).map_err(|_| SnapshotError::Invalid("forward"))?);
    }
    Ok(if records.is_empty() { OutboxItem::Logged } else { OutboxItem::Made(records.into()) })
}
