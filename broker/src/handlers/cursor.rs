//! Reads one partition for one group: the tail where it reaches, the log on disk where it does not, and what matches the filter
//! of it.

use std::collections::{BTreeMap, VecDeque};

use trunkline_proto::{ConnectionId, LogIndex, Offset, Record, RecordKind, Timestamp, v1};

use super::{again::Again, flow::Arrival};
use crate::{
    core::LoggedEntry,
    node::{Node, PartitionHandle, ReadError},
    tail::TailRead,
};

/// Read ahead of a stream, about; a single entry may be larger.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Entries so close together are read at once although not all of them are wanted.
const NEAR_ENTRIES: u64 = 64;

/// An event the reader has come to.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// Its place.
    pub offset: Offset,
    /// Of its entry.
    pub time: Timestamp,
    /// The record, sharing the entry's buffer.
    pub record: Record,
}

impl Scanned {
    /// What the flow has to know of it.
    pub fn arrival(&self) -> Arrival {
        let Record { kind, connection, .. } = self.record;
        let opens = kind == RecordKind::ConnectionOpened;
        Arrival { offset: self.offset, connection, bytes: self.record.bytes().len(), opens }
    }

    /// As members get it. `None` if the record is no event or its body does not decode: then a newer version wrote it.
    pub fn event(&self, attempt: u32) -> Option<v1::Event> {
        use v1::event::Event as Body;
        let body = match self.record.kind {
            RecordKind::ConnectionOpened => Body::Opened(self.record.decode().ok()?),
            RecordKind::MessageReceived => Body::Message(self.record.decode().ok()?),
            RecordKind::ConnectionClosed => Body::Closed(self.record.decode().ok()?),
            _ => return None,
        };
        Some(v1::Event {
            offset: self.offset.0,
            time: self.time.0,
            attempt,
            connection: bytes::Bytes::copy_from_slice(&self.record.connection.0),
            api: self.record.api().to_owned(),
            event: Some(body),
        })
    }
}

/// Which events a group consumes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Filter {
    /// Empty: all.
    pub apis: Vec<String>,
    /// Record kinds; empty: all events.
    pub kinds: Vec<u32>,
}

impl Filter {
    fn matches(&self, record: &Record) -> bool {
        record.kind.is_event()
            && (self.kinds.is_empty() || self.kinds.contains(&u32::from(record.kind as u8)))
            && (self.apis.is_empty() || self.apis.iter().any(|api| api == record.api()))
    }
}

/// What the reader comes to next.
#[derive(Clone, Debug)]
pub enum Step {
    /// A matching event.
    Event(Scanned),
    /// Nothing that matches up to here.
    Progress(Offset),
    /// An operator moved the group.
    Reset,
}

/// What reading ahead came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// There is more to look at.
    Some,
    /// The end of the log.
    End,
    /// The tail does not reach back so far.
    Behind,
}

/// See the module's head.
#[derive(Debug)]
pub struct Cursor {
    node: Node,
    partition: PartitionHandle,
    group: String,
    filter: Filter,
    /// First record wanted is after this one.
    after: Offset,
    /// The last entry read.
    index: LogIndex,
    /// Moves of the group up to here are in what the reader began with.
    known: LogIndex,
    steps: VecDeque<Step>,
    again: Again,
}

impl Cursor {
    /// Reads what is after `after`, the group's settled prefix as of entry `known`.
    pub fn new(
        node: Node,
        partition: PartitionHandle,
        group: &str,
        filter: Filter,
        after: Offset,
        known: LogIndex,
    ) -> Self {
        // the entry of `after` may hold more records
        let index = LogIndex(after.index().0.saturating_sub(1));
        Self {
            node,
            partition,
            group: group.to_owned(),
            filter,
            after,
            index,
            known,
            steps: VecDeque::new(),
            again: Again::default(),
        }
    }

    /// The last entry that was read ahead.
    pub fn index(&self) -> LogIndex {
        self.index
    }

    /// The next step, if it was read ahead.
    pub fn peek(&self) -> Option<&Step> {
        self.steps.front()
    }

