//! Step 11 of the walk. Pure apply: dedup, connections, channels, groups → effects.

use trunkline_proto::{Entry, LogIndex, Offset, PartitionCount, PartitionId, Timestamp};

use super::effects::{Applied, EdgeIndex};

/// A partition's state: a function of its log alone.
#[derive(Clone, PartialEq, Debug)]
pub struct Partition {}

impl Partition {
    /// The state before the first entry.
    pub fn new(id: PartitionId, count: PartitionCount) -> Self {
        unimplemented!()
    }

    /// Applies one committed entry. Same state and entry give the same outcome on every replica. Cannot fail: what is wrong
    /// with a record is a refusal.
    pub fn apply(&mut self, index: LogIndex, entry: &Entry) -> Applied {
        unimplemented!()
    }
}
