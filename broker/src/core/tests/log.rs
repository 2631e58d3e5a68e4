//! A partition and the log it has applied, for tests: every entry goes through its bytes, and `check()` holds after each.

use trunkline_proto::{
    Batch, Entry, EntryBuilder, LogIndex, Offset, PartitionCount, PartitionId, Record, Source, Timestamp, v1,
};

use super::{
    super::{Applied, Partition, Verdict},
    attached, opened,
};

pub(super) struct Log {
    pub(super) state: Partition,
    pub(super) time: u64,
    pub(super) entries: Vec<(LogIndex, Entry)>,
    sequence: u64,
}

impl Log {
    /// Partition 0 of 1.
    pub(super) fn new() -> Self {
        Self::of(0, 1)
    }

    pub(super) fn of(id: u16, count: u16) -> Self {
        let count = PartitionCount::new(count).unwrap();
        Self { state: Partition::new(PartitionId(id), count), time: 1_000_000, entries: Vec::new(), sequence: 0 }
    }

    /// With edge `e1`, incarnation 1, attached.
    pub(super) fn with_edge() -> Self {
        let mut log = Self::new();
        log.leader(&[attached("e1", 0, "n")]);
        log
    }

    /// With edge `e1` and connection 1 open in `channels`.
    pub(super) fn with_connection(channels: &[&str]) -> Self {
        let mut log = Self::with_edge();
        log.edge(&[opened(super::id(1), "", channels)]);
        log
    }

    pub(super) fn put(&mut self, batches: &[Batch]) -> Applied {
        let index = LogIndex(self.state.applied().0 + 1);
        let mut builder = EntryBuilder::new(Timestamp(self.time), 0);
        for batch in batches {
            builder.push(batch);
        }
        let entry = Entry::parse(&builder.finish()).unwrap();
        let applied = self.state.apply(index, &entry);
        self.state.check().unwrap();
        self.entries.push((index, entry));
        applied
    }

    pub(super) fn one(&mut self, source: Source, records: &[Record]) -> Applied {
        self.put(&[Batch::new(source, records)])
    }

    pub(super) fn leader(&mut self, records: &[Record]) -> Applied {
        self.one(Source::Leader, records)
    }

    /// The next batch of `e1`, incarnation 1.
    pub(super) fn edge(&mut self, records: &[Record]) -> Applied {
        self.sequence += 1;
        self.batch_of("e1", 1, self.sequence, records)
    }

    pub(super) fn batch_of(&mut self, edge: &str, incarnation: u64, sequence: u64, records: &[Record]) -> Applied {
        self.one(Source::Edge(v1::EdgeSource { edge: edge.into(), incarnation, sequence }), records)
    }

    /// The verdict on a lone record.
    pub(super) fn verdict(&mut self, source: Source, record: Record) -> Verdict {
        self.one(source, &[record]).verdict(0)
    }

    /// The offset of the last entry's record at `position`.
    pub(super) fn offset(&self, position: u16) -> Offset {
        Offset::new(self.state.applied(), position)
    }

    /// Another replica of the same log.
    pub(super) fn replayed(&self) -> Partition {
        let mut state = Partition::new(self.state.id(), self.state.partition_count());
        for (index, entry) in &self.entries {
            state.apply(*index, entry);
        }
        state
    }
}

impl Applied {
    /// What the first batch's sender is told.
    pub(super) fn reply(&self) -> super::super::Reply {
        self.outcomes[0].reply.clone()
    }
}
