//! One delivery cursor per (partition, edge), after `broker/src/delivery.rs`: at the tail what apply named, behind it what the log
//! expands to.

use trunkline_broker::core::{
    AppliedEntry, EdgeIndex, Partition,
    expand::{self, Recipient},
};
use trunkline_proto::{
    LogIndex, Offset, Timestamp,
    link::{Deliveries, Delivery, Frame},
};

use crate::{Rules, stored::Kept};

/// What comes next is trimmed.
#[derive(Debug)]
pub(crate) struct Trimmed;

/// Entries of one frame.
const ENTRIES_MAX: usize = 8;

/// A replica as its leader's parts see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) broker: u8,
    pub(crate) state: &'a Partition,
    pub(crate) kept: &'a Kept,
    /// What is before this has left the tail.
    pub(crate) tail: u64,
}

impl View<'_> {
    pub(crate) fn applied(&self) -> u64 {
        self.kept.last()
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&AppliedEntry> {
        self.kept.get(index)
    }

    /// The record at `offset`, unless it was refused.
    pub(crate) fn record(&self, offset: Offset) -> Option<trunkline_proto::Record> {
        let mut records = self.entry(offset.index().0)?.logged.records();
        records.find(|(at, _)| *at == offset).map(|(_, record)| record)
    }
}

#[derive(Debug)]
pub(crate) struct Cursor {
    edge: EdgeIndex,
    name: String,
    after: Offset,
    read: u64,
    given: Offset,
}

impl Cursor {
    pub(crate) fn new(edge: EdgeIndex, name: &str, after: Offset) -> Self {
        let done = after == Offset::end_of(after.index());
        let read = if done { after.index().0 } else { after.index().0.saturating_sub(1) };
        Self { edge, name: name.to_owned(), after, read, given: after }
    }

    /// The next frame: what the next few entries have for this edge, or how far that is.
    pub(crate) fn next(&mut self, rules: Rules, view: View<'_>) -> Result<Option<Frame>, Trimmed> {
        if self.read < view.kept.trimmed() {
            if rules.told {
                return Err(Trimmed);
            }
            self.read = view.kept.trimmed();
        }
        let (mut deliveries, mut applied_at) = (Vec::new(), Timestamp::default());
        for _ in 0..ENTRIES_MAX {
            if self.read >= view.applied() {
                break;
            }
            self.read += 1;
            let Some(entry) = view.entry(self.read) else { continue };
            applied_at = entry.applied.time;
            if self.read >= view.tail {
                let mine = entry.applied.deliveries.iter().filter(|delivery| delivery.targets.contains(self.edge));
                deliveries.extend(mine.map(|delivery| Delivery {
                    offset: Offset::new(LogIndex(self.read), delivery.position),
                    record: delivery.record.clone(),
                }));
            } else {
                self.expand(view, entry, &mut deliveries);
            }
        }
        deliveries.retain(|delivery: &Delivery| delivery.offset > self.after);
        let through = Offset::end_of(LogIndex(self.read));
        if through <= self.given {
            return Ok(None);
        }
        self.given = through;
        Ok(Some(match deliveries.is_empty() {
            true => Frame::Progress { offset: through },
            false => Frame::Deliveries(Deliveries { applied_at, through, deliveries }),
        }))
    }

    fn expand(&self, view: View<'_>, entry: &AppliedEntry, deliveries: &mut Vec<Delivery>) {
        let state = view.state;
        for (offset, expanded) in expand::entry(state.id(), state.partition_count(), &entry.logged) {
            let is_mine = match &expanded.recipient {
                Recipient::Everyone => true,
                Recipient::Edge(name) => *name == self.name,
                Recipient::Connection(id) => {
                    state.connection(id).is_some_and(|connection| connection.edge_index == self.edge)
                }
            };
            if is_mine {
                deliveries.push(Delivery { offset, record: expanded.record });
            }
        }
    }
}