    /// Takes the next step.
    pub fn take_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Reads ahead from the tail.
    pub fn read_tail(&mut self) -> Ahead {
        match self.partition.tail.read(self.index, READ_BYTES) {
            TailRead::Entries(entries) => {
                for entry in &entries {
                    self.take(&entry.logged, entry.applied.time);
                }
                Ahead::Some
            }
            TailRead::End => Ahead::End,
            TailRead::Behind => Ahead::Behind,
        }
    }

    /// Reads ahead from disk. What retention has taken is passed over: those events are gone.
    pub async fn read_log(&mut self) -> Result<(), ReadError> {
        match self.node.read_log(self.partition.id, self.index, READ_BYTES).await {
            Ok(read) => {
                for entry in &read.entries {
                    self.take(entry, entry.entry.time);
                }
                // what holds no records is read too
                self.index = self.index.max(read.through);
                Ok(())
            }
            Err(ReadError::Trimmed { earliest }) if earliest.index() > self.index => {
                tracing::warn!(group = self.group, partition = %self.partition.id, %earliest, "events were trimmed unread");
                self.index = LogIndex(earliest.index().0.saturating_sub(1));
                self.steps.push_back(Step::Progress(Offset::end_of(self.index)));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, entry: &LoggedEntry, time: Timestamp) {
        let mut last = Offset::ZERO;
        for (offset, record) in entry.records().filter(|(offset, _)| *offset > self.after) {
            if self.filter.matches(&record) {
                self.steps.push_back(Step::Event(Scanned { offset, time, record }));
                last = offset;
            } else if entry.index > self.known && is_reset_of(&record, &self.group) {
                self.steps.push_back(Step::Reset);
            }
        }
        self.index = entry.index;
        let end = Offset::end_of(entry.index);
        if last < end && end > self.after {
            match self.steps.back_mut() {
                Some(Step::Progress(progress)) => *progress = end,
                _ => self.steps.push_back(Step::Progress(end)),
            }
        }
    }

    /// The event is passed over; it will be asked for again.
    pub fn keep(&mut self, event: Scanned) {
        self.again.keep(event);
    }

    /// The event at `offset`, which was passed over before.
    pub async fn again(&mut self, offset: Offset) -> Result<Option<Scanned>, ReadError> {
        if let Some(event) = self.again.take(offset) {
            return Ok(Some(event));
        }
        let bytes = self.again.read_ahead();
        let before = LogIndex(offset.index().0.saturating_sub(1));
        let mut events = Vec::new();
        let mut add = |entry: &LoggedEntry, time| {
            let matching = entry.records().filter(|(at, record)| *at >= offset && self.filter.matches(record));
            events.extend(matching.map(|(offset, record)| Scanned { offset, time, record }));
        };
        match self.partition.tail.read(before, bytes) {
            TailRead::Entries(entries) => entries.iter().for_each(|entry| add(&entry.logged, entry.applied.time)),
            TailRead::Behind | TailRead::End => {
                let read = self.node.read_log(self.partition.id, before, bytes).await?;
                read.entries.iter().for_each(|entry| add(entry, entry.entry.time));
            }
        }
        self.again.was_read(events, bytes);
        match self.again.take(offset) {
            Some(event) => Ok(Some(event)),
            // the group may have asked for others when it was passed over
            None => self.record(offset).await,
        }
    }

    /// The record at `offset`, wherever it is.
    pub async fn record(&self, offset: Offset) -> Result<Option<Scanned>, ReadError> {
        read_record(&self.node, &self.partition, offset).await
    }
}

/// Whether an operator changed what is open in the group.
fn is_reset_of(record: &Record, group: &str) -> bool {
    match record.kind {
        RecordKind::GroupReset => record.decode::<v1::GroupReset>().is_ok_and(|reset| reset.group == group),
        RecordKind::ParkedReleased => {
            let released = record.decode::<v1::ParkedReleased>();
            released.is_ok_and(|released| released.group == group && !released.discard)
        }
        _ => false,
    }
}

/// The record at `offset` from the tail or from disk; `None` if there is none, or it was refused.
pub async fn read_record(
    node: &Node,
    partition: &PartitionHandle,
    offset: Offset,
) -> Result<Option<Scanned>, ReadError> {
    let before = LogIndex(offset.index().0.saturating_sub(1));
    if let TailRead::Entries(entries) = partition.tail.read(before, 1)
        && let Some(entry) = entries.first().filter(|entry| entry.logged.index == offset.index())
    {
        return Ok(find(&entry.logged, entry.applied.time, offset));
    }
    let read = node.read_log(partition.id, before, 1).await?;
    let entry = read.entries.first().filter(|entry| entry.index == offset.index());
    Ok(entry.and_then(|entry| find(entry, entry.entry.time, offset)))
}

/// What the flow has to know of the events at `offsets`, which ascend. Of no connection: one that is not there (retention has taken it,
/// or it was refused). Read in ranges: of ten thousand that lie close together each costs no read of its own.
pub async fn read_arrivals(
    node: &Node,
    partition: &PartitionHandle,
    offsets: &[Offset],
) -> Result<Vec<Arrival>, ReadError> {
    let mut arrivals = Vec::with_capacity(offsets.len());
    while let Some(&first) = offsets.get(arrivals.len()) {
        let rest = offsets.get(arrivals.len()..).unwrap_or_default();
        let near = |offset: &&Offset| offset.index().0.saturating_sub(first.index().0) < NEAR_ENTRIES;
        let last = rest.iter().take_while(near).last().copied().unwrap_or(first);
        let bytes = if last.index() > first.index() { READ_BYTES } else { 1 };
        let entries = match node.read_log(partition.id, LogIndex(first.index().0.saturating_sub(1)), bytes).await {
            Ok(read) => read.entries,
            Err(ReadError::Trimmed { earliest }) => {
                // the first is below `earliest`, or would have been read
                let gone = rest.iter().take_while(|offset| offset.index() < earliest.index()).count().max(1);
                arrivals.extend(rest.iter().take(gone).map(|offset| missing(*offset)));
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut found = BTreeMap::new();
        for (offset, record) in entries.iter().flat_map(LoggedEntry::records) {
            if rest.binary_search(&offset).is_ok() {
                found.insert(offset, Scanned { offset, time: Timestamp(0), record }.arrival());
            }
        }
        if !found.contains_key(&first)
            && let Some(scanned) = read_record(node, partition, first).await?
        {
            // a leader may have applied what its own disk does not hold yet
            found.insert(first, scanned.arrival());
        }
        let reached = entries.last().map_or(first.index(), |entry| entry.index.max(first.index()));
        let read = rest
            .iter()
            .take_while(|offset| **offset == first || offset.index() < reached || found.contains_key(*offset));
        arrivals.extend(read.map(|offset| found.get(offset).copied().unwrap_or(missing(*offset))));
    }
    Ok(arrivals)
}

fn missing(offset: Offset) -> Arrival {
    Arrival { offset, connection: ConnectionId::NONE, bytes: 0, opens: false }
}

fn find(entry: &LoggedEntry, time: Timestamp, offset: Offset) -> Option<Scanned> {
    let mut records = entry.records();
    records.find(|(at, _)| *at == offset).map(|(offset, record)| Scanned { offset, time, record })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{raft::AppliedSink, testing::reopened};

    #[tokio::test]
    async fn a_cursor_gets_past_entries_without_records_that_a_snapshot_has_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (node, partition) = reopened(&dir).await;
        let applied = partition.tail.applied();
        partition.tail.installed(applied);
        let mut cursor =
            Cursor::new(node.clone(), partition.clone(), "group", Filter::default(), Offset::ZERO, LogIndex(0));
        let read = async {
            while cursor.read_tail() != Ahead::End {
                cursor.read_log().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("the end of the log");
        let steps: Vec<_> = std::iter::from_fn(|| cursor.take_step()).collect();
        let events = steps.iter().filter_map(|step| if let Step::Event(event) = step { Some(event) } else { None });
        let events: Vec<_> = events.map(|event| (event.offset, event.record.bytes().clone())).collect();
        assert_eq!((events.len(), cursor.index()), (2, applied));
        // what was passed over is found again, in any order, more than once
        for (offset, bytes) in events.iter().chain(events.iter().rev()) {
            let again = cursor.again(*offset).await.unwrap().expect("it is there");
            assert_eq!((again.offset, again.record.bytes()), (*offset, bytes));
        }
        drop(cursor);
        drop(partition);
        node.shutdown().await;
    }
}
