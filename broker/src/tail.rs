//! Step 12 of the walk. The applied tail of a partition in memory: wakes live readers and serves them; who has fallen behind
//! it reads the log.

use std::sync::Arc;

use trunkline_proto::LogIndex;

use crate::core::AppliedEntry;

/// What a reader of the tail gets.
#[derive(Debug)]
pub enum TailRead {
    /// The entries after the one asked for, oldest first.
    Entries(Vec<Arc<AppliedEntry>>),
    /// The tail begins later: read the log ([`crate::store::Reader`]).
    Behind,
    /// Nothing yet.
    End,
}

/// Reads one partition's tail. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// Entries after `after`, about `bytes_max` bytes of them and at least one.
    pub fn read(&self, after: LogIndex, bytes_max: usize) -> TailRead {
        unimplemented!()
    }

    /// The last applied entry.
    pub fn applied(&self) -> LogIndex {
        unimplemented!()
    }

    /// Waits until something after `after` is applied. Cancel safe.
    pub async fn wait_past(&self, after: LogIndex) {
        unimplemented!()
    }
}
